//! The dirty log's way to take what hardware has noted (look first, make clean what was found second), blocks that are
//! replaced at a write for it, and blocks that are unmapped but for the page written, under every interleaving: rules 2, 3,
//! 5 and 9.
//!
//! As in `harvest.rs`, a CPU's hardware is a step of its thread, and no write may be in none of the copies.
//! Bounds: tables of four entries, two levels of them; two or three CPUs, each a thread, beside a main thread that waits for
//! them; at most so many preemptions per execution as the first argument of `explore` says.

use model::checked::{BLOCK, Cpu, ENTRIES, Machine, Policy, explore, no_more, page, pages};
use stage2::{Access, Bbm, Features, Layout, Level, Permissions};

const fn tracked(bbm: Bbm) -> Layout {
    Layout::small(
        Level::L2,
        Features {
            hardware_access: true,
            hardware_dirty: true,
            bbm,
            ..*model::checked::SHALLOW.features()
        },
    )
}

const SHALLOW: Layout = tracked(Bbm::Level0);
/// With a break at a change of size, and without.
const LEVELS: [Layout; 2] = [SHALLOW, tracked(Bbm::Level2)];

fn clean_page(cpu: Cpu<'_>) {
    cpu.read(page(0), Policy::TRACKED);
}

fn clean_block(cpu: Cpu<'_>) {
    let largest = Level::L2;
    cpu.read(
        page(0),
        Policy {
            largest,
            ..Policy::TRACKED
        },
    );
}

/// A block that is too large to be tracked, in CPU 3's TLB.
fn protected_block(cpu: Cpu<'_>) {
    let policy = Policy {
        largest: Level::L2,
        permissions: Permissions::LOGGED,
        ..Policy::PAGES
    };
    cpu.machine().cpu(3).read(page(0), policy);
}

fn harvest(cpu: Cpu<'_>) {
    cpu.find_and_track(BLOCK, Level::L2);
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

/// After a last harvest, with the guest stopped.
fn nothing_is_lost(machine: &Machine) {
    harvest(machine.cpu(0));
    for index in 0..ENTRIES {
        assert!(
            machine.is_copied(page(index)),
            "rule 9: a write to page {index} is lost"
        );
    }
}

#[test]
fn rule_9_a_look_and_a_harvest_of_what_it_found_beside_a_cpu_that_writes() {
    explore(
        6,
        SHALLOW,
        clean_page,
        [harvest, write_twice],
        nothing_is_lost,
    );
    explore(
        5,
        SHALLOW,
        |cpu| {
            clean_page(cpu);
            write_first(cpu.machine().cpu(2));
        },
        [harvest, write_twice],
        nothing_is_lost,
    );
}

#[test]
fn rule_9_a_look_and_a_harvest_beside_two_cpus_that_write() {
    explore(
        3,
        SHALLOW,
        clean_page,
        [harvest, write_twice, write_first],
        nothing_is_lost,
    );
}

#[test]
fn rule_9_a_look_and_a_harvest_beside_a_fault_that_maps() {
    explore(
        5,
        SHALLOW,
        |_| {},
        [harvest, |cpu| cpu.write(page(0), Policy::TRACKED)],
        nothing_is_lost,
    );
}

/// A block is found and named by the page that it has become; or a page by the block.
#[test]
fn rule_9_a_look_and_a_harvest_beside_a_change_of_size() {
    for layout in LEVELS {
        explore(
            2,
            layout,
            clean_block,
            [
                harvest,
                |cpu| {
                    cpu.split(BLOCK, Level::L3);
                },
                write_second,
            ],
            nothing_is_lost,
        );
    }
    explore(
        2,
        SHALLOW,
        |cpu| {
            for index in 0..ENTRIES {
                cpu.read(page(index), Policy::TRACKED);
            }
            write_second(cpu.machine().cpu(3));
        },
        [
            harvest,
            |cpu| {
                cpu.collapse(BLOCK, Level::L2, Permissions::LOGGED_BY_HARDWARE);
            },
            write_first,
        ],
        nothing_is_lost,
    );
}

#[test]
fn rule_9_a_block_replaced_at_a_write_has_its_pieces_tracked() {
    for layout in LEVELS {
        explore(
            4,
            layout,
            protected_block,
            [
                |cpu| cpu.write(page(0), Policy::TRACKED_PAGES),
                |cpu| cpu.write(page(1), Policy::TRACKED_PAGES),
            ],
            nothing_is_lost,
        );
        explore(
            2,
            layout,
            protected_block,
            [
                |cpu| cpu.write(page(0), Policy::TRACKED_PAGES),
                |cpu| cpu.find_and_track(BLOCK, Level::L3),
                |cpu| {
                    write_second(cpu);
                    write_second(cpu);
                },
            ],
            nothing_is_lost,
        );
    }
}

/// Whatever another CPU has just made of an entry, no TLB lets a write go unnoticed when tracking returns.
#[test]
fn rule_3_tracking_returns_without_a_stale_entry() {
    let changes: [fn(Cpu<'_>); 3] = [
        |cpu| cpu.protect(pages(0..1), Permissions::READ_ONLY),
        |cpu| cpu.write_protect(pages(0..1)),
        |cpu| cpu.track(BLOCK, Level::L2),
    ];
    for change in changes {
        explore(
            5,
            SHALLOW,
            |cpu| cpu.machine().cpu(3).write(page(0), Policy::PAGES),
            [change, |cpu| {
                cpu.track(BLOCK, Level::L2);
                cpu.machine().tlbs().assert_not_writable(&BLOCK);
            }],
            no_more,
        );
    }
}

fn isolate_first(cpu: Cpu<'_>) {
    cpu.write(page(0), Policy::ISOLATED);
}

#[test]
fn rule_5_a_block_isolated_by_two_leaves_both_pages() {
    for layout in LEVELS {
        explore(
            4,
            layout,
            protected_block,
            [isolate_first, |cpu| cpu.write(page(1), Policy::ISOLATED)],
            |machine| {
                for written in [page(0), page(1)] {
                    let (leaf, level) = machine.lookup(written).expect("it was written");
                    assert!(leaf.writable() && level == Level::L3);
                }
                assert!(machine.lookup(page(2)).is_none());
            },
        );
    }
}

#[test]
fn rule_5_a_block_isolated_beside_a_split_a_reader_or_an_unmap() {
    let others: [fn(Cpu<'_>); 4] = [
        |cpu| {
            cpu.split(BLOCK, Level::L3);
        },
        |cpu| cpu.read(page(1), Policy::ISOLATED),
        |cpu| {
            cpu.unmap(BLOCK);
        },
        |cpu| {
            cpu.write_protect(BLOCK);
            cpu.find_and_track(BLOCK, Level::L3);
        },
    ];
    for layout in LEVELS {
        for other in others {
            explore(4, layout, protected_block, [isolate_first, other], no_more);
        }
    }
}

/// Who finds nothing there has nothing to invalidate.
#[test]
fn rule_2_an_unmap_of_what_an_isolated_block_left_returns_without_a_stale_entry() {
    for layout in LEVELS {
        explore(
            4,
            layout,
            protected_block,
            [isolate_first, |cpu| {
                cpu.unmap(pages(1..2));
                cpu.machine().tlbs().assert_none(&pages(1..2));
            }],
            no_more,
        );
    }
}
