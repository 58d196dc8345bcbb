//! What an operation promises of rights and dirty state when it returns, and what hardware may do meanwhile.

use crate::machine::{ACCESSED, DBM, FIRST, MIDDLE, Machine, PAGES, ROOT, WRITE, page};
use checker::{Barrier, CpuSet, Kind, Promise, Tlbi, Violation};

#[test]
fn a_permission_needs_no_break_but_its_promise_an_invalidation() {
    let protect = |flush: &dyn Fn(&mut Machine)| {
        let mut machine = Machine::new();
        let since = machine.checker.now();
        machine.write(PAGES, FIRST & !WRITE);
        flush(&mut machine);
        let found = machine
            .checker
            .promised(ROOT, Promise::NoWrite, 0..0x1000, since);
        machine.found.extend(found);
        machine
    };
    protect(&|machine| {
        machine.flush(&[Tlbi::Ipas2le1is(0)]);
    })
    .is_silent();
    let nothing = protect(&|_| {}).finds_held();
    assert_eq!(nothing, (FIRST, Kind::Stage2, CpuSet::ALL));
    let local = protect(&|machine| {
        machine
            .dsb(Barrier::DsbIsh)
            .tlbi(Tlbi::Ipas2le1(0))
            .dsb(Barrier::DsbIsh);
        machine.tlbi(Tlbi::Vaae1(0)).dsb(Barrier::DsbIsh);
    });
    let held = { local }.finds_held();
    assert_eq!(held, (FIRST, Kind::Stage2, !CpuSet::only(0)));
}

#[test]
fn a_promise_is_not_broken_by_what_came_after_it_began() {
    let mut machine = Machine::new();
    let since = machine.checker.now();
    machine
        .write(PAGES, FIRST & !WRITE)
        .flush(&[Tlbi::Ipas2le1is(0)]);
    machine
        .write_on(1, PAGES, FIRST)
        .write_on(2, PAGES, FIRST & !WRITE);
    let found = machine
        .checker
        .promised(ROOT, Promise::NoWrite, 0..0x1000, since);
    assert_eq!(found, []);
}

#[test]
fn an_unmapped_table_that_can_be_reached_breaks_the_promise_of_no_entry() {
    let mut machine = Machine::new();
    let since = machine.checker.now();
    machine
        .write(MIDDLE, 0)
        .flush(&[Tlbi::Ripas2le1is(1 << 46 | 1 << 39)]);
    let found = machine
        .checker
        .promised(ROOT, Promise::NoEntry, 0..0x4000, since);
    machine.found.extend(found);
    assert_eq!(machine.finds_held(), (FIRST, Kind::Visible, CpuSet::ALL));
}

#[test]
fn hardware_may_update_an_entry_unannounced_and_nobody_else() {
    let mut machine = Machine::new();
    let clean = page(0x800_0000) & !WRITE & !ACCESSED | DBM;
    machine.write(PAGES, clean).is_silent();
    machine.words.build(PAGES, &[clean | WRITE | ACCESSED]);
    machine.write(PAGES, clean).is_silent();
    machine.words.build(PAGES, &[clean ^ 1 << 53]);
    let found = machine.write(PAGES, clean).finds();
    assert!(
        matches!(found, Violation::Unannounced { expected, .. } if expected == clean),
        "{found}"
    );
}

#[test]
fn a_page_that_was_written_stays_dirty_until_it_is_harvested() {
    let machine = Machine::new();
    machine.checker.wrote(ROOT, 0x1000, 1);
    assert_eq!(
        machine
            .checker
            .written_is_dirty(ROOT, &|page| page == 0x1000),
        []
    );
    let found = machine.checker.written_is_dirty(ROOT, &|_| false);
    assert_eq!(
        found,
        [Violation::LostDirty {
            root: ROOT,
            ipa: 0x1000,
            cpu: 1
        }]
    );
    machine.checker.harvested(ROOT, 0..0x2000);
    assert_eq!(machine.checker.written_is_dirty(ROOT, &|_| false), []);
}
