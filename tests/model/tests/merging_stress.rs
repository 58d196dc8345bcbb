//! All of dirty logging beside merging and compaction without pause: whatever vCPUs and the hypervisor write is found in memory
//! and in what is copied after each harvest, also if its page shared a frame with others, forks among them, or moved to another
//! one, in between.
//!
//! The machine, its guest and its harness are those of the stress run without them. `PARVISOR_SEED=…` brings what threads do
//! back, not their timing; `PARVISOR_STRESS_SECONDS=…` is how long it goes on.
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

use memory::frames::{FramePool, arena};
use memory::{
    AddressSpace, Compacted, CpuMemory, MemorySystem, MergePolicy, MmuLock, Object, Owner,
    PageMerging, Parallel, RwLocked, SlotConfig, SlotId, VmId,
};
use model::vms::GIB;
use model::{Hardware, Mmu};
use stage2::{Features, Ipa, Layout, Level, PAGE_SIZE};

use harness::Harness;
use machine::{Machine, Place, Random};

const FRAMES: usize = GIB as usize + 4096;
const PAGES: [u64; 3] = [700, 300, 100];
const VCPUS: usize = 3;
/// Guests write few values, so that pages are often equal.
const VALUES: u64 = 2;
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
    merged: u64,
    moved: u64,
}

fn run<L: MmuLock + std::fmt::Debug + 'static>(seed: u64) -> Came {
    let tracks = seed % 2 == 1;
    let layout = Layout::new(Features {
        hardware_access: tracks,
        hardware_dirty: tracks,
        ..Features::armv8_0(40, 48)
    })
    .expect("a CPU may have these");
    // The vCPUs' CPUs, the harness's and the scanners'.
    let cpus = VCPUS + 3;
    let mmu = Mmu::new(layout, cpus);
    let system: &MemorySystem = Box::leak(Box::new(MemorySystem::new(&POOL, cpus, 8).unwrap()));
    let own = cpu(system, &mmu, VCPUS);
    let vm = VmId::new(0).expect("the first");
    let mut space = AddressSpace::<L>::new(&own, vm, layout).expect("enough frames");
    space.make_rings(VCPUS, 64).expect("enough heap");
    let merging = Arc::new(PageMerging::new(MergePolicy {
        scanners: 2,
        ..MergePolicy::default()
    }));
    let mut objects = Vec::new();
    for place in places(seed) {
        let bytes = place.pages * PAGE_SIZE;
        let object = Object::anonymous(&own, Owner::Vm(vm), bytes, place.piece);
        let object = object.expect("enough heap");
        merging.add(&object).expect("enough heap");
        objects.push(object.clone());
        let config = SlotConfig {
            id: place.id,
            start: place.start,
            object,
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
        VALUES,
    ));
    let over = Arc::new(AtomicBool::new(false));
    let second = thread::spawn({
        let (mmu, over, merging) = (mmu.clone(), over.clone(), merging.clone());
        move || {
            let cpu = cpu(system, &mmu, VCPUS + 2);
            while !over.load(Ordering::Relaxed) {
                merging.step(&cpu);
                cpu.idle();
                thread::yield_now();
            }
            cpu.wait_for_epoch();
        }
    });
    let scanner = thread::spawn({
        let (mmu, over, machine) = (mmu.clone(), over.clone(), machine.clone());
        move || {
            let cpu = cpu(system, &mmu, VCPUS + 1);
            let mut random = Random::new(seed, VCPUS as u64 + 1);
            let (mut merged, mut moved) = (0, 0);
            let mut fork: Option<AddressSpace<L>> = None;
            while !over.load(Ordering::Relaxed) {
                merging.step(&cpu);
                merged = merged.max(merging.statistics().pages_sharing);
                for object in &objects {
                    moved += u64::from(object.migrate(&cpu, random.below(object.pages())));
                }
                if random.one_in(8) {
                    let whole = objects[0].compact_region(&cpu, 0) == Compacted::Moved;
                    moved += if whole { 512 } else { 0 };
                }
                if random.one_in(64) {
                    fork = match fork.take() {
                        None => Some(fork_of(&machine.space, &cpu)),
                        Some(fork) => {
                            fork.destroy(&cpu);
                            None
                        }
                    };
                }
                cpu.gather();
                cpu.idle();
                thread::yield_now();
            }
            if let Some(fork) = fork {
                fork.destroy(&cpu);
            }
            (merged, moved)
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
    for handle in vcpus {
        handle.join().unwrap_or_else(|panic| resume_unwind(panic));
    }
    (second.join()).unwrap_or_else(|panic| resume_unwind(panic));
    let (merged, moved) = (scanner.join()).unwrap_or_else(|panic| resume_unwind(panic));
    let came = Came {
        compared: harness.compared,
        waits: machine.waits(),
        merged,
        moved,
    };
    let own = harness.into_cpu();
    let machine = Arc::into_inner(machine).expect("all others have ended");
    machine.space.destroy(&own);
    own.wait_for_epoch();
    assert!(POOL.counts_of(vm).is_zero(), "frames leaked");
    assert_eq!(POOL.shared_frames(), 0, "shared frames leaked");
    POOL.counts().check().expect("all frames are somewhere");
    came
}

/// Another VM, which never runs, with the same memory.
fn fork_of<L: MmuLock>(of: &AddressSpace<L>, cpu: &CpuMemory<Hardware>) -> AddressSpace<L> {
    let vm = VmId::new(1).expect("the second");
    let fork = AddressSpace::<L>::new(cpu, vm, *of.stage2().layout()).expect("enough frames");
    of.fork(cpu, &fork).expect("enough heap");
    fork
}

fn number(name: &str) -> Option<u64> {
    let value = env::var(name).ok()?;
    let number = value.parse();
    Some(number.unwrap_or_else(|_| panic!("{name} is not a number: {value}")))
}

#[test]
fn no_write_is_lost_while_pages_are_merged_and_moved_all_the_time() {
    static ADDED: OnceLock<()> = OnceLock::new();
    // SAFETY: the arena is leaked, and added once.
    ADDED.get_or_init(|| unsafe { POOL.add(arena::leak(FRAMES)) });
    let time = Duration::from_secs(number("PARVISOR_STRESS_SECONDS").unwrap_or(SECONDS));
    let only = number("PARVISOR_SEED");
    let (began, mut seed, mut came) = (Instant::now(), only.unwrap_or(0), Came::default());
    let mut runs = 0;
    let all_came =
        |came: &Came| only.is_some() || came.compared > 0 && came.merged > 0 && came.moved > 0;
    // With a gigabyte, too.
    while began.elapsed() < time || runs < 3 || !all_came(&came) && began.elapsed() < MOST {
        let one = match seed % 6 {
            5 => run::<RwLocked>(seed),
            _ => run::<Parallel>(seed),
        };
        came.compared += one.compared;
        came.waits += one.waits;
        came.merged += one.merged;
        came.moved += one.moved;
        runs += 1;
        seed += u64::from(only.is_none());
    }
    println!("{runs} runs, {came:?}");
    assert!(all_came(&came));
}
