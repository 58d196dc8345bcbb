//! Several CPUs merge the pages of VMs together, on real memory: they come to what one comes to, and nobody uses what was
//! withdrawn.

use memory::{
    BackingPolicy, CpuMemory, MemorySystem, MergePolicy, MergeStatistics, Object, PageMerging,
};
use model::vms::{BLOCK, Space, Vms};
use stage2::{Level, NoTlb};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

const SCANNERS: usize = 4;
const PAGES: u64 = 1000;

type Cpu = CpuMemory<NoTlb>;

/// CPU `number` of a machine, beside CPU 0.
fn cpu(system: &'static MemorySystem, number: usize) -> Cpu {
    CpuMemory::new(system, number, NoTlb, Box::leak(Box::default()))
}

/// Two VMs that trust each other, and their objects.
fn two(vms: &Vms, pages: u64, piece: Level) -> ([Space; 2], [Arc<Object>; 2]) {
    let spaces = [0, 1].map(|vm| vms.space(vm, BackingPolicy::default()));
    let objects = spaces.each_ref().map(|space| {
        let object = vms.anonymous(space.vm(), pages, piece);
        vms.map(space, object.clone());
        object
    });
    vms.cpu.system().trust(spaces[1].vm(), spaces[0].vm());
    (spaces, objects)
}

/// Has so many CPUs scan all of what is registered so often together.
fn scan(vms: &Vms, merging: &PageMerging, scanners: usize, times: u64) -> MergeStatistics {
    let until = merging.statistics().full_scans + times;
    thread::scope(|scope| {
        for number in 1..=scanners {
            let system = vms.cpu.system();
            scope.spawn(move || {
                let cpu = cpu(system, number);
                while merging.statistics().full_scans < until {
                    if merging.scan(&cpu, 40) == 0 {
                        thread::yield_now();
                    }
                    cpu.idle();
                }
                cpu.wait_for_epoch();
            });
        }
    });
    vms.cpu.wait_for_epoch();
    merging.statistics()
}

/// What two VMs come to, of whose pages a third are equal, a third zeros, and some are equal within a VM, once so many CPUs have
/// merged them.
fn come_to(scanners: usize, piece: Level, pages: u64) -> (MergeStatistics, u64) {
    let vms = Vms::with_cpus(1 << 14, SCANNERS + 1);
    let (spaces, objects) = two(&vms, pages, piece);
    let word = |vm: u64, page: u64| match page % 6 {
        0 | 3 => 1 + page,
        1 | 4 => 0,
        2 => 1 + page + (1 + vm) * 10_000,
        _ => 50_000 + page / 100 + vm * 1000,
    };
    for (vm, space) in (0..).zip(&spaces) {
        for page in 0..pages {
            vms.write(space, page, 9);
            vms.write(space, page, word(vm, page));
        }
    }
    let merging = PageMerging::new(MergePolicy {
        scanners,
        pages_of_block: 100,
        ..MergePolicy::default()
    });
    objects
        .iter()
        .for_each(|object| merging.add(object).unwrap());
    let statistics = scan(&vms, &merging, scanners, 4);
    let guest = vms.guest();
    for (vm, space) in (0..).zip(&spaces) {
        for page in 0..pages {
            assert_eq!(
                vms.read(space, page),
                word(vm, page),
                "VM {vm}, page {page}"
            );
        }
        vms.write(space, 0, 7 + vm);
    }
    assert_eq!((vms.read(&spaces[0], 0), vms.read(&spaces[1], 0)), (7, 8));
    drop(objects);
    for space in spaces {
        space.destroy(&vms.cpu);
    }
    vms.check_nothing_is_left();
    (statistics, guest)
}

#[test]
fn several_scanners_come_to_what_one_comes_to() {
    for (piece, pages) in [(Level::L3, PAGES), (Level::L2, 2 * BLOCK)] {
        let (alone, left) = come_to(1, piece, pages);
        assert!(alone.pages_sharing > pages / 3, "{alone:?}");
        for scanners in 2..=SCANNERS {
            let (together, guest) = come_to(scanners, piece, pages);
            let counts = |of: MergeStatistics| {
                let shared = (of.pages_shared, of.pages_sharing, of.zero_pages);
                (shared, of.pages_unshared, of.pages_volatile)
            };
            // Two that wanted the same page at once have left one of theirs for the next scan.
            if together.pages_skipped == 0 {
                assert_eq!(counts(together), counts(alone), "{scanners} scanners");
                assert_eq!(guest, left);
            } else {
                let saved = together.pages_sharing + together.zero_pages;
                let by_one = alone.pages_sharing + alone.zero_pages;
                assert!(saved <= by_one && saved + together.pages_skipped >= by_one);
            }
        }
    }
}

/// Objects come and go beside scanners; what was withdrawn is nobody's any more but its owner's.
#[test]
fn what_is_withdrawn_beside_scanners_is_used_by_none() {
    const ROUNDS: u64 = 200;
    let vms = Vms::with_cpus(1 << 13, SCANNERS + 1);
    let (spaces, objects) = two(&vms, 300, Level::L3);
    for space in &spaces {
        (0..300).for_each(|page| assert_eq!(vms.write(space, page, 1 + page % 70), 1));
    }
    let merging = &PageMerging::new(MergePolicy {
        scanners: SCANNERS,
        ..MergePolicy::default()
    });
    merging.add(&objects[1]).unwrap();
    let over = &AtomicBool::new(false);
    thread::scope(|scope| {
        for number in 1..=SCANNERS {
            let system = vms.cpu.system();
            scope.spawn(move || {
                let cpu = cpu(system, number);
                while !over.load(Ordering::Relaxed) {
                    merging.step(&cpu);
                    cpu.idle();
                }
                cpu.wait_for_epoch();
            });
        }
        for round in 0..ROUNDS {
            merging.add(&objects[0]).unwrap();
            (0..round % 50).for_each(|_| thread::yield_now());
            merging.remove(&objects[0]);
            assert_eq!(Arc::strong_count(&objects[0]), 2, "round {round}");
        }
        over.store(true, Ordering::Relaxed);
    });
    vms.cpu.wait_for_epoch();
    for space in &spaces {
        (0..300).for_each(|page| assert_eq!(vms.read(space, page), 1 + page % 70));
    }
    drop(objects);
    for space in spaces {
        space.destroy(&vms.cpu);
    }
    vms.check_nothing_is_left();
}

/// The last owner of an object drops it beside scanners, without withdrawing it.
#[test]
fn what_is_dropped_beside_scanners_gives_its_frames_back() {
    let vms = Vms::with_cpus(1 << 13, SCANNERS + 1);
    let merging = &PageMerging::new(MergePolicy {
        scanners: SCANNERS,
        ..MergePolicy::default()
    });
    let over = &AtomicBool::new(false);
    thread::scope(|scope| {
        for number in 1..=SCANNERS {
            let system = vms.cpu.system();
            scope.spawn(move || {
                let cpu = cpu(system, number);
                while !over.load(Ordering::Relaxed) {
                    merging.step(&cpu);
                    cpu.idle();
                }
                cpu.wait_for_epoch();
            });
        }
        for _ in 0..20 {
            let (spaces, objects) = two(&vms, 100, Level::L3);
            for (space, object) in spaces.iter().zip(&objects) {
                (0..100).for_each(|page| assert_eq!(vms.write(space, page, 1 + page), 1));
                merging.add(object).unwrap();
            }
            let scans = merging.statistics().full_scans;
            while merging.statistics().full_scans < scans + 2 {
                thread::yield_now();
            }
            drop(objects);
            for space in spaces {
                space.destroy(&vms.cpu);
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    vms.cpu.wait_for_epoch();
    vms.check_nothing_is_left();
}
