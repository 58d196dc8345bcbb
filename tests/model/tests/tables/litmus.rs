//! The model itself against known outcomes: litmus shapes of relaxed virtual memory, at stage 2.
//!
//! Each shape is a few instructions per CPU and an outcome that the architecture allows or forbids. The model runs every
//! interleaving of them, and each load takes every translation that the TLBs may hold; so an allowed outcome has to turn
//! up, and a forbidden one must not. Where a shape breaks a rule of break-before-make, the model has to say so.
//!
//! | source | what is taken from it |
//! |---|---|
//! | Simner et al., 'Relaxed virtual memory in Armv8-A', ESOP 2022, and its `system-litmus-harness` | shapes `Co*`, `MP.*`, `BBM*`, `WRC.*`, `RBS`, under their names. There EL1 changes its stage 1 and invalidates with VAE1(IS); here EL2 changes stage 2, and invalidates with IPAS2LE1(IS), DSB, VMALLE1(IS) |
//! | the same group's `archsem` | what two stages add: `IntermediateTLB+MultiStage`, `UpdateWhileUnmapped`, `BBMLateLink` |
//! | the same group's `casemate` | protocols that are right and wrong: `good_bbm`, `bad_reuse_page`, … |
//! | Arm ARM D8.16 (break-before-make), D8.17 (TLB maintenance) | the rest, by section |
//!
//! What is left out: shapes whose point is that plain loads and stores are reordered. In this model memory is in order and
//! a store is visible at once; what it lets through, it lets through because of TLBs, and of registers that aren't in
//! effect yet. Store buffering between an entry and a VMID is the model checker's (`interleavings/vmids.rs`).
// Miri doesn't know how the schedules switch stacks.
#![cfg(not(miri))]

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use Step::*;
use Value::*;
use checker::Barrier::{DsbIsh, DsbIshst, DsbNsh, Isb};
use checker::Tlbi::{
    Alle1is, Alle2is, Ipas2e1is, Ipas2le1, Ipas2le1is, Vae2is, Vmalle1, Vmalle1is, Vmalls12e1is,
};
use checker::{Barrier, Checker, Format, Geometry, Granule, Memory, Tlbi, Violation};

/// One instruction, or one event of the hypervisor's.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// Stores a descriptor.
    Write(u64, u64),
    /// DSB, or ISB.
    Order(Barrier),
    /// TLBI.
    Drop(Tlbi),
    /// Stores 1 to `y`.
    Signal,
    /// Loads `y`.
    See,
    /// A guest's load.
    Load(u64),
    /// A guest's load, of `y` if the old mapping is used.
    LoadAlias(u64),
    /// Loads a descriptor.
    LoadEntry(u64),
    /// Gives a table's frame back.
    Free(u64),
    /// Writes VTTBR_EL2.
    Vttbr(u64),
    /// Writes VTCR_EL2.
    Vtcr(u64),
    /// Enters a guest, whose tables are walked from now on.
    Enter,
}

/// What a load found.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Value {
    /// This, in `y`.
    Is(u64),
    /// What the old mapping leads to, or the old descriptor.
    Old,
    /// What the new mapping leads to, or the new descriptor.
    New,
    /// A translation fault.
    Fault,
}

/// What the model has to report on some interleaving; on none, anything else.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Report {
    Nothing,
    NoBreak,
    NotInvalidated,
    FreedReachable,
    VmidReused,
}

struct Shape {
    name: &'static str,
    start: Start,
    threads: &'static [&'static [Step]],
    outcome: &'static [Value],
    allowed: bool,
    report: Report,
}

/// What the page X is at first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Start {
    Mapped,
    Unmapped,
    /// Unmapped at level 2; a table that nothing links maps it.
    Hidden,
}

const ROOT: u64 = 0x10_0000;
const MIDDLE: u64 = 0x20_0000;
const PAGES: u64 = 0x30_0000;
const HIDDEN: u64 = 0x40_0000;
const OTHER_ROOT: u64 = 0x50_0000;
/// A VMID that 8 bits don't hold, and one that has the same lower half.
const VTTBR: u64 = 0x107 << 48 | ROOT;
const OTHER: u64 = 0x207 << 48 | OTHER_ROOT;
/// VTCR_EL2 with VMIDs of 16 bits; as a CPU has it that ran no VM yet.
const VTCR: u64 = 1 << 31 | 1 << 19;
const BOOT_VTCR: u64 = 1 << 31;
const X: u64 = 0;
const Z: u64 = 0x1000;
/// The entries of X and Z at level 3, and the one above them.
const PTE_X: u64 = PAGES;
const PTE_Z: u64 = PAGES + 8;
const PMD: u64 = MIDDLE;

const OLD: u64 = 0x800_0000;
const NEW: u64 = 0x900_0000;
const OLD_PAGE: u64 = OLD | 0x7ff;
const NEW_PAGE: u64 = NEW | 0x7ff;
const NEW_BLOCK: u64 = NEW | 0x7fd;
const INVALID: u64 = 0;

/// Operands: the page X; with the level of its leaf as a hint, right and wrong.
const AT_X: u64 = 0;
const LEVEL_3: u64 = 0b0111 << 44;
const LEVEL_2: u64 = 0b0110 << 44;

const DSB: Step = Order(DsbIsh);
const ISB: Step = Order(Isb);
const IPA: Step = Drop(Ipas2le1is(AT_X));
const VMALL: Step = Drop(Vmalle1is);

const fn shape(
    name: &'static str,
    start: Start,
    threads: &'static [&'static [Step]],
    outcome: &'static [Value],
    allowed: bool,
    report: Report,
) -> Shape {
    Shape {
        name,
        start,
        threads,
        outcome,
        allowed,
        report,
    }
}

use Report::{FreedReachable, NoBreak, NotInvalidated, Nothing, VmidReused};
use Start::{Hidden, Mapped, Unmapped};

const ALLOWED: bool = true;
const FORBIDDEN: bool = false;

#[rustfmt::skip]
const SHAPES: &[Shape] = &[
    // ESOP 2022: one CPU changes an entry and uses it.
    shape("CoWinvT", Mapped, &[&[Write(PTE_X, INVALID), Load(X)]], &[Old], ALLOWED, Nothing),
    shape("CoWinvT+dsb-isb", Mapped, &[&[Write(PTE_X, INVALID), DSB, ISB, Load(X)]], &[Old], ALLOWED, Nothing),
    shape("CoWinvT1+tlbi-dsb", Mapped,
        &[&[Write(PTE_X, INVALID), Drop(Ipas2le1(AT_X)), Order(DsbNsh), Drop(Vmalle1), Order(DsbNsh), Load(X)]],
        &[Old], ALLOWED, Nothing),
    shape("CoWinvT1+dsb-tlbi-dsb", Mapped,
        &[&[Write(PTE_X, INVALID), Order(DsbNsh), Drop(Ipas2le1(AT_X)), Order(DsbNsh), Drop(Vmalle1), Order(DsbNsh), Load(X)]],
        &[Old], FORBIDDEN, Nothing),
    shape("CoWT.inv+dsb-isb", Unmapped, &[&[Write(PTE_X, NEW_PAGE), DSB, ISB, Load(X)]], &[Fault], FORBIDDEN, Nothing),
    shape("CoWT1+dsb-tlbi-dsb", Mapped,
        &[&[Write(PTE_X, NEW_PAGE), Order(DsbNsh), Drop(Ipas2le1(AT_X)), Order(DsbNsh), Drop(Vmalle1), Order(DsbNsh), Load(X)]],
        &[Old], FORBIDDEN, NoBreak),
    shape("CoWinvWT1+dsb-tlbi-dsb-dsb-isb", Mapped,
        &[&[Write(PTE_X, INVALID), DSB, IPA, DSB, VMALL, DSB, Write(PTE_X, NEW_PAGE), DSB, ISB, Load(X)]],
        &[Old], FORBIDDEN, Nothing),
    // ESOP 2022: coherence of one entry's translations and loads.
    shape("CoTT", Mapped, &[&[Write(PTE_X, NEW_PAGE)], &[Load(X), Load(X)]], &[New, Old], ALLOWED, NoBreak),
    shape("CoRT+dsb-isb", Mapped, &[&[Write(PTE_X, NEW_PAGE)], &[LoadEntry(PTE_X), DSB, ISB, Load(X)]],
        &[New, Old], ALLOWED, NoBreak),
    shape("CoTR.inv+dsb-isb", Unmapped, &[&[Write(PTE_X, NEW_PAGE)], &[Load(X), DSB, ISB, LoadEntry(PTE_X)]],
        &[New, Old], FORBIDDEN, Nothing),
    // ESOP 2022: one CPU unmaps and says so, another one uses the page.
    shape("MP.invRT+dsb+dsb-isb", Mapped, &[&[Write(PTE_X, INVALID), DSB, Signal], &[See, DSB, ISB, Load(X)]],
        &[Is(1), Old], ALLOWED, Nothing),
    shape("MP.invRT1+dsb-tlbiis-dsb+dsb-isb", Mapped,
        &[&[Write(PTE_X, INVALID), DSB, IPA, DSB, VMALL, DSB, Signal], &[See, DSB, ISB, Load(X)]],
        &[Is(1), Old], FORBIDDEN, Nothing),
    shape("MP.invRT1+dsb-tlbiis-dsb+dsb-isb, before it is said", Mapped,
        &[&[Write(PTE_X, INVALID), DSB, IPA, DSB, VMALL, DSB, Signal], &[See, DSB, ISB, Load(X)]],
        &[Is(0), Old], ALLOWED, Nothing),
    shape("MP.RT1+dsb-tlbi-dsb+dsb-isb", Mapped,
        &[&[Write(PTE_X, NEW_PAGE), DSB, Drop(Ipas2le1(AT_X)), DSB, Drop(Vmalle1), DSB, Signal], &[See, DSB, Load(X)]],
        &[Is(1), Old], ALLOWED, NoBreak),
    shape("MP.RT1+dsb-tlbiis-dsb+dsb-isb", Mapped,
        &[&[Write(PTE_X, NEW_PAGE), DSB, IPA, DSB, VMALL, DSB, Signal], &[See, DSB, ISB, Load(X)]],
        &[Is(1), Old], FORBIDDEN, NoBreak),
    shape("MP.RT1+dsb-tlbiallis-dsb+dsb-isb", Mapped,
        &[&[Write(PTE_X, NEW_PAGE), DSB, Drop(Vmalls12e1is), DSB, Signal], &[See, DSB, ISB, Load(X)]],
        &[Is(1), Old], FORBIDDEN, NoBreak),
    shape("RBS+dsb-tlbiis-dsb", Mapped,
        &[&[Write(PTE_X, INVALID), DSB, IPA, DSB, VMALL, DSB, Signal], &[LoadAlias(X)]],
        &[Is(1)], FORBIDDEN, Nothing),
    shape("RBS+dsb-tlbiis", Mapped,
        &[&[Write(PTE_X, INVALID), DSB, IPA, DSB, VMALL, Signal], &[LoadAlias(X)]],
        &[Is(1)], ALLOWED, Nothing),
    shape("MP.TT+dmb+dsb-isb", Mapped,
        &[&[Write(PTE_X, NEW_PAGE), Write(PTE_Z, NEW_PAGE + 0x1000)], &[Load(Z), DSB, ISB, Load(X)]],
        &[New, Old], ALLOWED, NoBreak),
    // ESOP 2022: break, make, then say so.
    shape("BBM1+dsb-tlbiis-dsb-dsb+dsb-isb, stale", Mapped,
        &[&[Write(PTE_X, INVALID), DSB, IPA, DSB, VMALL, DSB, Write(PTE_X, NEW_PAGE), DSB, Signal], &[See, DSB, ISB, Load(X)]],
        &[Is(1), Old], FORBIDDEN, Nothing),
    shape("BBM1+dsb-tlbiis-dsb-dsb+dsb-isb, spurious", Mapped,
        &[&[Write(PTE_X, INVALID), DSB, IPA, DSB, VMALL, DSB, Write(PTE_X, NEW_PAGE), DSB, Signal], &[See, DSB, ISB, Load(X)]],
        &[Is(1), Fault], FORBIDDEN, Nothing),
    shape("BBM1+dsb-tlbiis-dsb-dsb+dsb-isb, meanwhile", Mapped,
        &[&[Write(PTE_X, INVALID), DSB, IPA, DSB, VMALL, DSB, Write(PTE_X, NEW_PAGE), DSB, Signal], &[See, Load(X)]],
        &[Is(0), Fault], ALLOWED, Nothing),
    shape("MP.BBM1+tlbiis-dsb-dsb+dsb-isb", Mapped,
        &[&[Write(PTE_X, INVALID), IPA, DSB, VMALL, DSB, Write(PTE_X, NEW_PAGE), DSB, Signal], &[See, DSB, ISB, Load(X)]],
        &[Is(1), Old], ALLOWED, NotInvalidated),
    shape("MP.BBM1+dsb-tlbiis-dmb-dmb+dmb", Mapped,
        &[&[Write(PTE_X, INVALID), DSB, IPA, VMALL, Write(PTE_X, NEW_PAGE), Signal], &[See, Load(X)]],
        &[Is(1), Old], ALLOWED, NotInvalidated),
    // ESOP 2022: who invalidates need not be who stored.
    shape("WRC.TRT+dsb-isbs", Mapped,
        &[&[Write(PTE_X, INVALID)], &[LoadEntry(PTE_X), DSB, ISB, Signal], &[See, DSB, ISB, Load(X)]],
        &[New, Is(1), Old], ALLOWED, Nothing),
    shape("WRC.TRT1+dsb-tlbiis-dsb+dsb-isb", Mapped,
        &[&[Write(PTE_X, INVALID)], &[LoadEntry(PTE_X), DSB, IPA, DSB, VMALL, DSB, Signal], &[See, DSB, Load(X)]],
        &[New, Is(1), Old], FORBIDDEN, Nothing),
    // archsem: two stages, and tables that come and go.
    shape("IntermediateTLB+MultiStage.inv33", Mapped,
        &[&[Write(PTE_X, INVALID), DSB, IPA, DSB, Load(X)]], &[Old], ALLOWED, Nothing),
    shape("IntermediateTLB+MultiStage.inv33, and combined", Mapped,
        &[&[Write(PTE_X, INVALID), DSB, IPA, DSB, VMALL, DSB, Load(X)]], &[Old], FORBIDDEN, Nothing),
    shape("UpdateWhileUnmappedSimple", Hidden,
        &[&[Write(HIDDEN, NEW_PAGE), DSB, Write(PMD, HIDDEN | 3), DSB, ISB, Load(X)]], &[Old], FORBIDDEN, Nothing),
    shape("UpdateWhileUnmapped, of a table that was linked", Mapped,
        &[&[Write(PMD, INVALID), DSB, IPA, DSB, VMALL, DSB, Write(PTE_X, NEW_PAGE), Write(PMD, PAGES | 3), Load(X)]],
        &[Old], ALLOWED, NoBreak),
    shape("BBMLateLink", Hidden,
        &[&[Write(PMD, HIDDEN | 3), Order(DsbIshst), ISB, Load(X), Write(HIDDEN, NEW_PAGE), Order(DsbIshst), Load(X)]],
        &[Old, Old], ALLOWED, NoBreak),
    // D8.17: scopes, and the order of the two invalidations.
    shape("D8.17 combined first", Mapped,
        &[&[Write(PTE_X, INVALID), DSB, VMALL, DSB, IPA, DSB, Load(X)]], &[Old], ALLOWED, Nothing),
    shape("D8.17 no DSB between stage 2 and combined", Mapped,
        &[&[Write(PTE_X, INVALID), DSB, IPA, VMALL, DSB, Load(X)]], &[Old], ALLOWED, Nothing),
    shape("D8.17 stage 1 alone", Mapped,
        &[&[Write(PTE_X, INVALID), DSB, VMALL, DSB, Load(X)]], &[Old], ALLOWED, Nothing),
    shape("D8.17 level hint", Mapped,
        &[&[Write(PTE_X, INVALID), DSB, Drop(Ipas2le1is(LEVEL_3)), DSB, VMALL, DSB, Load(X)]], &[Old], FORBIDDEN, Nothing),
    shape("D8.17 wrong level hint", Mapped,
        &[&[Write(PTE_X, INVALID), DSB, Drop(Ipas2le1is(LEVEL_2)), DSB, VMALL, DSB, Load(X)]], &[Old], ALLOWED, Nothing),
    shape("D8.17 another page", Mapped,
        &[&[Write(PTE_X, INVALID), DSB, Drop(Ipas2le1is(AT_X + 1)), DSB, VMALL, DSB, Load(X)]], &[Old], ALLOWED, Nothing),
    shape("D8.17 last level leaves the link", Mapped,
        &[&[Write(PMD, INVALID), DSB, IPA, DSB, VMALL, DSB, Load(X)]], &[Old], ALLOWED, Nothing),
    shape("D8.17 all levels take the link", Mapped,
        &[&[Write(PMD, INVALID), DSB, Drop(Ipas2e1is(AT_X)), DSB, VMALL, DSB, Load(X)]], &[Old], FORBIDDEN, Nothing),
    shape("D8.17 all levels of one page leave its neighbours", Mapped,
        &[&[Write(PMD, INVALID), DSB, Drop(Ipas2e1is(AT_X)), DSB, VMALL, DSB, Load(Z)]], &[Old], ALLOWED, Nothing),
    shape("D8.17 every VMID", Mapped,
        &[&[Write(PTE_X, INVALID), DSB, Drop(Alle1is), DSB, Load(X)]], &[Old], FORBIDDEN, Nothing),
    // D8.16: what needs the break.
    shape("D8.16 block over table, whole", Mapped,
        &[&[Write(PMD, INVALID), DSB, Drop(Vmalls12e1is), DSB, Write(PMD, NEW_BLOCK), Free(PAGES), Load(X)]],
        &[Old], FORBIDDEN, Nothing),
    shape("D8.16 block over table, last level", Mapped,
        &[&[Write(PMD, INVALID), DSB, IPA, DSB, VMALL, DSB, Write(PMD, NEW_BLOCK), Load(X)]],
        &[Old], ALLOWED, NotInvalidated),
    shape("D8.16 block over table, no break", Mapped, &[&[Write(PMD, NEW_BLOCK), Load(X)]], &[Old], ALLOWED, NoBreak),
    // casemate: protocols.
    shape("good_bbm", Mapped,
        &[&[Write(PTE_X, INVALID), DSB, IPA, DSB, VMALL, DSB, Write(PTE_X, NEW_PAGE), Load(X)]], &[Old], FORBIDDEN, Nothing),
    shape("good_bbm_by_VMID", Mapped,
        &[&[Write(PTE_X, INVALID), DSB, Drop(Vmalls12e1is), DSB, Write(PTE_X, NEW_PAGE), Load(X)]], &[Old], FORBIDDEN, Nothing),
    shape("bad_no_bbm", Mapped, &[&[Write(PTE_X, NEW_PAGE), Load(X)]], &[Old], ALLOWED, NoBreak),
    shape("bad_bbm_missing_tlbi", Mapped,
        &[&[Write(PTE_X, INVALID), DSB, Write(PTE_X, NEW_PAGE), Load(X)]], &[Old], ALLOWED, NotInvalidated),
    shape("bad_bbm_by_wrong_VMID", Mapped,
        &[&[Vttbr(OTHER), ISB, Write(PTE_X, INVALID), DSB, Drop(Vmalls12e1is), DSB, Vttbr(VTTBR), ISB,
            Write(PTE_X, NEW_PAGE), Load(X)]],
        &[Old], ALLOWED, NotInvalidated),
    shape("bad_overlap_VMID", Mapped, &[&[Vttbr(0x107 << 48 | OTHER_ROOT), Enter]], &[], ALLOWED, VmidReused),
    shape("good_free_page", Mapped,
        &[&[Write(PMD, INVALID), DSB, Drop(Vmalls12e1is), DSB, Free(PAGES), Load(X)]], &[Old], FORBIDDEN, Nothing),
    shape("bad_reuse_page", Mapped, &[&[Write(PMD, INVALID), DSB, Free(PAGES)]], &[], ALLOWED, FreedReachable),
    // Rule 12, and D8.2 (System registers take effect with a context synchronisation event): CPU 0 runs another VM, or
    // none, and changes what CPU 1's guest translates by.
    shape("good_bbm_from_outside", Mapped,
        &[&[Vttbr(OTHER), ISB, Write(PTE_X, INVALID), DSB, Vttbr(VTTBR), ISB, Drop(Vmalls12e1is), DSB, Vttbr(OTHER),
            ISB, Write(PTE_X, NEW_PAGE), Signal], &[See, DSB, ISB, Load(X)]],
        &[Is(1), Old], FORBIDDEN, Nothing),
    shape("bad_bbm_from_outside, no ISB after VTTBR", Mapped,
        &[&[Vttbr(OTHER), ISB, Write(PTE_X, INVALID), DSB, Vttbr(VTTBR), Drop(Vmalls12e1is), DSB,
            Write(PTE_X, NEW_PAGE), Signal], &[See, Load(X)]],
        &[Is(1), Old], ALLOWED, NotInvalidated),
    shape("bad_bbm_from_outside, ISB after the TLBI", Mapped,
        &[&[Vttbr(OTHER), ISB, Write(PTE_X, INVALID), DSB, Vttbr(VTTBR), Drop(Vmalls12e1is), ISB, DSB,
            Write(PTE_X, NEW_PAGE), Signal], &[See, Load(X)]],
        &[Is(1), Old], ALLOWED, NotInvalidated),
    shape("bad_bbm_inside, no ISB after VTTBR is put back", Mapped,
        &[&[Vttbr(OTHER), ISB, Vttbr(VTTBR), Write(PTE_X, INVALID), DSB, Drop(Vmalls12e1is), DSB,
            Write(PTE_X, NEW_PAGE), Load(X)]],
        &[Old], ALLOWED, NotInvalidated),
    shape("good_bbm_from_outside, VTCR switched too", Mapped,
        &[&[Vttbr(0), Vtcr(BOOT_VTCR), ISB, Write(PTE_X, INVALID), DSB, Vttbr(VTTBR), Vtcr(VTCR), ISB,
            Drop(Vmalls12e1is), DSB, Write(PTE_X, NEW_PAGE), Signal], &[See, Load(X)]],
        &[Is(1), Old], FORBIDDEN, Nothing),
    shape("bad_bbm_from_outside, VTCR left behind", Mapped,
        &[&[Vttbr(0), Vtcr(BOOT_VTCR), ISB, Write(PTE_X, INVALID), DSB, Vttbr(VTTBR), ISB, Drop(Vmalls12e1is), DSB,
            Write(PTE_X, NEW_PAGE), Signal], &[See, Load(X)]],
        &[Is(1), Old], ALLOWED, NotInvalidated),
    shape("bad_bbm_from_outside, VTCR of another granule", Mapped,
        &[&[Vttbr(0), Vtcr(VTCR | 0b10 << 14), ISB, Write(PTE_X, INVALID), DSB, Vttbr(VTTBR), ISB, IPA, DSB, VMALL, DSB,
            Write(PTE_X, NEW_PAGE), Load(X)]],
        &[Old], ALLOWED, NotInvalidated),
    // What was found in open-source hypervisors.
    shape("hypervisor: a flush that does nothing", Mapped,
        &[&[Write(PTE_X, INVALID), Write(PTE_X, NEW_PAGE), Load(X)]], &[Old], ALLOWED, NotInvalidated),
    shape("hypervisor: EL2's stage-1 invalidation for stage 2, by address", Mapped,
        &[&[Write(PTE_X, INVALID), DSB, Drop(Vae2is(AT_X)), DSB, Write(PTE_X, NEW_PAGE), Load(X)]],
        &[Old], ALLOWED, NotInvalidated),
    shape("hypervisor: EL2's stage-1 invalidation for stage 2, all", Mapped,
        &[&[Write(PTE_X, INVALID), DSB, Drop(Alle2is), DSB, Write(PTE_X, NEW_PAGE), Load(X)]],
        &[Old], ALLOWED, NotInvalidated),
    shape("hypervisor: the combined entries left alone", Mapped,
        &[&[Write(PTE_X, INVALID), DSB, IPA, DSB, Write(PTE_X, NEW_PAGE), Load(X)]], &[Old], ALLOWED, NotInvalidated),
    shape("hypervisor: frames freed before the invalidation", Mapped,
        &[&[Write(PMD, INVALID), Free(PAGES), DSB, Drop(Vmalls12e1is), DSB]], &[], ALLOWED, FreedReachable),
];

#[test]
fn every_shape_has_the_outcomes_and_reports_that_it_should() {
    let mut wrong = Vec::new();
    for shape in SHAPES {
        let (outcomes, reports) = run(shape);
        if outcomes.contains(shape.outcome) != shape.allowed {
            let verdict = if shape.allowed {
                "allowed, but not found"
            } else {
                "forbidden, but found"
            };
            wrong.push(format!("{}: {:?} is {verdict}", shape.name, shape.outcome));
        }
        let found: Vec<Report> = reports.iter().map(report).collect();
        let fits = match shape.report {
            Nothing => found.is_empty(),
            report => found.contains(&report),
        };
        if !fits {
            wrong.push(format!(
                "{}: wants {:?}, reports {reports:?}",
                shape.name, shape.report
            ));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn shapes_have_names_of_their_own() {
    let names: BTreeSet<&str> = SHAPES.iter().map(|shape| shape.name).collect();
    assert_eq!(names.len(), SHAPES.len());
}

/// Which report a violation is.
fn report(violation: &Violation) -> Report {
    match violation {
        Violation::NoBreak { .. } => NoBreak,
        Violation::NotInvalidated { .. } => NotInvalidated,
        Violation::FreedReachable { .. } => FreedReachable,
        Violation::VmidReused { .. } => VmidReused,
        other => panic!("no shape is about this: {other}"),
    }
}

/// The outcomes and the reports of all interleavings.
fn run(shape: &Shape) -> (BTreeSet<Vec<Value>>, Vec<Violation>) {
    let mut outcomes = BTreeSet::new();
    let mut reports = Vec::new();
    let lengths: Vec<usize> = shape.threads.iter().map(|steps| steps.len()).collect();
    for order in interleavings(&lengths) {
        let mut machine = Machine::new(shape.start, shape.threads.len());
        let mut next = vec![0; shape.threads.len()];
        for cpu in order {
            let step = shape.threads[cpu][next[cpu]];
            next[cpu] += 1;
            machine.step(cpu, step);
        }
        outcomes.extend(machine.outcomes());
        reports.extend(machine.found);
    }
    (outcomes, reports)
}

/// Every order in which so many steps of each thread can be taken.
fn interleavings(left: &[usize]) -> Vec<Vec<usize>> {
    if left.iter().all(|steps| *steps == 0) {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for thread in (0..left.len()).filter(|thread| left[*thread] > 0) {
        let mut rest = left.to_vec();
        rest[thread] -= 1;
        for mut order in interleavings(&rest) {
            order.insert(0, thread);
            all.push(order);
        }
    }
    all
}

#[derive(Clone, Default)]
struct Words(Rc<RefCell<BTreeMap<u64, u64>>>);

impl Memory for Words {
    fn load(&self, address: u64) -> u64 {
        self.0.borrow().get(&address).copied().unwrap_or(0)
    }
}

/// One run: memory, checker, and what each CPU's loads may have found.
struct Machine {
    words: Words,
    checker: Checker<Words>,
    signal: u64,
    found: Vec<Violation>,
    /// Per CPU and load, every value that it may have got.
    loads: Vec<Vec<BTreeSet<Value>>>,
    initial: u64,
}

impl Machine {
    fn new(start: Start, cpus: usize) -> Self {
        let words = Words::default();
        let table = |frame: u64| frame | 3;
        let mut build = vec![
            (ROOT, table(MIDDLE)),
            (
                PTE_Z,
                if start == Mapped {
                    OLD_PAGE + 0x1000
                } else {
                    INVALID
                },
            ),
        ];
        match start {
            Mapped => build.extend([(PMD, table(PAGES)), (PTE_X, OLD_PAGE)]),
            Unmapped => build.push((PMD, table(PAGES))),
            Hidden => build.push((HIDDEN, OLD_PAGE)),
        }
        words.0.borrow_mut().extend(build);
        let geometry = Geometry {
            stride: 2,
            groups: [1; 4],
            ..Geometry::new(Granule::Size4K, Format::Narrow, 1, 1)
        };
        let mut machine = Self {
            initial: words.load(PTE_X),
            checker: Checker::new(words.clone()),
            words,
            signal: 0,
            found: Vec::new(),
            loads: vec![Vec::new(); cpus],
        };
        machine.checker.root_created(ROOT, geometry);
        machine.checker.root_created(OTHER_ROOT, geometry);
        for cpu in 0..cpus {
            for step in [Vtcr(VTCR), Vttbr(VTTBR), Enter] {
                machine.step(cpu, step);
            }
        }
        machine
    }

    fn step(&mut self, cpu: usize, step: Step) {
        match step {
            Write(entry, word) => {
                let old = self.words.load(entry);
                let found = self.checker.change(cpu, entry, &mut || {
                    self.words.0.borrow_mut().insert(entry, word);
                    Some((old, word))
                });
                self.found.extend(found);
            }
            Order(barrier) => self.checker.barrier(cpu, barrier),
            Drop(operation) => self.checker.tlbi(cpu, operation),
            Signal => self.signal = 1,
            See => self.loads[cpu].push(BTreeSet::from([Is(self.signal)])),
            Load(ipa) => {
                let values = self.translate(cpu, ipa);
                self.loads[cpu].push(values);
            }
            LoadAlias(ipa) => {
                let signal = Is(self.signal);
                let through = |value| if value == Old { signal } else { value };
                let values = self.translate(cpu, ipa).into_iter().map(through).collect();
                self.loads[cpu].push(values);
            }
            LoadEntry(entry) => {
                let value = if self.words.load(entry) == self.initial {
                    Old
                } else {
                    New
                };
                self.loads[cpu].push(BTreeSet::from([value]));
            }
            Free(frame) => self.found.extend(self.checker.table_freed(cpu, frame)),
            Vttbr(value) => self.checker.vttbr(cpu, value),
            Vtcr(value) => self.checker.vtcr(cpu, value),
            Enter => self.found.extend(self.checker.enter(cpu)),
        }
    }

    /// What a load may find: any translation that the CPU may have, or a fault if the tables have none.
    fn translate(&self, cpu: usize, ipa: u64) -> BTreeSet<Value> {
        let offset = ipa;
        let mut values: BTreeSet<Value> = (self.checker.translations(ROOT, cpu, ipa).iter())
            .map(|way| if way.output - offset == OLD { Old } else { New })
            .collect();
        if !self.is_mapped(ipa) {
            values.insert(Fault);
        }
        values
    }

    fn is_mapped(&self, ipa: u64) -> bool {
        let mut table = ROOT;
        for level in 1..=3 {
            let index = ipa >> (12 + 2 * (3 - level)) & 3;
            let word = self.words.load(table + index * 8);
            match (word & 3, level) {
                (3, 1 | 2) => table = word & !0xfff,
                (3, 3) | (1, 1 | 2) => return true,
                _ => return false,
            }
        }
        false
    }

    /// Every combination of what the loads may have found, CPU by CPU.
    fn outcomes(&self) -> Vec<Vec<Value>> {
        let mut all = vec![Vec::new()];
        for values in self.loads.iter().flatten() {
            all = (all.iter())
                .flat_map(|before| {
                    values.iter().map(|value| {
                        let mut with = before.clone();
                        with.push(*value);
                        with
                    })
                })
                .collect();
        }
        all
    }
}
