//! The rules about decisions, the dirty log and slots (8 to 10), under every interleaving of two CPUs.
//!
//! The address space is the real one, with its real frames and epochs; only table entries and bitmap words are the model
//! checker's. What isn't (pointers, the pool's lock) is not reordered by it, but every order of the steps around it is
//! tried. At most three preemptions per execution.
#![cfg(loom)]

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use loom::thread;
use memory::frames::{FramePool, arena};
use memory::{
    Access, AddressSpace, Caches, CpuCounters, CpuMemory, Fault, FaultKind, FaultOutcome,
    MemorySystem, Parallel, SlotId, VmId,
};
use stage2::{Ipa, IpaRange, Level, PAGE_SIZE, Pa, RootShape, Tlb, Vttbr};

/// A machine without TLBs: its CPUs see every change at once.
#[derive(Clone, Copy)]
struct NoTlb;

impl Tlb for NoTlb {
    fn invalidate_leaf(&self, _: Vttbr, _: Ipa, _: Level) {}
    fn invalidate_range(&self, _: Vttbr, _: IpaRange, _: bool) {}
    fn invalidate_vmid(&self, _: Vttbr) {}
    fn invalidate_all_vmids(&self) {}
    fn invalidate_local(&self, _: Vttbr, _: Ipa, _: Level, _: Option<u64>) {}
    fn publish_tables(&self) {}
}

impl Caches for NoTlb {
    fn clean_for_guest(&self, _: Pa, _: u64) {}
}

const CPUS: usize = 3;
const SLOT: SlotId = SlotId(0);
const PAGE: Ipa = Ipa::new(0);

static POOL: FramePool = FramePool::new();

fn system() -> &'static MemorySystem {
    static SYSTEM: OnceLock<MemorySystem> = OnceLock::new();
    SYSTEM.get_or_init(|| {
        // SAFETY: the arena is leaked, and added once.
        unsafe { POOL.add(arena::leak(2048)) };
        MemorySystem::new(&POOL, CPUS, 2, 8)
    })
}

fn cpu(number: usize) -> CpuMemory<NoTlb> {
    CpuMemory::new(
        system(),
        number,
        NoTlb,
        Box::leak(Box::new(CpuCounters::default())),
    )
}

type Space = AddressSpace<Parallel>;

/// An address space with one slot of one page.
fn space(cpu: &CpuMemory<NoTlb>) -> Arc<Space> {
    let space = Space::new(cpu, VmId::new(0).unwrap(), RootShape::small()).unwrap();
    space
        .add_slot(cpu, SLOT, PAGE, PAGE_SIZE, Level::L3, false)
        .unwrap();
    Arc::new(space)
}

fn access(space: &Space, cpu: &CpuMemory<NoTlb>, access: Access) {
    let fault = Fault {
        ipa: PAGE,
        va: None,
        access,
        kind: FaultKind::Translation,
    };
    loop {
        match space.fault(cpu, &fault) {
            FaultOutcome::Resolved => return,
            FaultOutcome::Retry => thread::yield_now(),
            other => panic!("{other:?}"),
        }
    }
}

fn is_writable(space: &Space, cpu: &CpuMemory<NoTlb>) -> bool {
    space
        .lookup(cpu, PAGE)
        .is_some_and(|(leaf, _)| leaf.writable())
}

fn is_marked(space: &Space, cpu: &CpuMemory<NoTlb>) -> bool {
    let mut word = [0];
    space.get_dirty_log(cpu, SLOT, 0, &mut word).unwrap();
    word[0] & 1 != 0
}

/// Tries every execution of `scenario`. One at a time, as all share the pool and its accounts.
fn check_all(scenario: impl Fn() + Sync + Send + 'static) {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(scenario);
}

/// Runs `prepare` on CPU 0, then `first` and `second` at once on CPUs 1 and 2, then `check` on CPU 0.
fn explore(
    prepare: impl Fn(&Space, &CpuMemory<NoTlb>) + Copy + Sync + Send + 'static,
    first: impl Fn(&Space, &CpuMemory<NoTlb>) + Copy + Sync + Send + 'static,
    second: impl Fn(&Space, &CpuMemory<NoTlb>) + Copy + Sync + Send + 'static,
    check: impl Fn(&Space, &CpuMemory<NoTlb>) + Copy + Sync + Send + 'static,
) {
    check_all(move || {
        let own = cpu(0);
        let space = space(&own);
        prepare(&space, &own);
        let on = |number: usize, work: Box<dyn FnOnce(&Space, &CpuMemory<NoTlb>) + Send>| {
            let space = space.clone();
            thread::spawn(move || work(&space, &cpu(number)))
        };
        let (one, two) = (on(1, Box::new(first)), on(2, Box::new(second)));
        one.join().unwrap();
        two.join().unwrap();
        check(&space, &own);
        Arc::into_inner(space)
            .expect("the threads have ended")
            .destroy(&own);
        own.wait_for_epoch();
        assert!(POOL.counts_of(VmId::new(0).unwrap()).is_zero());
    });
}

fn nothing(_: &Space, _: &CpuMemory<NoTlb>) {}

fn log(space: &Space, cpu: &CpuMemory<NoTlb>) {
    space.enable_dirty_log(cpu, SLOT).unwrap();
}

fn write(space: &Space, cpu: &CpuMemory<NoTlb>) {
    access(space, cpu, Access::Write);
}

fn what_is_writable_is_marked(space: &Space, cpu: &CpuMemory<NoTlb>) {
    assert!(
        !is_writable(space, cpu) || is_marked(space, cpu),
        "a writable page isn't in the log"
    );
}

#[test]
fn rule_8_a_page_mapped_while_logging_is_enabled_is_logged() {
    explore(nothing, log, write, what_is_writable_is_marked);
}

#[test]
fn rule_8_a_page_relaxed_while_logging_is_enabled_is_logged() {
    let left_read_only = |space: &Space, cpu: &CpuMemory<NoTlb>| {
        write(space, cpu);
        log(space, cpu);
        space.disable_dirty_log(cpu, SLOT).unwrap();
    };
    explore(left_read_only, log, write, what_is_writable_is_marked);
}

#[test]
fn rule_9_a_harvest_beside_a_write_fault_loses_nothing() {
    let harvest = |space: &Space, cpu: &CpuMemory<NoTlb>| {
        let mut taken = [u64::MAX];
        space.clear_dirty_log(cpu, SLOT, 0, &mut taken).unwrap();
    };
    explore(log, harvest, write, what_is_writable_is_marked);
    let dirty = |space: &Space, cpu: &CpuMemory<NoTlb>| {
        log(space, cpu);
        write(space, cpu);
    };
    explore(dirty, harvest, write, what_is_writable_is_marked);
}

#[test]
fn rule_9_what_was_written_is_harvested_or_still_in_the_log() {
    check_all(|| {
        let own = cpu(0);
        let space = space(&own);
        log(&space, &own);
        let writer = {
            let space = space.clone();
            thread::spawn(move || write(&space, &cpu(1)))
        };
        let mut taken = [u64::MAX];
        space.clear_dirty_log(&own, SLOT, 0, &mut taken).unwrap();
        writer.join().unwrap();
        assert!(
            taken[0] & 1 != 0 || is_marked(&space, &own),
            "the write is nowhere"
        );
        Arc::into_inner(space)
            .expect("the thread has ended")
            .destroy(&own);
        own.wait_for_epoch();
    });
}

#[test]
fn rule_10_a_fault_beside_a_new_slot_sees_the_old_slots_or_the_new_ones() {
    let add = |space: &Space, cpu: &CpuMemory<NoTlb>| {
        space
            .add_slot(
                cpu,
                SlotId(1),
                PAGE.offset(PAGE_SIZE),
                PAGE_SIZE,
                Level::L3,
                false,
            )
            .unwrap();
    };
    let fault = |space: &Space, cpu: &CpuMemory<NoTlb>| {
        write(space, cpu);
        let beside = Fault {
            ipa: PAGE.offset(PAGE_SIZE),
            va: None,
            access: Access::Write,
            kind: FaultKind::Translation,
        };
        let outcome = space.fault(cpu, &beside);
        let mapped = space.lookup(cpu, beside.ipa).is_some();
        assert!(mapped == (outcome == FaultOutcome::Resolved), "{outcome:?}");
    };
    explore(nothing, add, fault, |space, cpu| {
        assert!(is_writable(space, cpu))
    });
}
