//! What awaits an epoch is bounded, also while another CPU holds it up; and epochs pass while other CPUs fault all the time
//! and do nothing for them.
#![cfg(not(loom))]

use std::alloc::{GlobalAlloc, System};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use memory::frames::{FramePool, MOST_PENDING, arena};
use memory::{
    Access, AddressSpace, CpuCounters, CpuMemory, Fault, FaultKind, FaultOutcome, LogPolicy,
    MemorySystem, Object, Owner, Parallel, SlotConfig, SlotId, UNLINKED_AT_ONCE, VmId,
};
use stage2::{Features, Granule, Ipa, Layout, Level, NoTlb, PAGE_SIZE};

/// More tables than may await an epoch.
const TABLES: u64 = MOST_PENDING + 10 * UNLINKED_AT_ONCE;

static POOL: FramePool = FramePool::new();

/// The heap of this process, counted.
struct Counted;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static HEAP: Counted = Counted;

// SAFETY: the system's, which this adds nothing to.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: std::alloc::Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: std::alloc::Layout) {
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }
}

/// One test at a time, as all count the same heap.
static ONE: Mutex<()> = Mutex::new(());

fn cpu(system: &'static MemorySystem, number: usize) -> CpuMemory<NoTlb> {
    let counters = Box::leak(Box::new(CpuCounters::default()));
    CpuMemory::new(system, number, NoTlb, counters)
}

#[test]
#[cfg_attr(miri, ignore = "the arena makes pointers of addresses")]
fn a_teardown_waits_for_the_epoch_before_too_much_awaits_it() {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: the arena is leaked, and added once.
    unsafe { POOL.add(arena::leak(4 * TABLES as usize)) };
    let system = &*Box::leak(Box::new(MemorySystem::new(&POOL, 2, 8).unwrap()));
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
    let layout = Layout::new(Features::armv8_0(40, 48)).unwrap();
    let space = AddressSpace::<Parallel>::new(&cpu, VmId::new(0).unwrap(), layout).unwrap();
    let bytes = TABLES * Granule::Size4K.span(Level::L2);
    let slot = SlotConfig {
        id: SlotId(0),
        start: Ipa::new(0),
        object: Object::anonymous(&cpu, Owner::Vm(space.vm()), bytes, Level::L3).unwrap(),
        offset: 0,
        bytes,
        read_only: false,
        write_faults: false,
    };
    space.map_object(&cpu, slot).unwrap();
    // One page in the span of each table.
    for table in 0..TABLES {
        let ipa = Ipa::new(table * Granule::Size4K.span(Level::L2));
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

/// Blocks of the slot that CPUs fault in.
const BLOCKS: u64 = 8;
/// CPUs that do nothing but fault.
const BUSY: usize = 3;
/// An epoch passes in far less.
const LONG: Duration = Duration::from_secs(60);

type Space = AddressSpace<Parallel>;

/// Runs `work` on CPU 0 while other CPUs fault in the same VM without an end, never idle and without any upkeep. Fails if
/// that never ends.
fn beside_busy_cpus(work: fn(&CpuMemory<NoTlb>, &Space, &'static FramePool)) {
    static END: AtomicBool = AtomicBool::new(false);
    /// Ends the others, also after a panic.
    struct Ending;
    impl Drop for Ending {
        fn drop(&mut self) {
            END.store(true, Ordering::Relaxed);
        }
    }
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    END.store(false, Ordering::Relaxed);
    let pool = &*Box::leak(Box::new(FramePool::new()));
    // SAFETY: the arena is leaked, and added once.
    unsafe { pool.add(arena::leak(8192)) };
    let system = &*Box::leak(Box::new(MemorySystem::new(pool, 1 + BUSY, 8).unwrap()));
    let (ended, end) = mpsc::channel();
    let main = thread::spawn(move || {
        let own = cpu(system, 0);
        let layout = Layout::new(Features::armv8_0(40, 48)).unwrap();
        let space = Space::new(&own, VmId::new(0).unwrap(), layout).unwrap();
        let bytes = BLOCKS * Granule::Size4K.span(Level::L2);
        space
            .add_slot(&own, SlotId(0), Ipa::new(0), bytes, Level::L2, false)
            .unwrap();
        thread::scope(|scope| {
            for number in 1..=BUSY {
                let space = &space;
                scope.spawn(move || {
                    let cpu = cpu(system, number);
                    let mut page = number as u64;
                    while !END.load(Ordering::Relaxed) {
                        page = (page * 5 + 1) % (BLOCKS * 512);
                        let fault = Fault {
                            vcpu: number,
                            ipa: Ipa::new(page * PAGE_SIZE),
                            va: None,
                            access: Access::Write,
                            kind: FaultKind::Permission,
                        };
                        if space.fault(&cpu, &fault) == FaultOutcome::OutOfFrames {
                            cpu.refill();
                        }
                        // Rather here than in the middle of a fault, as no machine does that.
                        thread::yield_now();
                    }
                });
            }
            let _ending = Ending;
            work(&own, &space, pool);
        });
        space.destroy(&own);
        own.wait_for_epoch();
        ended.send(()).unwrap();
    });
    let passed = end.recv_timeout(LONG);
    assert!(
        passed != Err(mpsc::RecvTimeoutError::Timeout),
        "no epoch passes beside CPUs that fault"
    );
    main.join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

#[test]
#[cfg_attr(miri, ignore = "the arena makes pointers of addresses")]
fn epochs_pass_for_whoever_waits_beside_cpus_that_only_fault() {
    beside_busy_cpus(|cpu, _, _| {
        for _ in 0..100 {
            cpu.wait_for_epoch();
        }
    });
}

#[test]
#[cfg_attr(miri, ignore = "the arena makes pointers of addresses")]
fn an_idle_cpu_gives_back_what_was_unlinked_beside_cpus_that_only_fault() {
    beside_busy_cpus(|cpu, space, pool| {
        for _ in 0..20 {
            let policy = LogPolicy::default();
            space.enable_dirty_log(cpu, SlotId(0), &policy).unwrap();
            thread::sleep(Duration::from_millis(2));
            space.disable_dirty_log(cpu, SlotId(0)).unwrap();
            space.restore_blocks(cpu, SlotId(0), Ipa::new(0)).unwrap();
            while pool.pending() > 0 {
                cpu.idle();
            }
        }
    });
}

#[test]
#[cfg_attr(miri, ignore = "the arena makes pointers of addresses")]
fn logs_that_have_ended_give_their_memory_back_beside_cpus_that_only_fault() {
    beside_busy_cpus(|cpu, space, _| {
        let cycle = || {
            let policy = LogPolicy::default();
            space.enable_dirty_log(cpu, SlotId(0), &policy).unwrap();
            space.disable_dirty_log(cpu, SlotId(0)).unwrap();
            thread::sleep(Duration::from_millis(1));
        };
        let before = ALLOCATED.load(Ordering::Relaxed);
        cycle();
        // A log's words, and what else comes with it.
        let log = (BLOCKS * 512 / 64 * 64) as usize + 1024;
        let mut most = 0;
        for _ in 0..200 {
            cycle();
            let now = ALLOCATED.load(Ordering::Relaxed).saturating_sub(before);
            most = most.max(now);
        }
        assert!(
            most < 24 * log,
            "{most} bytes of logs that have ended, at {log} each"
        );
    });
}
