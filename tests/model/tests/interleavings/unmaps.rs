//! Unmaps and the end of a tree, beside faults, splits, merges and each other, under every interleaving: rules 2, 5 and 7.
//!
//! Bounds: tables of four entries, two levels of them (three where it says `DEEP`); two or three CPUs, each a thread, beside
//! a main thread that waits for them; at most so many preemptions per execution as the first argument of `explore` says.

use model::checked::{BLOCK, Cpu, DEEP, Policy, SHALLOW, explore, no_more, nothing, page, pages};
use stage2::{Access, Level, Permissions};

/// What one entry of a root of level 1 spans.
const GREAT: std::ops::Range<stage2::Ipa> = pages(0..16);

fn protected_block(cpu: Cpu<'_>) {
    cpu.write(page(0), Policy::BLOCKS);
    cpu.write_protect(BLOCK);
}

fn table_of_pages(cpu: Cpu<'_>) {
    for index in 0..4 {
        cpu.read(page(index), Policy::LOGGED);
    }
}

fn split(cpu: Cpu<'_>) {
    cpu.split(BLOCK, Level::L3);
}

fn merge(cpu: Cpu<'_>) {
    cpu.collapse(BLOCK, Level::L2, Permissions::RAM);
}

fn unmap(cpu: Cpu<'_>) {
    cpu.unmap(BLOCK);
}

fn unmap_first_page(cpu: Cpu<'_>) {
    cpu.unmap(pages(0..1));
}

fn unmap_great(cpu: Cpu<'_>) {
    cpu.unmap(GREAT);
}

fn write_first(cpu: Cpu<'_>) {
    cpu.write(page(0), Policy::LOGGED);
}

fn write_second(cpu: Cpu<'_>) {
    cpu.write(page(1), Policy::LOGGED);
}

fn read_second(cpu: Cpu<'_>) {
    cpu.read(page(1), Policy::LOGGED);
}

#[test]
fn rule_2_a_split_beside_an_unmap_of_one_of_its_pages() {
    explore(
        4,
        SHALLOW,
        protected_block,
        [split, unmap_first_page],
        |machine| {
            assert!(machine.lookup(page(0)).is_none());
        },
    );
}

#[test]
fn rule_2_a_split_beside_an_unmap_and_a_fault() {
    explore(
        2,
        SHALLOW,
        protected_block,
        [split, unmap_first_page, read_second],
        no_more,
    );
}

#[test]
fn rule_5_a_merge_beside_an_unmap_hands_out_each_leaf_once() {
    explore(
        5,
        SHALLOW,
        table_of_pages,
        [merge, unmap_first_page],
        |machine| assert!(machine.lookup(page(0)).is_none()),
    );
    // What fitted together until then counts too.
    explore(
        5,
        SHALLOW,
        table_of_pages,
        [merge, |cpu| {
            cpu.unmap(pages(3..4));
        }],
        |machine| assert!(machine.lookup(page(3)).is_none()),
    );
}

#[test]
fn rule_5_a_merge_beside_an_unmap_and_a_fault_hands_out_each_leaf_once() {
    explore(
        2,
        SHALLOW,
        table_of_pages,
        [merge, unmap_first_page, read_second],
        no_more,
    );
}

#[test]
fn rule_5_an_unmap_above_a_merge_gets_every_leaf_once() {
    explore(
        2,
        DEEP,
        nothing,
        [unmap_great, |cpu| {
            table_of_pages(cpu);
            merge(cpu);
        }],
        no_more,
    );
}

#[test]
fn rule_5_an_unmap_above_a_split_gets_the_block_that_was_locked() {
    explore(
        3,
        DEEP,
        |cpu| cpu.read(page(4), Policy::BLOCKS),
        [unmap_great, |cpu| {
            cpu.read(page(0), Policy::BLOCKS);
            split(cpu);
        }],
        no_more,
    );
}

#[test]
fn rule_5_an_unmap_above_a_fault_and_a_split() {
    explore(
        1,
        DEEP,
        |cpu| cpu.read(page(4), Policy::BLOCKS),
        [
            unmap_great,
            |cpu| {
                cpu.read(page(0), Policy::BLOCKS);
                split(cpu);
            },
            |cpu| cpu.write(page(1), Policy::BLOCKS),
        ],
        no_more,
    );
}

#[test]
fn rule_5_two_unmaps_remove_each_leaf_once() {
    explore(5, SHALLOW, table_of_pages, [unmap, unmap], |machine| {
        assert!((0..4).all(|index| machine.lookup(page(index)).is_none()));
    });
}

#[test]
fn rule_5_three_unmaps_remove_each_leaf_once() {
    explore(
        2,
        SHALLOW,
        table_of_pages,
        [unmap, unmap, unmap_first_page],
        |machine| {
            assert!((0..4).all(|index| machine.lookup(page(index)).is_none()));
        },
    );
}

#[test]
fn rule_5_whoever_unmaps_a_table_gets_all_that_a_late_fault_put_into_it() {
    explore(
        5,
        SHALLOW,
        write_first,
        [
            |cpu| {
                cpu.unmap(BLOCK);
            },
            write_second,
        ],
        |machine| assert!(machine.lookup(page(1)).is_some() || machine.lookup(page(0)).is_none()),
    );
}

#[test]
fn rule_5_an_unmap_beside_two_faults() {
    explore(
        2,
        SHALLOW,
        write_first,
        [unmap, write_second, write_first],
        no_more,
    );
}

#[test]
fn rule_2_after_an_unmap_no_tlb_holds_what_it_removed() {
    explore(
        5,
        SHALLOW,
        write_first,
        [
            |cpu| {
                cpu.unmap(BLOCK);
                cpu.machine().tlbs().assert_none(&BLOCK);
            },
            |cpu| {
                cpu.try_access(page(0), Access::Write);
            },
        ],
        no_more,
    );
}

/// More than are held at a time.
fn unmap_scattered(cpu: Cpu<'_>) {
    cpu.unmap_leaves([pages(0..1), pages(2..3), pages(3..4)]);
}

#[test]
fn rule_2_after_scattered_pages_went_no_tlb_holds_any() {
    explore(
        4,
        SHALLOW,
        table_of_pages,
        [
            |cpu| {
                unmap_scattered(cpu);
                cpu.machine().tlbs().assert_none(&pages(2..4));
            },
            |cpu| {
                cpu.try_access(page(0), Access::Write);
            },
        ],
        |machine| {
            assert!((2..4).all(|index| machine.lookup(page(index)).is_none()));
            assert!(machine.lookup(page(1)).is_some());
        },
    );
}

#[test]
fn rule_5_scattered_pages_go_once_beside_an_unmap_of_their_table() {
    explore(
        4,
        SHALLOW,
        table_of_pages,
        [unmap_scattered, unmap],
        |machine| assert!((0..4).all(|index| machine.lookup(page(index)).is_none())),
    );
    explore(
        1,
        SHALLOW,
        table_of_pages,
        [unmap_scattered, unmap, write_first],
        no_more,
    );
}

#[test]
fn rule_5_scattered_pages_go_once_beside_a_merge_and_a_split() {
    explore(
        4,
        SHALLOW,
        table_of_pages,
        [unmap_scattered, merge],
        |machine| assert!(machine.lookup(page(0)).is_none()),
    );
    explore(
        4,
        SHALLOW,
        protected_block,
        [unmap_scattered, split],
        |machine| {
            assert!(machine.lookup(page(0)).is_none() && machine.lookup(page(3)).is_none());
        },
    );
}

#[test]
fn rule_4_two_that_take_the_same_scattered_pages_wait_for_neither() {
    explore(
        4,
        SHALLOW,
        table_of_pages,
        [unmap_scattered, unmap_scattered],
        |machine| {
            assert!((2..4).all(|index| machine.lookup(page(index)).is_none()));
            assert!(machine.lookup(page(1)).is_some());
        },
    );
    explore(
        1,
        SHALLOW,
        table_of_pages,
        [unmap_scattered, unmap_scattered, write_second],
        no_more,
    );
}

#[test]
fn rule_7_a_tree_is_destroyed_beside_a_walker_of_the_last_moment() {
    explore(
        6,
        DEEP,
        write_first,
        [
            |cpu| cpu.destroy(),
            |cpu| cpu.look_unless_destroyed(page(0)),
        ],
        no_more,
    );
}

#[test]
fn rule_7_a_tree_is_destroyed_beside_two_walkers_of_the_last_moment() {
    explore(
        3,
        DEEP,
        write_first,
        [
            |cpu| cpu.destroy(),
            |cpu| cpu.look_unless_destroyed(page(0)),
            |cpu| cpu.look_unless_destroyed(page(4)),
        ],
        no_more,
    );
}
