//! Pages move from frame to frame under running VMs, on real memory: what every guest reads is what it wrote.
//!
//! A program of its own: frames of a test are never freed, and these are many.
#![cfg(not(any(loom, miri)))]

use memory::frames::{FrameSize, Purpose};
use memory::{
    Access, BackingPolicy, Compacted, LogPolicy, MergePolicy, Object, Owner, PageMerging,
    SlotConfig, Watermarks,
};
use model::vms::{BLOCK, GIB, SLOT, START, Space, Vms, slot};
use proptest::prelude::*;
use stage2::{Level, PAGE_SIZE, Pa};
use std::iter;
use std::sync::Arc;

/// CPU 0 of a machine, and its VMs.
struct Machine {
    vms: Vms,
    spaces: Vec<Space>,
}

impl Machine {
    fn new(frames: usize) -> Self {
        Self {
            vms: Vms::new(frames),
            spaces: Vec::new(),
        }
    }

    fn add_vm(&mut self, pages: u64, piece: Level) -> Arc<Object> {
        let space = self.vms.space(self.spaces.len(), BackingPolicy::default());
        let object = self.vms.anonymous(space.vm(), pages, piece);
        self.vms.map(&space, object.clone());
        self.spaces.push(space);
        object
    }

    /// A VM that shares all that another one has.
    fn fork(&mut self, of: usize) {
        let child = self.vms.space(self.spaces.len(), BackingPolicy::default());
        self.spaces[of].fork(&self.vms.cpu, &child).unwrap();
        self.spaces.push(child);
    }

    /// As [`Vms::write`].
    fn write(&self, vm: usize, page: u64, word: u64) -> u32 {
        self.vms.write(&self.spaces[vm], page, word)
    }

    fn read(&self, vm: usize, page: u64) -> u64 {
        self.vms.read(&self.spaces[vm], page)
    }

    fn guest(&self) -> u64 {
        self.vms.guest()
    }

    fn end(self) {
        for space in self.spaces {
            space.destroy(&self.vms.cpu);
        }
        self.vms.check_nothing_is_left();
    }
}

/// The frames of a page in a VM.
fn frame(machine: &Machine, vm: usize, page: u64) -> Pa {
    let (leaf, level, _) = machine.vms.access(&machine.spaces[vm], page, Access::Read);
    model::vms::frame(leaf, level, page)
}

#[test]
fn a_page_moves_to_another_frame_and_no_vm_notices() {
    let mut machine = Machine::new(2048);
    let object = machine.add_vm(4, Level::L3);
    (0..3).for_each(|page| assert_eq!(machine.write(0, page, 10 + page), 1));
    let before = frame(&machine, 0, 1);
    assert!(object.migrate(&machine.vms.cpu, 1));
    assert_ne!(frame(&machine, 0, 1), before);
    assert_eq!(machine.read(0, 1), 11);
    assert_eq!(machine.write(0, 1, 5), 1, "a right is given by a fault");
    machine.vms.cpu.wait_for_epoch();
    assert_eq!((machine.read(0, 1), machine.guest()), (5, 3));
    assert!(!object.migrate(&machine.vms.cpu, 3), "it has no frame");
    drop(object);
    machine.end();
}

#[test]
fn a_shared_frame_moves_with_all_of_its_pages() {
    let mut machine = Machine::new(2048);
    let object = machine.add_vm(4, Level::L3);
    machine.write(0, 2, 7);
    machine.fork(0);
    assert_eq!(machine.read(1, 2), 7);
    assert!(object.migrate(&machine.vms.cpu, 2));
    assert_eq!(frame(&machine, 0, 2), frame(&machine, 1, 2));
    machine.vms.cpu.wait_for_epoch();
    assert_eq!((machine.guest(), machine.vms.pool.shared_frames()), (1, 1));
    assert_eq!(machine.write(1, 2, 8), 1);
    assert_eq!((machine.read(0, 2), machine.read(1, 2)), (7, 8));
    assert_eq!(machine.write(0, 2, 9), 1, "the last one takes it");
    assert_eq!((machine.guest(), machine.vms.pool.shared_frames()), (2, 0));
    drop(object);
    machine.end();
}

#[test]
fn a_fragmented_region_becomes_a_block_again() {
    let mut machine = Machine::new(4096);
    let object = machine.add_vm(BLOCK + 3, Level::L3);
    // From the last to the first, so that nothing lies in order.
    for page in (0..BLOCK + 3).rev() {
        machine.write(0, page, 1 + page);
    }
    let tables = machine.vms.pool.counts().table;
    let cpu = &machine.vms.cpu;
    assert_eq!(object.compact_region(cpu, 0), Compacted::Moved);
    assert_eq!(object.compact_region(cpu, BLOCK), Compacted::NotItsOwn);
    let restored = machine.spaces[0].restore_blocks(cpu, SLOT, START).unwrap();
    assert_eq!((restored.collapsed.blocks, restored.next), (1, None));
    machine.vms.cpu.wait_for_epoch();
    let (leaf, level, _) = machine.vms.access(&machine.spaces[0], 5, Access::Read);
    assert_eq!((level, leaf.writable()), (Level::L2, true));
    assert_eq!(machine.vms.pool.counts().table, tables - 1);
    assert_eq!(machine.guest(), BLOCK + 3);
    for page in 0..BLOCK + 3 {
        assert_eq!(machine.read(0, page), 1 + page);
    }
    assert_eq!(object.compact_region(&machine.vms.cpu, 0), Compacted::Whole);
    drop(object);
    machine.end();
}

#[test]
fn what_is_shared_or_untouched_or_has_no_run_stays_fragmented() {
    let mut machine = Machine::new(3 * BLOCK as usize);
    let object = machine.add_vm(BLOCK, Level::L3);
    for page in 0..BLOCK - 1 {
        machine.write(0, page, 1 + page);
    }
    assert_eq!(
        object.compact_region(&machine.vms.cpu, 0),
        Compacted::NotItsOwn
    );
    machine.write(0, BLOCK - 1, BLOCK);
    machine.fork(0);
    assert_eq!(
        object.compact_region(&machine.vms.cpu, 0),
        Compacted::NotItsOwn
    );
    machine.spaces.remove(1).destroy(&machine.vms.cpu);
    (0..BLOCK).for_each(|page| assert_eq!(machine.write(0, page, 1 + page), 1));
    let mut runs = Vec::new();
    let (owner, purpose) = (Owner::Hypervisor, Purpose::Guest);
    while let Some(run) = machine
        .vms
        .pool
        .allocate(FrameSize::Block2M, owner, purpose)
    {
        runs.push(run);
    }
    assert_eq!(
        object.compact_region(&machine.vms.cpu, 0),
        Compacted::OutOfFrames
    );
    for run in runs {
        machine
            .vms
            .pool
            .free(run, FrameSize::Block2M, owner, purpose);
    }
    assert_eq!(object.compact_region(&machine.vms.cpu, 0), Compacted::Moved);
    (0..BLOCK).for_each(|page| assert_eq!(machine.read(0, page), 1 + page));
    drop(object);
    machine.end();
}

#[test]
fn runs_of_which_little_is_used_come_free() {
    let mut machine = Machine::new(16 * BLOCK as usize);
    let stays = machine.add_vm(400, Level::L3);
    let goes = machine.add_vm(6000, Level::L3);
    for page in 0..400 {
        machine.write(0, page, 1 + page);
        for other in page * 15..(page + 1) * 15 {
            machine.write(1, other, 7);
        }
    }
    machine.fork(0);
    drop(goes);
    machine.spaces.remove(1).destroy(&machine.vms.cpu);
    machine.vms.cpu.wait_for_epoch();
    let free_runs = |machine: &Machine| {
        let (size, owner, purpose) = (FrameSize::Block2M, Owner::Hypervisor, Purpose::Guest);
        let taken: Vec<Pa> =
            std::iter::from_fn(|| machine.vms.pool.allocate(size, owner, purpose)).collect();
        for run in &taken {
            machine.vms.pool.free(*run, size, owner, purpose);
        }
        taken.len()
    };
    let before = free_runs(&machine);
    let (mut next, mut moved) = (Some(Pa::new(0)), 0);
    while let Some(from) = next {
        let step = machine.vms.cpu.clear_run(from, 64);
        assert_eq!(step.left, 0);
        moved += step.moved;
        next = step.next;
        machine.vms.cpu.wait_for_epoch();
    }
    let after = free_runs(&machine);
    assert!(
        after >= before + 8,
        "{before} runs, then {after}; {moved} frames moved"
    );
    for page in 0..400 {
        assert_eq!(machine.read(0, page), 1 + page);
        assert_eq!(machine.read(1, page), 1 + page);
    }
    assert_eq!(machine.guest(), 400);
    drop(stays);
    machine.end();
}

/// A frame that more pages share than are moved at once: eight are.
#[test]
fn a_frame_that_many_share_stays_where_it_is() {
    let mut machine = Machine::new(4096);
    let object = machine.add_vm(2, Level::L3);
    machine.write(0, 1, 7);
    (0..7).for_each(|_| machine.fork(0));
    let before = frame(&machine, 0, 1);
    assert!(object.migrate(&machine.vms.cpu, 1), "8 pages share it");
    let moved = frame(&machine, 0, 1);
    assert_ne!(moved, before);
    machine.fork(0);
    assert!(!object.migrate(&machine.vms.cpu, 1), "9 pages share it");
    machine.vms.cpu.wait_for_epoch();
    assert_eq!((machine.guest(), machine.vms.pool.shared_frames()), (1, 1));
    let run = Pa::new(moved.get() / (BLOCK * PAGE_SIZE) * BLOCK * PAGE_SIZE);
    let cleared = machine.vms.cpu.clear_run(run, 4);
    assert_eq!((cleared.moved, cleared.left), (0, 1));
    assert_eq!(cleared.next, Some(run.offset(BLOCK * PAGE_SIZE)));
    for vm in 0..9 {
        assert_eq!((frame(&machine, vm, 1), machine.read(vm, 1)), (moved, 7));
    }
    assert_eq!(machine.guest(), 1);
    drop(object);
    machine.end();
}

#[test]
fn a_step_of_clearing_looks_at_64_runs_and_clears_one_of_which_little_is_used() {
    const USED: u64 = 40;
    let mut machine = Machine::new(128 * BLOCK as usize);
    let object = machine.add_vm(USED, Level::L3);
    (0..USED).for_each(|page| assert_eq!(machine.write(0, page, 1 + page), 1));
    let run_of = |page| frame(&machine, 0, page).get() / (BLOCK * PAGE_SIZE);
    let run = run_of(0);
    assert!((0..USED).all(|page| run_of(page) == run), "all lie in one");
    let mut nexts = Vec::new();
    let mut next = Some(Pa::new(0));
    while let Some(from) = next {
        let cleared = machine.vms.cpu.clear_run(from, USED as usize - 1);
        assert_eq!((cleared.moved, cleared.left), (0, 0));
        next = cleared.next;
        nexts.push(next);
    }
    // There are none before the first one of the arena.
    assert_eq!(nexts.len(), 3, "{nexts:?}");
    let cleared = machine.vms.cpu.clear_run(Pa::new(0), USED as usize);
    assert_eq!((cleared.moved, cleared.left), (USED as usize, 0));
    assert_eq!(cleared.next, Some(Pa::new((run + 1) * BLOCK * PAGE_SIZE)));
    machine.vms.cpu.wait_for_epoch();
    for page in 0..USED {
        assert_ne!(run_of(page), run);
        assert_eq!(machine.read(0, page), 1 + page);
    }
    assert_eq!(machine.guest(), USED);
    drop(object);
    machine.end();
}

/// Where there is no run of free frames for a region, one is cleared of what little lies in it: of the 64 that are looked at,
/// or of those behind.
#[test]
fn a_region_is_gathered_though_no_run_is_free() {
    [0, 70].into_iter().for_each(gather_fragments);
}

/// The hypervisor has some of all runs, those that come first.
fn gather_fragments(taken: usize) {
    const RUNS: u64 = 12;
    let mut machine = Machine::new((RUNS * BLOCK) as usize + taken * BLOCK as usize);
    let (size, owner, purpose) = (FrameSize::Block2M, Owner::Hypervisor, Purpose::Heap);
    let pool = machine.vms.pool;
    let mut runs: Vec<Pa> = iter::from_fn(|| pool.allocate(size, owner, purpose)).collect();
    runs.sort_unstable();
    let rest = runs.split_off(taken.min(runs.len()));
    rest.into_iter()
        .for_each(|run| pool.free(run, size, owner, purpose));
    let object = machine.add_vm(BLOCK, Level::L2);
    (0..BLOCK).for_each(|page| {
        machine.write(0, page, 1 + page);
    });
    machine.fork(0);
    // The one has copies, the other the frames, and nobody a run.
    let cpu = &machine.vms.cpu;
    let small = machine.vms.space(2, BackingPolicy::default());
    let pages = RUNS * BLOCK;
    let fragments = machine.vms.anonymous(small.vm(), pages, Level::L3);
    machine.vms.map(&small, fragments.clone());
    let at = |page: u64| START.offset(page * PAGE_SIZE);
    // Between the copies, too.
    let mut next = 0;
    for page in 0..BLOCK {
        assert_eq!(machine.write(1, page, 1000 + page), 1);
        small
            .prefault(cpu, 0, at(next)..at(next + 4), Access::Write)
            .unwrap();
        next += 4;
    }
    let rest = small.prefault(cpu, 0, at(next)..at(pages), Access::Write);
    let end = (rest.unwrap_err().done_to.get() - START.get()) / PAGE_SIZE;
    // A page of each 64 is kept.
    let kept = |page: &u64| page.is_multiple_of(64);
    for page in (0..end).filter(|page| !kept(page)) {
        assert_eq!(small.balloon(cpu, at(page)..at(page + 1)), Ok(1));
    }
    cpu.wait_for_epoch();
    (0..end).filter(kept).for_each(|page| {
        machine.vms.write(&small, page, 5000 + page);
    });
    assert_eq!(pool.allocate(size, owner, purpose), None);
    assert!((0..RUNS).any(|_| cpu.gather()), "there is room for a run");
    let level = machine.vms.access(&machine.spaces[1], 7, Access::Read).1;
    assert_eq!(level, Level::L2);
    cpu.wait_for_epoch();
    for page in 0..BLOCK {
        let words = [0, 1].map(|vm| machine.read(vm, page));
        assert_eq!(words, [1 + page, 1000 + page]);
    }
    for page in (0..end).filter(kept) {
        assert_eq!(machine.vms.read(&small, page), 5000 + page);
    }
    assert_eq!(machine.guest(), 2 * BLOCK + end.div_ceil(64));
    drop((object, fragments));
    small.destroy(&machine.vms.cpu);
    runs.into_iter()
        .for_each(|run| pool.free(run, size, owner, purpose));
    machine.end();
}

#[test]
fn nothing_is_gathered_of_a_vm_that_has_put_memory_away_for_its_limit() {
    for is_limited in [true, false] {
        let mut machine = Machine::new(8 * BLOCK as usize);
        let object = machine.add_vm(BLOCK, Level::L2);
        (0..BLOCK).for_each(|page| {
            machine.write(0, page, 1);
        });
        machine.fork(0);
        (0..BLOCK).for_each(|page| assert_eq!(machine.write(1, page, 1 + page), 1));
        let (cpu, pool) = (&machine.vms.cpu, machine.vms.pool);
        let vm = machine.spaces[1].vm();
        pool.set_limit(vm, is_limited.then_some(4 * BLOCK));
        pool.charge_compressed(Owner::Vm(vm), 128);
        assert_eq!(cpu.gather(), !is_limited);
        pool.discharge_compressed(Owner::Vm(vm), 128);
        assert_eq!(cpu.gather(), is_limited);
        pool.set_limit(vm, None);
        (0..BLOCK).for_each(|page| assert_eq!(machine.read(1, page), 1 + page));
        drop(object);
        machine.end();
    }
}

/// Regions that only lie in the slot in part stay as they are, and so does memory that was asked for in pages.
#[test]
fn blocks_are_restored_of_the_regions_that_lie_in_the_slot() {
    const HALF: u64 = BLOCK / 2;
    for piece in [Level::L2, Level::L3] {
        let mut machine = Machine::new(16 * BLOCK as usize);
        let object = machine.add_vm(4 * BLOCK, piece);
        (0..4 * BLOCK).for_each(|page| {
            machine.write(0, page, 1);
        });
        // Fragmented, as the other one keeps the frames.
        machine.fork(0);
        (0..4 * BLOCK).for_each(|page| {
            machine.write(0, page, 1 + page);
        });
        let space = machine.vms.space(2, BackingPolicy::default());
        let config = SlotConfig {
            start: START.offset(HALF * PAGE_SIZE),
            offset: HALF * PAGE_SIZE,
            bytes: 3 * BLOCK * PAGE_SIZE,
            ..slot(object.clone())
        };
        space.map_object(&machine.vms.cpu, config).unwrap();
        (HALF..HALF + 3 * BLOCK)
            .for_each(|page| assert_eq!(machine.vms.read(&space, page), 1 + page));
        let before: Vec<Pa> = (0..4 * BLOCK)
            .map(|page| frame(&machine, 0, page))
            .collect();
        let mut next = Some(START.offset(HALF * PAGE_SIZE));
        while let Some(from) = next {
            let restored = space.restore_blocks(&machine.vms.cpu, SLOT, from);
            next = restored.unwrap().next;
        }
        machine.vms.cpu.wait_for_epoch();
        for page in 0..4 * BLOCK {
            let moves = piece == Level::L2 && (BLOCK..3 * BLOCK).contains(&page);
            assert_eq!(frame(&machine, 0, page) != before[page as usize], moves);
            if (HALF..HALF + 3 * BLOCK).contains(&page) {
                let level = machine.vms.access(&space, page, Access::Read).1;
                let expected = if moves { Level::L2 } else { Level::L3 };
                assert_eq!(
                    (level, machine.vms.read(&space, page)),
                    (expected, 1 + page)
                );
            }
        }
        drop(object);
        space.destroy(&machine.vms.cpu);
        machine.end();
    }
}

/// Memory in pages has its frames anywhere: what nothing maps of it is mapped to its own, or stays as it is.
#[test]
fn what_is_restored_of_memory_in_pages_leads_to_its_own_frames() {
    let mut machine = Machine::new(8 * BLOCK as usize);
    let object = machine.add_vm(BLOCK, Level::L3);
    // In another order than that in which frames lie.
    (0..BLOCK).rev().for_each(|page| {
        machine.write(0, page, 1 + page);
    });
    let at = |page| START.offset(page * PAGE_SIZE);
    let (space, cpu) = (&machine.spaces[0], &machine.vms.cpu);
    space.invalidate(cpu, at(7)..at(9));
    space.restore_blocks(cpu, SLOT, START).unwrap();
    (0..BLOCK).for_each(|page| assert_eq!(machine.read(0, page), 1 + page));
    drop(object);
    machine.end();
}

#[test]
fn what_copies_took_apart_is_gathered_into_blocks() {
    let mut machine = Machine::new(16 * BLOCK as usize);
    let object = machine.add_vm(BLOCK, Level::L2);
    let small = machine.add_vm(BLOCK, Level::L3);
    for page in 0..BLOCK {
        machine.write(0, page, 1 + page);
        machine.write(1, page, 1 + page);
    }
    machine.fork(0);
    let cpu = &machine.vms.cpu;
    assert!(!cpu.gather(), "all is shared, or was asked for in pages");
    (1..BLOCK).for_each(|page| assert_eq!(machine.write(2, page, 1000 + page), 1));
    assert!(!cpu.gather(), "one page is shared still");
    assert_eq!(machine.write(2, 0, 1000), 1);
    (0..BLOCK).for_each(|page| assert_eq!(machine.write(0, page, 2000 + page), 1));

    let policy = LogPolicy::default();
    machine.spaces[0]
        .enable_dirty_log(cpu, SLOT, &policy)
        .unwrap();
    let watermarks = |low| Some(Watermarks { low, high: low });
    cpu.system().set_watermarks(watermarks(1 << 20));
    assert!(!cpu.gather(), "few frames are free");
    cpu.system().set_watermarks(None);
    assert!(cpu.gather());
    assert!(!cpu.gather(), "the other one is logged");
    let level = |vm| machine.vms.access(&machine.spaces[vm], 7, Access::Read).1;
    assert_eq!((level(0), level(2)), (Level::L3, Level::L2));
    machine.spaces[0].disable_dirty_log(cpu, SLOT).unwrap();
    assert!(cpu.gather());
    assert!(!cpu.gather());
    assert_eq!(
        (level(0), level(1), level(2)),
        (Level::L2, Level::L3, Level::L2)
    );
    assert_eq!(cpu.system().gathered().get(), 2);

    cpu.wait_for_epoch();
    for page in 0..BLOCK {
        let words = [0, 1, 2].map(|vm| machine.read(vm, page));
        assert_eq!(words, [2000 + page, 1 + page, 1000 + page]);
    }
    assert_eq!(machine.guest(), 3 * BLOCK);
    drop((object, small));
    machine.end();
}

/// The parent takes a copy, and the fork has the frame for itself: what lies beside it is still the parent's too.
#[test]
fn a_page_that_a_fork_has_for_itself_is_no_block_that_it_may_write() {
    let mut machine = Machine::new(8 * BLOCK as usize);
    let object = machine.add_vm(BLOCK, Level::L2);
    (0..BLOCK).for_each(|page| {
        machine.write(0, page, 1 + page);
    });
    machine.fork(0);
    machine.write(0, 3, 100);
    machine.write(1, 3, 200);
    // Made by the next access, as large as it may be.
    machine.spaces[1].invalidate(&machine.vms.cpu, START..START.offset(BLOCK * PAGE_SIZE));
    machine.write(1, 3, 201);
    machine.write(1, 4, 202);
    assert_eq!((machine.read(0, 3), machine.read(1, 3)), (100, 201));
    assert_eq!((machine.read(0, 4), machine.read(1, 4)), (5, 202));
    drop(object);
    machine.end();
}

#[test]
fn memory_that_a_fork_shares_is_no_block_that_may_be_written() {
    let mut machine = Machine::new(4 * BLOCK as usize);
    let object = machine.add_vm(BLOCK, Level::L2);
    (0..BLOCK).for_each(|page| {
        machine.write(0, page, 1 + page);
    });
    machine.fork(0);
    // The first page is the first VM's own again.
    machine.write(1, 0, 5);
    machine.write(0, 0, 1);
    let cpu = &machine.vms.cpu;
    let restored = machine.spaces[0].restore_blocks(cpu, SLOT, START);
    assert_eq!(restored.unwrap().collapsed.blocks, 0);
    // Nor is it mapped by one anew.
    machine.spaces[0].invalidate(cpu, START..START.offset(BLOCK * PAGE_SIZE));
    machine.write(0, 0, 1);
    machine.write(0, 7, 3);
    assert_eq!((machine.read(0, 7), machine.read(1, 7)), (3, 8));
    drop(object);
    machine.end();
}

#[test]
fn memory_that_a_fork_shared_for_a_while_is_a_block_again_without_a_move() {
    let mut machine = Machine::new(4 * BLOCK as usize);
    let object = machine.add_vm(BLOCK, Level::L2);
    (0..BLOCK).for_each(|page| {
        machine.write(0, page, 1 + page);
    });
    let before = frame(&machine, 0, 5);
    machine.fork(0);
    machine.spaces.remove(1).destroy(&machine.vms.cpu);
    (0..BLOCK).for_each(|page| assert_eq!(machine.write(0, page, 9 + page), 1));
    let cpu = &machine.vms.cpu;
    let restored = machine.spaces[0].restore_blocks(cpu, SLOT, START).unwrap();
    assert_eq!((restored.collapsed.blocks, restored.next), (1, None));
    let (leaf, level, _) = machine.vms.access(&machine.spaces[0], 5, Access::Write);
    assert_eq!((level, leaf.writable()), (Level::L2, true));
    assert_eq!(frame(&machine, 0, 5), before);
    (0..BLOCK).for_each(|page| assert_eq!(machine.read(0, page), 9 + page));
    drop(object);
    machine.end();
}

#[test]
fn a_region_that_two_slots_map_is_a_block_in_both() {
    let mut machine = Machine::new(6 * BLOCK as usize);
    let object = machine.add_vm(BLOCK, Level::L2);
    let other = machine.vms.space(1, BackingPolicy::default());
    machine.vms.map(&other, object.clone());
    machine.spaces.push(other);
    (0..BLOCK).for_each(|page| {
        machine.write(0, page, 1 + page);
    });
    machine.fork(0);
    (0..BLOCK).for_each(|page| {
        machine.write(1, page, 9 + page);
    });
    machine.spaces.remove(2).destroy(&machine.vms.cpu);
    assert!(machine.vms.cpu.gather());
    for vm in [0, 1] {
        let (leaf, level, _) = machine.vms.access(&machine.spaces[vm], 3, Access::Write);
        assert_eq!((level, leaf.writable()), (Level::L2, true));
    }
    (0..BLOCK).for_each(|page| assert_eq!(machine.read(0, page), 9 + page));
    drop(object);
    machine.end();
}

#[derive(Clone, Debug)]
enum Step {
    Write(usize, u64, u64),
    Read(usize, u64),
    Migrate(u64),
    Compact(usize),
    Gather,
    Clear,
    Scan,
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 48,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn guests_read_what_they_wrote(
        steps in prop::collection::vec(
            prop_oneof![
                6 => (0..2usize, 0..BLOCK, 0..3u64).prop_map(|(vm, page, word)| Step::Write(vm, page, word)),
                2 => (0..2usize, 0..BLOCK).prop_map(|(vm, page)| Step::Read(vm, page)),
                4 => (0..BLOCK).prop_map(Step::Migrate),
                2 => (0..2usize).prop_map(Step::Compact),
                2 => Just(Step::Gather),
                1 => Just(Step::Clear),
                1 => Just(Step::Scan),
            ],
            1..60,
        ),
        piece in prop_oneof![4 => Just(Level::L2), 4 => Just(Level::L3), 1 => Just(Level::L1)],
    ) {
        // Of a gigabyte, too, the first pages are used.
        let rest = if piece == Level::L1 { GIB - BLOCK } else { 0 };
        let mut machine = Machine::new((8 * BLOCK + rest) as usize);
        let object = machine.add_vm(BLOCK + rest, piece);
        let mut written: [Vec<u64>; 2] = [(1..=BLOCK).collect(), (1..=BLOCK).collect()];
        for page in 0..BLOCK {
            machine.write(0, page, 1 + page);
        }
        machine.fork(0);
        let merging = PageMerging::new(MergePolicy { pages_to_scan: BLOCK, ..MergePolicy::default() });
        merging.add(&object).unwrap();
        // The second VM has its own copy of all, the first so what it had before.
        for page in 0..BLOCK {
            machine.write(1, page, 1 + page);
            machine.write(0, page, 1 + page);
        }
        for step in steps {
            match step {
                Step::Write(vm, page, word) => {
                    prop_assert!(machine.write(vm, page, word) <= 2);
                    written[vm][page as usize] = word;
                }
                Step::Read(vm, page) => prop_assert_eq!(machine.read(vm, page), written[vm][page as usize]),
                Step::Migrate(page) => {
                    object.migrate(&machine.vms.cpu, page);
                }
                Step::Compact(vm) => {
                    let (cpu, space) = (&machine.vms.cpu, &machine.spaces[vm]);
                    space.object_of(cpu, SLOT).unwrap().compact_region(cpu, 0);
                    space.restore_blocks(cpu, SLOT, START).unwrap();
                }
                Step::Gather => while machine.vms.cpu.gather() {},
                Step::Clear => {
                    let mut next = Some(Pa::new(0));
                    while let Some(from) = next {
                        next = machine.vms.cpu.clear_run(from, 300).next;
                    }
                }
                Step::Scan => {
                    merging.step(&machine.vms.cpu);
                }
            }
            machine.vms.cpu.wait_for_epoch();
        }
        for (vm, words) in written.iter().enumerate() {
            for (page, word) in (0..).zip(words) {
                prop_assert_eq!(machine.read(vm, page), *word);
            }
        }
        drop(object);
        machine.end();
    }
}
