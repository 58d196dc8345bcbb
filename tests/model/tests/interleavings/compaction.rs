//! Compaction under every interleaving with what else happens to the pages: a fragmented region that moves into one run of
//! frames (`compact_region`) and a run that is cleared of what lies there (`clear_run`), beside faults, writes, dirty logging,
//! forks, slots that go, and themselves. Rules 3, 8, 9 and 10, on the VMs of [`model::checked::vms`].
//!
//! Bounds: one region, of four pages as the checker's trees have it, in trees of two levels; up to two VMs; two or three CPUs,
//! each a thread, beside a main thread that waits; at most so many preemptions per execution as the first argument of `explore`
//! says. Of what takes the lock of an address space's owner, one at a time.

use std::sync::atomic::{AtomicU64 as Unmodelled, Ordering};
use std::sync::{Mutex, PoisonError};

use memory::frames::FrameSize;
use memory::{Compacted, Object, Owner};
use model::checked::memory::vm_id;
use model::checked::vms::{Act, Cpu, DIRECT, PAGE, SLOT, explore};
use model::checked::{ENTRIES, page};
use stage2::sync::full_barrier;
use stage2::{Ipa, Level, PAGE_SIZE, Pa};

const LAST: Ipa = page(ENTRIES - 1);

/// Executions in which something moved, or blocks came back where it is.
static MOVED: Unmodelled = Unmodelled::new(0);
/// The run of frames that is cleared, in one execution.
static RUN: Unmodelled = Unmodelled::new(0);
/// The largest value of the first page that a harvest led to, in one execution.
static COPIED: Unmodelled = Unmodelled::new(0);

/// Tries every execution; in some of them something has to move.
fn explore_moves<const N: usize>(
    preemptions: usize,
    vms: usize,
    prepare: Act,
    race: [Act; N],
    check: Act,
) {
    // Held until the count is read: the next test begins with another.
    static COUNTED: Mutex<()> = Mutex::new(());
    let _counted = COUNTED.lock().unwrap_or_else(PoisonError::into_inner);
    MOVED.store(0, Ordering::Relaxed);
    explore(preemptions, vms, DIRECT, prepare, race, check);
    assert!(MOVED.load(Ordering::Relaxed) > 0, "nothing ever moved");
}

fn region(cpu: &Cpu<'_>, piece: Level) {
    let account = Owner::Vm(vm_id(0));
    let bytes = ENTRIES * PAGE_SIZE;
    cpu.map_known(Object::anonymous(&cpu.memory, account, bytes, piece).unwrap());
}

/// A region whose pages lie anywhere, each with an entry that allows writes.
fn fragments(cpu: &Cpu<'_>) {
    region(cpu, Level::L3);
    for index in (0..ENTRIES).rev() {
        cpu.write_at(0, page(index));
    }
}

/// As [`fragments`], with entries for none of them.
fn unmapped_fragments(cpu: &Cpu<'_>) {
    let account = Owner::Vm(vm_id(0));
    let bytes = ENTRIES * PAGE_SIZE;
    let object = Object::preallocated(&cpu.memory, account, bytes, Level::L3);
    cpu.map_known(object.unwrap());
}

/// A region that another VM has shared, and of which both have written all: the first one's is one run of frames still.
fn shared_for_a_while(cpu: &Cpu<'_>) {
    region(cpu, Level::L2);
    cpu.write_at(0, PAGE);
    cpu.fork(0, 1);
    for index in 0..ENTRIES {
        cpu.write_at(1, page(index));
        cpu.write_at(0, page(index));
    }
    assert_eq!(
        cpu.translate(0, PAGE).map(|(_, level)| level),
        Some(Level::L3)
    );
}

fn logged_and_shared_for_a_while(cpu: &Cpu<'_>) {
    shared_for_a_while(cpu);
    log(cpu);
}

fn logged_fragments(cpu: &Cpu<'_>) {
    fragments(cpu);
    log(cpu);
}

/// A region that is one run of frames, which another VM had too: its pages are its own again.
fn own_again(cpu: &Cpu<'_>) {
    fragments(cpu);
    assert_eq!(
        cpu.object().compact_region(&cpu.memory, 0),
        Compacted::Moved
    );
    cpu.fork(0, 1);
    cpu.space(1).remove_slot(&cpu.memory, SLOT).unwrap();
    for index in 0..ENTRIES {
        cpu.write_at(0, page(index));
    }
}

/// A run of frames of which the first one is used.
fn run(cpu: &Cpu<'_>) {
    run_with(cpu, PAGE);
}

/// A run of frames that backed a region, of which only `used` has kept its own.
fn run_with(cpu: &Cpu<'_>, used: Ipa) {
    region(cpu, Level::L2);
    cpu.write_at(0, used);
    let (leaf, level) = cpu.translate(0, used).expect("it is mapped");
    assert_eq!(level, Level::L2);
    RUN.store(leaf.pa().get(), Ordering::Relaxed);
    for other in [PAGE..used, used.offset(PAGE_SIZE)..page(ENTRIES)] {
        let pages = (other.end.get() - other.start.get()) / PAGE_SIZE;
        if pages > 0 {
            assert_eq!(cpu.space(0).balloon(&cpu.memory, other), Ok(pages));
        }
    }
    cpu.memory.wait_for_epoch();
    cpu.read_at(0, used);
}

fn logged_run(cpu: &Cpu<'_>) {
    run(cpu);
    log(cpu);
}

/// As [`run`], and another VM shares the page.
fn shared_run(cpu: &Cpu<'_>) {
    run(cpu);
    cpu.fork(0, 1);
    cpu.read(1);
}

fn log(cpu: &Cpu<'_>) {
    COPIED.store(0, Ordering::Relaxed);
    cpu.log(0);
}

fn compact(cpu: &Cpu<'_>) {
    match cpu.object().compact_region(&cpu.memory, 0) {
        Compacted::Moved | Compacted::OwnAgain => {
            MOVED.fetch_add(1, Ordering::Relaxed);
        }
        Compacted::OutOfFrames => panic!("there are enough"),
        Compacted::Whole | Compacted::NotItsOwn | Compacted::Busy => {}
    }
}

fn gather(cpu: &Cpu<'_>) {
    MOVED.fetch_add(u64::from(cpu.memory.gather()), Ordering::Relaxed);
}

fn migrate(cpu: &Cpu<'_>) {
    let moved = cpu.object().migrate(&cpu.memory, 0);
    MOVED.fetch_add(u64::from(moved), Ordering::Relaxed);
}

fn clear(cpu: &Cpu<'_>) {
    let run = Pa::new(RUN.load(Ordering::Relaxed));
    let cleared = cpu.memory.clear_run(run, ENTRIES as usize);
    MOVED.fetch_add(cleared.moved as u64, Ordering::Relaxed);
}

fn write(cpu: &Cpu<'_>) {
    cpu.write(0);
}

fn write_in_child(cpu: &Cpu<'_>) {
    cpu.write(1);
}

fn write_last(cpu: &Cpu<'_>) {
    cpu.write_at(0, LAST);
}

fn watch(cpu: &Cpu<'_>) {
    cpu.watch(0);
}

fn fork(cpu: &Cpu<'_>) {
    cpu.fork_running(0, 1);
}

fn harvest(cpu: &Cpu<'_>) {
    if let Some(copied) = cpu.harvest(0) {
        COPIED.fetch_max(copied, Ordering::Relaxed);
    }
}

/// All pages of a VM together.
fn sum(cpu: &Cpu<'_>, vm: usize) -> u64 {
    let pages = (0..ENTRIES).map(|index| cpu.read_at(vm, page(index)));
    pages.map(|value| value.expect("there is a slot")).sum()
}

/// Has a block map the region, if that can be; what became of its pages.
fn blocks_again(cpu: &Cpu<'_>) -> Compacted {
    let compacted = cpu.object().compact_region(&cpu.memory, 0);
    cpu.space(0)
        .restore_blocks(&cpu.memory, SLOT, PAGE)
        .unwrap();
    compacted
}

/// No write is lost; and a block that maps the region now leads to the same, whatever is written then.
fn all_is_there(cpu: &Cpu<'_>) {
    assert_eq!(sum(cpu, 0), cpu.world.expected(0));
    let again = blocks_again(cpu);
    assert!(matches!(
        again,
        Compacted::Moved | Compacted::OwnAgain | Compacted::Whole
    ));
    let (_, level) = cpu.translate(0, PAGE).expect("it is mapped");
    assert_eq!(level, Level::L2, "{again:?}");
    cpu.write(0);
    write_last(cpu);
    assert_eq!(sum(cpu, 0), cpu.world.expected(0));
}

/// As [`all_is_there`], when nothing is left to gather: the next execution's search begins where this one's did.
fn all_is_gathered(cpu: &Cpu<'_>) {
    while cpu.memory.gather() {}
    all_is_there(cpu);
}

/// What the child got, whenever that was, stays.
fn the_fork_is_of_one_moment(cpu: &Cpu<'_>) {
    assert_eq!(sum(cpu, 0), cpu.world.expected(0), "a write is lost");
    // Blocks come back, where they may.
    blocks_again(cpu);
    let child = cpu.read(1);
    cpu.write(0);
    write_last(cpu);
    assert_eq!(cpu.read(1), child, "rule 3: the child sees its parent's");
    let parent = cpu.read(0);
    cpu.write(1);
    assert_eq!(cpu.read(0), parent, "rule 3: the parent sees its child's");
    assert_eq!(cpu.read(1), child + 1);
    assert_eq!(sum(cpu, 0), cpu.world.expected(0));
}

fn nothing_goes_unlogged(cpu: &Cpu<'_>) {
    harvest(cpu);
    let copied = COPIED.load(Ordering::Relaxed);
    let holds = cpu.read(0);
    assert!(
        copied == 0 || copied == holds,
        "rule 9: the page holds {holds}, its copy {copied}"
    );
    assert_eq!(sum(cpu, 0), cpu.world.expected(0));
    cpu.write(0);
    harvest(cpu);
    assert_eq!(
        COPIED.load(Ordering::Relaxed),
        holds + 1,
        "rule 9: a block goes unlogged"
    );
}

/// The page is there, and where it moved it has left the run.
fn the_page_is_there(cpu: &Cpu<'_>) {
    assert_eq!(sum(cpu, 0), cpu.world.expected(0));
    cpu.memory.wait_for_epoch();
    clear(cpu);
    let (leaf, _) = cpu.translate(0, PAGE).expect("it is mapped");
    let run = RUN.load(Ordering::Relaxed);
    let run = run..run + ENTRIES * PAGE_SIZE;
    assert!(!run.contains(&leaf.pa().get()), "it is still there");
    cpu.write(0);
    assert_eq!(sum(cpu, 0), cpu.world.expected(0));
}

#[test]
fn the_checker_s_blocks_are_as_large_as_its_tables() {
    assert_eq!(FrameSize::Block2M.frames() as u64, ENTRIES);
}

#[test]
fn rule_8_a_region_moves_beside_a_write_and_takes_it_along() {
    explore_moves(2, 1, fragments, [compact, write], all_is_there);
    explore_moves(2, 1, fragments, [compact, write_last], all_is_there);
}

#[test]
fn rule_8_a_region_moves_beside_a_fault_that_maps_it() {
    explore_moves(1, 1, unmapped_fragments, [compact, write], all_is_there);
    explore_moves(1, 1, unmapped_fragments, [compact, watch], all_is_there);
}

#[test]
fn rule_8_two_move_a_region_at_once() {
    explore_moves(1, 1, fragments, [compact, compact], all_is_there);
}

#[test]
fn rule_8_a_region_moves_beside_a_page_of_it_that_moves_elsewhere() {
    explore_moves(1, 1, fragments, [compact, migrate], all_is_there);
}

#[test]
fn rule_3_a_region_moves_beside_a_fork_which_is_of_one_moment() {
    explore_moves(1, 2, fragments, [compact, fork], the_fork_is_of_one_moment);
}

#[test]
fn rule_3_a_region_that_is_its_own_again_beside_another_fork() {
    explore_moves(2, 2, own_again, [compact, fork], the_fork_is_of_one_moment);
    explore_moves(2, 2, own_again, [compact, write], all_is_there);
}

#[test]
fn rule_9_a_region_moves_beside_a_write_that_is_logged() {
    explore_moves(
        1,
        1,
        logged_fragments,
        [compact, write],
        nothing_goes_unlogged,
    );
}

#[test]
fn rule_9_a_region_moves_beside_a_harvest() {
    let written: Act = |cpu| {
        logged_fragments(cpu);
        cpu.write(0);
    };
    explore_moves(1, 1, written, [compact, harvest], nothing_goes_unlogged);
}

#[test]
fn rule_9_a_region_moves_beside_a_harvest_and_the_write_that_it_may_miss() {
    explore_moves(
        1,
        1,
        logged_fragments,
        [compact, write, harvest],
        nothing_goes_unlogged,
    );
    explore_moves(
        1,
        1,
        logged_fragments,
        [migrate, write, harvest],
        nothing_goes_unlogged,
    );
}

#[test]
fn rule_9_a_region_moves_while_logging_is_enabled() {
    explore_moves(1, 1, fragments, [compact, log], nothing_goes_unlogged);
}

#[test]
fn rule_8_what_was_shared_is_a_block_again_beside_a_write() {
    let race: [Act; 2] = [gather, write];
    explore_moves(1, 2, shared_for_a_while, race, all_is_gathered);
    let race: [Act; 2] = [gather, watch];
    explore_moves(1, 2, shared_for_a_while, race, all_is_gathered);
}

#[test]
fn rule_9_what_was_shared_is_a_block_again_beside_a_write_that_is_logged() {
    explore_moves(
        1,
        2,
        logged_and_shared_for_a_while,
        [compact, write, harvest],
        nothing_goes_unlogged,
    );
}

#[test]
fn rule_8_a_run_is_cleared_beside_a_write_that_moves_along() {
    explore_moves(3, 1, run, [clear, write], the_page_is_there);
    explore_moves(3, 1, run, [clear, watch], the_page_is_there);
}

#[test]
fn rule_3_a_run_is_cleared_beside_a_fork_which_is_of_one_moment() {
    explore_moves(2, 2, run, [clear, fork], the_fork_is_of_one_moment);
}

#[test]
fn rule_3_a_run_is_cleared_of_a_page_that_two_vms_share() {
    let both: Act = |cpu| {
        assert_eq!(
            (cpu.read(0), cpu.read(1)),
            (cpu.world.expected(0), cpu.world.expected(1))
        );
    };
    explore_moves(2, 2, shared_run, [clear, write], both);
    explore_moves(2, 2, shared_run, [clear, write_in_child], both);
}

#[test]
fn rule_9_a_run_is_cleared_beside_a_write_that_is_logged() {
    explore_moves(3, 1, logged_run, [clear, write], nothing_goes_unlogged);
    explore_moves(
        1,
        1,
        logged_run,
        [clear, write, harvest],
        nothing_goes_unlogged,
    );
}

#[test]
fn rule_8_two_clear_a_run_at_once() {
    explore_moves(2, 1, run, [clear, clear], the_page_is_there);
}

#[test]
fn rule_10_a_run_is_cleared_beside_a_slot_that_goes() {
    let remove: Act = |cpu| cpu.space(0).remove_slot(&cpu.memory, SLOT).unwrap();
    let clear: Act = |cpu| {
        clear(cpu);
        // Whoever waits for the epoch sees what was done in it. The model checker doesn't see its way out.
        full_barrier();
    };
    let gone: Act = |cpu| assert_eq!(cpu.translate(0, LAST), None);
    // Nothing is done after the last frame of a run.
    explore_moves(2, 1, |cpu| run_with(cpu, LAST), [clear, remove], gone);
}
