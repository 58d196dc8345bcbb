//! Several CPUs that work on one dirty log, each on a part of its pages: they clear neighbouring pages whose bits share a word,
//! split the same block ahead, write-protect the parts of a log that was just started, and restore the blocks of neighbouring
//! regions, beside each other and beside faults, under every interleaving. Rules 5, 8 and 9, on the VMs of
//! [`model::checked::vms`]: what the harvesters have copied when the guest has stopped is the guest's memory.
//!
//! Bounds: two regions of four pages, each one run of frames, in a tree of two levels; two or three CPUs, each a thread, beside
//! a main thread that waits; at most so many preemptions per execution as the first argument of `explore` says.

use std::ops::Range;
use std::sync::atomic::{AtomicU64 as Unmodelled, Ordering};

use memory::{Ahead, LogPolicy, Object, Owner, Splitting, Tracking};
use model::checked::memory::vm_id;
use model::checked::vms::{Act, Cpu, DIRECT, SLOT, explore};
use model::checked::{ENTRIES, page};
use stage2::sync::full_barrier;
use stage2::{Level, PAGE_SIZE};

const PAGES: u64 = 2 * ENTRIES;
const FIRST: Range<u64> = 0..ENTRIES;
const SECOND: Range<u64> = ENTRIES..PAGES;
/// Pages whose bits are neighbours, in two regions.
const LEFT: u64 = ENTRIES - 1;
const RIGHT: u64 = ENTRIES;

const EAGER: Splitting = Splitting::Eager(Ahead {
    chunk: PAGE_SIZE,
    reserve: 0,
});
const PROTECT: LogPolicy = LogPolicy {
    tracking: Tracking::WriteProtect,
    splitting: Splitting::AtFault,
    granularity: memory::Granularity::Page,
    initially_set: false,
    ring: false,
};
const SPLIT_AHEAD: LogPolicy = LogPolicy {
    splitting: EAGER,
    ..PROTECT
};
const SPLIT_AT_CLEAR: LogPolicy = LogPolicy {
    initially_set: true,
    ..SPLIT_AHEAD
};

/// What the harvesters have copied of each page, in one execution.
static COPY: [Unmodelled; PAGES as usize] = [const { Unmodelled::new(0) }; PAGES as usize];

/// Two regions, each mapped by a block that allows writes.
fn blocks(cpu: &Cpu<'_>) {
    let account = Owner::Vm(vm_id(0));
    let object = Object::anonymous(&cpu.memory, account, PAGES * PAGE_SIZE, Level::L2);
    cpu.map_known(object.unwrap());
    for first in [FIRST.start, SECOND.start] {
        cpu.write_at(0, page(first));
        let mapped = cpu.translate(0, page(first)).map(|(_, level)| level);
        assert_eq!(mapped, Some(Level::L2));
    }
    for copied in &COPY {
        copied.store(0, Ordering::Relaxed);
    }
}

fn in_memory(cpu: &Cpu<'_>, number: u64) -> u64 {
    let mut bytes = [0; 8];
    // As the harvester's reads come after the invalidation, and the guest's writes before.
    full_barrier();
    (cpu.space(0))
        .read_guest(&cpu.memory, page(number), &mut bytes)
        .unwrap();
    u64::from_ne_bytes(bytes)
}

fn copy(cpu: &Cpu<'_>, pages: impl Iterator<Item = u64>) {
    for number in pages {
        COPY[number as usize].fetch_max(in_memory(cpu, number), Ordering::Relaxed);
    }
}

fn logged(cpu: &Cpu<'_>, policy: &LogPolicy) {
    blocks(cpu);
    (cpu.space(0))
        .enable_dirty_log(&cpu.memory, SLOT, policy)
        .unwrap();
    copy(cpu, 0..PAGES);
}

/// Logged by pages, with the neighbours dirty and in the log.
fn neighbours_dirty(cpu: &Cpu<'_>) {
    logged(cpu, &PROTECT);
    cpu.write_at(0, page(LEFT));
    cpu.write_at(0, page(RIGHT));
}

/// All dirty to begin with, and in blocks.
fn all_set(cpu: &Cpu<'_>) {
    logged(cpu, &SPLIT_AT_CLEAR);
}

fn protected_blocks(cpu: &Cpu<'_>) {
    logged(cpu, &PROTECT);
}

fn started(cpu: &Cpu<'_>, policy: &LogPolicy) {
    blocks(cpu);
    (cpu.space(0))
        .start_dirty_log(&cpu.memory, SLOT, policy)
        .unwrap();
}

fn started_to_split(cpu: &Cpu<'_>) {
    started(cpu, &SPLIT_AHEAD);
}

fn started_to_protect(cpu: &Cpu<'_>) {
    started(cpu, &PROTECT);
}

/// Both regions split by faults, and logged no more.
fn split_blocks(cpu: &Cpu<'_>) {
    neighbours_dirty(cpu);
    (cpu.space(0)).disable_dirty_log(&cpu.memory, SLOT).unwrap();
}

/// Takes one page out of the log, whose bit has neighbours.
fn clear(cpu: &Cpu<'_>, number: u64) {
    let mut bitmap = [1 << number];
    (cpu.space(0))
        .clear_dirty_log(&cpu.memory, SLOT, 0, &mut bitmap)
        .unwrap();
    assert_eq!(bitmap[0] & !(1 << number), 0);
    copy(
        cpu,
        (0..PAGES).filter(|number| bitmap[0] & 1 << number != 0),
    );
}

fn clear_left(cpu: &Cpu<'_>) {
    clear(cpu, LEFT);
}

fn clear_right(cpu: &Cpu<'_>) {
    clear(cpu, RIGHT);
}

fn clear_all(cpu: &Cpu<'_>) {
    let mut bitmap = [0];
    (cpu.space(0))
        .get_and_clear_dirty_log(&cpu.memory, SLOT, 0, &mut bitmap)
        .unwrap();
    copy(
        cpu,
        (0..PAGES).filter(|number| bitmap[0] & 1 << number != 0),
    );
}

fn split(cpu: &Cpu<'_>) {
    let Splitting::Eager(ahead) = EAGER else {
        unreachable!()
    };
    (cpu.space(0))
        .split_blocks(&cpu.memory, SLOT, page(0), PAGES * PAGE_SIZE, ahead)
        .unwrap();
}

fn protect(cpu: &Cpu<'_>, part: Range<u64>) {
    (cpu.space(0))
        .protect_part(&cpu.memory, SLOT, part.clone())
        .unwrap();
    copy(cpu, part);
}

fn protect_first(cpu: &Cpu<'_>) {
    protect(cpu, FIRST);
}

fn protect_second(cpu: &Cpu<'_>) {
    protect(cpu, SECOND);
}

fn restore(cpu: &Cpu<'_>, part: Range<u64>) {
    (cpu.space(0))
        .restore_part(&cpu.memory, SLOT, part)
        .unwrap();
}

fn restore_first(cpu: &Cpu<'_>) {
    restore(cpu, FIRST);
}

fn restore_second(cpu: &Cpu<'_>) {
    restore(cpu, SECOND);
}

fn restore_both(cpu: &Cpu<'_>) {
    restore(cpu, 0..PAGES);
}

fn write_left(cpu: &Cpu<'_>) {
    cpu.write_at(0, page(LEFT));
}

fn write_right(cpu: &Cpu<'_>) {
    cpu.write_at(0, page(RIGHT));
}

/// No write was lost, and with the last harvest the copy is whole.
fn copied(cpu: &Cpu<'_>) {
    clear_all(cpu);
    let mut sum = 0;
    for number in 0..PAGES {
        let written = in_memory(cpu, number);
        let copied = COPY[number as usize].load(Ordering::Relaxed);
        assert_eq!(
            copied, written,
            "rule 9: writes to page {number} that the copy has, and that there were"
        );
        sum += written;
    }
    assert_eq!(sum, cpu.world.expected(0));
}

/// No write was lost, and both regions are mapped by blocks.
fn restored(cpu: &Cpu<'_>) {
    let sum: u64 = (0..PAGES).map(|number| in_memory(cpu, number)).sum();
    assert_eq!(sum, cpu.world.expected(0));
    for first in [FIRST.start, SECOND.start] {
        let (_, level) = (cpu.space(0).lookup(&cpu.memory, page(first))).expect("it is mapped");
        assert_eq!(
            level,
            Level::L2,
            "the region of page {first} is a block again"
        );
    }
}

/// As [`restored`], once whoever was in the way has ended.
fn restored_in_the_end(cpu: &Cpu<'_>) {
    restore_both(cpu);
    restored(cpu);
}

/// With a third CPU, fewer preemptions.
fn harvest_beside(prepare: Act, race: [Act; 2], writers: &[Act]) {
    explore(2, 1, DIRECT, prepare, race, copied);
    for writer in writers {
        explore(1, 1, DIRECT, prepare, [race[0], race[1], *writer], copied);
    }
}

#[test]
fn rule_9_two_harvesters_clear_neighbouring_pages_of_a_word() {
    harvest_beside(
        neighbours_dirty,
        [clear_left, clear_right],
        &[write_left, write_right],
    );
}

#[test]
fn rule_9_two_harvesters_clear_the_same_page() {
    harvest_beside(neighbours_dirty, [clear_left, clear_left], &[write_left]);
}

#[test]
fn rule_9_two_harvesters_take_all_that_there_is() {
    harvest_beside(neighbours_dirty, [clear_all, clear_all], &[write_left]);
}

#[test]
fn rule_9_two_harvesters_split_the_same_blocks_when_they_clear() {
    harvest_beside(all_set, [clear_left, clear_right], &[write_left]);
}

#[test]
fn rule_9_a_harvester_clears_what_another_splits() {
    harvest_beside(protected_blocks, [clear_all, split], &[write_left]);
    harvest_beside(neighbours_dirty, [clear_left, split], &[write_right]);
}

#[test]
fn rule_9_two_cpus_split_the_same_blocks_ahead() {
    harvest_beside(protected_blocks, [split, split], &[write_left]);
}

#[test]
fn rule_8_a_log_is_started_in_two_parts() {
    for prepare in [started_to_protect, started_to_split] {
        harvest_beside(prepare, [protect_first, protect_second], &[write_left]);
    }
}

#[test]
fn rule_5_two_cpus_restore_neighbouring_regions() {
    explore(
        2,
        1,
        DIRECT,
        split_blocks,
        [restore_first, restore_second],
        restored,
    );
    explore(
        1,
        1,
        DIRECT,
        split_blocks,
        [restore_first, restore_second, write_left],
        restored_in_the_end,
    );
}

#[test]
fn rule_5_a_region_is_restored_beside_a_fault() {
    for write in [write_left, write_right] {
        explore(
            2,
            1,
            DIRECT,
            split_blocks,
            [restore_both, write],
            restored_in_the_end,
        );
    }
}

#[test]
fn rule_5_two_cpus_restore_the_same_regions() {
    explore(
        1,
        1,
        DIRECT,
        split_blocks,
        [restore_both, restore_both],
        restored_in_the_end,
    );
}

#[test]
fn rule_9_a_harvester_clears_what_another_cpu_restores() {
    harvest_beside(neighbours_dirty, [clear_left, restore_both], &[write_left]);
}
