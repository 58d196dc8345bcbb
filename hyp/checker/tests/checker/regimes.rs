//! Invalidations by CPUs that don't run the VM: VTTBR_EL2 and VTCR_EL2 have to be its own, and in effect (rule 12).

use crate::machine::{FIRST, LOCKED, MOVED, Machine, PAGES, ROOT, VTCR, VTTBR};
use checker::{Barrier, CpuSet, Kind, Tlbi, Violation};

/// VTCR_EL2 without VS: VMIDs of 8 bits.
const NARROW: u64 = 1 << 31;
/// A VMID that 8 bits don't hold.
const WIDE: u64 = 0x107 << 48 | ROOT;

/// CPU 0 leaves the VM, CPUs 1 and 2 go on.
fn outside(vttbr: u64) -> Machine {
    let mut machine = Machine::new();
    for cpu in 1..3 {
        machine.load(cpu, vttbr);
    }
    machine.registers(0, NARROW).dsb(Barrier::Isb);
    machine
}

/// CPU 0 breaks an entry, invalidates as `steps` say, and makes the entry again.
fn break_and_make(mut machine: Machine, steps: impl Fn(&mut Machine)) -> Machine {
    machine.write(PAGES, LOCKED);
    steps(&mut machine);
    machine.write(PAGES, MOVED);
    machine
}

fn finds_the_old_leaf(mut machine: Machine) {
    let held = machine.finds_held();
    assert_eq!(held, (FIRST, Kind::Stage2, CpuSet::ALL));
}

#[test]
fn a_cpu_outside_switches_both_registers_and_synchronises() {
    for operation in [
        Tlbi::Ipas2le1is(0),
        Tlbi::Ripas2le1is(1 << 46),
        Tlbi::Vmalls12e1is,
    ] {
        let machine = outside(VTTBR);
        break_and_make(machine, |machine| {
            machine.registers(VTTBR, VTCR).dsb(Barrier::Isb);
            machine.flush(&[operation]);
            machine.registers(0, NARROW).dsb(Barrier::Isb);
        })
        .is_silent();
    }
}

#[test]
fn without_the_isb_the_old_vmid_may_be_meant() {
    finds_the_old_leaf(break_and_make(outside(VTTBR), |machine| {
        machine.registers(VTTBR, VTCR);
        machine.flush(&[Tlbi::Vmalls12e1is]);
    }));
    // Nor on the way back.
    let mut machine = outside(VTTBR);
    machine.registers(VTTBR, VTCR).dsb(Barrier::Isb);
    machine.registers(8 << 48, VTCR).dsb(Barrier::Isb);
    finds_the_old_leaf(break_and_make(machine, |machine| {
        machine.registers(VTTBR, VTCR);
        machine.flush(&[Tlbi::Vmalls12e1is]);
        machine.dsb(Barrier::Isb);
    }));
}

#[test]
fn with_vtcr_left_behind_another_vmid_is_meant() {
    let mut machine = outside(WIDE);
    // The VM has a VMID of its own; the first one was given up.
    machine.found.clear();
    finds_the_old_leaf(break_and_make(machine, |machine| {
        machine.registers(WIDE, NARROW).dsb(Barrier::Isb);
        machine.flush(&[Tlbi::Vmalls12e1is]);
    }));
    let mut machine = outside(WIDE);
    machine.found.clear();
    break_and_make(machine, |machine| {
        machine.registers(WIDE, VTCR).dsb(Barrier::Isb);
        machine.flush(&[Tlbi::Vmalls12e1is]);
    })
    .is_silent();
}

#[test]
fn a_guest_that_is_entered_with_another_vtcr_is_found() {
    // 16 KiB pages; 4 KiB pages with DS.
    for vtcr in [VTCR | 0b10 << 14, VTCR | 1 << 32] {
        let mut machine = Machine::new();
        machine.registers(VTTBR, vtcr);
        machine.found.extend(machine.checker.enter(0));
        let found = machine.finds();
        assert!(
            matches!(
                found,
                Violation::OtherRegime {
                    root: ROOT,
                    cpu: 0,
                    ..
                }
            ),
            "{found}"
        );
    }
}
