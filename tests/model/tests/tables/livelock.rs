//! Faults beside invalidations that never pause, on threads of the host: a fault outside the range that is being invalidated
//! never retries, however close it is; one in the very range makes progress between two of them. With one count for the whole
//! VM, as KVM/arm64 has it, those outside retry too.
//!
//! What is invalidated is a page that is forked again and again, and written by a vCPU in between. Its neighbours on both sides,
//! in the same region of the tracker, are what the other vCPUs fault on; they drop their own entries to fault again.
#![cfg(not(miri))]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use memory::frames::{FramePool, arena};
use memory::{
    Access, AddressSpace, BackingPolicy, CpuCounters, CpuMemory, Fault, FaultKind, FaultOutcome,
    MemorySystem, Object, Owner, Parallel, SlotConfig, SlotId, TrackerMode, VmId,
};
use model::in_place::{AtBroadcasts, InPlace};
use stage2::{Counters, Features, Ipa, Layout, Level, PAGE_SIZE, Worker};

type Space = AddressSpace<Parallel>;

/// Pages below and above those that are invalidated, for a vCPU each.
const BESIDE: u64 = 8;
/// Faults that each vCPU takes at least.
const FAULTS: u64 = 500;
/// Writes to a page that is invalidated meanwhile.
const WRITES: u64 = 10;
/// Retries that are enough to be sure of them.
const RETRIES: u64 = 20;
/// Long enough for a host that has other things to do.
const PATIENCE: Duration = Duration::from_secs(120);

/// The machine. CPUs that invalidate take their time: others run in the middle of it as often as between two, however few
/// CPUs the host has.
type Hardware = AtBroadcasts<fn()>;

const SLOW: Hardware = AtBroadcasts(thread::yield_now);
const QUICK: Hardware = AtBroadcasts(|| ());

/// A VM whose memory is one page after the other of what is left alone, what is invalidated, what is left alone.
struct World {
    space: Space,
    invalidated: Vec<Arc<Object>>,
    stop: AtomicBool,
    invalidations: AtomicU64,
}

fn vm(number: usize) -> VmId {
    VmId::new(number).unwrap()
}

/// The first page of the region's middle, where the invalidated ones begin.
fn middle(page: u64) -> Ipa {
    Ipa::new(0x4000_0000 + (256 + page) * PAGE_SIZE)
}

fn below(page: u64) -> Ipa {
    Ipa::new(middle(0).get() - (1 + page) * PAGE_SIZE)
}

impl World {
    fn new(cpu: &CpuMemory<Hardware>, tracker: TrackerMode, invalidators: u64) -> Self {
        let backing = BackingPolicy {
            tracker,
            ..BackingPolicy::default()
        };
        let layout = Layout::new(Features::armv8_0(40, 48)).unwrap();
        let space = Space::with_backing(cpu, vm(0), layout, backing).unwrap();
        let mut slots = 0;
        let mut map = |start: Ipa, pages: u64| {
            let bytes = pages * PAGE_SIZE;
            let object = Object::anonymous(cpu, Owner::Vm(vm(0)), bytes, Level::L3).unwrap();
            let config = SlotConfig {
                id: SlotId(slots),
                start,
                object: object.clone(),
                offset: 0,
                bytes,
                read_only: false,
                write_faults: true,
            };
            slots += 1;
            space.map_object(cpu, config).unwrap();
            object
        };
        map(below(BESIDE - 1), BESIDE);
        map(middle(invalidators), BESIDE);
        let invalidated = (0..invalidators).map(|page| map(middle(page), 1)).collect();
        Self {
            space,
            invalidated,
            stop: AtomicBool::new(false),
            invalidations: AtomicU64::new(0),
        }
    }

    /// Serves one fault of the guest.
    fn fault(&self, cpu: &CpuMemory<Hardware>, ipa: Ipa, kind: FaultKind) -> FaultOutcome {
        let fault = Fault {
            vcpu: 0,
            ipa,
            va: None,
            access: Access::Write,
            kind,
        };
        let outcome = self.space.fault(cpu, &fault);
        if cpu.needs_upkeep() {
            cpu.upkeep();
        }
        outcome
    }

    /// Forks an object without pause, until told to stop: each time its page is withdrawn from the VM.
    fn invalidate(&self, cpu: &CpuMemory<Hardware>, object: &Object) {
        while !self.stop.load(Ordering::Relaxed) {
            let copy = object.fork(cpu, Owner::Vm(vm(1))).expect("there is a heap");
            drop(copy);
            self.invalidations.fetch_add(1, Ordering::Relaxed);
            cpu.idle();
            thread::yield_now();
        }
    }

    /// Faults on a page of its own, and drops its entry, again and again, until it has done so often enough.
    fn fault_beside(&self, cpu: &CpuMemory<Hardware>, ipa: Ipa, enough: impl Fn(u64) -> bool) {
        let (page, counters) = (ipa..ipa.offset(PAGE_SIZE), Counters::default());
        let worker = Worker {
            memory: &InPlace,
            tlb: cpu.hardware(),
            epoch: &InPlace,
            counters: &counters,
        };
        let began = Instant::now();
        let mut faults = 0;
        while !enough(faults) {
            assert!(began.elapsed() < PATIENCE, "after {faults} faults");
            match self.fault(cpu, ipa, FaultKind::Translation) {
                FaultOutcome::Resolved => faults += 1,
                FaultOutcome::Retry => continue,
                other => panic!("{other:?}"),
            }
            self.space
                .stage2()
                .unmap(&worker, page.clone(), |_, _, _| {})
                .unwrap();
        }
    }

    /// Writes to a page that is being invalidated, each time by a fault of its own.
    fn fault_within(&self, cpu: &CpuMemory<Hardware>) {
        let began = Instant::now();
        for write in 0..WRITES {
            let before = self.invalidations.load(Ordering::Relaxed);
            loop {
                assert!(began.elapsed() < PATIENCE, "after {write} writes");
                let found = self.space.lookup(cpu, middle(0));
                let kind = match found {
                    Some((leaf, _)) if leaf.writable() => break,
                    Some(_) => FaultKind::Permission,
                    None => FaultKind::Translation,
                };
                let outcome = self.fault(cpu, middle(0), kind);
                assert!(
                    matches!(outcome, FaultOutcome::Resolved | FaultOutcome::Retry),
                    "{outcome:?}"
                );
                thread::yield_now();
            }
            // Until it is taken away again.
            while self.invalidations.load(Ordering::Relaxed) == before {
                assert!(began.elapsed() < PATIENCE, "nothing is invalidated");
                thread::yield_now();
            }
        }
    }
}

/// How often two vCPUs that fault on neighbours retried, beside so many CPUs that invalidate a page each and, where faults are
/// told apart, a vCPU that writes to one of these. With one count they may starve, so they end at the first retries.
fn retries_beside(tracker: TrackerMode, invalidators: u64) -> u64 {
    let pool: &FramePool = Box::leak(Box::new(FramePool::new()));
    // SAFETY: the arena is leaked, and added once.
    unsafe { pool.add(arena::leak(8192)) };
    let cpus = invalidators as usize + 4;
    let system: &MemorySystem = Box::leak(Box::new(MemorySystem::new(pool, cpus, 8).unwrap()));
    let cpu_of = |number: usize, is_slow| {
        let counters: &CpuCounters = Box::leak(Box::default());
        let cpu = CpuMemory::new(system, number, if is_slow { SLOW } else { QUICK }, counters);
        (cpu, counters)
    };
    let (main, _) = cpu_of(0, false);
    let world = World::new(&main, tracker, invalidators);
    for page in 0..invalidators {
        while world.fault(&main, middle(page), FaultKind::Translation) != FaultOutcome::Resolved {}
    }
    let retried = AtomicU64::new(0);
    thread::scope(|scope| {
        let world = &world;
        for (number, object) in world.invalidated.iter().enumerate() {
            scope.spawn(move || {
                let (cpu, _) = cpu_of(4 + number, true);
                world.invalidate(&cpu, object);
            });
        }
        let beside = [below(0), middle(invalidators)].map(|ipa| (ipa, &retried));
        let vcpus: Vec<_> = (beside.into_iter().enumerate())
            .map(|(number, (ipa, retried))| {
                scope.spawn(move || {
                    let (cpu, counters) = cpu_of(1 + number, false);
                    let enough = |faults| match tracker {
                        TrackerMode::Ranges => {
                            let seen = world.invalidations.load(Ordering::Relaxed);
                            faults >= FAULTS && seen >= FAULTS / 10
                        }
                        TrackerMode::Sequence => counters.faults.retried.get() >= RETRIES,
                    };
                    world.fault_beside(&cpu, ipa, enough);
                    retried.fetch_add(counters.faults.retried.get(), Ordering::Relaxed);
                })
            })
            .collect();
        let within = scope.spawn(move || {
            let (cpu, _) = cpu_of(3, false);
            if tracker == TrackerMode::Ranges {
                world.fault_within(&cpu);
            }
        });
        let ended: Vec<_> = vcpus
            .into_iter()
            .chain([within])
            .map(|vcpu| vcpu.join())
            .collect();
        world.stop.store(true, Ordering::Relaxed);
        for vcpu in ended {
            vcpu.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
    });
    let invalidations = world.invalidations.load(Ordering::Relaxed);
    let World {
        space, invalidated, ..
    } = world;
    space.destroy(&main);
    drop(invalidated);
    main.wait_for_epoch();
    assert!(pool.counts_of(vm(0)).is_zero() && pool.counts_of(vm(1)).is_zero());
    assert_eq!(pool.shared_frames(), 0);
    let retried = retried.into_inner();
    println!(
        "{tracker:?}: {retried} retries beside {invalidations} invalidations by {invalidators}"
    );
    retried
}

#[test]
fn a_fault_beside_a_range_that_is_invalidated_without_pause_never_retries() {
    for invalidators in [1, 4, 16] {
        assert_eq!(retries_beside(TrackerMode::Ranges, invalidators), 0);
    }
}

#[test]
fn with_one_count_for_the_vm_faults_beside_the_range_retry() {
    assert!(retries_beside(TrackerMode::Sequence, 1) >= 2 * RETRIES);
}
