//! Slots that change while vCPUs fault, and ranges that are populated ahead, by many CPUs at once: threads of the host on real
//! memory. What must be refused is refused, and changes nothing.

use memory::frames::{FramePool, arena};
use memory::{
    Access, AddressSpace, CpuMemory, Fault, FaultKind, FaultOutcome, LogPolicy, MAX_SLOTS,
    MemorySystem, NotPopulated, Object, Owner, Parallel, SlotConfig, SlotError, SlotId, VmId,
};
use stage2::{Features, Ipa, IpaRange, Layout, Level, NoTlb, PAGE_SIZE, Pa};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

const START: Ipa = Ipa::new(0x4000_0000);
/// Pages of a block of 2 MiB.
const BLOCK: u64 = 512;
const CPUS: usize = 4;

type Space = AddressSpace<Parallel>;

/// A machine with a pool of its own.
struct Machine {
    system: &'static MemorySystem,
    pool: &'static FramePool,
}

impl Machine {
    fn new(frames: usize) -> Self {
        let pool: &FramePool = Box::leak(Box::new(FramePool::new()));
        // SAFETY: the arena is leaked, and added once.
        unsafe { pool.add(arena::leak(frames)) };
        let system: &MemorySystem = Box::leak(Box::new(MemorySystem::new(pool, CPUS, 8).unwrap()));
        Self { system, pool }
    }

    /// One of its CPUs, each for one thread.
    fn cpu(&self, number: usize) -> CpuMemory<NoTlb> {
        let counters = Box::leak(Box::default());
        CpuMemory::new(self.system, number, NoTlb, counters)
    }

    /// The frames that back guests.
    fn guest(&self) -> u64 {
        let counts = self.pool.counts();
        counts.check().unwrap();
        counts.guest
    }
}

fn space(cpu: &CpuMemory<NoTlb>) -> Space {
    let layout = Layout::new(Features::armv8_0(40, 48)).unwrap();
    Space::new(cpu, VmId::new(0).unwrap(), layout).unwrap()
}

fn anonymous(cpu: &CpuMemory<NoTlb>, pages: u64, piece: Level) -> Arc<Object> {
    let account = Owner::Vm(VmId::new(0).unwrap());
    Object::anonymous(cpu, account, pages * PAGE_SIZE, piece).unwrap()
}

fn page(number: u64) -> Ipa {
    START.offset(number * PAGE_SIZE)
}

fn pages(first: u64, end: u64) -> IpaRange {
    page(first)..page(end)
}

/// All of an object as slot `id`, from page `at` on.
fn slot(id: u32, at: u64, object: Arc<Object>) -> SlotConfig {
    SlotConfig {
        id: SlotId(id),
        start: page(at),
        offset: 0,
        bytes: object.bytes(),
        object,
        read_only: false,
        write_faults: false,
    }
}

fn fault(space: &Space, cpu: &CpuMemory<NoTlb>, number: u64, access: Access) -> FaultOutcome {
    let kind = match space.lookup(cpu, page(number)) {
        Some(_) => FaultKind::Permission,
        None => FaultKind::Translation,
    };
    let fault = Fault {
        vcpu: 0,
        ipa: page(number),
        va: None,
        access,
        kind,
    };
    space.fault(cpu, &fault)
}

#[test]
fn a_write_is_logged_in_its_own_slot_whichever_its_cpu_wrote_to_last() {
    let machine = Machine::new(1024);
    let cpu = machine.cpu(0);
    let space = space(&cpu);
    // Two with a gap between them, then one that follows at once; of the last pages, what is behind them is another's.
    let ends = [(1, 0, 3), (2, 8, 70), (3, 78, 5)];
    for (id, at, count) in ends {
        let object = anonymous(&cpu, count, Level::L3);
        space.map_object(&cpu, slot(id, at, object)).unwrap();
        for number in at..at + count {
            let written = fault(&space, &cpu, number, Access::Write);
            assert_eq!(written, FaultOutcome::Resolved);
        }
        let policy = LogPolicy::default();
        space.enable_dirty_log(&cpu, SlotId(id), &policy).unwrap();
    }
    let edges = [0, 2, 8, 77, 78, 82];
    for last in edges {
        for (id, at, count) in ends {
            for number in [at, at + count - 1] {
                fault(&space, &cpu, last, Access::Write);
                fault(&space, &cpu, number, Access::Write);
                let written = [last, number];
                for (other, at, count) in ends {
                    let mut log = vec![0; (count as usize).div_ceil(64)];
                    let harvested = space.get_and_clear_dirty_log(&cpu, SlotId(other), 0, &mut log);
                    harvested.unwrap();
                    for page in 0..count {
                        let is_dirty = log[page as usize / 64] >> (page % 64) & 1 != 0;
                        let expected = written.contains(&(at + page));
                        assert_eq!(
                            is_dirty, expected,
                            "{written:?}, slot {other}, page {page} ({id})"
                        );
                    }
                }
            }
        }
        // What no slot covers is nobody's, behind whichever slot.
        for nowhere in [3, 7, 83] {
            fault(&space, &cpu, last, Access::Write);
            let outcome = fault(&space, &cpu, nowhere, Access::Write);
            assert_eq!(outcome, FaultOutcome::NoSlot);
        }
        for (id, ..) in ends {
            let mut log = [0; 2];
            let words = if id == 2 { 2 } else { 1 };
            let log = &mut log[..words];
            space
                .get_and_clear_dirty_log(&cpu, SlotId(id), 0, log)
                .unwrap();
        }
    }
}

/// Says that it is over when it is dropped.
struct Ends<'o>(&'o AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_vm_ends_while_the_cpu_that_made_its_slots_does_nothing() {
    const LIMIT: Duration = Duration::from_secs(60);
    let (ended, has_ended) = mpsc::channel();
    thread::spawn(move || {
        let machine = Machine::new(1024);
        let cpus: Vec<_> = (0..CPUS).map(|number| machine.cpu(number)).collect();
        let layout = Layout::new(Features::armv8_0(40, 48)).unwrap();
        let vm = |vm| Space::new(&cpus[0], VmId::new(vm).unwrap(), layout).unwrap();
        let [one, two] = [0, 1].map(vm);
        let own = anonymous(&cpus[0], 8, Level::L3);
        two.map_object(&cpus[0], slot(1, 64, own)).unwrap();
        // A list of who maps it, and one of a VM's slots, take the place of others each time.
        let shared = Object::shared(&cpus[0], 8 * PAGE_SIZE, Level::L3).unwrap();
        for space in [&two, &one] {
            let config = slot(0, 0, shared.clone());
            space.map_object(&cpus[0], config).unwrap();
        }
        two.prefault(&cpus[1], 1, pages(64, 72), Access::Write)
            .unwrap();
        assert_eq!(machine.guest(), 8);
        two.remove_slot(&cpus[1], SlotId(1)).unwrap();
        let left = machine.guest();
        two.destroy(&cpus[1]);
        drop(shared);
        one.destroy(&cpus[1]);
        ended.send(left).unwrap();
    });
    let left = has_ended.recv_timeout(LIMIT).expect("it ends");
    assert_eq!(left, 0, "memory of a slot that has gone");
}

#[test]
fn many_cpus_populate_a_range_at_once_and_no_page_gets_two_frames() {
    for piece in [Level::L3, Level::L2] {
        const PAGES: u64 = 4 * BLOCK;
        let machine = Machine::new(2 * PAGES as usize + 512);
        let cpu = machine.cpu(0);
        let space = space(&cpu);
        space
            .map_object(&cpu, slot(0, 0, anonymous(&cpu, PAGES, piece)))
            .unwrap();
        thread::scope(|scope| {
            for number in 1..CPUS as u64 {
                let (machine, space) = (&machine, &space);
                scope.spawn(move || {
                    let cpu = machine.cpu(number as usize);
                    // All of it, from another page on each.
                    let middle = number * PAGES / CPUS as u64 + 7;
                    for range in [pages(middle, PAGES), pages(0, middle)] {
                        let access = match number % 2 {
                            0 => Access::Read,
                            _ => Access::Write,
                        };
                        let own = usize::MAX;
                        // A thread that the host has stopped may hold an entry for long.
                        while let Err(error) = space.prefault(&cpu, own, range.clone(), access) {
                            assert_eq!(error.reason, NotPopulated::Busy);
                        }
                    }
                });
            }
        });
        assert_eq!(machine.guest(), PAGES, "{piece:?}");
        for number in 0..PAGES {
            let (leaf, _) = space.lookup(&cpu, page(number)).unwrap();
            assert!(Access::Write.allowed_by(leaf), "{piece:?}, page {number}");
        }
        space.destroy(&cpu);
        cpu.wait_for_epoch();
        assert_eq!(machine.guest(), 0);
        assert_eq!(machine.pool.counts().table, 0);
    }
}

#[test]
fn slots_come_move_and_go_while_vcpus_fault() {
    const PLACES: u64 = 4;
    const ROUNDS: u64 = 150;
    let machine = Machine::new(16 << 10);
    let cpu = machine.cpu(0);
    let space = space(&cpu);
    let (over, served) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for number in 1..CPUS {
            let (machine, space, over, served) = (&machine, &space, &over, &served);
            scope.spawn(move || {
                let cpu = machine.cpu(number);
                let mut random = number as u64;
                while !over.load(Ordering::Relaxed) {
                    random = random.wrapping_mul(6_364_136_223_846_793_005) + 1;
                    let access = match random >> 62 {
                        0 => Access::Write,
                        _ => Access::Read,
                    };
                    let at = (random >> 33) % (PLACES * 2 * BLOCK);
                    match fault(space, &cpu, at, access) {
                        FaultOutcome::Resolved => {
                            served.fetch_add(1, Ordering::Relaxed);
                        }
                        FaultOutcome::Retry | FaultOutcome::NoSlot => {}
                        other => panic!("page {at}: {other:?}"),
                    }
                    cpu.idle();
                }
            });
        }
        let read = |at: u64| {
            let mut word = [0; 8];
            let backed = space.read_guest(&cpu, page(at), &mut word);
            backed.map(|()| u64::from_le_bytes(word))
        };
        // The others end when this does, however it does.
        let ends = Ends(&over);
        let mut at = 0;
        for round in 0..ROUNDS {
            let piece = [Level::L3, Level::L2][(round % 2) as usize];
            let object = anonymous(&cpu, BLOCK, piece);
            space.map_object(&cpu, slot(1, at, object)).unwrap();
            for number in [0, 9, BLOCK - 1] {
                let word = (round << 32 | number).to_le_bytes();
                space.write_guest(&cpu, page(at + number), &word).unwrap();
            }
            // Elsewhere, or half over itself, where blocks don't fit.
            let to = match round % 3 {
                0 => (at + BLOCK / 2) % (PLACES * BLOCK),
                _ => (at + 3 * BLOCK) % (PLACES * BLOCK),
            };
            space.move_slot(&cpu, SlotId(1), page(to)).unwrap();
            for left in (at..at + BLOCK).filter(|left| !(to..to + BLOCK).contains(left)) {
                assert_eq!(space.lookup(&cpu, page(left)), None, "round {round}");
            }
            for number in [0, 9, BLOCK - 1] {
                assert_eq!(read(to + number), Ok(round << 32 | number), "round {round}");
            }
            space.remove_slot(&cpu, SlotId(1)).unwrap();
            for left in to..to + BLOCK {
                assert_eq!(space.lookup(&cpu, page(left)), None, "round {round}");
            }
            assert!(read(to).is_err());
            at = to;
        }
        drop(ends);
    });
    assert!(
        served.load(Ordering::Relaxed) > ROUNDS,
        "nobody was in the way"
    );
    assert_eq!(machine.guest(), 0);
    space.destroy(&cpu);
    cpu.wait_for_epoch();
    assert_eq!(machine.pool.counts().table, 0);
}

#[test]
fn changes_that_are_refused_change_nothing() {
    let machine = Machine::new(2048);
    let cpu = machine.cpu(0);
    let space = space(&cpu);
    let two = [0, 1].map(|_| anonymous(&cpu, 8, Level::L3));
    space.map_object(&cpu, slot(0, 0, two[0].clone())).unwrap();
    space.map_object(&cpu, slot(1, 8, two[1].clone())).unwrap();
    space.write_guest(&cpu, page(0), b"first").unwrap();
    space.write_guest(&cpu, page(8), b"other").unwrap();
    let too_high = SlotError::BeyondIpaSpace { bits: 40 };
    let unaligned = SlotError::Unaligned { piece: PAGE_SIZE };
    for (to, error) in [
        (page(8), SlotError::Overlaps(SlotId(1))),
        (page(1), SlotError::Overlaps(SlotId(1))),
        (page(15), SlotError::Overlaps(SlotId(1))),
        (Ipa::new((1 << 40) - 7 * PAGE_SIZE), too_high),
        (Ipa::new(1 << 40), too_high),
        (Ipa::new(PAGE_SIZE.wrapping_neg()), too_high),
        (Ipa::new(START.get() + 512), unaligned),
    ] {
        assert_eq!(space.move_slot(&cpu, SlotId(0), to), Err(error), "{to}");
    }
    // What only touches another, and the last addresses that there are, are fine.
    let object = anonymous(&cpu, 8, Level::L3);
    let last = Ipa::new((1 << 40) - 8 * PAGE_SIZE);
    for start in [page(16), last] {
        let config = SlotConfig {
            start,
            ..slot(2, 0, object.clone())
        };
        space.map_object(&cpu, config).unwrap();
        space.remove_slot(&cpu, SlotId(2)).unwrap();
    }
    let unknown = SlotError::Unknown(SlotId(2));
    assert_eq!(space.remove_slot(&cpu, SlotId(2)), Err(unknown));
    assert_eq!(space.move_slot(&cpu, SlotId(2), last), Err(unknown));
    for (at, expected) in [(0, b"first"), (8, b"other")] {
        let mut bytes = [0; 5];
        space.read_guest(&cpu, page(at), &mut bytes).unwrap();
        assert_eq!(bytes, *expected);
    }
    space.destroy(&cpu);
    drop((two, object));
    cpu.wait_for_epoch();
    assert_eq!(machine.guest(), 0);
}

#[test]
fn a_range_that_is_invalidated_may_be_any() {
    let machine = Machine::new(1024);
    let cpu = machine.cpu(0);
    let space = space(&cpu);
    let object = anonymous(&cpu, 4, Level::L3);
    space.map_object(&cpu, slot(0, 0, object)).unwrap();
    let is_mapped = || space.lookup(&cpu, page(1)).is_some();
    let (within, end) = (page(1).offset(8), page(2));
    for (range, goes) in [
        (Ipa::new(u64::MAX - 4095)..Ipa::new(u64::MAX), false),
        (end..within, false),
        (page(0)..page(1), false),
        (within..within.offset(8), true),
        (within..Ipa::new(u64::MAX), true),
        (Ipa::new(0)..Ipa::new(1 << 40), true),
    ] {
        assert_eq!(fault(&space, &cpu, 1, Access::Read), FaultOutcome::Resolved);
        assert!(is_mapped());
        space.invalidate(&cpu, range.clone());
        assert_eq!(is_mapped(), !goes, "{range:?}");
    }
    space.destroy(&cpu);
}

/// Its address would lose the bits that descriptors have no room for, and lead to other memory.
#[test]
fn a_device_that_no_descriptor_can_name_is_given_to_nobody() {
    let machine = Machine::new(1024);
    let cpu = machine.cpu(0);
    let space = space(&cpu);
    let bits = space.stage2().layout().pa_bits();
    let end = 1u64 << bits;
    let device = |start: u64| {
        // SAFETY: no guest runs.
        unsafe { Object::device(&cpu, Pa::new(start)..Pa::new(start + 2 * PAGE_SIZE)) }.unwrap()
    };
    for start in [end, end - PAGE_SIZE, end << 2] {
        let config = slot(0, 0, device(start));
        let refused = Err(SlotError::BeyondPhysical { bits });
        assert_eq!(space.map_object(&cpu, config), refused, "{start:#x}");
    }
    space
        .map_object(&cpu, slot(0, 0, device(end - 2 * PAGE_SIZE)))
        .unwrap();
    space.destroy(&cpu);
}

#[test]
fn what_a_guest_alleges_of_a_range_is_checked_to_its_last_page() {
    let machine = Machine::new(2048);
    let cpu = machine.cpu(0);
    let space = space(&cpu);
    space
        .map_object(&cpu, slot(0, 0, anonymous(&cpu, 8, Level::L3)))
        .unwrap();
    space
        .map_object(&cpu, slot(1, 8, anonymous(&cpu, 8, Level::L3)))
        .unwrap();
    let image = Object::image(&cpu, &[7; 2 * PAGE_SIZE as usize]).unwrap();
    let read_only = SlotConfig {
        read_only: true,
        ..slot(2, 16, image)
    };
    space.map_object(&cpu, read_only).unwrap();
    let registers = arena::leak(2);
    // SAFETY: nobody uses the memory.
    let device = unsafe { Object::device(&cpu, registers) }.unwrap();
    space.map_object(&cpu, slot(3, 18, device)).unwrap();
    let check = |first, end, access| space.check_range(&cpu, &pages(first, end), access);
    assert_eq!(check(0, 16, Access::Write), Ok(()), "two slots");
    assert_eq!(check(3, 18, Access::Read), Ok(()), "three");
    let refused = Err(NotPopulated::NotPermitted);
    assert_eq!(check(0, 17, Access::Write), refused, "an image");
    assert_eq!(check(0, 19, Access::Read), refused, "a device");
    let nothing = Err(NotPopulated::NoSlot);
    assert_eq!(check(20, 21, Access::Read), nothing);
    space.remove_slot(&cpu, SlotId(1)).unwrap();
    assert_eq!(check(0, 8, Access::Write), Ok(()));
    assert_eq!(check(0, 9, Access::Write), nothing, "a page too many");
    assert_eq!(check(0, 18, Access::Write), nothing, "a gap");
    assert_eq!(
        space.check_range(&cpu, &(Ipa::new(0)..page(1)), Access::Read),
        nothing
    );
    space.destroy(&cpu);
}

#[test]
fn all_slots_of_a_vm_can_be_changed_at_once_by_several_cpus() {
    let machine = Machine::new(4096);
    let cpu = machine.cpu(0);
    let space = space(&cpu);
    let each = (MAX_SLOTS / (CPUS - 1)) as u32;
    thread::scope(|scope| {
        for number in 1..CPUS as u32 {
            let (machine, space) = (&machine, &space);
            scope.spawn(move || {
                let cpu = machine.cpu(number as usize);
                let own = || (number - 1) * each..number * each;
                for id in own() {
                    let object = anonymous(&cpu, 1, Level::L3);
                    let config = slot(id, u64::from(id) * 2, object);
                    space.map_object(&cpu, config).unwrap();
                    let word = id.to_le_bytes();
                    let at = page(u64::from(id) * 2);
                    space.write_guest(&cpu, at, &word).unwrap();
                }
                for id in own() {
                    let to = page(u64::from(id) * 2 + 1);
                    space.move_slot(&cpu, SlotId(id), to).unwrap();
                }
                for id in own().step_by(2) {
                    space.remove_slot(&cpu, SlotId(id)).unwrap();
                }
            });
        }
    });
    for id in 0..each * (CPUS as u32 - 1) {
        let mut word = [0; 4];
        let read = space.read_guest(&cpu, page(u64::from(id) * 2 + 1), &mut word);
        let is_there = (id % each) % 2 == 1;
        assert_eq!(read.is_ok(), is_there, "slot {id}");
        assert!(!is_there || u32::from_le_bytes(word) == id);
        let old = space.read_guest(&cpu, page(u64::from(id) * 2), &mut word);
        assert!(old.is_err(), "slot {id}");
    }
    space.destroy(&cpu);
    cpu.wait_for_epoch();
    assert_eq!(machine.guest(), 0);
}
