//! Splits and merges, beside faults, changes and each other, under every interleaving: rules 2, 5, 6 and 8.
//!
//! Bounds: tables of four entries, two levels of them (three where it says `DEEP`); two or three CPUs, each a thread, beside
//! a main thread that waits for them; at most so many preemptions per execution as the first argument of `explore` says.

use model::checked::{BLOCK, Cpu, Machine, Policy, SHALLOW, explore, no_more, page};
use stage2::{Access, Level, Permissions};

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

fn write_first(cpu: Cpu<'_>) {
    cpu.write(page(0), Policy::LOGGED);
}

fn write_second(cpu: Cpu<'_>) {
    cpu.write(page(1), Policy::LOGGED);
}

fn read_second(cpu: Cpu<'_>) {
    cpu.read(page(1), Policy::LOGGED);
}

/// All is split, and the first so many pages are writable.
fn writable_pages(machine: &Machine, count: u64) {
    for index in 0..4 {
        let (leaf, level) = machine.lookup(page(index)).expect("it is mapped");
        assert_eq!((level, leaf.writable()), (Level::L3, index < count));
    }
    assert_eq!(
        machine.tables().live(),
        2,
        "rule 6: losers give their tables back"
    );
}

#[test]
fn rule_2_two_splits_by_faults_make_one_table_with_both_pages_writable() {
    explore(
        4,
        SHALLOW,
        protected_block,
        [write_first, write_second],
        |machine| writable_pages(machine, 2),
    );
}

#[test]
fn rule_2_three_splits_by_faults_make_one_table_with_all_pages_writable() {
    let write_third: fn(Cpu<'_>) = |cpu| cpu.write(page(2), Policy::LOGGED);
    explore(
        2,
        SHALLOW,
        protected_block,
        [write_first, write_second, write_third],
        |machine| writable_pages(machine, 3),
    );
}

#[test]
fn rule_6_two_eager_splits_make_one_table() {
    explore(5, SHALLOW, protected_block, [split, split], |machine| {
        writable_pages(machine, 0)
    });
}

#[test]
fn rule_6_three_eager_splits_make_one_table() {
    explore(
        2,
        SHALLOW,
        protected_block,
        [split, split, split],
        |machine| writable_pages(machine, 0),
    );
}

#[test]
fn rule_2_an_eager_split_beside_a_fault_that_splits() {
    explore(
        5,
        SHALLOW,
        protected_block,
        [split, write_first],
        |machine| writable_pages(machine, 1),
    );
}

#[test]
fn rule_2_an_eager_split_beside_two_faults() {
    explore(
        2,
        SHALLOW,
        protected_block,
        [split, write_first, read_second],
        |machine| writable_pages(machine, 1),
    );
}

#[test]
fn rule_5_a_split_and_a_merge_of_one_entry() {
    explore(3, SHALLOW, table_of_pages, [split, merge], |machine| {
        assert!((0..4).all(|index| machine.lookup(page(index)).is_some()));
    });
    explore(3, SHALLOW, protected_block, [split, merge], |machine| {
        assert!((0..4).all(|index| machine.lookup(page(index)).is_some()));
    });
}

#[test]
fn rule_5_a_split_and_a_merge_beside_a_fault() {
    explore(
        2,
        SHALLOW,
        table_of_pages,
        [split, merge, write_second],
        |machine| {
            assert!(machine.lookup(page(1)).unwrap().0.writable());
        },
    );
}

#[test]
fn rule_5_a_fault_in_a_table_that_is_merged_ends_with_the_access_allowed() {
    explore(
        4,
        SHALLOW,
        table_of_pages,
        [merge, |cpu| cpu.write(page(1), Policy::PAGES)],
        |machine| {
            assert!(machine.lookup(page(1)).unwrap().0.writable());
        },
    );
}

#[test]
fn rule_5_two_merges_of_one_table() {
    explore(4, SHALLOW, table_of_pages, [merge, merge], |machine| {
        assert_eq!(machine.lookup(page(3)).unwrap().1, Level::L2);
    });
}

#[test]
fn rule_5_a_merge_beside_ageing_and_a_fault() {
    explore(
        2,
        SHALLOW,
        table_of_pages,
        [
            merge,
            |cpu| {
                cpu.age(BLOCK);
            },
            |cpu| cpu.write(page(1), Policy::PAGES),
        ],
        |machine| assert!(machine.lookup(page(1)).unwrap().0.writable()),
    );
}

/// Logging begins (rule 8): publish, full barrier, walk.
fn log(cpu: Cpu<'_>) {
    cpu.machine().publish();
    cpu.write_protect(BLOCK);
}

/// A merge that decides on what is published.
fn merge_unless_logged(cpu: Cpu<'_>) {
    cpu.collapse_as(BLOCK, Level::L2, |machine| {
        if machine.is_published() {
            Permissions::LOGGED
        } else {
            Permissions::RAM
        }
    });
}

fn nothing_is_writable(machine: &Machine) {
    for index in 0..4 {
        if let Some((leaf, _)) = machine.lookup(page(index)) {
            assert!(
                !leaf.writable(),
                "page {index} escaped the write protection"
            );
        }
    }
}

#[test]
fn rule_8_a_merge_while_logging_begins_decides_on_what_is_published() {
    explore(
        4,
        SHALLOW,
        table_of_pages,
        [merge_unless_logged, log],
        nothing_is_writable,
    );
}

#[test]
fn rule_5_writable_pages_that_are_merged_while_logging_begins() {
    explore(
        4,
        SHALLOW,
        |cpu| (0..4).for_each(|index| cpu.write(page(index), Policy::PAGES)),
        [merge_unless_logged, log],
        nothing_is_writable,
    );
}

#[test]
fn rule_5_merge_fault_and_protection_leave_nothing_writable_unseen() {
    explore(
        2,
        SHALLOW,
        table_of_pages,
        [
            merge_unless_logged,
            |cpu| {
                cpu.fault(page(1), Access::Write, Policy::PAGES);
                if cpu.machine().is_published() {
                    // As the owner of the memory does when it looks again: it logs the page.
                    return;
                }
                cpu.try_access(page(1), Access::Write);
            },
            log,
        ],
        no_more,
    );
}

/// What a CPU may do on its own: walk at any time, and keep what it finds beside what it has.
fn speculate(cpu: Cpu<'_>) {
    cpu.speculate(page(1));
    cpu.speculate(page(0));
}

#[test]
fn rule_2_no_tlb_ever_has_a_block_beside_its_pieces() {
    explore(
        5,
        SHALLOW,
        |cpu| {
            cpu.machine().cpu(2).write(page(0), Policy::BLOCKS);
        },
        [split, speculate],
        no_more,
    );
}

#[test]
fn rule_2_no_tlb_ever_has_a_block_beside_what_it_was_merged_from() {
    explore(
        3,
        SHALLOW,
        |cpu| {
            table_of_pages(cpu);
            cpu.machine().cpu(2).read(page(1), Policy::LOGGED);
        },
        [merge, speculate, write_first],
        no_more,
    );
}
