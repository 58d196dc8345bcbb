//! Memory in pieces of 1 GiB, whose pages are treated apart: by forks, copies, merging, reclaim and the balloon. What
//! one page of a gigabyte becomes has to be known for all of it (rule 13): on real memory, step by step.
//!
//! A program of its own: frames of a test are never freed, and these are many.
#![cfg(not(any(loom, miri)))]

use memory::frames::{FrameSize, Purpose};
use memory::{
    Access, Ahead, BackingPolicy, Granularity, LogPolicy, MergePolicy, Object, Owner, PageMerging,
    SlotConfig, Splitting, Watermarks,
};
use model::vms::{BLOCK, GIB, SLOT, START, Space, Vms, slot};
use stage2::{Ipa, Level, PAGE_SIZE};
use std::sync::Arc;

/// The frames of a machine with room for so many gigabytes, and for their pages.
fn frames(gigabytes: u64) -> usize {
    (gigabytes * GIB + 64 * BLOCK) as usize
}

/// VM 0's memory is one gigabyte, which it has written at the beginning of each of its first ten regions.
fn machine(gigabytes: u64) -> (Vms, Space, Arc<Object>) {
    let machine = Vms::new(frames(gigabytes));
    let space = machine.space(0, BackingPolicy::default());
    let object = machine.anonymous(space.vm(), GIB, Level::L1);
    machine.map(&space, object.clone());
    for region in 0..10 {
        machine.write(&space, region * BLOCK, 100 + region);
    }
    assert_eq!(level(&machine, &space, 0), Level::L1);
    (machine, space, object)
}

fn fork(machine: &Vms, of: &Space, vm: usize) -> Space {
    let child = machine.space(vm, BackingPolicy::default());
    of.fork(&machine.cpu, &child).unwrap();
    child
}

/// How large the leaf is that a read gets to.
fn level(machine: &Vms, space: &Space, page: u64) -> Level {
    machine.access(space, page, Access::Read).1
}

fn write_region(machine: &Vms, space: &Space, region: u64, word: u64) {
    for page in region * BLOCK..(region + 1) * BLOCK {
        machine.write(space, page, word);
    }
}

/// Ends VMs, and sees that all their frames came back.
fn end<const N: usize>(machine: &Vms, object: Arc<Object>, spaces: [Space; N]) {
    drop(object);
    for space in spaces {
        space.destroy(&machine.cpu);
    }
    machine.check_nothing_is_left();
}

#[test]
fn a_region_that_is_the_vms_own_again_is_no_gigabyte() {
    let (machine, space, object) = machine(1);
    fork(&machine, &space, 1).destroy(&machine.cpu);
    write_region(&machine, &space, 5, 7);
    assert!(machine.cpu.gather(), "region 5 is a block again");
    assert!(!machine.cpu.gather());
    assert_eq!(level(&machine, &space, 5 * BLOCK), Level::L2);
    assert_eq!(machine.read(&space, 4 * BLOCK), 104);
    end(&machine, object, [space]);
}

#[test]
fn what_a_vm_has_back_of_a_gigabyte_goes_home_without_what_others_have() {
    let (machine, space, object) = machine(1);
    let child = fork(&machine, &space, 1);
    write_region(&machine, &child, 5, 7);
    write_region(&machine, &space, 5, 8);
    assert!(machine.cpu.gather());
    drop(object);
    space.destroy(&machine.cpu);
    machine.cpu.wait_for_epoch();
    assert_eq!(machine.guest(), GIB, "region 5 was left, and taken");
    for region in 0..10 {
        let word = if region == 5 { 7 } else { 100 + region };
        assert_eq!(machine.read(&child, region * BLOCK), word);
    }
    child.destroy(&machine.cpu);
    machine.check_nothing_is_left();
}

#[test]
fn a_read_maps_no_writable_gigabyte_of_which_another_vm_has_a_part() {
    let (machine, space, object) = machine(1);
    let child = fork(&machine, &space, 1);
    write_region(&machine, &child, 5, 7);
    write_region(&machine, &space, 5, 8);
    assert!(machine.cpu.gather());
    // Elsewhere, where nothing is mapped yet.
    let (to, gigabyte) = (Ipa::new(8 << 30), GIB * PAGE_SIZE);
    space.move_slot(&machine.cpu, SLOT, to).unwrap();
    let moved = (to.get() - START.get()) / PAGE_SIZE;
    assert_eq!(gigabyte, 1 << 30);
    let (leaf, level, _) = machine.access(&space, moved + 5 * BLOCK, Access::Read);
    assert_eq!((level, leaf.writable()), (Level::L2, true));
    for region in 0..10 {
        let faults = machine.write(&space, moved + region * BLOCK, 200 + region);
        assert_eq!(faults, u32::from(region != 5));
    }
    for region in 0..10 {
        let word = if region == 5 { 7 } else { 100 + region };
        assert_eq!(machine.read(&child, region * BLOCK), word, "{region}");
    }
    end(&machine, object, [space, child]);
}

#[test]
fn a_shared_gigabyte_is_mapped_by_one_block_for_reading() {
    let (machine, space, object) = machine(1);
    let child = fork(&machine, &space, 1);
    let (leaf, level, _) = machine.access(&child, 3 * BLOCK, Access::Read);
    assert_eq!(
        (level, leaf.writable(), leaf.may_write()),
        (Level::L1, false, false)
    );
    assert_eq!(machine.write(&child, 3 * BLOCK + 1, 9), 1);
    assert_eq!(machine.read(&space, 3 * BLOCK + 1), 0);
    // What lies beside is smaller from now on, wherever it is mapped.
    let leaf = |space: &Space, page| {
        let (leaf, level, faults) = machine.access(space, page, Access::Read);
        (level, leaf.may_write(), faults)
    };
    assert_eq!(leaf(&child, 3 * BLOCK), (Level::L3, false, 0));
    assert_eq!(leaf(&child, 4 * BLOCK), (Level::L2, false, 0));
    assert_eq!(leaf(&space, 4 * BLOCK), (Level::L1, false, 0));
    end(&machine, object, [space, child]);
}

#[test]
fn a_gigabyte_that_is_the_vms_own_again_is_one_block() {
    let (machine, space, object) = machine(1);
    let forks = [1, 2].map(|vm| fork(&machine, &space, vm));
    forks
        .into_iter()
        .for_each(|fork| fork.destroy(&machine.cpu));
    for region in 0..BLOCK {
        let at = |page: u64| START.offset((region * BLOCK + page) * PAGE_SIZE);
        // As if all were written, which would take a gigabyte.
        let populated = space.prefault(&machine.cpu, 0, at(0)..at(BLOCK), Access::Write);
        populated.unwrap();
        assert_eq!(level(&machine, &space, region * BLOCK), Level::L3);
        assert!(machine.cpu.gather());
    }
    let (leaf, level, _) = machine.access(&space, 17, Access::Write);
    assert_eq!((level, leaf.writable()), (Level::L1, true));
    for region in 0..10 {
        assert_eq!(machine.read(&space, region * BLOCK), 100 + region);
    }
    end(&machine, object, [space]);
}

/// Splitting ahead takes what its CPU has, and no more from the pool than what it may.
#[test]
fn a_gigabyte_is_split_ahead_if_more_frames_are_free_than_are_to_be_left() {
    let (machine, space, object) = machine(1);
    let cpu = &machine.cpu;
    cpu.wait_for_epoch();
    let free = machine.pool.free_frames();
    assert!(free > 2 * BLOCK, "there are enough");
    for (reserve, takes) in [(u64::MAX, false), (free, false), (free - 1, true)] {
        let policy = LogPolicy {
            splitting: Splitting::Eager(Ahead {
                chunk: u64::MAX,
                reserve,
            }),
            ..LogPolicy::default()
        };
        let split = space.enable_dirty_log(cpu, SLOT, &policy).unwrap();
        assert!(split.ran_out, "{reserve}: {split:?}");
        let now = machine.pool.free_frames();
        assert_eq!(now < free, takes, "{now} of {free}, {reserve} to be left");
        space.disable_dirty_log(cpu, SLOT).unwrap();
    }
    end(&machine, object, [space]);
}

/// Logging takes all of them apart, and one call makes them blocks again.
#[test]
fn every_gigabyte_of_a_part_is_a_block_again() {
    let machine = Vms::new(frames(3));
    let space = machine.space(0, BackingPolicy::default());
    let object = machine.anonymous(space.vm(), 2 * GIB, Level::L1);
    machine.map(&space, object.clone());
    let cpu = &machine.cpu;
    let policy = LogPolicy::default();
    for part in [0..2 * GIB, GIB / 2..2 * GIB] {
        space.enable_dirty_log(cpu, SLOT, &policy).unwrap();
        for page in [3, GIB + 7] {
            machine.write(&space, page, 100 + page);
            assert_eq!(level(&machine, &space, page), Level::L3);
        }
        space.disable_dirty_log(cpu, SLOT).unwrap();
        if part.start > 0 {
            // What lies before the part was restored by somebody else.
            let first = space.restore_part(cpu, SLOT, 0..part.start).unwrap();
            assert_eq!((first.blocks, level(&machine, &space, 3)), (1, Level::L2));
        }
        let restored = space.restore_part(cpu, SLOT, part).unwrap();
        assert_eq!(restored.left, 0);
        for page in [3, GIB + 7] {
            assert_eq!(level(&machine, &space, page), Level::L1);
            assert_eq!(machine.read(&space, page), 100 + page);
        }
    }
    end(&machine, object, [space]);
}

/// A write takes the gigabyte apart, and what is logged as one is written to its last page.
#[test]
fn a_write_to_a_gigabyte_that_is_logged_in_blocks_makes_one_dirty() {
    let (machine, space, object) = machine(1);
    let policy = LogPolicy {
        granularity: Granularity::Block2M,
        splitting: Splitting::AtFault,
        ..LogPolicy::default()
    };
    let cpu = &machine.cpu;
    space.enable_dirty_log(cpu, SLOT, &policy).unwrap();
    assert_eq!(machine.write(&space, 3 * BLOCK + 7, 1), 1);
    assert_eq!(level(&machine, &space, 3 * BLOCK), Level::L2);
    let mut words = [0; 5 * (BLOCK / 64) as usize];
    space.get_dirty_log(cpu, SLOT, 0, &mut words).unwrap();
    for (index, block) in words.chunks(8).enumerate() {
        let expected = if index == 3 { u64::MAX } else { 0 };
        assert!(block.iter().all(|word| *word == expected), "block {index}");
    }
    end(&machine, object, [space]);
}

#[test]
fn an_untouched_gigabyte_is_untouched_in_a_fork_too() {
    let machine = Vms::new(frames(2));
    let space = machine.space(0, BackingPolicy::default());
    let object = machine.anonymous(space.vm(), GIB, Level::L1);
    machine.map(&space, object.clone());
    let child = fork(&machine, &space, 1);
    for (vm, word) in [(&space, 1), (&child, 2)] {
        assert_eq!(machine.write(vm, 7, word), 1);
        let (leaf, level, _) = machine.access(vm, GIB - 1, Access::Read);
        assert_eq!((level, leaf.writable()), (Level::L1, true));
    }
    assert_eq!((machine.read(&space, 7), machine.read(&child, 7)), (1, 2));
    end(&machine, object, [space, child]);
}

#[test]
fn a_gigabyte_without_a_run_of_frames_is_made_of_blocks_in_a_fork_too() {
    let machine = Vms::new(frames(1));
    let (gigabyte, owner, purpose) = (FrameSize::Block1G, Owner::Hypervisor, Purpose::Heap);
    let run = machine.pool.allocate(gigabyte, owner, purpose).unwrap();
    let space = machine.space(0, BackingPolicy::default());
    let object = machine.anonymous(space.vm(), GIB, Level::L1);
    machine.map(&space, object.clone());
    machine.write(&space, 3 * BLOCK, 3);
    assert_eq!(
        (level(&machine, &space, 3 * BLOCK), machine.guest()),
        (Level::L2, BLOCK)
    );
    // It stays so, though there is a run by now.
    machine.pool.free(run, gigabyte, owner, purpose);
    let child = fork(&machine, &space, 1);
    assert_eq!(level(&machine, &child, 3 * BLOCK), Level::L2);
    assert_eq!(machine.read(&child, 3 * BLOCK), 3);
    machine.write(&space, 4 * BLOCK, 4);
    machine.write(&child, 4 * BLOCK, 5);
    machine.write(&child, 3 * BLOCK, 6);
    assert_eq!(machine.guest(), 3 * BLOCK + 1);
    for (page, words) in [(3, [3, 6]), (4, [4, 5])] {
        let read = [&space, &child].map(|vm| machine.read(vm, page * BLOCK));
        assert_eq!(read, words);
    }
    end(&machine, object, [space, child]);
}

#[test]
fn a_page_apart_is_apart_wherever_its_gigabyte_is_mapped() {
    let (machine, space, object) = machine(1);
    let other = machine.space(1, BackingPolicy::default());
    machine.map(&other, object.clone());
    // A second time, at a place where no block fits.
    let odd = START.offset(GIB * PAGE_SIZE + 3 * PAGE_SIZE);
    let config = SlotConfig {
        id: memory::SlotId(1),
        start: odd,
        ..slot(object.clone())
    };
    space.map_object(&machine.cpu, config).unwrap();
    assert_eq!(level(&machine, &other, 9), Level::L1);
    let beside = |page: u64| GIB + 3 + page;
    assert_eq!(machine.read(&space, beside(2 * BLOCK)), 102);
    assert_eq!(level(&machine, &space, beside(2 * BLOCK)), Level::L3);
    let page = START.offset(2 * BLOCK * PAGE_SIZE);
    let range = page..page.offset(PAGE_SIZE);
    assert_eq!(space.balloon(&machine.cpu, range), Ok(1));
    machine.cpu.wait_for_epoch();
    assert_eq!(machine.guest(), GIB - 1);
    assert_eq!(machine.read(&space, 2 * BLOCK), 0);
    assert_eq!(machine.read(&space, beside(2 * BLOCK)), 0);
    assert_eq!(machine.read(&other, 2 * BLOCK), 0);
    machine.write(&other, 2 * BLOCK, 5);
    assert_eq!(machine.read(&space, 2 * BLOCK), 5);
    assert_eq!(machine.read(&space, beside(2 * BLOCK)), 5);
    for vm in [&space, &other] {
        assert_eq!(level(&machine, vm, 2 * BLOCK + 1), Level::L3);
        assert_eq!(level(&machine, vm, 3 * BLOCK), Level::L2);
        assert_eq!(machine.read(vm, 3 * BLOCK), 103);
    }
    end(&machine, object, [space, other]);
}

#[test]
fn pages_of_a_gigabyte_are_merged() {
    let (machine, space, object) = machine(1);
    let child = fork(&machine, &space, 1);
    for page in 0..BLOCK {
        machine.write(&space, 6 * BLOCK + page, 1 + page);
        machine.write(&child, 6 * BLOCK + page, 1 + page);
    }
    let merging = PageMerging::new(MergePolicy::default());
    merging.add(&object).unwrap();
    merging.add_vm(&machine.cpu, &child).unwrap();
    let before = machine.guest();
    while merging.statistics().full_scans < 4 {
        merging.scan(&machine.cpu, 1 << 20);
        machine.cpu.wait_for_epoch();
    }
    assert!(before - machine.guest() >= BLOCK, "nothing was merged");
    for vm in [&space, &child] {
        for page in 0..BLOCK {
            assert_eq!(machine.read(vm, 6 * BLOCK + page), 1 + page);
        }
        assert_eq!(machine.read(vm, 7 * BLOCK), 107);
    }
    machine.write(&child, 7 * BLOCK, 1);
    assert_eq!(machine.read(&space, 7 * BLOCK), 107);
    drop(merging);
    end(&machine, object, [space, child]);
}

#[test]
fn a_cold_gigabyte_is_compressed_region_by_region() {
    let (machine, space, object) = machine(1);
    let free = machine.pool.free_frames();
    let watermarks = |low| Some(Watermarks { low, high: low });
    machine
        .cpu
        .system()
        .set_watermarks(watermarks(free + BLOCK));
    for _ in 0..200 {
        machine.cpu.relieve();
        machine.cpu.wait_for_epoch();
    }
    let counters = machine.cpu.system().reclaim_counters();
    assert!(counters.split.get() >= 1, "{counters:?}");
    assert!(machine.guest() <= GIB - BLOCK, "{counters:?}");
    machine.cpu.system().set_watermarks(None);
    for region in 0..10 {
        assert_eq!(machine.read(&space, region * BLOCK), 100 + region);
    }
    end(&machine, object, [space]);
}

#[test]
fn what_is_the_vms_own_of_a_shared_gigabyte_is_found_by_reclaim() {
    for piece in [Level::L2, Level::L1] {
        let machine = Vms::new(frames(1));
        let space = machine.space(0, BackingPolicy::default());
        let object = machine.anonymous(space.vm(), GIB, piece);
        machine.map(&space, object.clone());
        let page = 7 * BLOCK + 3;
        machine.write(&space, page, 1);
        let child = fork(&machine, &space, 1);
        // The one takes a copy, the other the frame.
        machine.write(&child, page, 2);
        machine.write(&space, page, 3);
        let watermarks = |low| Some(Watermarks { low, high: low });
        machine.cpu.system().set_watermarks(watermarks(2 * GIB));
        let counters = machine.cpu.system().reclaim_counters();
        for _ in 0..1000 {
            machine.cpu.relieve();
            machine.cpu.wait_for_epoch();
            if counters.compressed.get() == 2 {
                break;
            }
        }
        assert_eq!(counters.compressed.get(), 2, "{piece:?}: {counters:?}");
        machine.cpu.system().set_watermarks(None);
        assert_eq!(
            (machine.read(&space, page), machine.read(&child, page)),
            (3, 2)
        );
        end(&machine, object, [space, child]);
    }
}
