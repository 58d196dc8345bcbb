//! What a change of a leaf owes: the break, and an invalidation that reaches all that any TLB may hold of it.

use crate::machine::{
    ACCESSED, CONTIGUOUS, FIRST, LOCKED, MIDDLE, MOVED, Machine, OTHER, PAGES, block, page, table,
};
use checker::{Barrier, CpuSet, Difference, Kind, Tlbi, Violation};

#[test]
fn a_whole_break_before_make_is_right() {
    Machine::new()
        .write(PAGES, LOCKED)
        .flush(&[Tlbi::Ipas2le1is(0)])
        .write(PAGES, MOVED)
        .is_silent();
}

#[test]
fn a_change_of_address_type_or_size_without_a_break_is_found() {
    for (entry, word, difference) in [
        (PAGES, MOVED, Difference::OutputAddress),
        (PAGES, FIRST ^ 1 << 3, Difference::MemoryType),
        (PAGES, FIRST | CONTIGUOUS, Difference::Contiguous),
        (MIDDLE, block(0x800_0000), Difference::Size),
        (MIDDLE, table(OTHER), Difference::Table),
    ] {
        let found = Machine::new().write(entry, word).finds();
        assert!(
            matches!(found, Violation::NoBreak { why, .. } if why == difference),
            "{found}"
        );
    }
}

#[test]
fn every_missing_step_of_an_invalidation_leaves_something() {
    let old = |kind, cpus| (FIRST, kind, cpus);
    let all = CpuSet::ALL;
    use Barrier::*;
    use Tlbi::*;
    type Steps<'s> = &'s [Result<Tlbi, Barrier>];
    let whole: Steps = &[
        Err(DsbIshst),
        Ok(Ipas2le1is(0)),
        Err(DsbIsh),
        Ok(Vmalle1is),
        Err(DsbIsh),
    ];
    for left_out in 0..whole.len() {
        let mut machine = Machine::new();
        machine.write(PAGES, LOCKED);
        for (_, step) in whole
            .iter()
            .enumerate()
            .filter(|(step, _)| *step != left_out)
        {
            match step {
                Ok(operation) => machine.tlbi(*operation),
                Err(barrier) => machine.dsb(*barrier),
            };
        }
        let kind = if left_out < 2 {
            Kind::Stage2
        } else {
            Kind::Combined
        };
        assert_eq!(
            machine.write(PAGES, MOVED).finds_held(),
            old(kind, all),
            "without {:?}",
            whole[left_out]
        );
    }
    let wrong: &[(Steps, Kind, CpuSet)] = &[
        // The order of the two.
        (
            &[
                Err(DsbIsh),
                Ok(Vmalle1is),
                Err(DsbIsh),
                Ok(Ipas2le1is(0)),
                Err(DsbIsh),
            ],
            Kind::Combined,
            all,
        ),
        // A barrier that completes nothing.
        (
            &[
                Err(DsbIsh),
                Ok(Ipas2le1is(0)),
                Err(DsbIshst),
                Ok(Vmalle1is),
                Err(DsbIshst),
            ],
            Kind::Stage2,
            all,
        ),
        (
            &[
                Err(DsbIsh),
                Ok(Ipas2le1is(0)),
                Err(DsbNsh),
                Ok(Vmalle1is),
                Err(DsbNsh),
            ],
            Kind::Stage2,
            all,
        ),
        // A barrier for this CPU before a broadcast.
        (
            &[Err(DsbNshst), Ok(Vmalls12e1is), Err(DsbIsh)],
            Kind::Stage2,
            all,
        ),
        // Local where broadcast is needed.
        (
            &[
                Err(DsbIsh),
                Ok(Ipas2le1(0)),
                Err(DsbNsh),
                Ok(Vmalle1),
                Err(DsbNsh),
            ],
            Kind::Stage2,
            !CpuSet::only(0),
        ),
        (
            &[
                Err(DsbIsh),
                Ok(Ipas2le1is(0)),
                Err(DsbIsh),
                Ok(Vmalle1),
                Err(DsbIsh),
            ],
            Kind::Combined,
            !CpuSet::only(0),
        ),
        (
            &[Err(DsbIsh), Ok(Vmalls12e1), Err(DsbIsh)],
            Kind::Stage2,
            !CpuSet::only(0),
        ),
        // EL2's stage 1.
        (
            &[
                Err(DsbIsh),
                Ok(Alle2is),
                Err(DsbIsh),
                Ok(Vae2is(0)),
                Err(DsbIsh),
            ],
            Kind::Stage2,
            all,
        ),
        // The wrong page, level and granule.
        (
            &[
                Err(DsbIsh),
                Ok(Ipas2le1is(1)),
                Err(DsbIsh),
                Ok(Vmalle1is),
                Err(DsbIsh),
            ],
            Kind::Stage2,
            all,
        ),
        (
            &[
                Err(DsbIsh),
                Ok(Ipas2le1is(0b0110 << 44)),
                Err(DsbIsh),
                Ok(Vmalle1is),
                Err(DsbIsh),
            ],
            Kind::Stage2,
            all,
        ),
        (
            &[
                Err(DsbIsh),
                Ok(Ipas2le1is(0b1011 << 44)),
                Err(DsbIsh),
                Ok(Vmalle1is),
                Err(DsbIsh),
            ],
            Kind::Stage2,
            all,
        ),
    ];
    for (steps, kind, cpus) in wrong {
        let mut machine = Machine::new();
        machine.write(PAGES, LOCKED);
        for step in *steps {
            match step {
                Ok(operation) => machine.tlbi(*operation),
                Err(barrier) => machine.dsb(*barrier),
            };
        }
        assert_eq!(
            machine.write(PAGES, MOVED).finds_held(),
            old(*kind, *cpus),
            "{steps:?}"
        );
    }
}

#[test]
fn every_sufficient_invalidation_is_enough() {
    use Tlbi::*;
    for operation in [
        Ipas2e1is(0),
        Ipas2le1is(0b0111 << 44),
        Ripas2e1is(1 << 46),
        Ripas2le1is(1 << 46 | 3 << 37),
        Vmalls12e1is,
        Alle1is,
    ] {
        Machine::new()
            .write(PAGES, LOCKED)
            .flush(&[operation])
            .write(PAGES, MOVED)
            .is_silent();
    }
}

#[test]
fn an_invalidation_acts_on_the_vmid_that_is_loaded() {
    let mut machine = Machine::new();
    machine
        .load(0, 8 << 48)
        .write(PAGES, LOCKED)
        .flush(&[Tlbi::Vmalls12e1is]);
    assert_eq!(
        machine.write(PAGES, MOVED).finds_held(),
        (FIRST, Kind::Stage2, CpuSet::ALL)
    );
}

#[test]
fn a_range_that_is_one_page_short_leaves_that_page() {
    // Scale 0, num 0: two pages of three.
    let mut machine = Machine::new();
    for index in 0..3 {
        machine.write(PAGES + index * 8, LOCKED);
    }
    machine.flush(&[Tlbi::Ripas2le1is(1 << 46)]);
    machine
        .write(PAGES, MOVED)
        .write(PAGES + 8, page(0x900_1000))
        .is_silent();
    let (value, ..) = machine.write(PAGES + 16, page(0x900_2000)).finds_held();
    assert_eq!(value, page(0x800_2000));
}

#[test]
fn a_value_that_comes_back_needs_no_invalidation() {
    Machine::new()
        .write(PAGES, LOCKED)
        .write(PAGES, FIRST)
        .is_silent();
}

#[test]
fn what_another_cpu_stored_is_covered_but_not_what_this_one_has_not_ordered() {
    Machine::new()
        .write_on(1, PAGES, LOCKED)
        .tlbi(Tlbi::Vmalls12e1is)
        .dsb(Barrier::DsbIsh)
        .write(PAGES, MOVED)
        .is_silent();
    let mut machine = Machine::new();
    machine
        .tlbi(Tlbi::Vmalls12e1is)
        .write_on(1, PAGES, LOCKED)
        .dsb(Barrier::DsbIsh);
    assert_eq!(
        machine.write(PAGES, MOVED).finds_held(),
        (FIRST, Kind::Stage2, CpuSet::ALL)
    );
}

#[test]
fn combined_entries_are_not_gone_if_they_could_come_back_when_their_invalidation_was_issued() {
    let mut machine = Machine::new();
    machine
        .write_on(1, PAGES, LOCKED)
        .dsb_on(1, Barrier::DsbIsh)
        .tlbi_on(1, Tlbi::Ipas2le1is(0))
        .tlbi(Tlbi::Vmalle1is)
        .dsb_on(1, Barrier::DsbIsh)
        .dsb(Barrier::DsbIsh);
    let held = machine.write(PAGES, MOVED).finds_held();
    assert_eq!(held, (FIRST, Kind::Combined, CpuSet::ALL));
}

#[test]
fn a_virtual_page_is_all_of_a_page_but_not_of_a_block() {
    for (entry, old, kind) in [
        (PAGES, FIRST, None),
        (MIDDLE + 8, block(0xc00_0000), Some(Kind::Combined)),
    ] {
        let mut machine = Machine::new();
        machine.write(MIDDLE + 8, block(0xc00_0000));
        let operand = if entry == PAGES { 0 } else { 4 };
        machine
            .write(entry, LOCKED)
            .dsb(Barrier::DsbIsh)
            .tlbi(Tlbi::Ipas2le1is(operand));
        machine
            .dsb(Barrier::DsbIsh)
            .tlbi(Tlbi::Vaae1(operand))
            .dsb(Barrier::DsbIsh);
        machine.write(entry, old + 0x10_0000);
        let found = match machine.finds() {
            Violation::NotInvalidated { held, .. } => held,
            other => panic!("{other}"),
        };
        let here = found.cpus.contains(0);
        assert_eq!((found.kind, here), (Kind::Combined, kind.is_some()));
    }
}

#[test]
fn a_leaf_without_access_flag_is_in_no_tlb() {
    let mut machine = Machine::new();
    machine
        .write(PAGES, FIRST & !ACCESSED)
        .flush(&[Tlbi::Ipas2le1is(0)])
        .write(PAGES, LOCKED)
        .write(PAGES, MOVED)
        .is_silent();
}
