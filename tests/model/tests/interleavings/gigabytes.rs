//! Pieces of 1 GiB, under every interleaving: what promises that all of it may be mapped by one block is taken back
//! for all of it before the first page is treated apart (rule 13), on the VMs of [`model::checked::vms`].
//!
//! Bounds: one gigabyte, of four blocks of four pages as the checker's trees have it, in trees of three levels; up to
//! three VMs; two or three CPUs, each a thread, beside a main thread that waits; at most so many preemptions per
//! execution as the first argument of `race` says. Of what takes the lock of an address space's owner, one at a time.

use std::sync::atomic::{AtomicU64 as Unmodelled, Ordering};
use std::sync::{Mutex, PoisonError};

use memory::{Compacted, Object, Owner};
use model::checked::memory::{POOL, vm_id};
use model::checked::vms::{Act, Cpu, DIRECT, SLOT, explore_in};
use model::checked::{DEEP, ENTRIES, page, pages};
use stage2::{Ipa, Level, PAGE_SIZE};

const GIB: u64 = ENTRIES * ENTRIES;

/// Executions in which a gigabyte was mapped by one block beside what takes it apart.
static WHOLE: Unmodelled = Unmodelled::new(0);

/// Tries every execution; in some of them one block has to map the gigabyte while something else happens to it.
fn race<const N: usize>(preemptions: usize, vms: usize, prepare: Act, acts: [Act; N], check: Act) {
    // Held until the count is read: the next test begins with another.
    static COUNTED: Mutex<()> = Mutex::new(());
    let _counted = COUNTED.lock().unwrap_or_else(PoisonError::into_inner);
    WHOLE.store(0, Ordering::Relaxed);
    explore_in(DEEP, preemptions, vms, DIRECT, prepare, acts, check);
    assert!(WHOLE.load(Ordering::Relaxed) > 0, "it was never one block");
}

/// The first page of a region.
const fn first(region: u64) -> Ipa {
    page(region * ENTRIES)
}

/// VM 0's memory is one gigabyte, which it has not touched.
fn untouched(cpu: &Cpu<'_>) {
    let account = Owner::Vm(vm_id(0));
    let object = Object::anonymous(&cpu.memory, account, GIB * PAGE_SIZE, Level::L1);
    cpu.map_known(object.unwrap());
}

/// As [`untouched`], but that the first page of each region is written; nothing maps it now.
fn written(cpu: &Cpu<'_>) {
    untouched(cpu);
    for region in 0..ENTRIES {
        assert!(cpu.write_at(0, first(region)));
    }
    unmap(cpu);
}

/// All of the gigabyte but its last region is the VM's own again, though it isn't known of one of them yet.
fn own_but_for_the_last(cpu: &Cpu<'_>) {
    untouched(cpu);
    cpu.write_at(0, page(0));
    cpu.fork(0, 1);
    for index in 0..GIB - ENTRIES {
        // The one takes copies, the other the frames.
        cpu.write_at(1, page(index));
        cpu.write_at(0, page(index));
    }
    for region in 0..ENTRIES - 2 {
        assert_eq!(compact(cpu, region), Compacted::OwnAgain);
    }
    unmap(cpu);
}

fn unmap(cpu: &Cpu<'_>) {
    cpu.space(0).invalidate(&cpu.memory, pages(0..GIB));
}

/// All of the gigabyte is the VM's own again, after another one shared it; of the last region it isn't known yet.
fn nearly_own_again(cpu: &Cpu<'_>) {
    untouched(cpu);
    cpu.write_at(0, page(0));
    cpu.fork(0, 1);
    cpu.space(1).remove_slot(&cpu.memory, SLOT).unwrap();
    for index in 0..GIB {
        cpu.write_at(0, page(index));
    }
    for region in 0..ENTRIES - 1 {
        assert_eq!(compact(cpu, region), Compacted::OwnAgain);
    }
    unmap(cpu);
}

fn compact(cpu: &Cpu<'_>, region: u64) -> Compacted {
    cpu.object().compact_region(&cpu.memory, region * ENTRIES)
}

fn give_up(cpu: &Cpu<'_>, region: u64) {
    let start = first(region);
    let range = start..start.offset(PAGE_SIZE);
    cpu.space(0).balloon(&cpu.memory, range).unwrap();
}

fn read(cpu: &Cpu<'_>, vm: usize, region: u64) -> u64 {
    cpu.read_at(vm, first(region)).expect("there is a slot")
}

/// The guest reads from the last region, with all that one block may map with it.
fn touch_last(cpu: &Cpu<'_>) {
    assert_eq!(read(cpu, 0, ENTRIES - 1), 1);
    note_whole(cpu);
}

fn note_whole(cpu: &Cpu<'_>) {
    let last = cpu.translate(0, first(ENTRIES - 1));
    let whole = last.is_some_and(|(_, level)| level == Level::L1);
    WHOLE.fetch_add(u64::from(whole), Ordering::Relaxed);
}

/// Both pages were given up: no entry leads to what they were.
fn two_are_gone(cpu: &Cpu<'_>) {
    assert_eq!(read(cpu, 0, 0), 0, "rule 13: what was given up is mapped");
    assert_eq!(read(cpu, 0, 1), 0, "rule 13: what was given up is mapped");
    assert_eq!((read(cpu, 0, 2), read(cpu, 0, 3)), (1, 1));
}

#[test]
fn rule_13_a_page_given_up_beside_a_fault_elsewhere_in_its_gigabyte_is_gone() {
    race(
        3,
        1,
        written,
        [
            |cpu| {
                give_up(cpu, 1);
                give_up(cpu, 0);
            },
            touch_last,
        ],
        two_are_gone,
    );
}

#[test]
fn rule_13_two_pages_given_up_at_once_are_gone_wherever_a_third_cpu_faults() {
    race(
        2,
        1,
        written,
        [|cpu| give_up(cpu, 0), |cpu| give_up(cpu, 1), touch_last],
        two_are_gone,
    );
}

/// What is written in a region that isn't shared yet gets no block that allows writes to one that is.
fn write_last_beside_shared(cpu: &Cpu<'_>) {
    let shared = POOL.shared_frames() > 0;
    assert!(cpu.write_at(0, first(ENTRIES - 1)));
    let (leaf, level) = cpu.space(0).lookup(&cpu.memory, first(0)).unzip();
    let writable = leaf.is_some_and(|leaf| leaf.writable()) && level == Some(Level::L1);
    assert!(
        !(shared && writable),
        "rule 13: a block allows writes to what is shared"
    );
    WHOLE.fetch_add(u64::from(writable), Ordering::Relaxed);
}

/// What either writes isn't seen in the other.
fn two_are_apart(cpu: &Cpu<'_>) {
    let child = cpu.read_at(1, page(0)).expect("there is a slot");
    for region in 0..ENTRIES {
        let before = read(cpu, 1, region);
        cpu.write_at(0, first(region));
        assert_eq!(read(cpu, 1, region), before, "rule 3: region {region}");
        let before = read(cpu, 0, region);
        cpu.write_at(1, first(region));
        assert_eq!(read(cpu, 0, region), before, "rule 3: region {region}");
    }
    assert_eq!(read(cpu, 1, 0), child + 1);
}

#[test]
fn rule_13_a_fault_beside_a_fork_maps_no_writable_block_over_what_is_shared() {
    race(
        1,
        2,
        written,
        [|cpu| cpu.fork_running(0, 1), write_last_beside_shared],
        two_are_apart,
    );
}

#[test]
fn rule_13_a_fork_beside_the_first_touch_of_a_gigabyte_has_all_of_it_or_nothing() {
    race(
        2,
        2,
        untouched,
        [
            |cpu| cpu.fork_running(0, 1),
            |cpu| {
                cpu.write_at(0, first(1));
                note_whole(cpu);
            },
        ],
        two_are_apart,
    );
}

/// Whoever claims the first page second finds the gigabyte there.
#[test]
fn rule_8_two_first_touches_of_a_gigabyte_take_its_frames_once() {
    let check: Act = |cpu| {
        assert_eq!(POOL.counts_of(vm_id(0)).guest, GIB);
        let words = [0, 1, 2].map(|region| read(cpu, 0, region));
        assert_eq!(words, [0, 1, 1]);
    };
    race(
        2,
        1,
        untouched,
        [
            |cpu| assert!(cpu.write_at(0, first(1))),
            |cpu| {
                assert!(cpu.write_at(0, first(2)));
                note_whole(cpu);
            },
        ],
        check,
    );
}

/// Who finds that a region is the VM's own again counts it once.
#[test]
fn rule_13_a_region_that_two_find_to_be_its_own_again_makes_no_gigabyte_of_what_is_shared() {
    let find: Act = |cpu| {
        compact(cpu, ENTRIES - 2);
    };
    let check: Act = |cpu| {
        assert_eq!(compact(cpu, ENTRIES - 2), Compacted::Whole);
        // What maps all that it may.
        cpu.write_at(0, page(0));
        write_last_beside_shared(cpu);
        two_are_apart(cpu);
    };
    explore_in(
        DEEP,
        2,
        2,
        DIRECT,
        own_but_for_the_last,
        [find, find],
        check,
    );
}

#[test]
fn rule_13_a_region_that_is_its_own_again_beside_a_fork_makes_no_gigabyte_of_what_is_shared() {
    race(
        1,
        2,
        nearly_own_again,
        [
            |cpu| cpu.fork_running(0, 1),
            |cpu| {
                compact(cpu, ENTRIES - 1);
                write_last_beside_shared(cpu);
            },
        ],
        two_are_apart,
    );
}
