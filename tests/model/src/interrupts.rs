//! The virtual CPU interface of a GIC, as its hypervisor programs it and as its guest sees it (IHI 0069, chapter 6), for tests of
//! the `vgic` crate.
//!
//! It has what a guest's registers do to list registers: acknowledging, dropping the priority, deactivating, EOIcount, the
//! conditions of the maintenance interrupt. Physical interrupts are a set of those that are active.

use std::collections::{BTreeMap, BTreeSet};

use vgic::{ActivePriorities, ListRegister, VirtualInterface, hcr, vmcr};

/// Priorities have five bits, all of which tell levels of preemption apart.
const PRIORITY_STEP_SHIFT: u32 = 3;

const FIRST_LPI: u32 = 8192;

/// The interface of one CPU.
#[derive(Clone, Debug)]
pub struct CpuInterface {
    registers: Vec<ListRegister>,
    hcr: u64,
    vmcr: u64,
    active: ActivePriorities,
    /// Whether an LPI is active until it is ended, as QEMU has it: the architecture doesn't.
    pub has_active_lpis: bool,
    /// Whether DIR can trap.
    pub can_trap: bool,
    /// Physical interrupts that are active.
    pub physical: BTreeSet<u32>,
    /// Physical interrupts that were deactivated, in order.
    pub deactivated: Vec<u32>,
    /// Lines of forwarded interrupts.
    pub lines: BTreeMap<u32, bool>,
    /// Writes of list registers.
    pub writes: usize,
}

impl CpuInterface {
    /// One with so many list registers. What they hold is of somebody else.
    pub fn new(registers: usize) -> Self {
        Self {
            registers: vec![ListRegister::new(77, 0).with_state(true, true); registers],
            hcr: 3 << hcr::EOI_COUNT_SHIFT,
            vmcr: 0,
            active: ActivePriorities::NONE,
            has_active_lpis: false,
            can_trap: true,
            physical: BTreeSet::new(),
            deactivated: Vec::new(),
            lines: BTreeMap::new(),
            writes: 0,
        }
    }

    /// The guest sets its priority mask and enables groups, with EOImode 0.
    pub fn open(&mut self, mask: u8, group0: bool, group1: bool) {
        let enabled = u64::from(group0) * vmcr::VENG0 + u64::from(group1) * vmcr::VENG1;
        let mode = self.vmcr & vmcr::VEOIM;
        self.write_vmcr(u64::from(mask) << vmcr::VPMR_SHIFT | enabled | mode);
    }

    /// The guest chooses EOImode 1, in which EOIR doesn't deactivate.
    pub fn split_deactivation(&mut self) {
        self.vmcr |= vmcr::VEOIM;
    }

    /// The list registers that hold something.
    pub fn held(&self) -> impl Iterator<Item = ListRegister> {
        let held = |register: &ListRegister| !register.is_invalid();
        self.registers.iter().copied().filter(held)
    }

    /// The list register that holds an interrupt.
    pub fn holds(&self, intid: u32) -> Option<ListRegister> {
        let mut held = self.held().filter(|register| register.intid() == intid);
        let found = held.next();
        assert!(
            held.next().is_none(),
            "interrupt {intid} is in two list registers"
        );
        found
    }

    /// The priority of what runs, lower than all if nothing does.
    pub fn running(&self) -> u32 {
        let level = self.active.group0[0] | self.active.group1[0];
        if level == 0 {
            0x100
        } else {
            level.trailing_zeros() << PRIORITY_STEP_SHIFT
        }
    }

    fn signalled(&self) -> Option<usize> {
        let mask = (self.vmcr >> vmcr::VPMR_SHIFT) as u8;
        let enabled = |register: &ListRegister| {
            let enable = if register.group1() {
                vmcr::VENG1
            } else {
                vmcr::VENG0
            };
            self.vmcr & enable != 0
        };
        let mut best: Option<usize> = None;
        for (index, register) in self.registers.iter().enumerate() {
            let is_candidate = register.pending()
                && !register.active()
                && enabled(register)
                && register.priority() < mask
                && u32::from(register.priority()) < self.running();
            let is_better = |other: usize| register.priority() < self.registers[other].priority();
            if is_candidate && best.is_none_or(is_better) {
                best = Some(index);
            }
        }
        best
    }

    /// Whether an interrupt is signalled to the guest: a WFI doesn't sleep.
    pub fn is_signalled(&self) -> bool {
        self.signalled().is_some()
    }

    /// The guest reads IAR of the group that is signalled.
    pub fn acknowledge(&mut self) -> Option<u32> {
        let index = self.signalled()?;
        let register = self.registers[index];
        let active = register.intid() < FIRST_LPI || self.has_active_lpis;
        self.registers[index] = register.with_state(false, active);
        let level = 1 << (register.priority() >> PRIORITY_STEP_SHIFT);
        if register.group1() {
            self.active.group1[0] |= level;
        } else {
            self.active.group0[0] |= level;
        }
        Some(register.intid())
    }

    /// The guest writes EOIR.
    pub fn end(&mut self, intid: u32) {
        let level = self.active.group0[0] | self.active.group1[0];
        if level == 0 {
            return;
        }
        let highest = level & level.wrapping_neg();
        if self.active.group0[0] & highest != 0 {
            self.active.group0[0] &= !highest;
        } else {
            self.active.group1[0] &= !highest;
        }
        if self.vmcr & vmcr::VEOIM == 0 || intid >= FIRST_LPI {
            self.deactivate_virtual(intid);
        } else if self.can_trap && !self.holds(intid).is_some_and(|register| register.active()) {
            // QEMU 10 does so; by the architecture only DIR counts then.
            self.count_end();
        }
    }

    /// The guest writes DIR. Returns whether that traps.
    pub fn write_dir(&mut self, intid: u32) -> bool {
        if self.hcr & hcr::TDIR != 0 {
            return true;
        }
        if self.vmcr & vmcr::VEOIM != 0 {
            self.deactivate_virtual(intid);
        }
        false
    }

    fn deactivate_virtual(&mut self, intid: u32) {
        let mut registers = self.registers.iter_mut();
        let found = registers.find(|register| register.active() && register.intid() == intid);
        let Some(register) = found else {
            if intid >= FIRST_LPI {
                return;
            }
            self.count_end();
            return;
        };
        assert!(
            register.physical().is_none() || !register.pending(),
            "{register:?}: a physical interrupt's state is in the distributor"
        );
        *register = register.with_state(register.pending(), false);
        if let Some(physical) = register.physical() {
            self.physical.remove(&physical);
        }
    }

    fn count_end(&mut self) {
        let count = ((self.hcr >> hcr::EOI_COUNT_SHIFT) + 1) & hcr::EOI_COUNT_MASK;
        let rest = self.hcr & !(hcr::EOI_COUNT_MASK << hcr::EOI_COUNT_SHIFT);
        self.hcr = rest | count << hcr::EOI_COUNT_SHIFT;
    }

    /// Whether the maintenance interrupt is asserted (ICH_MISR_EL2).
    pub fn wants_maintenance(&self) -> bool {
        let has = |bit| self.hcr & bit != 0;
        let none_pending = || {
            let pending = |register: &ListRegister| register.pending() && !register.active();
            !self.registers.iter().any(pending)
        };
        let ended = |register: &ListRegister| register.is_invalid() && register.eoi();
        let enabled = |bit| self.vmcr & bit != 0;
        let count = self.hcr >> hcr::EOI_COUNT_SHIFT & hcr::EOI_COUNT_MASK;
        has(hcr::EN)
            && (self.registers.iter().any(ended)
                || has(hcr::UIE) && self.held().count() < 2
                || has(hcr::LRENPIE) && count != 0
                || has(hcr::NPIE) && none_pending()
                || has(hcr::VGRP0EIE) && enabled(vmcr::VENG0)
                || has(hcr::VGRP1EIE) && enabled(vmcr::VENG1)
                || has(hcr::VGRP0DIE) && !enabled(vmcr::VENG0)
                || has(hcr::VGRP1DIE) && !enabled(vmcr::VENG1))
    }
}

impl VirtualInterface for CpuInterface {
    fn list_registers(&self) -> usize {
        self.registers.len()
    }

    fn read_lr(&self, index: usize) -> ListRegister {
        self.registers[index]
    }

    fn write_lr(&mut self, index: usize, value: ListRegister) {
        assert!(
            value.physical().is_none() || !(value.pending() && value.active()),
            "{value:?}: a physical interrupt's state is in the distributor"
        );
        self.registers[index] = value;
        self.writes += 1;
        self.holds(value.intid());
    }

    fn read_hcr(&self) -> u64 {
        self.hcr
    }

    fn write_hcr(&mut self, value: u64) {
        self.hcr = value;
    }

    fn read_vmcr(&self) -> u64 {
        self.vmcr
    }

    fn write_vmcr(&mut self, value: u64) {
        // The binary points that tell all levels apart.
        let points = 7 << vmcr::VBPR0_SHIFT | 7 << vmcr::VBPR1_SHIFT;
        let least = 2 << vmcr::VBPR0_SHIFT | 3 << vmcr::VBPR1_SHIFT;
        self.vmcr = value & !points | least;
    }

    fn read_active_priorities(&self) -> ActivePriorities {
        self.active
    }

    fn write_active_priorities(&mut self, value: ActivePriorities) {
        self.active = value;
    }

    fn can_trap_deactivation(&self) -> bool {
        self.can_trap
    }

    fn deactivate(&mut self, physical: u32) {
        self.physical.remove(&physical);
        self.deactivated.push(physical);
    }

    fn set_active(&mut self, physical: u32, active: bool) {
        if active {
            self.physical.insert(physical);
        } else {
            self.physical.remove(&physical);
        }
    }

    fn line(&self, physical: u32) -> Option<bool> {
        self.lines.get(&physical).copied()
    }
}
