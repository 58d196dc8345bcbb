//! Maps ahead of faults, beside faults, unmaps and each other, under every interleaving: rules 5, 6 and 8.
//!
//! Bounds: tables of four entries, two levels of them; two or three CPUs, each a thread, beside a main thread that waits for
//! them; at most so many preemptions per execution as the first argument of `explore` says.

use model::checked::{BLOCK, Machine, Policy, SHALLOW, explore, no_more, nothing, page, pages};
use stage2::{Level, Permissions};

fn all_mapped(machine: &Machine) {
    assert!((0..4).all(|index| machine.lookup(page(index)).is_some()));
}

/// Takes away the grounds on which the block is mapped, then the block.
fn withdraw(cpu: model::checked::Cpu<'_>) {
    cpu.machine().publish();
    cpu.unmap(BLOCK);
}

fn nothing_is_mapped(machine: &Machine) {
    assert!((0..4).all(|index| machine.lookup(page(index)).is_none()));
}

#[test]
fn rule_6_a_map_beside_a_fault_maps_each_page_once() {
    explore(
        6,
        SHALLOW,
        nothing,
        [
            |cpu| {
                cpu.map(BLOCK, Level::L3, Permissions::RAM).unwrap();
            },
            |cpu| cpu.write(page(1), Policy::PAGES),
        ],
        all_mapped,
    );
}

#[test]
fn rule_6_two_maps_beside_a_fault_map_each_page_once() {
    explore(
        2,
        SHALLOW,
        nothing,
        [
            |cpu| {
                cpu.map(BLOCK, Level::L3, Permissions::RAM).unwrap();
            },
            |cpu| {
                cpu.map(BLOCK, Level::L3, Permissions::RAM).unwrap();
            },
            |cpu| cpu.write(page(1), Policy::PAGES),
        ],
        all_mapped,
    );
}

#[test]
fn rule_5_a_map_beside_an_unmap_loses_no_page() {
    explore(
        5,
        SHALLOW,
        |cpu| cpu.write(page(1), Policy::PAGES),
        [
            |cpu| {
                cpu.map(BLOCK, Level::L3, Permissions::RAM).unwrap();
            },
            |cpu| {
                cpu.unmap(BLOCK);
            },
        ],
        no_more,
    );
}

#[test]
fn rule_5_a_map_beside_an_unmap_and_a_fault_loses_no_page() {
    explore(
        2,
        SHALLOW,
        |cpu| cpu.write(page(1), Policy::PAGES),
        [
            |cpu| {
                cpu.map(BLOCK, Level::L3, Permissions::RAM).unwrap();
            },
            |cpu| {
                cpu.unmap(BLOCK);
            },
            |cpu| cpu.write(page(0), Policy::PAGES),
        ],
        no_more,
    );
}

#[test]
fn rule_8_a_map_whose_grounds_are_withdrawn_leaves_nothing() {
    explore(
        5,
        SHALLOW,
        nothing,
        [
            |cpu| {
                // The caller doesn't care how far it came.
                let _ = cpu.map_while_granted(BLOCK, Level::L3);
            },
            withdraw,
        ],
        nothing_is_mapped,
    );
}

#[test]
fn rule_8_a_map_and_a_fault_whose_grounds_are_withdrawn_leave_nothing() {
    explore(
        2,
        SHALLOW,
        |cpu| cpu.read(page(3), Policy::PAGES),
        [
            |cpu| {
                // As above.
                let _ = cpu.map_while_granted(pages(0..2), Level::L3);
            },
            withdraw,
            |cpu| {
                cpu.fault_while_granted(page(0));
            },
        ],
        nothing_is_mapped,
    );
}
