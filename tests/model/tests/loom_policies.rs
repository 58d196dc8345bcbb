//! Every policy of the dirty log beside writes, under every interleaving: rules 8 and 9 on the real address space, its rings
//! and bitmaps. What the harness has copied when the guest has stopped is the guest's memory.
//!
//! A guest's write is a step of its thread: it looks at the tables, notes dirty state in them as hardware does, and writes to
//! the page's own memory; or it faults. It has no TLB (`loom_tracking`, `loom_changes` and `loom_tables` have them), but an
//! invalidation is complete only when what it overtakes is: a write that was decided on before counts as not begun.
//!
//! Bounds: pages (no blocks: slots have those of real size, which the checker's small tables haven't) in a tree of two levels
//! with four entries each, rings of two entries; two or three CPUs, each a thread, beside a main thread that waits; at most so
//! many preemptions per execution as the first argument of `explore` says.
#![cfg(loom)]

use std::ptr::{NonNull, with_exposed_provenance, with_exposed_provenance_mut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use loom::thread;
use memory::frames::{FramePool, arena};
use memory::{
    Access, AddressSpace, Caches, CpuMemory, DirtyPages, Fault, FaultKind, FaultOutcome, LogPolicy,
    MemorySystem, Parallel, SlotId, Tracking, VmId,
};
use stage2::sync::{full_barrier, relax};
use stage2::{
    Counters, Descriptor, Entry, Epoch, Features, Ipa, IpaRange, Layout, Level, PAGE_SIZE, Pa,
    Regime, Step, TableFrame, TableMemory, Tlb, Unlinked, Worker,
};

const CPUS: usize = 4;
const SLOT: SlotId = SlotId(0);
const PAGES: u64 = 3;

const PROTECT: LogPolicy = LogPolicy {
    tracking: Tracking::WriteProtect,
    splitting: memory::Splitting::AtFault,
    granularity: memory::Granularity::Page,
    initially_set: false,
    ring: false,
};
const PROTECT_ALL_SET: LogPolicy = LogPolicy {
    initially_set: true,
    ..PROTECT
};
const HARDWARE: LogPolicy = LogPolicy {
    tracking: Tracking::Hardware,
    ..PROTECT
};
const HARDWARE_ALL_SET: LogPolicy = LogPolicy {
    initially_set: true,
    ..HARDWARE
};
const RING: LogPolicy = LogPolicy {
    ring: true,
    ..PROTECT
};
const POLICIES: [LogPolicy; 5] = [PROTECT, PROTECT_ALL_SET, HARDWARE, HARDWARE_ALL_SET, RING];

static POOL: FramePool = FramePool::new();
/// What the harness has copied of each page, in one execution.
static COPY: [AtomicU64; PAGES as usize] = [const { AtomicU64::new(0) }; PAGES as usize];

type Space = AddressSpace<Parallel>;
type Cpu = CpuMemory<Overtaking>;

fn page(number: u64) -> Ipa {
    Ipa::new(number * PAGE_SIZE)
}

fn system() -> &'static MemorySystem {
    static SYSTEM: OnceLock<MemorySystem> = OnceLock::new();
    SYSTEM.get_or_init(|| {
        // SAFETY: the arena is leaked, and added once.
        unsafe { POOL.add(arena::leak(2048)) };
        MemorySystem::new(&POOL, CPUS, 2, 8)
    })
}

fn cpu(number: usize) -> Cpu {
    CpuMemory::new(system(), number, Overtaking, Box::leak(Box::default()))
}

/// An address space with one slot of a few pages.
fn space(cpu: &Cpu) -> Arc<Space> {
    let features = Features {
        hardware_access: true,
        hardware_dirty: true,
        ..Features::armv8_0(32, 48)
    };
    let layout = Layout::small(Level::L2, features);
    let mut space = Space::new(cpu, VmId::new(0).unwrap(), layout).unwrap();
    space.make_rings(2, 2).unwrap();
    space
        .add_slot(cpu, SLOT, page(0), PAGES * PAGE_SIZE, Level::L3, false)
        .unwrap();
    Arc::new(space)
}

loom::lazy_static! {
    /// Invalidations that are complete.
    static ref COMPLETE: loom::sync::atomic::AtomicU64 = loom::sync::atomic::AtomicU64::new(0);
}

/// How many invalidations are complete. What they stand for is seen by whoever asks.
fn complete() -> u64 {
    COMPLETE.fetch_add(0, Ordering::AcqRel)
}

/// TLB instructions that count.
struct Overtaking;

impl Overtaking {
    fn invalidate(&self) {
        full_barrier();
        COMPLETE.fetch_add(1, Ordering::AcqRel);
    }
}

impl Tlb for Overtaking {
    fn invalidate_leaf(&self, _: Regime, _: Ipa, _: Option<Level>) {
        self.invalidate();
    }
    fn invalidate_range(&self, _: Regime, _: IpaRange, _: bool) {
        self.invalidate();
    }
    fn invalidate_vmid(&self, _: Regime) {
        self.invalidate();
    }
    fn invalidate_all_vmids(&self) {
        self.invalidate();
    }
    fn invalidate_local(&self, _: Regime, _: Ipa, _: Option<Level>, _: Option<u64>) {}
    fn publish_tables(&self) {}
}

impl Caches for Overtaking {
    fn clean_for_guest(&self, _: Pa, _: u64) {}
}

/// The tables, for hardware to walk. Nothing is allocated through it.
struct Walked;

// SAFETY: tables lie at their own addresses and last as long as the process; none is handed out.
unsafe impl TableMemory for Walked {
    fn allocate(&self) -> Option<TableFrame> {
        None
    }
    fn free(&self, _: TableFrame) {}
    fn entries(&self, pa: Pa) -> NonNull<Entry> {
        NonNull::new(with_exposed_provenance_mut(pa.get() as usize)).expect("no table is at zero")
    }
}

impl Epoch for Walked {
    fn retire(&self, _: Unlinked) {}
}

/// Writes to a page as hardware does if the tables allow it. Whether it did.
fn write_through(space: &Space, cpu: &Cpu, number: u64) -> bool {
    let _guard = cpu.pin();
    let counters = Counters::default();
    let worker = Worker {
        memory: &Walked,
        tlb: &Overtaking,
        epoch: &Walked,
        counters: &counters,
    };
    let mut written = false;
    let before = complete();
    space
        .stage2()
        .walk(&worker, page(number)..page(number + 1), |context| {
            let leaf = match context.descriptor {
                Descriptor::Table(_) => return Step::Descend,
                Descriptor::Leaf(leaf) => leaf,
                _ => return Step::Stop,
            };
            if !leaf.writable() {
                let dirty = Descriptor::Leaf(leaf.with_write().with_accessed());
                if !leaf.hardware_dirty()
                    || context.entry.exchange(context.observed, dirty).is_err()
                {
                    return Step::Stop;
                }
            }
            if complete() != before {
                return Step::Stop;
            }
            let word: *const AtomicU64 = with_exposed_provenance(leaf.pa().get() as usize);
            // SAFETY: the page is the slot's, of the arena, which lasts.
            unsafe { &*word }.fetch_add(1, Ordering::Relaxed);
            written = true;
            Step::Stop
        });
    written
}

/// The guest of `vcpu` writes to a page, faulting until it may.
fn write_page(space: &Space, cpu: &Cpu, vcpu: usize, number: u64) {
    while !write_through(space, cpu, number) {
        let fault = Fault {
            vcpu,
            ipa: page(number),
            va: None,
            access: Access::Write,
            kind: FaultKind::Permission,
        };
        match space.fault(cpu, &fault) {
            FaultOutcome::Resolved | FaultOutcome::RingLow => {}
            FaultOutcome::Retry | FaultOutcome::RingFull => relax(),
            other => panic!("{other:?}"),
        }
    }
}

/// Not the first page: a ring's entry that was never written names that.
fn write(space: &Space, cpu: &Cpu) {
    write_page(space, cpu, 0, 1);
}

fn write_by_second(space: &Space, cpu: &Cpu) {
    write_page(space, cpu, 1, 1);
}

fn in_memory(space: &Space, cpu: &Cpu, number: u64) -> u64 {
    let mut bytes = [0; 8];
    space.read_guest(cpu, page(number), &mut bytes).unwrap();
    u64::from_le_bytes(bytes)
}

fn copy(space: &Space, cpu: &Cpu, number: u64) {
    COPY[number as usize].store(in_memory(space, cpu, number), Ordering::Relaxed);
}

/// Starts to log; and to copy, if not all of it is dirty to begin with.
fn enable(space: &Space, cpu: &Cpu, policy: &LogPolicy) {
    space.enable_dirty_log(cpu, SLOT, policy).unwrap();
    for number in (0..PAGES).filter(|_| !policy.initially_set) {
        copy(space, cpu, number);
    }
}

fn disable(space: &Space, cpu: &Cpu) {
    space.disable_dirty_log(cpu, SLOT).unwrap();
}

fn harvest_rings(space: &Space, cpu: &Cpu) {
    let none = DirtyPages {
        slot: SLOT,
        first: 0,
        count: 0,
    };
    for vcpu in 0..2 {
        let mut pages = [none; 2];
        let count = space.harvest_ring(cpu, vcpu, &mut pages);
        for pages in &pages[..count] {
            copy(space, cpu, pages.first);
        }
    }
}

fn copy_named(space: &Space, cpu: &Cpu, bitmap: u64) {
    for number in (0..PAGES).filter(|page| bitmap & 1 << page != 0) {
        copy(space, cpu, number);
    }
}

/// Gets and clears in one, and rings.
fn harvest(space: &Space, cpu: &Cpu) {
    harvest_rings(space, cpu);
    let mut bitmap = [0];
    space
        .get_and_clear_dirty_log(cpu, SLOT, 0, &mut bitmap)
        .unwrap();
    copy_named(space, cpu, bitmap[0]);
}

/// Gets, then clears what there was.
fn get_then_clear(space: &Space, cpu: &Cpu) {
    let mut bitmap = [0];
    space.get_dirty_log(cpu, SLOT, 0, &mut bitmap).unwrap();
    space.clear_dirty_log(cpu, SLOT, 0, &mut bitmap).unwrap();
    copy_named(space, cpu, bitmap[0]);
}

type Act = Box<dyn Fn(&Space, &Cpu) + Send + Sync>;

fn act(act: impl Fn(&Space, &Cpu) + Send + Sync + 'static) -> Act {
    Box::new(act)
}

/// Tries every execution, with at most so many preemptions, in which `prepare` runs on CPU 0, then each of `race` at once
/// with the others; then the guest has stopped, and the last harvest makes the copy whole. One test at a time, as all share
/// the pool.
fn explore<const N: usize>(preemptions: usize, prepare: Act, race: [Act; N]) {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 10_000;
    let began = Instant::now();
    let race = Arc::new(race);
    builder.check(move || {
        for copied in &COPY {
            copied.store(u64::MAX, Ordering::Relaxed);
        }
        let own = cpu(0);
        let space = space(&own);
        prepare(&space, &own);
        let threads = (0..N).map(|index| {
            let (space, race) = (space.clone(), race.clone());
            thread::spawn(move || race[index](&space, &cpu(index + 1)))
        });
        for thread in threads.collect::<Vec<_>>() {
            thread
                .join()
                .expect("the model checker reports panics itself");
        }
        harvest(&space, &own);
        for number in 0..PAGES {
            let copied = COPY[number as usize].load(Ordering::Relaxed);
            let written = in_memory(&space, &own, number);
            assert_eq!(
                copied, written,
                "rule 9: writes to page {number} that the copy has, and that there were"
            );
        }
        Arc::into_inner(space)
            .expect("the threads have ended")
            .destroy(&own);
        own.wait_for_epoch();
        assert!(POOL.counts_of(VmId::new(0).unwrap()).is_zero());
    });
    let thread = std::thread::current();
    let name = thread.name().unwrap_or_default();
    println!(
        "{name}: {N} CPUs, {preemptions} preemptions, {:.1?}",
        began.elapsed()
    );
}

#[test]
fn rule_8_no_write_is_lost_while_logging_is_enabled() {
    for policy in POLICIES {
        let begin = act(move |space, cpu| enable(space, cpu, &policy));
        explore(3, act(|_, _| {}), [begin, act(write)]);
        let begin = act(move |space, cpu| enable(space, cpu, &policy));
        explore(3, act(write), [begin, act(write)]);
        let begin = act(move |space, cpu| enable(space, cpu, &policy));
        explore(2, act(write), [begin, act(write), act(write_by_second)]);
    }
}

#[test]
fn rule_9_no_write_is_lost_beside_a_harvest() {
    for policy in POLICIES {
        for prepared in [false, true] {
            for take in [harvest, get_then_clear] {
                let prepare = move || {
                    act(move |space: &Space, cpu: &Cpu| {
                        enable(space, cpu, &policy);
                        if prepared {
                            harvest(space, cpu);
                        }
                        write(space, cpu);
                    })
                };
                explore(3, prepare(), [act(take), act(write)]);
                explore(2, prepare(), [act(take), act(write), act(write_by_second)]);
            }
        }
    }
}

/// A fault that is decided on one log, and meets the next.
#[test]
fn rule_8_no_write_is_lost_while_a_log_replaces_another() {
    for (first, second) in POLICIES
        .iter()
        .flat_map(|first| POLICIES.map(|second| (*first, second)))
    {
        let prepare = move |dirty: bool| {
            act(move |space: &Space, cpu: &Cpu| {
                if dirty {
                    write(space, cpu);
                }
                enable(space, cpu, &first);
            })
        };
        let switch = move || {
            act(move |space: &Space, cpu: &Cpu| {
                disable(space, cpu);
                enable(space, cpu, &second);
            })
        };
        explore(2, prepare(false), [switch(), act(write)]);
        explore(2, prepare(true), [switch(), act(write)]);
    }
}

#[test]
fn rule_9_no_write_is_lost_while_a_log_replaces_another_beside_two_writers() {
    for (first, second) in [
        (HARDWARE, PROTECT),
        (RING, HARDWARE),
        (RING, PROTECT),
        (PROTECT, RING),
    ] {
        explore(
            1,
            act(move |space, cpu| enable(space, cpu, &first)),
            [
                act(move |space, cpu| {
                    disable(space, cpu);
                    enable(space, cpu, &second);
                    harvest(space, cpu);
                }),
                act(write),
                act(write_by_second),
            ],
        );
    }
}

/// The ring has two entries: the third page waits for the harvester, and goes on.
#[test]
fn rule_9_a_vcpu_whose_ring_is_full_waits_for_its_harvester_and_loses_nothing() {
    let fill = || {
        act(|space: &Space, cpu: &Cpu| {
            enable(space, cpu, &RING);
            write_page(space, cpu, 0, 0);
            write_page(space, cpu, 0, 2);
        })
    };
    explore(3, fill(), [act(harvest_rings), act(write)]);
    explore(
        2,
        fill(),
        [act(harvest_rings), act(write), act(write_by_second)],
    );
    let half_full = act(|space: &Space, cpu: &Cpu| {
        enable(space, cpu, &RING);
        write_page(space, cpu, 0, 2);
    });
    let write_two = act(|space: &Space, cpu: &Cpu| {
        write_page(space, cpu, 0, 0);
        write_page(space, cpu, 0, 1);
    });
    explore(2, half_full, [act(harvest_rings), write_two]);
}

#[test]
fn rule_9_writes_by_the_hypervisor_are_logged_beside_a_harvest() {
    for policy in POLICIES {
        let prepare = || act(move |space: &Space, cpu: &Cpu| enable(space, cpu, &policy));
        let emulate = || {
            act(|space: &Space, cpu: &Cpu| {
                space
                    .write_guest(cpu, page(2), &7u64.to_le_bytes())
                    .unwrap()
            })
        };
        explore(4, prepare(), [act(harvest), emulate()]);
        explore(2, prepare(), [act(harvest), emulate(), act(write)]);
        let begin = act(move |space, cpu| enable(space, cpu, &policy));
        explore(4, act(|_, _| {}), [begin, emulate()]);
    }
}
