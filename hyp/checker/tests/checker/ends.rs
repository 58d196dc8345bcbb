//! The ends of things: memory that goes back, trees that are taken apart, VMIDs that are given away again.

use crate::machine::{FIRST, LOCKED, MIDDLE, MOVED, Machine, PAGES, ROOT, VTTBR, geometry};
use checker::{Barrier, Bbm, CpuSet, Kind, Tlbi, Violation};

#[test]
fn memory_goes_back_after_the_last_entry_for_it() {
    let freed = |flush: bool| {
        let mut machine = Machine::new();
        machine.write(PAGES, 0);
        if flush {
            machine.flush(&[Tlbi::Ipas2le1is(0)]);
        }
        let found = machine.checker.memory_freed(0x800_0000..0x800_1000);
        machine.found.extend(found);
        machine
    };
    freed(true).is_silent();
    let found = freed(false).finds();
    assert!(matches!(found, Violation::FreedMapped { .. }), "{found}");
}

#[test]
fn a_tree_ends_with_nobody_in_it_and_nothing_left() {
    let machine = Machine::new();
    let retired = machine.checker.root_retired(ROOT);
    assert!(
        matches!(retired[..], [Violation::Abandoned { loaded: true, .. }]),
        "{retired:?}"
    );

    let mut machine = Machine::new();
    for cpu in 0..3 {
        machine.load(cpu, 0);
    }
    let retired = machine.checker.root_retired(ROOT);
    assert!(
        matches!(retired[..], [Violation::Abandoned { loaded: false, .. }]),
        "{retired:?}"
    );

    machine = Machine::new();
    machine.load(1, 0).load(2, 0);
    machine.flush(&[Tlbi::Vmalls12e1is]).load(0, 0);
    assert_eq!(machine.checker.root_retired(ROOT), []);
    machine.free(PAGES).free(ROOT).is_silent();
    let finished = machine.checker.root_finished(ROOT);
    assert!(
        matches!(
            finished[..],
            [Violation::Leaked {
                tables: 1,
                frame: MIDDLE,
                ..
            }]
        ),
        "{finished:?}"
    );
}

#[test]
fn a_tree_that_nobody_has_loaded_is_taken_apart_without_further_invalidation() {
    let mut machine = Machine::new();
    machine.load(1, 0).load(2, 0);
    machine.flush(&[Tlbi::Vmalls12e1is]).load(0, 0);
    machine
        .write(MIDDLE, 0b100)
        .free(PAGES)
        .write(ROOT, 0b100)
        .free(MIDDLE);
    assert_eq!(machine.checker.root_retired(ROOT), []);
    machine.free(ROOT).is_silent();
    assert_eq!(machine.checker.root_finished(ROOT), []);

    // Loaded again, it is walked as it is.
    let mut machine = Machine::new();
    machine.load(1, 0).load(2, 0);
    machine.flush(&[Tlbi::Vmalls12e1is]).load(0, 0);
    machine
        .write(PAGES, MOVED)
        .load(0, VTTBR)
        .write(PAGES, LOCKED)
        .is_silent();
    assert_eq!(
        machine.write(PAGES, FIRST).finds_held(),
        (MOVED, Kind::Stage2, CpuSet::ALL)
    );
}

#[test]
fn a_vmid_is_given_to_another_tree_after_everything_of_it_was_dropped() {
    const SECOND: u64 = 0x50_0000;
    let reuse = |operation: Option<Tlbi>| {
        let mut machine = Machine::new();
        machine.load(0, 0).load(1, 0).load(2, 0);
        machine.checker.root_created(SECOND, geometry(Bbm::Level0));
        if let Some(operation) = operation {
            machine
                .dsb_on(1, Barrier::DsbIsh)
                .tlbi_on(1, operation)
                .dsb_on(1, Barrier::DsbIsh);
        }
        machine.load(0, 7 << 48 | SECOND);
        machine
    };
    reuse(Some(Tlbi::Alle1is)).is_silent();
    for operation in [None, Some(Tlbi::Vmalle1is), Some(Tlbi::Vmalls12e1is)] {
        let found = reuse(operation).finds();
        assert!(
            matches!(
                found,
                Violation::VmidReused {
                    vmid: 7,
                    other: ROOT,
                    ..
                }
            ),
            "{found}"
        );
    }
}
