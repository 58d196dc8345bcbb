//! Faults, against each other and against ageing, under every interleaving: rules 1, 3, 4, 6 and 11.
//!
//! Bounds: tables of four entries, two levels of them (three where it says `DEEP`); two or three CPUs, each a thread, beside
//! a main thread that waits for them; at most so many preemptions per execution as the first argument of `explore` says.

use model::checked::{
    BLOCK, DEEP, Machine, Policy, SHALLOW, Served, explore, no_more, nothing, page, pages,
};
use stage2::sync::relax;
use stage2::{Access, Features, Layout, Level, Resolution};

fn first_page_is_writable(machine: &Machine) {
    let (leaf, _) = machine.lookup(page(0)).expect("it is mapped");
    assert!(leaf.writable() && leaf.accessed());
}

#[test]
fn rule_1_two_faults_relax_one_entry_and_both_go_on() {
    explore(
        6,
        SHALLOW,
        |cpu| cpu.read(page(0), Policy::LOGGED),
        [
            |cpu| cpu.write(page(0), Policy::LOGGED),
            |cpu| cpu.write(page(0), Policy::LOGGED),
        ],
        first_page_is_writable,
    );
}

#[test]
fn rule_1_three_faults_relax_one_entry_and_all_go_on() {
    explore(
        3,
        SHALLOW,
        |cpu| cpu.read(page(0), Policy::LOGGED),
        [
            |cpu| cpu.write(page(0), Policy::LOGGED),
            |cpu| cpu.write(page(0), Policy::LOGGED),
            |cpu| cpu.write(page(0), Policy::LOGGED),
        ],
        first_page_is_writable,
    );
}

#[test]
fn rule_1_two_faults_map_one_page_once() {
    explore(
        6,
        SHALLOW,
        nothing,
        [
            |cpu| cpu.read(page(0), Policy::LOGGED),
            |cpu| cpu.write(page(0), Policy::LOGGED),
        ],
        first_page_is_writable,
    );
}

#[test]
fn rule_1_three_faults_map_one_page_once() {
    explore(
        2,
        SHALLOW,
        nothing,
        [
            |cpu| cpu.read(page(0), Policy::LOGGED),
            |cpu| cpu.write(page(0), Policy::LOGGED),
            |cpu| cpu.write(page(0), Policy::LOGGED),
        ],
        first_page_is_writable,
    );
}

#[test]
fn rule_1_ageing_beside_a_fault_loses_no_permission() {
    explore(
        6,
        SHALLOW,
        |cpu| cpu.read(page(0), Policy::LOGGED),
        [
            |cpu| {
                cpu.age(pages(0..1));
            },
            |cpu| cpu.write(page(0), Policy::LOGGED),
        ],
        |machine| assert!(machine.lookup(page(0)).unwrap().0.writable()),
    );
}

#[test]
fn rule_1_ageing_beside_two_faults_loses_no_permission() {
    explore(
        3,
        SHALLOW,
        |cpu| cpu.read(page(0), Policy::LOGGED),
        [
            |cpu| {
                cpu.age(pages(0..1));
            },
            |cpu| cpu.write(page(0), Policy::LOGGED),
            |cpu| cpu.read(page(0), Policy::LOGGED),
        ],
        |machine| assert!(machine.lookup(page(0)).unwrap().0.writable()),
    );
}

/// The access flag is set by a fault, or by hardware.
const BY_HARDWARE: Layout = Layout::small(
    Level::L2,
    Features {
        hardware_access: true,
        ..Features::armv8_0(32, 48)
    },
);

#[test]
fn rule_1_two_ageings_report_an_access_once_each_time() {
    for layout in [SHALLOW, BY_HARDWARE] {
        explore(
            6,
            layout,
            |cpu| cpu.read(page(0), Policy::PAGES),
            [
                |cpu| {
                    let machine = cpu.machine();
                    machine.count(cpu.age(pages(0..1)));
                    cpu.read(page(0), Policy::PAGES);
                },
                |cpu| {
                    cpu.machine().count(cpu.age(pages(0..1)));
                },
            ],
            |machine| {
                let (leaf, _) = machine.lookup(page(0)).unwrap();
                let left = usize::from(leaf.accessed());
                // One of before, one of the read, and another one where the read had to begin again.
                assert!((2..=3).contains(&(machine.counted() + left)));
            },
        );
    }
}

#[test]
fn rule_3_two_ageings_beside_a_guest_that_reads() {
    for layout in [SHALLOW, BY_HARDWARE] {
        explore(
            3,
            layout,
            |cpu| cpu.write(page(0), Policy::PAGES),
            [
                |cpu| {
                    cpu.age(pages(0..1));
                },
                |cpu| {
                    cpu.age(pages(0..1));
                },
                |cpu| {
                    cpu.read(page(0), Policy::PAGES);
                    cpu.write(page(0), Policy::PAGES);
                },
            ],
            |machine| assert!(machine.lookup(page(0)).unwrap().0.writable()),
        );
    }
}

#[test]
fn rule_4_a_fault_on_a_locked_entry_returns_to_the_guest() {
    explore(
        6,
        SHALLOW,
        nothing,
        [
            |cpu| {
                let request = Policy::PAGES.request(page(0), Access::Write);
                cpu.work(|stage2, worker| {
                    // If not, the other one was first.
                    if let Resolution::Vacant(broken) = stage2.fault(worker, &request) {
                        let beside = cpu.machine().cpu(3);
                        let served = beside.fault(page(0), Access::Write, Policy::PAGES);
                        assert_eq!(served, Served::Again);
                        // SAFETY: the frames' numbers stand for memory within the physical addresses.
                        unsafe { stage2.fill(broken, &request) }.unwrap();
                        cpu.hold(page(0), Level::L3, 1);
                    }
                });
            },
            |cpu| cpu.write(page(0), Policy::PAGES),
        ],
        first_page_is_writable,
    );
}

#[test]
fn rule_6_two_faults_install_one_table() {
    explore(
        6,
        SHALLOW,
        nothing,
        [
            |cpu| cpu.write(page(0), Policy::PAGES),
            |cpu| cpu.write(page(1), Policy::PAGES),
        ],
        |machine| assert_eq!(machine.tables().live(), 2),
    );
}

#[test]
fn rule_6_three_faults_install_one_table() {
    explore(
        3,
        SHALLOW,
        nothing,
        [
            |cpu| cpu.write(page(0), Policy::PAGES),
            |cpu| cpu.write(page(1), Policy::PAGES),
            |cpu| cpu.write(page(2), Policy::PAGES),
        ],
        |machine| assert_eq!(machine.tables().live(), 2),
    );
}

#[test]
fn rule_6_two_faults_install_tables_of_two_levels() {
    explore(
        5,
        DEEP,
        nothing,
        [
            |cpu| cpu.write(page(0), Policy::PAGES),
            |cpu| cpu.write(page(4), Policy::PAGES),
        ],
        |machine| assert_eq!(machine.tables().live(), 4),
    );
}

#[test]
fn rule_6_a_block_and_a_table_meet_in_one_entry() {
    explore(
        2,
        SHALLOW,
        nothing,
        [
            |cpu| cpu.write(page(0), Policy::BLOCKS),
            |cpu| cpu.read(page(1), Policy::LOGGED),
            |cpu| cpu.write(page(2), Policy::LOGGED),
        ],
        |machine| assert!((0..3).all(|index| machine.lookup(page(index)).is_some())),
    );
}

#[test]
fn rule_11_whoever_sees_a_table_sees_what_is_in_it() {
    explore(
        6,
        SHALLOW,
        |cpu| {
            cpu.write(page(0), Policy::BLOCKS);
            cpu.write_protect(BLOCK);
        },
        [
            |cpu| {
                cpu.fault(page(0), Access::Write, Policy::LOGGED);
            },
            |cpu| {
                let served = loop {
                    match cpu.fault(page(1), Access::Read, Policy::LOGGED) {
                        Served::Again => relax(),
                        served => break served,
                    }
                };
                assert_eq!(served, Served::Spurious, "a page of the block was missing");
            },
        ],
        no_more,
    );
}

#[test]
fn rule_11_two_walkers_that_see_a_table_see_what_is_in_it() {
    explore(
        3,
        SHALLOW,
        |cpu| {
            cpu.write(page(0), Policy::BLOCKS);
            cpu.write_protect(BLOCK);
        },
        [
            |cpu| {
                cpu.split(BLOCK, Level::L3);
            },
            |cpu| cpu.write(page(1), Policy::LOGGED),
            |cpu| {
                while cpu.lookup(page(3)).is_none() {
                    // Locked, while it is split.
                    relax();
                }
            },
        ],
        no_more,
    );
}
