//! Contiguous groups, made, used and taken apart by several at once, under every interleaving: rules 2, 3 and 5.
//!
//! Groups are of two leaves. TLBs keep one entry for both.
//! Bounds: tables of four entries, two levels of them; two or three CPUs, each a thread, beside
//! a main thread that waits for them; at most so many preemptions per execution as the first argument of `explore` says.

use model::checked::{BLOCK, Cpu, Machine, Policy, explore, no_more, nothing, page, pages};
use stage2::{Access, Features, Layout, Level, Permissions};

const GROUPS: Layout = Layout::small(
    Level::L2,
    Features {
        contiguous: true,
        ..Features::armv8_0(32, 48)
    },
);

/// The group of the first two pages.
const PAIR: std::ops::Range<stage2::Ipa> = pages(0..2);

fn logged_pages(cpu: Cpu<'_>) {
    cpu.map(BLOCK, Level::L3, Permissions::LOGGED).unwrap();
    cpu.machine().cpu(3).read(page(1), Policy::LOGGED);
}

fn writable_pages(cpu: Cpu<'_>) {
    cpu.map(BLOCK, Level::L3, Permissions::RAM).unwrap();
    cpu.machine().cpu(3).write(page(1), Policy::PAGES);
}

fn write_first(cpu: Cpu<'_>) {
    cpu.write(page(0), Policy::LOGGED);
}

fn write_second(cpu: Cpu<'_>) {
    cpu.write(page(1), Policy::LOGGED);
}

fn pair_is_apart_and_writable(machine: &Machine) {
    for index in 0..2 {
        let (leaf, _) = machine.lookup(page(index)).unwrap();
        assert!(leaf.writable() && !leaf.contiguous());
    }
    assert!(machine.lookup(page(2)).unwrap().0.contiguous());
}

#[test]
fn rule_2_two_faults_take_one_group_apart() {
    explore(
        3,
        GROUPS,
        logged_pages,
        [write_first, write_second],
        pair_is_apart_and_writable,
    );
}

#[test]
fn rule_2_three_faults_take_one_group_apart() {
    explore(
        2,
        GROUPS,
        logged_pages,
        [write_first, write_second, write_first],
        pair_is_apart_and_writable,
    );
}

#[test]
fn rule_2_a_group_is_taken_apart_beside_an_unmap_of_one_of_its_pages() {
    explore(
        4,
        GROUPS,
        logged_pages,
        [write_second, |cpu| {
            cpu.unmap(pages(0..1));
        }],
        |machine| {
            assert!(machine.lookup(page(0)).is_none());
            assert!(machine.lookup(page(1)).unwrap().0.writable());
        },
    );
}

#[test]
fn rule_5_a_group_that_is_being_taken_apart_is_the_unlinkers() {
    explore(
        4,
        GROUPS,
        logged_pages,
        [
            |cpu| {
                cpu.fault(page(0), Access::Write, Policy::LOGGED);
            },
            |cpu| {
                cpu.unmap(BLOCK);
            },
        ],
        no_more,
    );
}

#[test]
fn rule_5_a_group_is_taken_apart_beside_an_unmap_and_a_fault() {
    explore(
        2,
        GROUPS,
        logged_pages,
        [
            |cpu| {
                cpu.fault(page(0), Access::Write, Policy::LOGGED);
            },
            |cpu| {
                cpu.unmap(BLOCK);
            },
            |cpu| cpu.read(page(1), Policy::LOGGED),
        ],
        no_more,
    );
}

#[test]
fn rule_3_a_group_is_protected_beside_a_fault() {
    explore(
        3,
        GROUPS,
        writable_pages,
        [
            |cpu| {
                cpu.write_protect(pages(0..1));
            },
            |cpu| cpu.write(page(0), Policy::LOGGED),
        ],
        |machine| {
            let (leaf, _) = machine.lookup(page(1)).unwrap();
            assert!(leaf.writable());
        },
    );
}

#[test]
fn rule_3_two_protections_of_one_group_leave_no_stale_entry() {
    explore(
        3,
        GROUPS,
        writable_pages,
        [
            |cpu| {
                cpu.write_protect(pages(0..1));
                cpu.machine().tlbs().assert_not_writable(&pages(0..1));
            },
            |cpu| {
                cpu.write_protect(PAIR);
                cpu.machine().tlbs().assert_not_writable(&PAIR);
            },
        ],
        |machine| assert!(!machine.lookup(page(1)).unwrap().0.writable()),
    );
}

#[test]
fn rule_1_a_group_is_aged_while_it_is_taken_apart() {
    explore(
        2,
        GROUPS,
        logged_pages,
        [
            |cpu| {
                cpu.age(PAIR);
            },
            write_first,
            write_second,
        ],
        pair_is_apart_and_writable,
    );
}

#[test]
fn rule_5_a_table_of_groups_is_merged_while_one_is_taken_apart() {
    explore(
        3,
        GROUPS,
        logged_pages,
        [
            |cpu| {
                cpu.collapse(BLOCK, Level::L2, Permissions::RAM);
            },
            |cpu| cpu.write(page(1), Policy::PAGES),
        ],
        |machine| assert!(machine.lookup(page(1)).unwrap().0.writable()),
    );
}

fn map_pair(cpu: Cpu<'_>) {
    cpu.map(PAIR, Level::L3, Permissions::RAM).unwrap();
}

#[test]
fn rule_1_a_group_is_mapped_beside_a_fault_in_it() {
    explore(
        4,
        GROUPS,
        |cpu| cpu.read(page(3), Policy::PAGES),
        [map_pair, |cpu| cpu.write(page(1), Policy::PAGES)],
        |machine| assert!((0..2).all(|index| machine.lookup(page(index)).is_some())),
    );
}

#[test]
fn rule_1_two_map_one_group_beside_a_fault_in_it() {
    explore(
        2,
        GROUPS,
        |cpu| cpu.read(page(3), Policy::PAGES),
        [map_pair, map_pair, |cpu| cpu.write(page(1), Policy::PAGES)],
        |machine| assert!((0..2).all(|index| machine.lookup(page(index)).is_some())),
    );
}

#[test]
fn rule_5_a_group_is_mapped_beside_an_unmap() {
    explore(
        4,
        GROUPS,
        nothing,
        [map_pair, |cpu| {
            cpu.unmap(BLOCK);
        }],
        no_more,
    );
}
