//! Other memory put behind pages beside faults, write protection, unmaps, splits, merges and itself, under every
//! interleaving: rules 1, 2, 3 and 5.
//!
//! The frame that comes is a copy of the one that goes. No write of the guest may be missing in what its page is mapped to in
//! the end, and each frame's mapping is handed out once.
//! Bounds: tables of four entries, two levels of them (three where it says `DEEP`); two or three CPUs, each a thread, beside
//! a main thread that waits for them; at most so many preemptions per execution as the first argument of `explore` says.

use model::checked::{
    BLOCK, Cpu, DEEP, Machine, Policy, SHALLOW, backing_of, explore, no_more, nothing,
    other_backing_of, page, pages,
};
use stage2::{Access, Bbm, Features, Granule, Layout, Level, Pa, Permissions};

const fn with(features: Features) -> Layout {
    Layout::small(Level::L2, features)
}

const TRACKED: Layout = with(Features {
    hardware_access: true,
    hardware_dirty: true,
    ..*SHALLOW.features()
});

const IN_PLACE: Layout = with(Features {
    bbm: Bbm::Level2,
    ..*SHALLOW.features()
});

const GROUPS: Layout = with(Features {
    contiguous: true,
    ..*SHALLOW.features()
});

fn move_first(cpu: Cpu<'_>) {
    cpu.move_page(0);
}

fn move_second(cpu: Cpu<'_>) {
    cpu.move_page(1);
}

fn write_first(cpu: Cpu<'_>) {
    cpu.write(page(0), Policy::LOGGED);
}

fn frame_of(machine: &Machine, index: u64) -> Option<Pa> {
    let (leaf, level) = machine.lookup(page(index))?;
    let span = Granule::Size4K.span(level);
    Some(leaf.pa().offset(page(index).offset_in(span)))
}

fn moved(machine: &Machine) {
    assert_eq!(frame_of(machine, 0), Some(other_backing_of(page(0))));
    machine.assert_writes_are_there();
}

fn writes_are_there(machine: &Machine) {
    machine.assert_writes_are_there();
}

fn read_only_page(cpu: Cpu<'_>) {
    cpu.read(page(0), Policy::LOGGED);
}

/// CPUs 2 and 3 have it in their TLBs.
fn writable_page(cpu: Cpu<'_>) {
    cpu.machine().cpu(2).write(page(0), Policy::PAGES);
    cpu.machine().cpu(3).write(page(0), Policy::PAGES);
}

#[test]
fn rule_2_a_page_that_moves_takes_along_what_is_written_meanwhile() {
    explore(
        5,
        SHALLOW,
        writable_page,
        [move_first, |cpu| {
            cpu.write(page(0), Policy::PAGES);
            cpu.write(page(0), Policy::PAGES);
        }],
        moved,
    );
}

#[test]
fn rule_1_a_page_that_moves_while_a_fault_makes_it_writable_loses_no_write() {
    explore(5, SHALLOW, read_only_page, [move_first, write_first], moved);
}

#[test]
fn rule_1_a_page_that_moves_beside_two_writers_loses_no_write() {
    explore(
        2,
        SHALLOW,
        read_only_page,
        [move_first, write_first, write_first],
        moved,
    );
}

/// What isn't mapped isn't created: it is there if the fault was first, or the fault's.
#[test]
fn rule_1_a_page_that_moves_beside_a_fault_that_maps_it() {
    explore(
        6,
        SHALLOW,
        nothing,
        [
            |cpu| cpu.machine().count(usize::from(cpu.move_page(0))),
            |cpu| cpu.write(page(0), Policy::PAGES),
        ],
        |machine| {
            let frame = match machine.counted() {
                0 => backing_of(page(0)),
                _ => other_backing_of(page(0)),
            };
            assert_eq!(frame_of(machine, 0), Some(frame));
            machine.assert_writes_are_there();
        },
    );
}

/// As copy-on-write and merging need it: what was withdrawn can't come back by way of what comes instead.
#[test]
fn rule_3_a_page_that_becomes_shared_while_it_is_written_ends_read_only() {
    explore(
        5,
        SHALLOW,
        read_only_page,
        [
            |cpu| {
                let shared = other_backing_of(page(0));
                cpu.replace(page(0), shared, |_| Permissions::READ_ONLY);
                cpu.machine().tlbs().assert_not_writable(&pages(0..1));
            },
            |cpu| {
                cpu.fault(page(0), Access::Write, Policy::LOGGED);
                cpu.try_access(page(0), Access::Write);
            },
        ],
        |machine| {
            moved(machine);
            let (leaf, _) = machine.lookup(page(0)).unwrap();
            assert!(!leaf.writable() && !leaf.may_write());
        },
    );
}

#[test]
fn rule_3_protection_beside_a_page_that_moves_leaves_nothing_writable() {
    explore(
        6,
        SHALLOW,
        writable_page,
        [move_first, |cpu| {
            cpu.write_protect(BLOCK);
            cpu.machine().tlbs().assert_not_writable(&BLOCK);
        }],
        |machine| {
            moved(machine);
            assert!(!machine.lookup(page(0)).unwrap().0.writable());
        },
    );
}

fn protect_and_copy(cpu: Cpu<'_>) {
    cpu.write_protect(BLOCK);
    cpu.copy(BLOCK);
}

#[test]
fn rule_3_protection_beside_a_page_that_moves_and_a_writer() {
    explore(
        2,
        SHALLOW,
        writable_page,
        [
            move_first,
            |cpu| cpu.write_protect(BLOCK),
            |cpu| {
                cpu.try_access(page(0), Access::Write);
            },
        ],
        moved,
    );
}

/// What hardware notes while the page moves is in the copy, or noted of what came.
fn nothing_is_lost(machine: &Machine) {
    machine.cpu(0).find_and_track(BLOCK, Level::L2);
    assert!(machine.is_copied(page(0)), "rule 9: a write is lost");
    moved(machine);
}

fn tracked_page(cpu: Cpu<'_>) {
    cpu.read(page(0), Policy::TRACKED);
}

/// The frame that comes counts as clean.
fn move_tracked(cpu: Cpu<'_>) {
    let other = other_backing_of(page(0));
    cpu.replace(page(0), other, |_| Permissions::LOGGED_BY_HARDWARE);
}

fn write_by_hardware(cpu: Cpu<'_>) {
    cpu.write(page(0), Policy::TRACKED);
    cpu.write(page(0), Policy::TRACKED);
}

#[test]
fn rule_9_a_page_that_moves_while_hardware_notes_a_write_loses_no_note() {
    explore(
        5,
        TRACKED,
        tracked_page,
        [move_tracked, write_by_hardware],
        nothing_is_lost,
    );
}

#[test]
fn rule_9_a_page_that_moves_beside_a_harvest_and_a_writer_loses_no_note() {
    explore(
        2,
        TRACKED,
        tracked_page,
        [
            move_tracked,
            |cpu| cpu.find_and_track(BLOCK, Level::L2),
            write_by_hardware,
        ],
        nothing_is_lost,
    );
}

#[test]
fn rule_9_a_page_that_moves_beside_protection_and_a_writer_loses_no_note() {
    explore(
        2,
        TRACKED,
        tracked_page,
        [move_tracked, protect_and_copy, |cpu| {
            cpu.try_access(page(0), Access::Write);
        }],
        |machine| {
            machine.cpu(0).find_and_track(BLOCK, Level::L2);
            machine.assert_writes_are_there();
        },
    );
}

fn table_of_pages(cpu: Cpu<'_>) {
    for index in 0..4 {
        cpu.read(page(index), Policy::LOGGED);
    }
}

/// Whose exchange took the leaf has it, and whose frame comes too late isn't mapped.
#[test]
fn rule_5_a_page_that_moves_while_its_table_is_unmapped_is_handed_out_once() {
    explore(
        5,
        SHALLOW,
        table_of_pages,
        [move_first, |cpu| {
            cpu.unmap(BLOCK);
        }],
        |machine| assert!((0..4).all(|index| machine.lookup(page(index)).is_none())),
    );
}

#[test]
fn rule_5_two_pages_that_move_while_their_table_is_unmapped_are_handed_out_once() {
    explore(
        2,
        SHALLOW,
        table_of_pages,
        [move_first, move_second, |cpu| {
            cpu.unmap(BLOCK);
        }],
        |machine| assert!((0..4).all(|index| machine.lookup(page(index)).is_none())),
    );
}

#[test]
fn rule_5_a_page_that_moves_beside_an_unmap_of_its_table_and_a_fault() {
    explore(
        2,
        SHALLOW,
        table_of_pages,
        [
            move_first,
            |cpu| {
                cpu.unmap(BLOCK);
            },
            |cpu| cpu.read(page(0), Policy::LOGGED),
        ],
        no_more,
    );
}

#[test]
fn rule_5_a_page_that_moves_below_an_unmap_of_all() {
    explore(
        3,
        DEEP,
        |cpu| cpu.read(page(4), Policy::LOGGED),
        [
            |cpu| {
                cpu.move_page(4);
            },
            |cpu| {
                cpu.unmap(pages(0..16));
            },
        ],
        |machine| assert!(machine.lookup(page(4)).is_none()),
    );
}

#[test]
fn rule_2_a_page_that_two_replace_has_the_frame_of_one_and_no_other_is_held() {
    explore(
        6,
        SHALLOW,
        writable_page,
        [move_first, |cpu| {
            cpu.replace(page(0), backing_of(page(0)), |permissions| permissions);
        }],
        writes_are_there,
    );
}

#[test]
fn rule_2_a_page_that_two_replace_beside_a_writer_loses_no_write() {
    explore(
        2,
        SHALLOW,
        read_only_page,
        [
            move_first,
            |cpu| {
                cpu.replace(page(0), backing_of(page(0)), |permissions| permissions);
            },
            write_first,
        ],
        writes_are_there,
    );
}

/// Blocks are left alone; of a block that is split meanwhile the page may be met already.
fn moved_if_met(machine: &Machine) {
    let frame = match machine.counted() {
        0 => backing_of(page(1)),
        _ => other_backing_of(page(1)),
    };
    assert_eq!(frame_of(machine, 1), Some(frame));
    machine.assert_writes_are_there();
}

fn count_if_moved(cpu: Cpu<'_>) {
    cpu.machine().count(usize::from(cpu.move_page(1)));
}

fn writable_block(cpu: Cpu<'_>) {
    cpu.machine().cpu(3).write(page(1), Policy::BLOCKS);
}

fn split(cpu: Cpu<'_>) {
    cpu.split(BLOCK, Level::L3);
}

#[test]
fn rule_2_a_page_of_a_block_that_is_split_moves_if_it_is_met() {
    for layout in [SHALLOW, IN_PLACE] {
        explore(
            6,
            layout,
            writable_block,
            [count_if_moved, split],
            moved_if_met,
        );
    }
}

/// Where a split spares the break, a TLB has the block beside the page that is about to move.
#[test]
fn rule_2_a_page_of_a_block_that_is_split_moves_beside_a_writer() {
    for layout in [SHALLOW, IN_PLACE] {
        explore(
            2,
            layout,
            writable_block,
            [count_if_moved, split, |cpu| {
                cpu.machine().cpu(3).try_access(page(1), Access::Write);
            }],
            moved_if_met,
        );
    }
}

fn merge(cpu: Cpu<'_>) {
    cpu.collapse(BLOCK, Level::L2, Permissions::RAM);
}

/// Either there is a block, of the old frames; or the page has moved, and the rest is as it was or faults in again.
#[test]
fn rule_5_a_page_that_moves_while_its_table_is_merged_is_handed_out_once() {
    explore(
        5,
        SHALLOW,
        |cpu| {
            for index in 0..4 {
                cpu.write(page(index), Policy::PAGES);
            }
        },
        [count_if_moved, merge],
        |machine| {
            if machine.lookup(page(1)).is_some() {
                moved_if_met(machine);
            }
        },
    );
}

#[test]
fn rule_5_a_page_that_moves_beside_a_merge_and_a_writer_of_another() {
    explore(
        2,
        SHALLOW,
        table_of_pages,
        [count_if_moved, merge, |cpu| {
            cpu.write(page(2), Policy::LOGGED);
        }],
        |machine| {
            if machine.lookup(page(1)).is_some() {
                moved_if_met(machine);
            }
        },
    );
}

#[test]
fn rule_2_a_page_that_moves_leaves_its_group_before() {
    explore(
        3,
        GROUPS,
        |cpu| {
            cpu.map(BLOCK, Level::L3, Permissions::RAM).unwrap();
            cpu.machine().cpu(3).write(page(1), Policy::PAGES);
        },
        [move_first, |cpu| {
            cpu.write(page(1), Policy::PAGES);
            cpu.write(page(0), Policy::PAGES);
        }],
        moved,
    );
}

#[test]
fn rule_2_two_pages_of_a_group_move_at_once() {
    explore(
        3,
        GROUPS,
        |cpu| {
            cpu.map(BLOCK, Level::L3, Permissions::RAM).unwrap();
        },
        [move_first, move_second],
        |machine| {
            moved(machine);
            assert_eq!(frame_of(machine, 1), Some(other_backing_of(page(1))));
        },
    );
}
