//! Tables: linked over what agrees with them after a barrier, dropped with all that was reached through them.

use crate::machine::{FIRST, LOCKED, MIDDLE, Machine, OTHER, PAGES, block, page, table};
use checker::{Barrier, CpuSet, Tlbi, Violation};

#[test]
fn a_table_goes_with_all_that_was_reached_through_it() {
    let mut machine = Machine::new();
    machine
        .write(MIDDLE, LOCKED)
        .flush(&[Tlbi::Ripas2e1is(1 << 46 | 1 << 39)])
        .write(PAGES, 0b100)
        .free(PAGES)
        .write(MIDDLE, block(0x900_0000))
        .is_silent();
}

#[test]
fn what_changes_in_a_table_while_its_link_is_dropped_goes_with_it() {
    let mut machine = Machine::new();
    machine
        .write(MIDDLE, LOCKED)
        .dsb(Barrier::DsbIshst)
        .tlbi(Tlbi::Ripas2e1is(1 << 46 | 1 << 39))
        .write_on(1, PAGES, FIRST | 1 << 54)
        .dsb(Barrier::DsbIsh)
        .tlbi(Tlbi::Vmalle1is)
        .dsb(Barrier::DsbIsh)
        .write(MIDDLE, block(0x900_0000))
        .is_silent();
}

#[test]
fn the_last_level_alone_leaves_the_link_to_a_table() {
    let unlink = |operation| {
        let mut machine = Machine::new();
        machine.write(MIDDLE, LOCKED).flush(&[operation]);
        machine
    };
    let narrow = Tlbi::Ripas2le1is(1 << 46 | 1 << 39);
    let found = unlink(narrow).free(PAGES).finds();
    assert!(
        matches!(
            found,
            Violation::FreedReachable {
                cpus: CpuSet::ALL,
                linked: false,
                ..
            }
        ),
        "{found}"
    );
    let (value, ..) = unlink(narrow).write(MIDDLE, block(0x900_0000)).finds_held();
    assert_eq!(value, table(PAGES));
    // One page's worth: the link goes, the other pages stay.
    let (value, ..) = unlink(Tlbi::Ipas2e1is(0))
        .write(MIDDLE, block(0x900_0000))
        .finds_held();
    assert_eq!(value, page(0x800_1000));
}

#[test]
fn a_link_that_one_cpu_dropped_is_still_with_the_others() {
    let mut machine = Machine::new();
    machine
        .write(MIDDLE, LOCKED)
        .dsb(Barrier::DsbIsh)
        .tlbi(Tlbi::Ipas2e1(0))
        .dsb(Barrier::DsbIsh);
    let found = machine.free(PAGES).finds();
    let others = !CpuSet::only(0);
    assert!(
        matches!(found, Violation::FreedReachable { cpus, .. } if cpus == others),
        "{found}"
    );
}

#[test]
fn a_table_that_the_tree_still_links_is_not_to_be_freed() {
    let found = Machine::new().free(PAGES).finds();
    assert!(
        matches!(found, Violation::FreedReachable { linked: true, .. }),
        "{found}"
    );
}

#[test]
fn walkers_in_an_unlinked_table_see_what_it_becomes() {
    // Unlinked, its leaves dropped, then filled again: what comes in last gets into TLBs through the old link.
    let mut machine = Machine::new();
    machine
        .write(MIDDLE, LOCKED)
        .flush(&[Tlbi::Ripas2le1is(1 << 46 | 1 << 39)]);
    for index in 0..4 {
        machine.write(PAGES + index * 8, 0b100);
    }
    machine.flush(&[Tlbi::Ripas2le1is(1 << 46 | 1 << 39)]);
    machine
        .write(PAGES + 8, page(0xa00_1000))
        .write(PAGES + 8, 0b100);
    machine.flush(&[Tlbi::Ipas2e1is(0)]).is_silent();
    let (value, ..) = machine.write(MIDDLE, block(0x900_0000)).finds_held();
    assert_eq!(value, page(0xa00_1000));
}

#[test]
fn a_table_is_linked_only_over_what_agrees_with_it() {
    // The pages below were dropped from the tree, but not from TLBs.
    let mut machine = Machine::new();
    machine
        .words
        .build(OTHER, &[page(0x800_0000), page(0xb00_0000)]);
    machine.write(MIDDLE, LOCKED).flush(&[Tlbi::Ipas2e1is(0)]);
    let (value, ..) = machine.write(MIDDLE, table(OTHER)).finds_held();
    assert_eq!(value, page(0x800_1000));
}

#[test]
fn a_table_is_linked_after_a_barrier() {
    let link = |barrier: Option<Barrier>| {
        let mut machine = Machine::new();
        machine.checker.table_allocated(0, OTHER);
        machine.words.build(OTHER, &[page(0xc00_0000)]);
        if let Some(barrier) = barrier {
            machine.dsb(barrier);
        }
        machine.write(MIDDLE + 8, table(OTHER));
        machine
    };
    link(Some(Barrier::DsbIshst)).is_silent();
    link(Some(Barrier::DsbIsh)).is_silent();
    for barrier in [None, Some(Barrier::DsbNshst), Some(Barrier::Isb)] {
        let found = link(barrier).finds();
        assert!(
            matches!(found, Violation::Unordered { frame: OTHER, .. }),
            "{found}"
        );
    }
}
