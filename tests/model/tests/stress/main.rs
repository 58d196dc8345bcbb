//! All of dirty logging at once: vCPUs read and write at random while a harness enables, gets, clears, disables, splits and
//! restores at random, by every policy, on several slots. No write may be lost: what is copied after each harvest equals the
//! guest's memory once it has stopped, byte for byte.
//!
//! Twice: on threads of the host, for numbers, and on those of a schedule that switches at every access to a shared entry or
//! TLB, for the unlikely. `PARVISOR_SEED=…` brings a run back (of threads of the host, what they do but not their timing, so it
//! is repeated); `PARVISOR_STRESS_SECONDS=…` is how long the first one goes on.
#![cfg(not(loom))]
#![cfg(not(miri))]

mod harness;
mod machine;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{env, process, thread};

use memory::frames::{FramePool, arena};
use memory::{
    AddressSpace, CpuMemory, MemorySystem, MmuLock, Mutexed, Parallel, RwLocked, SlotId, VmId,
};
use model::vms::GIB;
use model::{Hardware, Mmu, explore, pause};
use stage2::watch::{self, Watcher};
use stage2::{Bbm, Entry, Features, Ipa, Layout, Level, PAGE_SIZE, Pa};

use harness::Harness;
use machine::{Machine, Place, Random};

static POOL: FramePool = FramePool::new();
/// Frames of the machine: one run of 1 GiB, of which only what is written takes memory, and 32 MiB for all else.
const FRAMES: usize = GIB as usize + 8192;
/// For how long, where nobody says otherwise.
const SECONDS: u64 = 4;
/// For how long at the most, where something hasn't happened yet.
const MOST: Duration = Duration::from_secs(120);
/// What the harness does in one run on threads of the host.
const STEPS: u64 = 120;
/// Schedules that are tried, and what the harness does in each.
const SCHEDULES: u64 = 12;
const STEPS_OF_SCHEDULE: u64 = 25;

/// The seed of the run on threads of the host.
static SEED: AtomicU64 = AtomicU64::new(0);

/// One run at a time, as they share the pool.
static ONE: Mutex<()> = Mutex::new(());

/// Lets others run wherever the engine touches what is shared.
struct Switch;

impl Watcher for Switch {
    fn pause(&self) {
        pause();
    }

    fn change(&self, _: &Entry, _: Level, access: &mut dyn FnMut() -> Option<(u64, u64)>) {
        access();
    }

    fn root(&self, _: Pa, _: &Layout, _: bool) {}
}

fn place(id: u32, start: u64, pages: u64, piece: Level) -> Place {
    Place {
        id: SlotId(id),
        start: Ipa::new(start),
        pages,
        piece,
        apart: 1,
    }
}

/// A slot of 1 GiB in one piece, of which the guest uses some pages, four regions apart and a few pages.
fn gigabyte(id: u32, start: u64) -> Place {
    Place {
        apart: 4 * 512 + 3,
        ..place(id, start, GIB, Level::L1)
    }
}

/// Features that matter here, as the seed has it.
fn layout(seed: u64) -> Layout {
    let tracks = seed % 2 == 1;
    let bbm = [Bbm::Level0, Bbm::Level1, Bbm::Level2][(seed / 2 % 3) as usize];
    Layout::new(Features {
        hardware_access: tracks,
        hardware_dirty: tracks,
        bbm,
        ..Features::armv8_0(40, 48)
    })
    .expect("a CPU may have these")
}

fn cpu(system: &'static MemorySystem, mmu: &Arc<Mmu>, number: usize) -> CpuMemory<Hardware> {
    let mmu = mmu.clone();
    let hardware = Hardware { mmu, cpu: number };
    CpuMemory::new(system, number, hardware, Box::leak(Box::default()))
}

/// How the vCPUs of a run are begun and awaited: as threads of the host or of the schedule.
trait Threads {
    type Handle;
    fn spawn(work: impl FnOnce() + Send + 'static) -> Self::Handle;
    fn join(handle: Self::Handle) -> thread::Result<()>;
}

struct OfHost;

impl Threads for OfHost {
    type Handle = thread::JoinHandle<()>;
    fn spawn(work: impl FnOnce() + Send + 'static) -> Self::Handle {
        thread::spawn(|| or_end(work))
    }
    fn join(handle: Self::Handle) -> thread::Result<()> {
        handle.join()
    }
}

/// Runs a part of a run on threads of the host. If it panics, the others would wait for it: so all of the process ends.
fn or_end<R>(work: impl FnOnce() -> R) -> R {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        let seed = SEED.load(Ordering::Relaxed);
        eprintln!(
            "To see this again: PARVISOR_SEED={seed} PARVISOR_STRESS_SECONDS=60 cargo test -p model --test stress -- host"
        );
        process::exit(1)
    })
}

struct OfSchedule;

impl Threads for OfSchedule {
    type Handle = shuttle::thread::JoinHandle<()>;
    fn spawn(work: impl FnOnce() + Send + 'static) -> Self::Handle {
        shuttle::thread::spawn(work)
    }
    fn join(handle: Self::Handle) -> thread::Result<()> {
        handle.join()
    }
}

/// What came of a run.
#[derive(Clone, Copy, Debug, Default)]
struct Came {
    compared: u64,
    restored: u64,
    waits: u64,
}

fn run<L: MmuLock + std::fmt::Debug + 'static, T: Threads>(
    seed: u64,
    vcpus: usize,
    places: Vec<Place>,
    steps: u64,
) -> Came {
    let layout = layout(seed);
    let mmu = Mmu::new(layout, vcpus + 1);
    let system: &MemorySystem =
        Box::leak(Box::new(MemorySystem::new(&POOL, vcpus + 1, 8).unwrap()));
    let own = cpu(system, &mmu, vcpus);
    let vm = VmId::new(0).expect("the first");
    let mut space = AddressSpace::<L>::new(&own, vm, layout).expect("enough frames");
    space.make_rings(vcpus, 64).expect("enough heap");
    for place in &places {
        let bytes = place.pages * PAGE_SIZE;
        space
            .add_slot(&own, place.id, place.start, bytes, place.piece, false)
            .expect("enough frames");
    }
    let machine = Arc::new(Machine::new(space, mmu.clone(), places, vcpus, u64::MAX));
    let threads: Vec<T::Handle> = (0..vcpus)
        .map(|vcpu| {
            let (machine, mmu) = (machine.clone(), mmu.clone());
            T::spawn(move || {
                let random = Random::new(seed, vcpu as u64);
                machine.run_vcpu(&cpu(system, &mmu, vcpu), vcpu, random);
            })
        })
        .collect();
    let harness = Harness::new(machine.clone(), own, Random::new(seed, vcpus as u64));
    let harness = harness.run(steps, true);
    for handle in threads {
        T::join(handle).unwrap_or_else(|panic| resume_unwind(panic));
    }
    let came = Came {
        compared: harness.compared,
        restored: harness.restored,
        waits: machine.waits(),
    };
    let own = harness.into_cpu();
    let machine = Arc::into_inner(machine).expect("all others have ended");
    machine.space.destroy(&own);
    own.wait_for_epoch();
    assert!(POOL.counts_of(vm).is_zero(), "frames leaked");
    came
}

/// An arena for all runs of this process.
fn prepare() {
    static ADDED: Mutex<bool> = Mutex::new(false);
    let mut added = ADDED.lock().unwrap_or_else(PoisonError::into_inner);
    if !*added {
        // SAFETY: the arena is leaked, and added once.
        unsafe { POOL.add(arena::leak(FRAMES)) };
        watch::install(&Switch);
        *added = true;
    }
}

fn number(name: &str) -> Option<u64> {
    let value = env::var(name).ok()?;
    let number = value.parse();
    Some(number.unwrap_or_else(|_| panic!("{name} is not a number: {value}")))
}

#[test]
fn no_write_is_lost_on_threads_of_the_host() {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    prepare();
    let places = |seed: u64| {
        let mut places = vec![
            place(0, 0x4000_0000, 2 * 512, Level::L2),
            place(1, 0x4040_0000, 512, Level::L2),
            place(2, 0x4060_1000, 100, Level::L3),
        ];
        // Seldom, as it takes longer; with hardware that tracks writes, and without.
        if matches!(seed % 16, 2 | 9) {
            places.push(gigabyte(3, 0x8000_0000));
        }
        places
    };
    let time = Duration::from_secs(number("PARVISOR_STRESS_SECONDS").unwrap_or(SECONDS));
    let only = number("PARVISOR_SEED");
    let (began, mut seed, mut came) = (Instant::now(), only.unwrap_or(0), Came::default());
    let mut runs = 0;
    // What threads come to depends on how busy the host is: it goes on until all has happened.
    let all_came =
        |came: &Came| only.is_some() || came.compared > 0 && came.restored > 0 && came.waits > 0;
    // With a gigabyte, too.
    while began.elapsed() < time || runs < 3 || !all_came(&came) && began.elapsed() < MOST {
        let run = || match seed % 8 {
            6 => run::<RwLocked, OfHost>(seed, 3, places(seed), STEPS),
            7 => run::<Mutexed, OfHost>(seed, 3, places(seed), STEPS),
            _ => run::<Parallel, OfHost>(seed, 3, places(seed), STEPS),
        };
        SEED.store(seed, Ordering::Relaxed);
        let one = or_end(run);
        came.compared += one.compared;
        came.restored += one.restored;
        came.waits += one.waits;
        runs += 1;
        seed += u64::from(only.is_none());
    }
    println!("{runs} runs, {came:?}");
    assert!(all_came(&came));
}

#[test]
fn no_write_is_lost_on_any_schedule() {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    prepare();
    explore(SCHEDULES, |seed| {
        let places = vec![
            place(0, 0x4000_0000, 512, Level::L2),
            place(1, 0x4020_1000, 9, Level::L3),
        ];
        run::<Parallel, OfSchedule>(seed, 2, places, STEPS_OF_SCHEDULE);
    });
}
