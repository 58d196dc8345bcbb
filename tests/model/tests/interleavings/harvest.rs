//! Dirty state that hardware sets (FEAT_HAFDBS) beside whatever changes entries, under every interleaving: rules 1, 5 and 9.
//!
//! A CPU's hardware is a step of its thread: it looks at an entry and sets the access flag or the dirty state by
//! compare-exchange, and keeps what it found in its TLB. Each operation hands out the dirty state that it took away; the
//! owner of the memory then copies those pages. No write may be in none of the copies.
//! Bounds: tables of four entries, two levels of them (three where it says `DEEP`); two or three CPUs, each a thread, beside
//! a main thread that waits for them; at most so many preemptions per execution as the first argument of `explore` says.

use model::checked::{BLOCK, Cpu, DEEP, ENTRIES, Machine, Policy, explore, no_more, page, pages};
use stage2::{Access, Features, Layout, Level, Permissions};

const fn tracked(layout: Layout) -> Features {
    Features {
        hardware_access: true,
        hardware_dirty: true,
        ..*layout.features()
    }
}

const SHALLOW: Layout = Layout::small(Level::L2, tracked(model::checked::SHALLOW));

const PAGE: std::ops::Range<stage2::Ipa> = pages(0..1);

fn clean_page(cpu: Cpu<'_>) {
    cpu.read(page(0), Policy::TRACKED);
}

/// A table of clean pages, of which the second is dirty and in a TLB.
fn pages_of_which_one_is_dirty(cpu: Cpu<'_>) {
    for index in 0..ENTRIES {
        cpu.read(page(index), Policy::TRACKED);
    }
    cpu.machine().cpu(3).try_access(page(1), Access::Write);
}

fn clean_block(cpu: Cpu<'_>) {
    let policy = Policy {
        largest: Level::L2,
        ..Policy::TRACKED
    };
    cpu.read(page(0), policy);
}

/// Hardware alone.
fn write_first(cpu: Cpu<'_>) {
    cpu.try_access(page(0), Access::Write);
}

fn write_second(cpu: Cpu<'_>) {
    cpu.try_access(page(1), Access::Write);
}

fn write_twice(cpu: Cpu<'_>) {
    write_first(cpu);
    write_first(cpu);
}

fn harvest(cpu: Cpu<'_>) {
    cpu.harvest(BLOCK);
}

/// After a last harvest, with the guest stopped.
fn nothing_is_lost(machine: &Machine) {
    machine.cpu(0).harvest(BLOCK);
    for index in 0..ENTRIES {
        assert!(
            machine.is_copied(page(index)),
            "rule 9: a write to page {index} is lost"
        );
    }
}

#[test]
fn rule_9_a_harvest_beside_a_cpu_that_writes() {
    explore(
        6,
        SHALLOW,
        clean_page,
        [harvest, write_twice],
        nothing_is_lost,
    );
}

#[test]
fn rule_9_a_harvest_beside_two_cpus_that_write() {
    explore(
        4,
        SHALLOW,
        clean_page,
        [harvest, write_twice, write_first],
        nothing_is_lost,
    );
}

#[test]
fn rule_9_a_harvest_of_what_is_dirty_already() {
    explore(
        5,
        SHALLOW,
        |cpu| {
            clean_page(cpu);
            cpu.machine().cpu(2).try_access(page(0), Access::Write);
        },
        [harvest, write_twice],
        nothing_is_lost,
    );
}

#[test]
fn rule_9_a_harvest_beside_a_fault_that_maps() {
    explore(
        5,
        SHALLOW,
        |_| {},
        [harvest, |cpu| cpu.write(page(0), Policy::TRACKED)],
        nothing_is_lost,
    );
}

#[test]
fn rule_9_a_harvest_beside_a_fault_and_a_cpu_that_writes() {
    explore(
        2,
        SHALLOW,
        |_| {},
        [
            harvest,
            |cpu| cpu.write(page(0), Policy::TRACKED),
            |cpu| {
                cpu.read(page(0), Policy::TRACKED);
                write_first(cpu);
            },
        ],
        nothing_is_lost,
    );
}

#[test]
fn rule_9_ageing_beside_a_cpu_that_writes() {
    explore(
        3,
        SHALLOW,
        clean_page,
        [
            |cpu| {
                cpu.age(PAGE);
            },
            write_twice,
            harvest,
        ],
        nothing_is_lost,
    );
}

#[test]
fn rule_9_write_protection_hands_out_what_hardware_noted() {
    explore(
        6,
        SHALLOW,
        clean_page,
        [
            |cpu| {
                cpu.write_protect(PAGE);
                cpu.machine().tlbs().assert_not_writable(&PAGE);
            },
            write_twice,
        ],
        nothing_is_lost,
    );
}

#[test]
fn rule_9_write_protection_and_a_harvest_beside_a_cpu_that_writes() {
    explore(
        3,
        SHALLOW,
        clean_page,
        [|cpu| cpu.write_protect(PAGE), harvest, write_twice],
        nothing_is_lost,
    );
}

#[test]
fn rule_9_a_change_of_permissions_hands_out_what_hardware_noted() {
    explore(
        4,
        SHALLOW,
        clean_page,
        [
            |cpu| cpu.protect(PAGE, Permissions::READ_ONLY),
            harvest,
            write_twice,
        ],
        nothing_is_lost,
    );
}

#[test]
fn rule_9_a_split_keeps_what_hardware_noted() {
    explore(
        4,
        SHALLOW,
        clean_block,
        [
            |cpu| {
                cpu.split(BLOCK, Level::L3);
            },
            write_second,
        ],
        nothing_is_lost,
    );
}

#[test]
fn rule_9_a_split_beside_a_harvest_and_a_cpu_that_writes() {
    explore(
        2,
        SHALLOW,
        clean_block,
        [
            |cpu| {
                cpu.split(BLOCK, Level::L3);
            },
            write_second,
            harvest,
        ],
        nothing_is_lost,
    );
}

fn merge(cpu: Cpu<'_>) {
    cpu.collapse(BLOCK, Level::L2, Permissions::LOGGED_BY_HARDWARE);
}

#[test]
fn rule_9_a_merge_keeps_what_hardware_noted() {
    explore(
        4,
        SHALLOW,
        pages_of_which_one_is_dirty,
        [merge, write_first],
        nothing_is_lost,
    );
}

#[test]
fn rule_9_a_merge_beside_a_harvest_and_a_cpu_that_writes() {
    explore(
        2,
        SHALLOW,
        pages_of_which_one_is_dirty,
        [merge, harvest, write_first],
        nothing_is_lost,
    );
}

#[test]
fn rule_5_a_merge_that_fails_hands_out_what_hardware_noted() {
    explore(
        5,
        SHALLOW,
        pages_of_which_one_is_dirty,
        [merge, |cpu| {
            cpu.unmap(pages(3..4));
        }],
        nothing_is_lost,
    );
}

#[test]
fn rule_5_an_unmap_hands_out_what_hardware_noted() {
    explore(
        5,
        SHALLOW,
        clean_page,
        [
            |cpu| {
                cpu.unmap(BLOCK);
            },
            write_twice,
        ],
        nothing_is_lost,
    );
}

#[test]
fn rule_5_an_unmap_above_a_split_hands_out_what_hardware_noted() {
    explore(
        4,
        Layout::small(Level::L1, tracked(DEEP)),
        |cpu| {
            clean_block(cpu);
            cpu.read(page(4), Policy::TRACKED);
            cpu.try_access(page(1), Access::Write);
        },
        [
            |cpu| {
                cpu.unmap(pages(0..16));
            },
            |cpu| {
                cpu.split(BLOCK, Level::L3);
            },
        ],
        nothing_is_lost,
    );
}

#[test]
fn rule_1_two_cpus_set_what_hardware_sets_beside_ageing() {
    explore(
        3,
        SHALLOW,
        clean_page,
        [
            |cpu| {
                cpu.age(PAGE);
            },
            write_first,
            |cpu| {
                cpu.try_access(page(0), Access::Read);
            },
        ],
        no_more,
    );
}
