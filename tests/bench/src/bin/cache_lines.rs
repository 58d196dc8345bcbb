//! Two CPUs' write faults on pages of different tables, for a memory tracer to look at: which cache lines does the whole
//! fault path touch? So many of each that the epoch's own upkeep, which comes with every 128th stay, is among them.
//!
//! Prints the addresses of a marker that is written before, between and after the two CPUs' faults, of this thread's stack, and
//! of what is known by name; then the faults run, on one thread, each CPU's with its own means.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};

use memory::frames::{FramePool, arena};
use memory::{
    Access, AddressSpace, CpuCounters, CpuMemory, Fault, FaultKind, FaultOutcome, LogPolicy,
    MemorySystem, Parallel, SlotId, VmId,
};
use stage2::{Features, Granule, Ipa, Layout, Level, NoTlb, PAGE_SIZE};

static MARKER: AtomicU64 = AtomicU64::new(0);
static POOL: FramePool = FramePool::new();

const SLOT: SlotId = SlotId(0);
const SLOT_PAGES: u64 = 1024;

/// Faults of each CPU.
const FAULTS: u64 = 300;

/// Guest pages under different tables.
const FIRST: u64 = 0;
const SECOND: u64 = 512;

fn fault(page: u64, access: Access, kind: FaultKind) -> Fault {
    Fault {
        vcpu: 0,
        ipa: Ipa::new(page * PAGE_SIZE),
        va: None,
        access,
        kind,
    }
}

fn cpu(system: &'static MemorySystem, number: usize) -> CpuMemory<NoTlb> {
    let counters: &CpuCounters = Box::leak(Box::default());
    let size = size_of_val(counters);
    println!(
        "counters of CPU {number}: {:#x} {size}",
        &raw const *counters as usize
    );
    CpuMemory::new(system, number, NoTlb, counters)
}

fn serve(space: &AddressSpace<Parallel>, cpu: &CpuMemory<NoTlb>, fault: &Fault) {
    assert_eq!(space.fault(cpu, fault), FaultOutcome::Resolved);
}

fn main() {
    // SAFETY: the arena is leaked, and added once.
    unsafe { POOL.add(arena::leak(2048)) };
    let system: &MemorySystem = Box::leak(Box::new(MemorySystem::new(&POOL, 2, 8).unwrap()));
    let cpus = [cpu(system, 0), cpu(system, 1)];
    let layout = Layout::new(Features::armv8_0(40, 48)).expect("every CPU has it");
    let vm = VmId::new(0).expect("the first");
    let space = AddressSpace::<Parallel>::new(&cpus[0], vm, layout).expect("enough frames");
    let bytes = SLOT_PAGES * PAGE_SIZE;
    space
        .add_slot(&cpus[0], SLOT, Ipa::new(0), bytes, Level::L3, false)
        .expect("enough frames");
    space
        .enable_dirty_log(&cpus[0], SLOT, &LogPolicy::default())
        .expect("not logged yet");
    for (cpu, first) in cpus.iter().zip([FIRST, SECOND]) {
        for page in first..first + FAULTS {
            serve(
                &space,
                cpu,
                &fault(page, Access::Read, FaultKind::Translation),
            );
        }
    }
    for (page, name) in [(FIRST, "first"), (SECOND, "second")] {
        let (leaf, _) = space
            .lookup(&cpus[0], Ipa::new(page * PAGE_SIZE))
            .expect("mapped");
        let span = Granule::Size4K.span(Level::L3);
        println!("memory of the {name} page: {:#x} {span}", leaf.pa().get());
    }
    println!("marker: {:#x} 8", &raw const MARKER as usize);
    println!("stack: {:#x} 1", &raw const cpus as usize);
    let firsts = black_box([FIRST, SECOND]);
    MARKER.store(1, Ordering::SeqCst);
    for (number, (cpu, first)) in cpus.iter().zip(firsts).enumerate() {
        for page in first..first + FAULTS {
            let write = fault(page, Access::Write, FaultKind::Permission);
            serve(&space, cpu, &write);
        }
        MARKER.store(number as u64 + 2, Ordering::SeqCst);
    }
}
