//! Splits without a break (FEAT_BBM levels 1 and 2), under every interleaving: rules 2, 3, 5 and 11.
//!
//! Between the exchange and the end of the invalidation, TLBs may hold the block beside its pieces. What is done to the
//! pieces meanwhile has to reach the block too: an invalidation with a hint of the pieces' level would spare it.
//! Bounds: tables of four entries, two levels of them; two or three CPUs, each a thread, beside
//! a main thread that waits for them; at most so many preemptions per execution as the first argument of `explore` says.

use model::checked::Served;
use model::checked::{BLOCK, Cpu, Machine, Policy, explore, no_more, page, pages};
use stage2::{Access, Bbm, Features, Layout, Level, Permissions};

const fn with(bbm: Bbm) -> Layout {
    Layout::small(
        Level::L2,
        Features {
            bbm,
            ..Features::armv8_0(32, 48)
        },
    )
}

const LEVELS: [Layout; 2] = [with(Bbm::Level1), with(Bbm::Level2)];

/// A block that CPUs 1 and 3 have in their TLBs.
fn writable_block(cpu: Cpu<'_>) {
    cpu.machine().cpu(3).write(page(0), Policy::BLOCKS);
    cpu.machine().cpu(1).write(page(0), Policy::BLOCKS);
}

fn protected_block(cpu: Cpu<'_>) {
    writable_block(cpu);
    cpu.write_protect(BLOCK);
    cpu.machine().cpu(3).read(page(0), Policy::LOGGED);
    cpu.machine().cpu(1).read(page(0), Policy::LOGGED);
}

fn split(cpu: Cpu<'_>) {
    cpu.split(BLOCK, Level::L3);
}

fn protect(cpu: Cpu<'_>) {
    let first = pages(0..1);
    cpu.write_protect(first.clone());
    cpu.machine().tlbs().assert_not_writable(&first);
}

/// The first page's entry has been changed; no TLB may hold the old one, or a fault's own CPU an entry that denies.
fn write_first_without_a_second_fault(cpu: Cpu<'_>) {
    let served = loop {
        match cpu.fault(page(0), Access::Write, Policy::LOGGED) {
            Served::Again => stage2::sync::relax(),
            served => break served,
        }
    };
    assert!(
        cpu.try_access(page(0), Access::Write),
        "rule 3: after {served:?} this CPU's TLB still denies the access"
    );
}

fn all_pages(machine: &Machine) {
    assert!((0..4).all(|index| machine.lookup(page(index)).unwrap().1 == Level::L3));
}

#[test]
fn rule_2_two_splits_in_place_make_one_table() {
    for layout in LEVELS {
        explore(5, layout, protected_block, [split, split], |machine| {
            all_pages(machine);
            assert_eq!(machine.tables().live(), 2);
        });
    }
}

#[test]
fn rule_2_three_splits_in_place_make_one_table() {
    for layout in LEVELS {
        explore(
            3,
            layout,
            protected_block,
            [split, split, split],
            |machine| {
                all_pages(machine);
                assert_eq!(machine.tables().live(), 2);
            },
        );
    }
}

#[test]
fn rule_3_protection_of_a_piece_reaches_the_block_that_a_tlb_still_has() {
    for layout in LEVELS {
        explore(5, layout, writable_block, [split, protect], no_more);
    }
}

#[test]
fn rule_3_protection_of_a_piece_beside_a_cpu_that_writes() {
    for layout in LEVELS {
        explore(
            3,
            layout,
            writable_block,
            [
                split,
                |cpu| cpu.write_protect(pages(0..1)),
                |cpu| {
                    cpu.try_access(page(0), Access::Write);
                },
            ],
            no_more,
        );
    }
}

#[test]
fn rule_3_a_fault_on_a_piece_drops_the_block_from_its_own_tlb() {
    for layout in LEVELS {
        explore(
            5,
            layout,
            protected_block,
            [write_first_without_a_second_fault, split],
            |machine| {
                all_pages(machine);
                assert!(machine.lookup(page(0)).unwrap().0.writable());
            },
        );
    }
}

#[test]
fn rule_3_a_fault_on_a_piece_beside_two_splits() {
    for layout in LEVELS {
        explore(
            3,
            layout,
            protected_block,
            [write_first_without_a_second_fault, split, split],
            |machine| {
                all_pages(machine);
                assert!(machine.lookup(page(0)).unwrap().0.writable());
            },
        );
    }
}

#[test]
fn rule_2_an_unmap_of_a_piece_reaches_the_block_that_a_tlb_still_has() {
    for layout in LEVELS {
        explore(
            5,
            layout,
            writable_block,
            [split, |cpu| {
                cpu.unmap(pages(0..1));
                cpu.machine().tlbs().assert_none(&pages(0..1));
            }],
            |machine| assert!(machine.lookup(page(0)).is_none()),
        );
    }
}

/// There is no invalidation between what is in the table and the link, whose barrier would do as well.
#[test]
fn rule_11_whoever_sees_a_table_linked_in_place_sees_what_is_in_it() {
    for layout in LEVELS {
        explore(
            5,
            layout,
            protected_block,
            [split, |cpu| {
                let (leaf, _) = cpu.lookup(page(1)).expect("it is mapped all the time");
                assert!(!leaf.writable());
                // The same for hardware's walk, which checks by itself.
                cpu.try_access(page(2), Access::Read);
            }],
            all_pages,
        );
    }
}

#[test]
fn rule_5_a_split_in_place_and_a_merge_beside_a_cpu_that_writes() {
    for layout in LEVELS {
        explore(
            2,
            layout,
            writable_block,
            [
                split,
                |cpu| {
                    cpu.collapse(BLOCK, Level::L2, Permissions::RAM);
                },
                |cpu| {
                    cpu.try_access(page(0), Access::Write);
                },
            ],
            no_more,
        );
    }
}
