//! What awaits an epoch is bounded, also while another CPU holds it up.
#![cfg(not(loom))]

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use memory::frames::{FramePool, MOST_PENDING, arena};
use memory::{
    Access, AddressSpace, CpuCounters, CpuMemory, Fault, FaultKind, FaultOutcome, MemorySystem,
    Parallel, SlotId, UNLINKED_AT_ONCE, VmId,
};
use stage2::{Features, Granule, Ipa, Layout, Level, NoTlb, PAGE_SIZE};

/// More tables than may await an epoch.
const TABLES: u64 = MOST_PENDING + 10 * UNLINKED_AT_ONCE;

static POOL: FramePool = FramePool::new();

fn cpu(system: &'static MemorySystem, number: usize) -> CpuMemory<NoTlb> {
    let counters = Box::leak(Box::new(CpuCounters::default()));
    CpuMemory::new(system, number, NoTlb, counters)
}

#[test]
#[cfg_attr(miri, ignore = "the arena makes pointers of addresses")]
fn a_teardown_waits_for_the_epoch_before_too_much_awaits_it() {
    // SAFETY: the arena is leaked, and added once.
    unsafe { POOL.add(arena::leak(4 * TABLES as usize)) };
    let system = &*Box::leak(Box::new(MemorySystem::new(&POOL, 2, 2, 8)));
    let (held_up, holding) = mpsc::channel();
    let other = thread::spawn(move || {
        let cpu = cpu(system, 1);
        let guard = cpu.pin();
        held_up.send(()).unwrap();
        // Long enough for a teardown that doesn't wait to come to its end.
        thread::sleep(Duration::from_millis(300));
        drop(guard);
    });
    let cpu = cpu(system, 0);
    let layout = Layout::new(Features::armv8_0(40, 40)).unwrap();
    let space = AddressSpace::<Parallel>::new(&cpu, VmId::new(0).unwrap(), layout).unwrap();
    // One page in the span of each table.
    for table in 0..TABLES {
        let ipa = Ipa::new(table * Granule::Size4K.span(Level::L2));
        let id = SlotId(table as u32);
        space
            .add_slot(&cpu, id, ipa, PAGE_SIZE, Level::L3, false)
            .unwrap();
        let fault = Fault {
            vcpu: 0,
            ipa,
            va: None,
            access: Access::Write,
            kind: FaultKind::Translation,
        };
        while space.fault(&cpu, &fault) != FaultOutcome::Resolved {}
    }
    holding.recv().unwrap();
    space.destroy(&cpu);
    other.join().unwrap();
    let most = POOL.most_pending();
    assert!(most > MOST_PENDING / 2, "nothing was held up: {most}");
    assert!(
        most <= MOST_PENDING + UNLINKED_AT_ONCE,
        "{most} tables awaited an epoch"
    );
    assert_eq!(POOL.pending(), 0);
    POOL.counts().check().unwrap();
}
