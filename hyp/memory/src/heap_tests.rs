//! Operations and faults when the heap is exhausted. The heap of these tests can be used up for one thread at a time, except
//! for allocations that must not fail: those of an `Arc`.

use crate::epoch::heap_reserve::{BAG, Reserving};
use crate::frames::{FramePool, VmId, arena, read_bytes, write_bytes};
use crate::object::Object;
use crate::space::slot::Slot;
use crate::*;
use alloc::sync::Arc;
use core::alloc::{GlobalAlloc, Layout};
use core::cell::Cell;
use stage2::{Features, Ipa, Level, NoTlb, PAGE_SIZE};
use std::alloc::System;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

#[global_allocator]
static HEAP: Reserving<Exhaustible> = Reserving::new(Exhaustible);

/// The system's heap, with so many requests to be had on a thread.
struct Exhaustible;

std::thread_local! {
    /// Requests that this thread's heap has left.
    static LEFT: Cell<usize> = const { Cell::new(usize::MAX) };
    /// Bytes that this thread has got and not given back, but for bags.
    static IN_USE: Cell<isize> = const { Cell::new(0) };
    /// Bags that it has asked for.
    static BAGS: Cell<usize> = const { Cell::new(0) };
}

/// Requests that come by way of an `Arc`, whose counts are two words.
fn cannot_be_refused(layout: Layout) -> bool {
    const COUNTS: usize = 16;
    [size_of::<Slot>(), size_of::<Object>()].contains(&layout.size().wrapping_sub(COUNTS))
}

/// Bytes of what isn't a bag: how many of those there are is the epoch's to say.
fn counted(layout: Layout) -> isize {
    if layout == BAG {
        0
    } else {
        layout.size() as isize
    }
}

// SAFETY: the system's, which is asked for less.
unsafe impl GlobalAlloc for Exhaustible {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout == BAG {
            BAGS.set(BAGS.get() + 1);
        }
        if LEFT.get() == 0 && !cannot_be_refused(layout) {
            return core::ptr::null_mut();
        }
        LEFT.set(LEFT.get().saturating_sub(1));
        IN_USE.set(IN_USE.get() + counted(layout));
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        IN_USE.set(IN_USE.get() - counted(layout));
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(block, layout) }
    }
}

/// Does `work` with so many requests to be had of the heap.
fn with_heap_for<R>(requests: usize, work: impl FnOnce() -> R) -> R {
    LEFT.set(requests);
    let done = work();
    LEFT.set(usize::MAX);
    done
}

type Space = AddressSpace<Parallel>;

const START: Ipa = Ipa::new(0x4000_0000);
const PAGES: u64 = 8;

/// Bags that are put by for all tests: more than any needs.
const BAGS_PUT_BY: usize = 16;

struct Machine {
    cpu: CpuMemory<NoTlb>,
    pool: &'static FramePool,
    /// One test at a time, as all have one reserve.
    _one: MutexGuard<'static, ()>,
}

impl Machine {
    fn new(frames: usize) -> Self {
        static ONE: Mutex<()> = Mutex::new(());
        static PUT_BY: Once = Once::new();
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        PUT_BY.call_once(|| assert_eq!(HEAP.put_by(BAGS_PUT_BY), BAGS_PUT_BY));
        let pool: &FramePool = Box::leak(Box::new(FramePool::new()));
        // SAFETY: the arena is leaked, and added once.
        unsafe { pool.add(arena::leak(frames)) };
        let system = &*Box::leak(Box::new(MemorySystem::new(pool, 1, 8).unwrap()));
        let cpu = CpuMemory::new(system, 0, NoTlb, Box::leak(Box::default()));
        Self {
            cpu,
            pool,
            _one: one,
        }
    }

    fn space(&self, vm: usize) -> Space {
        let layout = stage2::Layout::new(Features::armv8_0(40, 48)).unwrap();
        Space::new(&self.cpu, VmId::new(vm).unwrap(), layout).unwrap()
    }

    fn slot(&self, number: u64, object: &Arc<Object>) -> SlotConfig {
        SlotConfig {
            id: SlotId(number as u32),
            start: START.offset(number * object.bytes()),
            offset: 0,
            bytes: object.bytes(),
            read_only: false,
            write_faults: false,
            object: object.clone(),
        }
    }

    fn private(&self, space: &Space, pages: u64) -> Arc<Object> {
        let account = Owner::Vm(space.vm());
        Object::anonymous(&self.cpu, account, pages * PAGE_SIZE, Level::L3).unwrap()
    }

    /// A guest's write.
    fn write(&self, space: &Space, ipa: Ipa, value: u64) {
        let kind = match space.lookup(&self.cpu, ipa) {
            Some(_) => FaultKind::Permission,
            None => FaultKind::Translation,
        };
        let fault = Fault {
            vcpu: 0,
            ipa,
            va: None,
            access: Access::Write,
            kind,
        };
        assert_eq!(space.fault(&self.cpu, &fault), FaultOutcome::Resolved);
        let (leaf, _) = space.lookup(&self.cpu, ipa).unwrap();
        // SAFETY: the leaf maps memory of the arena.
        unsafe { write_bytes(leaf.pa(), &value.to_ne_bytes()) };
    }

    fn read(&self, space: &Space, ipa: Ipa) -> u64 {
        let mut value = [0; 8];
        space.read_guest(&self.cpu, ipa, &mut value).unwrap();
        u64::from_ne_bytes(value)
    }

    /// All that is in use: what must be as before when nothing has changed.
    fn in_use(&self) -> (u64, u64, isize) {
        for _ in 0..4 {
            self.cpu.wait_for_epoch();
        }
        let counts = self.pool.counts();
        (counts.guest, counts.table, IN_USE.get())
    }

    fn end(&self, spaces: impl IntoIterator<Item = Space>) {
        for space in spaces {
            space.destroy(&self.cpu);
        }
        let (guest, table, _) = self.in_use();
        assert_eq!((guest, table), (0, 0));
        self.pool.counts().check().unwrap();
    }
}

#[test]
fn a_box_is_refused_without_heap_and_holds_what_it_was_made_of() {
    assert!(with_heap_for(0, || crate::epoch::published::try_box(7_u64)).is_none());
    assert_eq!(
        *crate::epoch::published::try_box([7_u64; 3]).unwrap(),
        [7; 3]
    );
    assert_eq!(*crate::epoch::published::try_box(()).unwrap(), ());
}

/// Whichever request is refused: the fork ends, the child has no slot and its own trust, nothing is lost, and with heap the
/// same call succeeds.
#[test]
fn a_fork_that_the_heap_refuses_ends_and_leaves_nothing() {
    const SLOTS: u64 = 40;
    let machine = Machine::new(2048);
    let parent = machine.space(0);
    let shared = Object::shared(&machine.cpu, PAGE_SIZE * PAGES, Level::L3).unwrap();
    for number in 0..SLOTS {
        let own = machine.private(&parent, PAGES);
        let object = if number % 2 == 0 { &shared } else { &own };
        parent
            .map_object(&machine.cpu, machine.slot(number, object))
            .unwrap();
        let at = START.offset(number * object.bytes());
        machine.write(&parent, at, 1 + number);
    }
    // The list of all objects has become as long as it gets.
    let first = machine.space(1);
    parent.fork(&machine.cpu, &first).unwrap();
    first.destroy(&machine.cpu);
    let child = machine.space(1);
    let domains = machine.cpu.system().trust_domains();
    let before = (machine.in_use(), domains.number_of(child.vm()));
    let mut refused = 0;
    for requests in 0.. {
        match with_heap_for(requests, || parent.fork(&machine.cpu, &child)) {
            Ok(()) => break,
            Err(SlotError::OutOfMemory { .. }) => refused += 1,
            Err(other) => panic!("{other}"),
        }
        assert!(child.slots(&machine.cpu.pin()).iter().next().is_none());
        let after = (machine.in_use(), domains.number_of(child.vm()));
        assert_eq!(after, before, "after {requests} requests");
    }
    assert!(refused > 2 * SLOTS, "{refused}");
    assert_eq!(
        domains.number_of(child.vm()),
        domains.number_of(parent.vm())
    );
    for number in 0..SLOTS {
        let at = START.offset(number * PAGES * PAGE_SIZE);
        assert_eq!(
            machine.read(&child, at),
            if number % 2 == 0 {
                SLOTS - 1
            } else {
                1 + number
            }
        );
    }
    drop(shared);
    machine.end([parent, child]);
}

/// Whatever goes needs no heap, or says that it has none and changes nothing.
#[test]
fn slots_go_move_and_are_logged_or_say_that_there_is_no_heap() {
    let machine = Machine::new(512);
    let spaces = [machine.space(0), machine.space(1)];
    let shared = Object::shared(&machine.cpu, PAGE_SIZE * PAGES, Level::L3).unwrap();
    for (space, number) in spaces.iter().flat_map(|space| [(space, 0), (space, 1)]) {
        let slot = machine.slot(number, &shared);
        space.map_object(&machine.cpu, slot).unwrap();
        machine.write(space, START.offset(number * shared.bytes()), 5);
    }
    let [space, other] = &spaces;
    let cpu = &machine.cpu;
    let one = SlotId(1);
    // The memory of the log is there already.
    let policy = LogPolicy::default();
    let logged = with_heap_for(0, || space.enable_dirty_log(cpu, one, &policy));
    assert_eq!(logged, Err(LogError::OutOfMemory(one)));
    space.enable_dirty_log(cpu, one, &policy).unwrap();
    with_heap_for(0, || space.disable_dirty_log(cpu, one)).unwrap();
    let moved = with_heap_for(0, || space.move_slot(cpu, one, Ipa::new(0)));
    assert!(matches!(moved, Err(SlotError::OutOfMemory { .. })));
    let removed = with_heap_for(0, || space.remove_slot(cpu, one));
    assert!(matches!(removed, Err(SlotError::OutOfMemory { .. })));
    let mut requests = 1;
    while with_heap_for(requests, || space.remove_slot(cpu, one)).is_err() {
        requests += 1;
    }
    assert_eq!(machine.read(space, START), 5);
    assert_eq!(machine.read(other, START), 5);
    drop(shared);
    with_heap_for(0, || machine.end(spaces));
}

/// A bag is what the reserve is made of, whatever version of crossbeam-epoch it is of; and faults that give frames up go on
/// without heap.
#[test]
fn faults_give_frames_up_without_heap() {
    const COPIED: u64 = 300;
    let machine = Machine::new(4096);
    let spaces = [machine.space(0), machine.space(1)];
    let object = machine.private(&spaces[0], COPIED);
    let slot = machine.slot(0, &object);
    spaces[0].map_object(&machine.cpu, slot).unwrap();
    let at = |page: u64| START.offset(page * PAGE_SIZE);
    for page in 0..COPIED {
        machine.write(&spaces[0], at(page), page);
    }
    spaces[0].fork(&machine.cpu, &spaces[1]).unwrap();
    BAGS.set(0);
    with_heap_for(0, || {
        for page in 0..COPIED {
            // The first write gives up a share of the frame; by moving pages the frames go as well.
            machine.write(&spaces[1], at(page), page);
            assert!(object.migrate(&machine.cpu, page));
            machine.cpu.refill();
        }
    });
    assert!(BAGS.get() as u64 >= COPIED / 64, "{} bags", BAGS.get());
    for _ in 0..8 {
        machine.cpu.wait_for_epoch();
    }
    assert_eq!(HEAP.missing(), 0, "all have come back");
    let mut value = [0; 8];
    let (leaf, _) = spaces[1].lookup(&machine.cpu, at(7)).unwrap();
    // SAFETY: the leaf maps memory of the arena.
    unsafe { read_bytes(leaf.pa(), &mut value) };
    assert_eq!(u64::from_ne_bytes(value), 7);
    drop(object);
    machine.end(spaces);
}

/// What can't be listed isn't noted as listed either: it is found again when it can be.
#[test]
fn pages_that_are_found_without_heap_are_compressed_later() {
    const HIGH: u64 = 1 << 40;
    let machine = Machine::new(512);
    let space = machine.space(0);
    let object = machine.private(&space, PAGES);
    let slot = machine.slot(0, &object);
    space.map_object(&machine.cpu, slot).unwrap();
    let at = |page: u64| START.offset(page * PAGE_SIZE);
    (0..PAGES).for_each(|page| machine.write(&space, at(page), 1 + page));
    drop(object);
    let system = machine.cpu.system();
    let watermarks = |low| system.set_watermarks(Some(Watermarks { low, high: HIGH }));
    watermarks(1);
    for _ in 0..3 {
        with_heap_for(0, || machine.cpu.relieve());
        assert_eq!(system.listed_pages(), (0, 0));
    }
    watermarks(HIGH);
    for _ in 0..4 {
        machine.cpu.relieve();
    }
    assert_eq!(system.compressed().pages, PAGES);
    (0..PAGES).for_each(|page| assert_eq!(machine.read(&space, at(page)), 1 + page));
    machine.end([space]);
}

#[test]
fn vms_trust_whom_they_joined_last_and_take_nobody_along() {
    let machine = Machine::new(256);
    let spaces = [0, 1, 2, 3].map(|vm| machine.space(vm));
    let system = machine.cpu.system();
    let trust = |vm: usize, other: usize| system.trust(spaces[vm].vm(), spaces[other].vm());
    let trusts = |vm: usize, other: usize| {
        let number = |vm: usize| system.trust_domains().number_of(spaces[vm].vm());
        number(vm) == number(other)
    };
    assert!(!trusts(0, 1));
    trust(1, 0);
    trust(2, 1);
    assert!(trusts(0, 1) && trusts(2, 0));
    trust(0, 3);
    assert!(trusts(0, 3) && !trusts(0, 1) && !trusts(3, 2));
    assert!(trusts(1, 2), "those that were left stay with each other");
    trust(1, 0);
    assert!(trusts(1, 3) && !trusts(2, 1));
    machine.end(spaces);
}
