//! First touches and copy-on-write, under every interleaving: beside faults, beside another copy of the same frame, beside dirty
//! logging. Rules 3, 8 and 9, on the VMs of [`model::checked::vms`].
//!
//! Bounds: one page in trees of two levels with four entries each; up to three VMs; two or three CPUs, each a thread, beside a
//! main thread that waits; at most so many preemptions per execution as the first argument of `explore` says. Of what takes
//! the lock of an address space's owner, one at a time.

use std::sync::atomic::{AtomicU64 as Unmodelled, Ordering};

use memory::Object;
use model::checked::vms::{
    Cpu, DIRECT, OLD, all_is_there, explore, forked, forked_and_read, forked_twice, untouched,
};
use stage2::{Level, PAGE_SIZE};

#[test]
fn rule_8_a_first_write_beside_another_one_takes_one_frame() {
    for policy in [DIRECT, OLD] {
        explore(
            3,
            1,
            policy,
            untouched,
            [|cpu| cpu.write(0), |cpu| cpu.write(0)],
            all_is_there,
        );
    }
}

#[test]
fn rule_8_a_page_of_zeros_that_is_read_and_written_at_once_is_never_seen_to_go_back() {
    for policy in [DIRECT, OLD] {
        explore(
            3,
            1,
            policy,
            untouched,
            [|cpu| cpu.write(0), |cpu| cpu.watch(0)],
            all_is_there,
        );
    }
}

/// Its reader finds the shared frame, and must not map it any more when the copy is there.
#[test]
fn rule_8_a_copy_beside_a_fault_of_the_same_vm() {
    for policy in [DIRECT, OLD] {
        explore(
            3,
            2,
            policy,
            forked,
            [|cpu| cpu.write(1), |cpu| cpu.watch(1)],
            all_is_there,
        );
    }
}

#[test]
fn rule_8_a_copy_beside_two_faults_of_the_same_vm() {
    explore(
        2,
        2,
        DIRECT,
        forked,
        [|cpu| cpu.write(1), |cpu| cpu.watch(1), |cpu| cpu.write(1)],
        all_is_there,
    );
}

/// Both copy, and then the frame is nobody's; or the second one finds that it is the last.
#[test]
fn rule_8_two_vms_that_copy_the_same_frame_at_once() {
    for policy in [DIRECT, OLD] {
        explore(
            3,
            2,
            policy,
            forked_and_read,
            [|cpu| cpu.write(0), |cpu| cpu.write(1)],
            all_is_there,
        );
    }
}

#[test]
fn rule_8_three_vms_that_copy_the_same_frame_at_once() {
    explore(
        1,
        3,
        DIRECT,
        forked_twice,
        [|cpu| cpu.write(0), |cpu| cpu.write(1), |cpu| cpu.write(2)],
        all_is_there,
    );
}

#[test]
fn rule_3_what_one_vm_writes_is_never_seen_in_the_other() {
    explore(
        5,
        2,
        DIRECT,
        forked_and_read,
        [|cpu| cpu.write(0), |cpu| assert_eq!(cpu.read(1), 1)],
        all_is_there,
    );
}

/// Harvested, in one execution: the largest value that was copied.
static COPIED: Unmodelled = Unmodelled::new(0);

fn forked_and_logged(cpu: &Cpu<'_>) {
    COPIED.store(0, Ordering::Relaxed);
    forked(cpu);
    cpu.log(0);
}

fn harvest(cpu: &Cpu<'_>) {
    if let Some(copied) = cpu.harvest(0) {
        COPIED.fetch_max(copied, Ordering::Relaxed);
    }
}

/// What was written since the fork is in a copy that a harvest has led to, or still in the log.
fn nothing_goes_unlogged(cpu: &Cpu<'_>) {
    harvest(cpu);
    assert_eq!(
        COPIED.load(Ordering::Relaxed),
        cpu.world.expected(0),
        "rule 9: a write is in no copy"
    );
    cpu.check_all();
}

#[test]
fn rule_9_a_copy_on_write_beside_a_harvest_is_logged() {
    for policy in [DIRECT, OLD] {
        explore(
            5,
            2,
            policy,
            forked_and_logged,
            [|cpu| cpu.write(0), harvest],
            nothing_goes_unlogged,
        );
    }
}

#[test]
fn rule_9_a_copy_on_write_and_a_second_write_beside_a_harvest_are_logged() {
    explore(
        2,
        2,
        DIRECT,
        forked_and_logged,
        [|cpu| cpu.write(0), harvest, |cpu| cpu.write(0)],
        nothing_goes_unlogged,
    );
}

/// One object in two VMs: what one writes, the other sees, also at the first touch.
#[test]
fn rule_8_vms_that_share_memory_on_purpose_touch_it_at_once() {
    explore(
        4,
        2,
        DIRECT,
        |cpu| {
            let object = Object::shared(&cpu.memory, PAGE_SIZE, Level::L3).unwrap();
            cpu.map(0, object.clone());
            cpu.map(1, object);
        },
        [|cpu| cpu.write(0), |cpu| cpu.write(1)],
        |cpu| assert_eq!((cpu.read(0), cpu.read(1)), (2, 2)),
    );
}
