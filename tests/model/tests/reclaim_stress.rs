//! All of dirty logging beside reclaim without pause: whatever vCPUs and the hypervisor write is found in memory and in
//! what is copied after each harvest, also if it was compressed and brought back in between.
//!
//! The machine, its guest and its harness are those of the stress run without reclaim. `PARVISOR_SEED=…` brings what
//! threads do back, not their timing; `PARVISOR_STRESS_SECONDS=…` is how long it goes on.
#![cfg(not(loom))]
#![cfg(not(miri))]

#[path = "stress/harness.rs"]
mod harness;
#[path = "stress/machine.rs"]
mod machine;

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use std::{env, thread};

use memory::frames::{FramePool, FrameSize, Purpose, arena};
use memory::{
    AddressSpace, CpuMemory, MemorySystem, MmuLock, Owner, Parallel, RwLocked, SlotId, VmId,
    Watermarks,
};
use model::vms::GIB;
use model::{Hardware, Mmu};
use stage2::{Features, Ipa, Layout, Level, PAGE_SIZE};

use harness::Harness;
use machine::{Machine, Place, Random};

/// Frames of the machine, which are fewer than the guest has pages, but for those of a gigabyte: where the guest has none,
/// they are nobody's to take.
const FRAMES: usize = GIB as usize + 900;
const PAGES: [u64; 3] = [700, 300, 100];
const VCPUS: usize = 3;
/// Reclaims all the time.
const ALWAYS: Watermarks = Watermarks {
    low: 1 << 40,
    high: 1 << 40,
};
/// What the harness does in one run.
const STEPS: u64 = 100;
/// For how long, where nobody says otherwise, and at the most.
const SECONDS: u64 = 4;
const MOST: Duration = Duration::from_secs(120);

static POOL: FramePool = FramePool::new();

fn cpu(system: &'static MemorySystem, mmu: &Arc<Mmu>, number: usize) -> CpuMemory<Hardware> {
    let mmu = mmu.clone();
    CpuMemory::new(
        system,
        number,
        Hardware { mmu, cpu: number },
        Box::leak(Box::default()),
    )
}

/// The guest's slots: in every third run one that is a gigabyte, too, of which it uses some pages.
fn places(seed: u64) -> Vec<Place> {
    let place = |(id, pages): (u32, u64)| Place {
        id: SlotId(id),
        start: Ipa::new(0x4000_1000 + u64::from(id) * 0x40_0000),
        pages,
        piece: Level::L3,
        apart: 1,
    };
    let gigabyte = Place {
        id: SlotId(PAGES.len() as u32),
        start: Ipa::new(0x8000_0000),
        pages: GIB,
        piece: Level::L1,
        apart: GIB / 100,
    };
    let places = (0..).zip(PAGES).map(place);
    places.chain((seed % 3 == 2).then_some(gigabyte)).collect()
}

/// What came of a run.
#[derive(Clone, Copy, Debug, Default)]
struct Came {
    compared: u64,
    waits: u64,
    compressed: u64,
    activated: u64,
}

fn run<L: MmuLock + std::fmt::Debug + 'static>(seed: u64) -> Came {
    let tracks = seed % 2 == 1;
    let layout = Layout::new(Features {
        hardware_access: tracks,
        hardware_dirty: tracks,
        ..Features::armv8_0(40, 48)
    })
    .expect("a CPU may have these");
    let (size, owner, purpose) = (FrameSize::Block1G, Owner::Hypervisor, Purpose::Guest);
    let has_gigabyte = places(seed).len() > PAGES.len();
    let kept = (!has_gigabyte).then(|| POOL.allocate(size, owner, purpose));
    // The vCPUs' CPUs, the harness's and the reclaimer's.
    let cpus = VCPUS + 2;
    let mmu = Mmu::new(layout, cpus);
    let system: &MemorySystem = Box::leak(Box::new(MemorySystem::new(&POOL, cpus, 8).unwrap()));
    system.set_watermarks(Some(ALWAYS));
    let own = cpu(system, &mmu, VCPUS);
    let vm = VmId::new(0).expect("the first");
    let mut space = AddressSpace::<L>::new(&own, vm, layout).expect("enough frames");
    space.make_rings(VCPUS, 64).expect("enough heap");
    for place in places(seed) {
        let bytes = place.pages * PAGE_SIZE;
        let object = memory::Object::anonymous(&own, memory::Owner::Vm(vm), bytes, place.piece);
        let config = memory::SlotConfig {
            id: place.id,
            start: place.start,
            object: object.expect("enough heap"),
            offset: 0,
            bytes,
            read_only: false,
            write_faults: false,
        };
        space.map_object(&own, config).expect("enough heap");
        if place.piece == Level::L1 {
            // While there is a run of frames for it.
            let untouched = space.write_guest(&own, place.start, &[0; 8]);
            untouched.expect("it is backed");
        }
    }
    let machine = Arc::new(Machine::new(
        space,
        mmu.clone(),
        places(seed),
        VCPUS,
        u64::MAX,
    ));
    let over = Arc::new(AtomicBool::new(false));
    let reclaimer = thread::spawn({
        let (mmu, over) = (mmu.clone(), over.clone());
        move || {
            let cpu = cpu(system, &mmu, VCPUS + 1);
            while !over.load(Ordering::Relaxed) {
                cpu.relieve();
                thread::yield_now();
            }
        }
    });
    let vcpus: Vec<_> = (0..VCPUS)
        .map(|vcpu| {
            let (machine, mmu) = (machine.clone(), mmu.clone());
            thread::spawn(move || {
                machine.run_vcpu(
                    &cpu(system, &mmu, vcpu),
                    vcpu,
                    Random::new(seed, vcpu as u64),
                );
            })
        })
        .collect();
    let harness = Harness::new(machine.clone(), own, Random::new(seed, VCPUS as u64));
    let harness = harness.run(STEPS, false);
    over.store(true, Ordering::Relaxed);
    for handle in vcpus.into_iter().chain([reclaimer]) {
        handle.join().unwrap_or_else(|panic| resume_unwind(panic));
    }
    let counters = system.reclaim_counters();
    let came = Came {
        compared: harness.compared,
        waits: machine.waits(),
        compressed: counters.compressed.get(),
        activated: counters.activated.get(),
    };
    let own = harness.into_cpu();
    let machine = Arc::into_inner(machine).expect("all others have ended");
    machine.space.destroy(&own);
    own.wait_for_epoch();
    assert!(POOL.counts_of(vm).is_zero(), "frames leaked");
    if let Some(run) = kept.flatten() {
        POOL.free(run, size, owner, purpose);
    }
    let counts = POOL.counts();
    counts.check().expect("all frames are somewhere");
    assert_eq!((counts.compressed, system.compressed().pages), (0, 0));
    came
}

fn number(name: &str) -> Option<u64> {
    let value = env::var(name).ok()?;
    let number = value.parse();
    Some(number.unwrap_or_else(|_| panic!("{name} is not a number: {value}")))
}

#[test]
fn no_write_is_lost_while_pages_are_compressed_all_the_time() {
    static ADDED: OnceLock<()> = OnceLock::new();
    // SAFETY: the arena is leaked, and added once.
    ADDED.get_or_init(|| unsafe { POOL.add(arena::leak(FRAMES)) });
    let time = Duration::from_secs(number("PARVISOR_STRESS_SECONDS").unwrap_or(SECONDS));
    let only = number("PARVISOR_SEED");
    let (began, mut seed, mut came) = (Instant::now(), only.unwrap_or(0), Came::default());
    let mut runs = 0;
    let all_came = |came: &Came| {
        only.is_some() || came.compared > 0 && came.compressed > 0 && came.activated > 0
    };
    // With a gigabyte, too.
    while began.elapsed() < time || runs < 3 || !all_came(&came) && began.elapsed() < MOST {
        let one = match seed % 6 {
            5 => run::<RwLocked>(seed),
            _ => run::<Parallel>(seed),
        };
        came.compared += one.compared;
        came.waits += one.waits;
        came.compressed += one.compressed;
        came.activated += one.activated;
        runs += 1;
        seed += u64::from(only.is_none());
    }
    println!("{runs} runs, {came:?}");
    assert!(all_came(&came));
}
