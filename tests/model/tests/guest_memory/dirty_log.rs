//! The dirty log on real memory and a software MMU, step by step: what random runs (`stress`) have found or may take long
//! to find.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use memory::frames::{FramePool, arena};
use memory::{
    Access, AddressSpace, Ahead, Caches, CpuMemory, DirtyPages, Fault, FaultKind, FaultOutcome,
    Granularity, LogError, LogPolicy, MemorySystem, Object, Owner, Parallel, SlotConfig, SlotId,
    Splitting, Tracking, VmId, Watermarks,
};
use model::{Hardware, Mmu};
use stage2::{Bbm, Features, Ipa, IpaRange, Layout, Level, PAGE_SIZE, Pa, Regime, Tlb};

const SLOT: SlotId = SlotId(0);
const START: Ipa = Ipa::new(0x4000_0000);
/// Where it may go.
const MOVED: Ipa = Ipa::new(0x7000_0000);
/// Pages of a block of 2 MiB.
const BLOCK: u64 = 512;
/// Blocks of the slot.
const BLOCKS: u64 = 2;

const BY_HARDWARE: LogPolicy = LogPolicy {
    tracking: Tracking::Hardware,
    splitting: Splitting::AtFault,
    granularity: Granularity::Page,
    initially_set: false,
    ring: false,
};

const IN_RINGS: LogPolicy = LogPolicy {
    tracking: Tracking::WriteProtect,
    ring: true,
    ..BY_HARDWARE
};

const BY_PROTECTION: LogPolicy = LogPolicy {
    ring: false,
    ..IN_RINGS
};

type Space = AddressSpace<Parallel>;
/// What happens once.
type Interruption = Rc<RefCell<Option<Box<dyn FnOnce()>>>>;

/// The MMU, with something that happens just before a table is linked, at the invalidation of a leaf, or when a page is
/// written for a guest.
struct Interrupted {
    hardware: Hardware,
    before_link: Interruption,
    on_leaf: Interruption,
    on_clean: Interruption,
}

impl Tlb for Interrupted {
    fn invalidate_leaf(&self, vm: Regime, ipa: Ipa, level: Option<Level>) {
        let interruption = self.on_leaf.borrow_mut().take();
        interruption.into_iter().for_each(|happens| happens());
        self.hardware.invalidate_leaf(vm, ipa, level);
    }
    fn invalidate_range(&self, vm: Regime, range: IpaRange, tables: bool) {
        self.hardware.invalidate_range(vm, range, tables);
    }
    fn invalidate_vmid(&self, vm: Regime) {
        self.hardware.invalidate_vmid(vm);
    }
    fn invalidate_all_vmids(&self) {
        self.hardware.invalidate_all_vmids();
    }
    fn invalidate_local(&self, vm: Regime, ipa: Ipa, level: Option<Level>, va: Option<u64>) {
        self.hardware.invalidate_local(vm, ipa, level, va);
    }
    fn publish_tables(&self) {
        let interruption = self.before_link.borrow_mut().take();
        interruption.into_iter().for_each(|happens| happens());
    }
}

impl Caches for Interrupted {
    fn clean_for_guest(&self, _: Pa, _: u64) {
        let interruption = self.on_clean.borrow_mut().take();
        interruption.into_iter().for_each(|happens| happens());
    }
}

/// A VM with one slot of blocks. vCPU 0 runs on CPU 0, vCPU 1 on CPU 1, the harness on CPU 2.
struct Machine {
    space: Arc<Space>,
    mmu: Arc<Mmu>,
    cpus: Vec<Rc<CpuMemory<Interrupted>>>,
    before_link: Interruption,
    on_leaf: Interruption,
    on_clean: Interruption,
}

impl Machine {
    fn new() -> Self {
        let machine = Self::without_slots();
        machine.add_slot(START, BLOCKS * BLOCK);
        machine
    }

    fn without_slots() -> Self {
        Self::with_rings_of(64)
    }

    fn with_rings_of(entries: usize) -> Self {
        Self::of(entries, Bbm::Level0)
    }

    /// Without slots, with rings of so many entries, of CPUs that change the size of what is mapped so.
    fn of(entries: usize, bbm: Bbm) -> Self {
        let pool = Box::leak(Box::new(FramePool::new()));
        // SAFETY: the arena is leaked, and added once.
        unsafe { pool.add(arena::leak(4096)) };
        let system: &MemorySystem = Box::leak(Box::new(MemorySystem::new(pool, 3, 8).unwrap()));
        let features = Features {
            hardware_access: true,
            hardware_dirty: true,
            bbm,
            ..Features::armv8_0(32, 48)
        };
        let layout = Layout::new(features).unwrap();
        let mmu = Mmu::new(layout, 3);
        let before_link = Interruption::default();
        let (on_leaf, on_clean) = (Interruption::default(), Interruption::default());
        let cpu = |number| {
            let mmu = mmu.clone();
            let hardware = Interrupted {
                hardware: Hardware { mmu, cpu: number },
                before_link: before_link.clone(),
                on_leaf: on_leaf.clone(),
                on_clean: on_clean.clone(),
            };
            Rc::new(CpuMemory::new(
                system,
                number,
                hardware,
                Box::leak(Box::default()),
            ))
        };
        let cpus: Vec<_> = (0..3).map(cpu).collect();
        let mut space = Space::new(&cpus[2], VmId::new(0).unwrap(), layout).unwrap();
        space.make_rings(2, entries).unwrap();
        let space = Arc::new(space);
        Self {
            space,
            mmu,
            cpus,
            before_link,
            on_leaf,
            on_clean,
        }
    }

    fn add_slot(&self, start: Ipa, pages: u64) {
        let piece = match pages.is_multiple_of(BLOCK) {
            true => Level::L2,
            false => Level::L3,
        };
        (self.space)
            .add_slot(self.harness(), SLOT, start, pages * PAGE_SIZE, piece, false)
            .unwrap();
    }

    /// Maps blocks, but begins with a page of the first one: all others begin at a page whose number is no multiple of
    /// 64.
    fn add_slot_that_begins_within_a_block(&self) {
        let account = Owner::Vm(self.space.vm());
        let bytes = (BLOCKS + 1) * BLOCK * PAGE_SIZE;
        let object = Object::preallocated(self.harness(), account, bytes, Level::L2).unwrap();
        let config = SlotConfig {
            id: SLOT,
            start: START.offset(PAGE_SIZE),
            object,
            offset: PAGE_SIZE,
            bytes: bytes - PAGE_SIZE,
            read_only: false,
            write_faults: false,
        };
        (self.space).map_object(self.harness(), config).unwrap();
    }

    fn harness(&self) -> &CpuMemory<Interrupted> {
        &self.cpus[2]
    }

    fn access(&self, vcpu: usize, page: u64, access: Access) {
        self.access_at(vcpu, self.start().offset(page * PAGE_SIZE), access);
    }

    fn access_at(&self, vcpu: usize, ipa: Ipa, access: Access) {
        let (vttbr, _) = self.space.activate(&self.cpus[vcpu]);
        let root = Pa::new(vttbr.bits() & ((1 << 48) - 1) & !0x3f);
        let write = access == Access::Write;
        while let Err(kind) = self.mmu.access(vcpu, root, ipa, write, 1, |_| {}) {
            let fault = Fault {
                vcpu,
                ipa,
                va: None,
                access,
                kind,
            };
            let outcome = self.space.fault(&self.cpus[vcpu], &fault);
            assert!(
                matches!(
                    outcome,
                    FaultOutcome::Resolved | FaultOutcome::RingLow | FaultOutcome::Retry
                ),
                "{outcome:?}"
            );
        }
    }

    fn write(&self, vcpu: usize, page: u64) {
        self.access(vcpu, page, Access::Write);
    }

    fn enable(&self, policy: &LogPolicy) {
        self.space
            .enable_dirty_log(self.harness(), SLOT, policy)
            .unwrap();
    }

    fn disable(&self) {
        self.space.disable_dirty_log(self.harness(), SLOT).unwrap();
    }

    /// Has another log by `policy` replace the one that there is, just before the next table is linked.
    fn switch_before_link(&self, policy: LogPolicy) {
        self.switch_before_link_and(policy, || {});
    }

    /// As [`Self::switch_before_link`]; and then something happens.
    fn switch_before_link_and(&self, policy: LogPolicy, and_then: impl FnOnce() + 'static) {
        let (space, harness) = (self.space.clone(), self.cpus[2].clone());
        *self.before_link.borrow_mut() = Some(Box::new(move || {
            space.disable_dirty_log(&harness, SLOT).unwrap();
            space.enable_dirty_log(&harness, SLOT, &policy).unwrap();
            and_then();
        }));
    }

    /// Takes what is dirty among the 64 pages of a word out of the log, without a look before.
    fn clear(&self, word: u64) -> u64 {
        let mut part = [u64::MAX];
        self.space
            .clear_dirty_log(self.harness(), SLOT, word * 64, &mut part)
            .unwrap();
        part[0]
    }

    fn is_dirty(&self, page: u64) -> bool {
        let mut part = [0];
        self.space
            .get_dirty_log(self.harness(), SLOT, page / 64 * 64, &mut part)
            .unwrap();
        part[0] & 1 << (page % 64) != 0
    }

    /// Where the slot begins that the test has made.
    fn start(&self) -> Ipa {
        let begins = |ipa| {
            (self.space)
                .read_guest(self.harness(), ipa, &mut [0])
                .is_ok()
        };
        let mut starts = [START, START.offset(PAGE_SIZE), MOVED].into_iter();
        starts
            .find(|start| begins(*start))
            .expect("there is a slot")
    }

    fn harvest_ring(&self, vcpu: usize) -> Vec<u64> {
        let none = DirtyPages {
            slot: SLOT,
            first: 0,
            count: 0,
        };
        let mut pages = [none; 1024];
        let count = self.space.harvest_ring(self.harness(), vcpu, &mut pages);
        pages[..count].iter().map(|pages| pages.first).collect()
    }
}

/// Clearing a part of a block that is logged as one made all of it clean, and the log didn't know yet.
#[test]
fn a_write_to_a_block_isnt_forgotten_with_another_part_of_it() {
    let machine = Machine::new();
    machine.write(0, 0);
    machine.enable(&LogPolicy {
        granularity: Granularity::Block2M,
        ..BY_HARDWARE
    });
    machine.write(0, 0);
    assert!(machine.is_dirty(0) && machine.is_dirty(100));
    assert_eq!(machine.clear(0), u64::MAX);
    machine.write(0, 0);
    assert_eq!(machine.clear(1), u64::MAX);
    assert!(machine.is_dirty(0), "a write is lost");
    assert!(!machine.is_dirty(64), "it was taken, and nobody wrote");
}

/// A block's pages were marked by whole words of the log, counted from its first page: where that isn't a word's first,
/// the pages of the block's last word were forgotten, and those before the block in its first word were taken for
/// written.
#[test]
fn a_block_that_begins_within_a_word_is_forgotten_in_part_only_as_any_other() {
    let machine = Machine::without_slots();
    machine.add_slot_that_begins_within_a_block();
    // The first whole block has the slot's pages 511 to 1022.
    machine.write(0, 1000);
    machine.enable(&LogPolicy {
        granularity: Granularity::Block2M,
        ..BY_HARDWARE
    });
    machine.write(0, 1000);
    assert!(machine.is_dirty(511) && machine.is_dirty(1022));
    assert!(!machine.is_dirty(510) && !machine.is_dirty(1023));
    assert_eq!(machine.clear(15), u64::MAX >> 1);
    assert_eq!(machine.clear(9), u64::MAX);
    // Noted by hardware alone, and taken from it with another part.
    machine.write(0, 1000);
    assert_eq!(machine.clear(10), u64::MAX);
    assert!(machine.is_dirty(1000), "a write is lost");
    assert!(machine.is_dirty(511), "a part that nobody has taken");
    assert!(!machine.is_dirty(510), "nobody wrote before the block");
    assert!(!machine.is_dirty(640), "it was taken, and nobody wrote");
}

/// Clearing no words at the end of a log whose last word has bits for pages that there aren't looked through addresses
/// whose end came before their start.
#[test]
fn no_words_at_a_log_s_end_are_got_and_cleared_as_nothing() {
    let machine = Machine::without_slots();
    machine.add_slot(START, 70);
    for policy in [BY_PROTECTION, BY_HARDWARE] {
        machine.enable(&LogPolicy {
            initially_set: true,
            splitting: Splitting::Eager(Ahead {
                chunk: 0,
                reserve: 0,
            }),
            ..policy
        });
        let (space, harness) = (&machine.space, machine.harness());
        for (first, words, expected) in [
            (128, 0, Ok(())),
            (64, 0, Ok(())),
            (0, 2, Ok(())),
            (128, 1, Err(LogError::OutOfRange(SLOT))),
            (192, 0, Err(LogError::OutOfRange(SLOT))),
            (65, 0, Err(LogError::OutOfRange(SLOT))),
            (u64::MAX - 63, 0, Err(LogError::OutOfRange(SLOT))),
        ] {
            let mut bitmap = vec![0; words];
            let got = space.get_dirty_log(harness, SLOT, first, &mut bitmap);
            assert_eq!(got, expected, "get {words} words from page {first}");
            let cleared = space.clear_dirty_log(harness, SLOT, first, &mut bitmap);
            assert_eq!(cleared.map(|_| ()), expected, "clear from page {first}");
            let both = space.get_and_clear_dirty_log(harness, SLOT, first, &mut bitmap);
            assert_eq!(both.map(|_| ()), expected, "both from page {first}");
        }
        machine.disable();
    }
}

/// What a ring still held of a slot that had gone was reported of the next one of that name, also beyond its end.
#[test]
fn a_ring_says_nothing_of_a_slot_that_has_gone() {
    for pages in [64, BLOCK, BLOCKS * BLOCK] {
        let machine = Machine::new();
        machine.enable(&IN_RINGS);
        machine.write(0, 900);
        machine.write(0, 3);
        machine.write(1, 4);
        machine.space.remove_slot(machine.harness(), SLOT).unwrap();
        machine.add_slot(START, pages);
        machine.enable(&IN_RINGS);
        machine.write(0, 5);
        machine.write(1, 6);
        assert_eq!(machine.harvest_ring(0), [5]);
        assert_eq!(machine.harvest_ring(1), [6]);
        assert_eq!(machine.harvest_ring(0), []);
        machine.write(0, 5);
        assert_eq!(machine.harvest_ring(0), [5], "its next write is noticed");
    }
}

/// A slot that moves has no log any more, so nothing that its ring held is of a log that it gets later.
#[test]
fn a_ring_says_nothing_of_a_slot_that_has_moved() {
    let machine = Machine::new();
    machine.enable(&IN_RINGS);
    machine.write(0, 900);
    (machine.space)
        .move_slot(machine.harness(), SLOT, MOVED)
        .unwrap();
    machine.enable(&IN_RINGS);
    assert_eq!(machine.harvest_ring(0), []);
    machine.write(0, 900);
    assert_eq!(machine.harvest_ring(0), [900]);
}

/// A ring whose older half has nothing to say any more gives all of the rest at once, whatever room there is.
#[test]
fn what_a_slot_that_has_gone_left_in_a_ring_hides_nothing_behind_it() {
    let machine = Machine::new();
    machine.enable(&IN_RINGS);
    (0..40).for_each(|page| machine.write(0, page));
    machine.space.remove_slot(machine.harness(), SLOT).unwrap();
    machine.add_slot(START, 64);
    machine.enable(&IN_RINGS);
    (40..64).for_each(|page| machine.write(0, page));
    let mut found = Vec::new();
    let none = DirtyPages {
        slot: SLOT,
        first: 0,
        count: 0,
    };
    let mut room = [none; 5];
    loop {
        let taken = machine.space.harvest_ring(machine.harness(), 0, &mut room);
        found.extend(room[..taken].iter().map(|pages| pages.first));
        if taken < room.len() {
            break;
        }
    }
    assert_eq!(found, (40..64).collect::<Vec<_>>());
}

/// More reports than are protected at once, of several tables of pages, in the order in which the guest likes to write.
#[test]
fn a_large_ring_is_harvested_to_its_last_entry_and_all_that_it_names_is_protected() {
    const REPORTS: u64 = 600;
    let machine = Machine::with_rings_of(1024);
    machine.add_slot_that_begins_within_a_block();
    machine.enable(&IN_RINGS);
    let pages = || (0..REPORTS).rev().map(|index| index * 7 % (BLOCKS * BLOCK));
    let mut expected: Vec<u64> = pages().collect();
    expected.sort_unstable();
    for _ in 0..2 {
        pages().for_each(|page| machine.write(0, page));
        let mut reported = machine.harvest_ring(0);
        reported.sort_unstable();
        assert_eq!(reported, expected);
        assert_eq!(machine.harvest_ring(0), []);
    }
}

/// A block is reported, becomes pages, and one of these is reported too: all of the block is protected.
#[test]
fn a_block_that_a_ring_names_is_protected_to_its_end_beside_a_page_of_it() {
    let machine = Machine::new();
    machine.write(0, 100);
    machine.enable(&LogPolicy {
        granularity: Granularity::Block2M,
        ..IN_RINGS
    });
    machine.write(0, 100);
    let at = |page: u64| START.offset(page * PAGE_SIZE);
    let given = (machine.space).balloon(machine.harness(), at(7)..at(8));
    assert_eq!(given, Ok(1));
    machine.write(0, 7);
    assert_eq!(machine.harvest_ring(0), [0, 7]);
    for page in [100, 7, 3, BLOCK - 1] {
        machine.write(0, page);
        assert_eq!(machine.harvest_ring(0), [page], "its next write is noticed");
    }
}

/// A vCPU whose ring is full waits until it is harvested, and no other does.
#[test]
fn a_full_ring_stops_its_own_vcpu_and_no_other() {
    let machine = Machine::new();
    machine.enable(&IN_RINGS);
    let write = |vcpu: usize, page: u64| {
        let fault = Fault {
            vcpu,
            ipa: START.offset(page * PAGE_SIZE),
            va: None,
            access: Access::Write,
            kind: FaultKind::Translation,
        };
        machine.space.fault(&machine.cpus[vcpu], &fault)
    };
    let outcomes: Vec<FaultOutcome> = (0..64).map(|page| write(1, page)).collect();
    let low = |outcome: &FaultOutcome| *outcome == FaultOutcome::RingLow;
    assert_eq!(outcomes.iter().position(low), Some(47));
    assert_eq!(write(1, 64), FaultOutcome::RingFull);
    assert_eq!(write(0, 64), FaultOutcome::Resolved);
    assert_eq!(machine.harvest_ring(1).len(), 64);
    assert_eq!(write(1, 65), FaultOutcome::Resolved);
}

/// What a ring of an earlier log still held made pages clean whose writes hardware has noted since.
#[test]
fn a_ring_that_outlives_its_log_takes_nothing_from_the_next() {
    let machine = Machine::new();
    machine.write(0, 0);
    machine.enable(&IN_RINGS);
    machine.write(0, 3);
    machine.disable();
    let granularity = Granularity::Block2M;
    machine.enable(&LogPolicy {
        granularity,
        ..BY_HARDWARE
    });
    machine.write(0, 3);
    machine.write(0, 4);
    machine.harvest_ring(0);
    assert!(machine.is_dirty(3) && machine.is_dirty(4));
}

/// A fault that split a block for hardware to track its pages, while another log began that goes by write protection, left
/// pages behind that are written without anybody's notice.
#[test]
fn a_split_for_a_log_that_has_ended_leaves_nothing_untracked_in_the_next() {
    let machine = Machine::new();
    machine.write(0, 0);
    machine.enable(&BY_HARDWARE);
    machine.switch_before_link(BY_PROTECTION);
    machine.write(0, 0);
    machine.write(1, 7);
    assert!(machine.is_dirty(0), "the write that split it");
    assert!(machine.is_dirty(7), "a write beside it");
    assert!(!machine.is_dirty(8));
}

/// As above: the table is linked, and hardware notes a write in it before its pages are protected for the next log.
#[test]
fn what_hardware_notes_after_a_split_for_a_log_that_has_ended_is_in_the_next() {
    let machine = Rc::new(Machine::of(64, Bbm::Level2));
    machine.add_slot(START, BLOCKS * BLOCK);
    machine.write(0, 0);
    machine.enable(&BY_HARDWARE);
    let happens = {
        let machine = machine.clone();
        // Where no break is needed, the block is in no TLB any more only when the table is there.
        move || {
            let on_leaf = machine.on_leaf.clone();
            *on_leaf.borrow_mut() = Some(Box::new(move || machine.write(1, 7)));
        }
    };
    machine.switch_before_link_and(BY_PROTECTION, happens);
    machine.write(0, 0);
    let dirty = [0, 7, 8].map(|page| machine.is_dirty(page));
    assert_eq!(dirty, [true, true, false]);
    assert!(machine.on_leaf.borrow().is_none());
    machine.clear(0);
    machine.write(1, 7);
    assert!(machine.is_dirty(7), "its next write is noticed");
}

/// Whatever the fault is said to be: the entry that allows less may have come since.
#[test]
fn a_block_that_is_made_writable_is_dirty_to_its_last_page() {
    for kind in [FaultKind::Permission, FaultKind::Translation] {
        let machine = Machine::new();
        machine.write(0, BLOCK);
        machine.enable(&LogPolicy {
            granularity: Granularity::Block2M,
            ..BY_PROTECTION
        });
        let fault = Fault {
            vcpu: 0,
            ipa: START.offset((BLOCK + 70) * PAGE_SIZE),
            va: None,
            access: Access::Write,
            kind,
        };
        let outcome = machine.space.fault(&machine.cpus[0], &fault);
        assert_eq!(outcome, FaultOutcome::Resolved);
        let dirty = [0, BLOCK - 1, BLOCK, BLOCK + 70, 2 * BLOCK - 1];
        let dirty = dirty.map(|page| machine.is_dirty(page));
        assert_eq!(dirty, [false, false, true, true, true], "{kind:?}");
    }
}

/// What hardware has noted in entries that are taken away goes to the log of their slot.
#[test]
fn an_invalidated_range_forgets_no_write() {
    let machine = Machine::new();
    machine.write(0, 0);
    machine.enable(&BY_HARDWARE);
    machine.write(0, 70);
    machine.clear(1);
    assert!(!machine.is_dirty(70));
    // Noted by hardware alone.
    machine.write(0, 70);
    let range = START..START.offset(BLOCK * PAGE_SIZE);
    machine.space.invalidate(machine.harness(), range);
    assert!(machine.is_dirty(70), "a write is lost");
    assert!(!machine.is_dirty(71));
    machine.write(1, 70);
}

/// A block that is logged as one is dirty as one, also when it isn't there any more.
#[test]
fn an_invalidated_block_is_dirty_to_its_last_page() {
    let machine = Machine::without_slots();
    machine.add_slot_that_begins_within_a_block();
    machine.write(0, 600);
    machine.enable(&LogPolicy {
        granularity: Granularity::Block2M,
        ..BY_HARDWARE
    });
    machine.write(0, 600);
    (7..16).for_each(|word| _ = machine.clear(word));
    // Noted by hardware alone.
    machine.write(0, 600);
    let at = |page: u64| machine.start().offset(page * PAGE_SIZE);
    (machine.space).invalidate(machine.harness(), at(600)..at(601));
    // The first whole block has the slot's pages 511 to 1022.
    for page in [511, 600, 1022] {
        assert!(machine.is_dirty(page), "page {page}");
    }
    assert!(!machine.is_dirty(510) && !machine.is_dirty(1023));
}

/// A block that is restored while it is logged has pages that were written, and those are in the log; the next write to
/// any of them has to be noticed.
#[test]
fn a_block_restored_while_it_is_logged_is_read_only() {
    let machine = Machine::new();
    machine.enable(&BY_PROTECTION);
    for page in 0..BLOCK {
        machine.write(0, page);
    }
    assert_eq!(machine.clear(0), u64::MAX);
    let restored = machine.space.restore_blocks(machine.harness(), SLOT, START);
    assert_eq!(restored.unwrap().collapsed.blocks, 1);
    let (leaf, level) = machine.space.lookup(machine.harness(), START).unwrap();
    assert!(level == Level::L2 && !leaf.writable());
    assert!(!machine.is_dirty(5) && machine.is_dirty(64));
    machine.write(1, 5);
    assert!(machine.is_dirty(5) && !machine.is_dirty(6));
}

#[test]
fn what_was_writable_when_logging_begins_is_logged_to_its_last_page() {
    for policy in [BY_HARDWARE, IN_RINGS, BY_PROTECTION] {
        // Of blocks, and of pages.
        for pages in [BLOCKS * BLOCK, BLOCK + 88] {
            let machine = Machine::without_slots();
            machine.add_slot(START, pages);
            let some = [0, pages / 2 - 1, pages / 2, pages - 1];
            some.into_iter().for_each(|page| machine.write(0, page));
            machine.enable(&policy);
            some.into_iter().for_each(|page| machine.write(0, page));
            let reported = machine.harvest_ring(0);
            for page in some {
                let is_logged = reported.contains(&page) || machine.is_dirty(page);
                assert!(is_logged, "page {page} of {pages}, {policy:?}");
            }
        }
    }
}

#[test]
fn what_hardware_notes_behind_pages_that_are_all_in_the_log_is_found() {
    let machine = Machine::new();
    machine.enable(&BY_HARDWARE);
    let write_all = |vcpu| (0..64).for_each(|page| machine.write(vcpu, page));
    let last = BLOCK - 1;
    write_all(0);
    machine.write(0, last);
    machine.clear(0);
    machine.clear(last / 64);
    write_all(0);
    assert!(machine.is_dirty(0) && machine.is_dirty(63) && !machine.is_dirty(last));
    machine.write(1, last);
    let mut all = [0; (BLOCKS * BLOCK / 64) as usize];
    (machine.space)
        .get_dirty_log(machine.harness(), SLOT, 0, &mut all)
        .unwrap();
    assert_eq!((all[0], all[1], all[7]), (u64::MAX, 0, 1 << 63));
}

/// A log that can't be: it would miss writes, or there is nothing to log.
#[test]
fn logs_that_go_with_nothing_are_refused() {
    let machine = Machine::new();
    let (space, harness) = (&machine.space, machine.harness());
    let ring_by_hardware = LogPolicy {
        ring: true,
        ..BY_HARDWARE
    };
    let ring_of_all = LogPolicy {
        initially_set: true,
        ..IN_RINGS
    };
    let no_ring = Err(LogError::NoRing(SLOT));
    for policy in [ring_by_hardware, ring_of_all] {
        assert_eq!(space.enable_dirty_log(harness, SLOT, &policy), no_ring);
    }
    let disabled = space.disable_dirty_log(harness, SLOT);
    assert_eq!(disabled, Err(LogError::Disabled(SLOT)));
    machine.enable(&BY_PROTECTION);
    let not_possible = Err(LogError::NotPossible(SLOT));
    let again = space.enable_dirty_log(harness, SLOT, &BY_PROTECTION);
    assert_eq!(again, not_possible);
    machine.disable();
    machine.enable(&BY_HARDWARE);
    let restored = space.restore_blocks(harness, SLOT, START);
    assert_eq!(restored, Err(LogError::NotPossible(SLOT)));

    let layout = Layout::new(Features::armv8_0(32, 48)).unwrap();
    let plain = Space::new(harness, VmId::new(1).unwrap(), layout).unwrap();
    let bytes = BLOCK * PAGE_SIZE;
    for (id, read_only) in [(SLOT, false), (SlotId(1), true)] {
        let start = START.offset(u64::from(id.0) * bytes);
        plain
            .add_slot(harness, id, start, bytes, Level::L3, read_only)
            .unwrap();
    }
    let refused = |id, policy| plain.enable_dirty_log(harness, id, policy);
    assert_eq!(refused(SLOT, &IN_RINGS), no_ring);
    let no_hardware = Err(LogError::NoHardwareTracking(SLOT));
    assert_eq!(refused(SLOT, &BY_HARDWARE), no_hardware);
    let read_only = Err(LogError::NotPossible(SlotId(1)));
    assert_eq!(refused(SlotId(1), &BY_PROTECTION), read_only);
    plain.destroy(harness);
}

#[test]
fn what_a_read_only_slot_maps_is_read_only() {
    for piece in [Level::L3, Level::L2] {
        let machine = Machine::without_slots();
        let (space, harness) = (&machine.space, machine.harness());
        let bytes = BLOCK * PAGE_SIZE;
        space
            .add_slot(harness, SLOT, START, bytes, piece, true)
            .unwrap();
        machine.access(0, 0, Access::Read);
        let (leaf, level) = space.lookup(harness, START).unwrap();
        assert!(level == piece && !leaf.writable());
        let write = Fault {
            vcpu: 0,
            ipa: START,
            va: None,
            access: Access::Write,
            kind: FaultKind::Permission,
        };
        let outcome = space.fault(&machine.cpus[0], &write);
        assert_eq!(outcome, FaultOutcome::NotPermitted);
    }
}

/// Wherever the caller says that it goes on; a slot that begins within a block has no block there.
#[test]
fn blocks_come_back_where_the_slot_has_them() {
    let machine = Machine::without_slots();
    machine.add_slot_that_begins_within_a_block();
    let (space, harness) = (&machine.space, machine.harness());
    let start = START.offset(PAGE_SIZE);
    machine.enable(&BY_PROTECTION);
    let edges = [0, BLOCK - 2, BLOCK - 1, 2 * BLOCK - 1, 3 * BLOCK - 2];
    edges.into_iter().for_each(|page| machine.write(0, page));
    machine.disable();
    for from in [Ipa::new(0), START.offset(1 << 30)] {
        let restored = space.restore_blocks(harness, SLOT, from).unwrap();
        assert_eq!(restored.next, None);
    }
    let level = |page: u64| {
        let found = space.lookup(harness, start.offset(page * PAGE_SIZE));
        found.map(|(leaf, level)| (level, leaf.writable()))
    };
    assert_eq!(level(0), Some((Level::L3, true)));
    for page in [BLOCK - 1, 2 * BLOCK - 1, 3 * BLOCK - 2] {
        assert_eq!(level(page), Some((Level::L2, true)), "{page}");
    }
    edges.into_iter().for_each(|page| machine.write(0, page));
}

/// Nobody who reads the source of a copy has to know that a page was written by the hypervisor.
#[test]
fn a_write_by_the_hypervisor_is_logged_by_every_policy() {
    for policy in [BY_HARDWARE, IN_RINGS, BY_PROTECTION] {
        let machine = Machine::new();
        machine.enable(&policy);
        let ipa = START.offset(70 * PAGE_SIZE - 1);
        machine
            .space
            .write_guest(machine.harness(), ipa, &[1, 2])
            .unwrap();
        assert!(machine.is_dirty(69) && machine.is_dirty(70) && !machine.is_dirty(71));
        assert_eq!(machine.clear(1), 0b11 << 5);
    }
}

/// All of eager splitting's chunk sizes that a caller may think of.
#[test]
fn a_chunk_of_any_size_splits_all() {
    for chunk in [0, 1, 3 << 20, u64::MAX] {
        let machine = Machine::new();
        machine.write(0, 0);
        machine.write(0, BLOCK);
        let ahead = Ahead { chunk, reserve: 0 };
        let splitting = Splitting::Eager(ahead);
        let split = (machine.space).enable_dirty_log(
            machine.harness(),
            SLOT,
            &LogPolicy {
                splitting,
                ..BY_PROTECTION
            },
        );
        let split = split.unwrap();
        assert_eq!((split.blocks, split.ran_out), (BLOCKS, false), "{chunk:#x}");
    }
}

/// Blocks that are asked for are split, also those that are in the range in part, and no others: before, behind and beyond the
/// slot.
#[test]
fn the_blocks_of_a_range_are_split_and_no_others() {
    const BYTES: u64 = BLOCK * PAGE_SIZE;
    let at = |bytes: u64| START.offset(bytes);
    let before = Ipa::new(START.get() - BYTES);
    for (from, bytes, expected) in [
        (at(0), 1, [true, false]),
        (at(BYTES - 1), 1, [true, false]),
        (at(BYTES - 1), 2, [true, true]),
        (at(BYTES - PAGE_SIZE), PAGE_SIZE + 1, [true, true]),
        (at(BYTES), BYTES, [false, true]),
        (at(BYTES + 1), u64::MAX, [false, true]),
        (at(2 * BYTES - 1), 2 * BYTES, [false, true]),
        (at(2 * BYTES), BYTES, [false, false]),
        (at(BYTES), 0, [false, false]),
        (before, BYTES, [false, false]),
        (before, BYTES + 1, [true, false]),
        (before, u64::MAX, [true, true]),
        (Ipa::new(0), u64::MAX, [true, true]),
    ] {
        let machine = Machine::new();
        let (space, harness) = (&machine.space, machine.harness());
        let next = at(BLOCKS * BYTES);
        for (id, start) in [(1, next), (2, before)] {
            space
                .add_slot(harness, SlotId(id), start, BYTES, Level::L2, false)
                .unwrap();
            machine.access_at(0, start, Access::Write);
        }
        (0..BLOCKS).for_each(|block| machine.write(0, block * BLOCK));
        machine.enable(&BY_PROTECTION);
        let ahead = Ahead {
            chunk: 0,
            reserve: 0,
        };
        let split = space.split_blocks(harness, SLOT, from, bytes, ahead);
        let is_split = |ipa| {
            let (_, level) = space.lookup(harness, ipa).unwrap();
            level == Level::L3
        };
        let case = format!("{bytes:#x} bytes from {from}");
        assert_eq!([at(0), at(BYTES)].map(is_split), expected, "{case}");
        assert_eq!([before, next].map(is_split), [false; 2], "{case}");
        let count = expected.into_iter().filter(|split| *split).count();
        assert_eq!(split.unwrap().blocks, count as u64, "{case}");
    }
}

/// A slot that comes elsewhere while a fault prepares its page is none of that fault's business.
#[test]
fn a_fault_beside_a_change_of_another_slot_does_not_retry() {
    let machine = Machine::without_slots();
    let account = Owner::Vm(machine.space.vm());
    let object = Object::anonymous(machine.harness(), account, PAGE_SIZE, Level::L3).unwrap();
    let config = SlotConfig {
        id: SLOT,
        start: START,
        object,
        offset: 0,
        bytes: PAGE_SIZE,
        read_only: false,
        write_faults: false,
    };
    (machine.space)
        .map_object(machine.harness(), config)
        .unwrap();
    let (space, harness) = (machine.space.clone(), machine.cpus[2].clone());
    *machine.on_clean.borrow_mut() = Some(Box::new(move || {
        space
            .add_slot(&harness, SlotId(1), MOVED, PAGE_SIZE, Level::L3, false)
            .unwrap();
    }));
    let fault = Fault {
        vcpu: 0,
        ipa: START,
        va: None,
        access: Access::Write,
        kind: FaultKind::Translation,
    };
    let outcome = machine.space.fault(&machine.cpus[0], &fault);
    assert!(
        machine.on_clean.borrow().is_none(),
        "nothing came in between"
    );
    assert_eq!(outcome, FaultOutcome::Resolved);
}

/// Reclaim clears access flags, and TLBs are told: where a page is used again hardware sets its flag again, in whichever slot.
#[test]
fn what_is_used_after_its_access_flags_were_cleared_is_not_cold() {
    const PAGES: u64 = 64;
    let machine = Machine::without_slots();
    let (space, harness) = (&machine.space, machine.harness());
    let account = Owner::Vm(space.vm());
    let object = Object::preallocated(harness, account, PAGES * PAGE_SIZE, Level::L3).unwrap();
    let lower = Ipa::new(START.get() - BLOCK * PAGE_SIZE);
    for (id, start) in [(SLOT, START), (SlotId(1), lower)] {
        let config = SlotConfig {
            id,
            start,
            object: object.clone(),
            offset: 0,
            bytes: PAGES * PAGE_SIZE,
            read_only: false,
            write_faults: false,
        };
        space.map_object(harness, config).unwrap();
    }
    let used = [
        lower.offset(3 * PAGE_SIZE),
        START,
        START.offset((PAGES - 1) * PAGE_SIZE),
    ];
    for page in 0..PAGES {
        for start in [START, lower] {
            machine.access_at(0, start.offset(page * PAGE_SIZE), Access::Write);
        }
    }
    let system = harness.system();
    let high = 1 << 40;
    // All are found, and none has to go; then they have to.
    system.set_watermarks(Some(Watermarks { low: 1, high }));
    harness.relieve();
    assert_eq!(system.listed_pages(), (0, PAGES));
    for ipa in used {
        machine.access_at(0, ipa, Access::Read);
    }
    system.set_watermarks(Some(Watermarks { low: high, high }));
    for _ in 0..2 {
        harness.relieve();
    }
    system.set_watermarks(None);
    assert_eq!(system.reclaim_counters().activated.get(), used.len() as u64);
}
