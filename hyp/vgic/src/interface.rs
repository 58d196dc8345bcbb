//! The list registers of a physical CPU: what the virtual CPU interface of its guest works on.
//!
//! Values are in the layout of the GICv3 system registers (ICH_*_EL2). The GICv2's memory-mapped ones (GICH_*) differ in the
//! list registers only: [`ListRegister::from_v2_bits`] and [`ListRegister::v2_bits`] convert.

use core::fmt;

/// The most list registers that a CPU has.
pub const MAX_LIST_REGISTERS: usize = 16;

/// A list register, in the layout of ICH_LRn_EL2.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct ListRegister(u64);

impl ListRegister {
    const EOI: u64 = 1 << 41;
    const GROUP1: u64 = 1 << 60;
    const HW: u64 = 1 << 61;
    const PENDING: u64 = 1 << 62;
    const ACTIVE: u64 = 1 << 63;

    /// One that holds nothing.
    pub const INVALID: Self = Self(0);

    /// An interrupt that is neither pending nor active, of group 0.
    pub const fn new(intid: u32, priority: u8) -> Self {
        Self(intid as u64 | (priority as u64) << 48)
    }

    /// From the register's value.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The register's value.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// From GICH_LRn.
    pub const fn from_v2_bits(bits: u32) -> Self {
        let bits = bits as u64;
        let hw = bits >> 31 & 1 != 0;
        // With HW, ten bits of the physical INTID; without, bit 19 asks for a maintenance interrupt, 12:10 are the source.
        let physical = bits >> 10 & 0x3ff;
        let low = bits & 0x3ff;
        let middle = if hw {
            physical << 32
        } else {
            (physical & 7) << 32 | (physical >> 9) << 41
        };
        let priority = (bits >> 23 & 0x1f) << 3;
        Self(
            low | middle
                | priority << 48
                | (bits >> 30 & 1) << 60
                | (hw as u64) << 61
                | (bits >> 28 & 3) << 62,
        )
    }

    /// As GICH_LRn.
    pub const fn v2_bits(self) -> u32 {
        let middle = if self.0 & Self::HW != 0 {
            (self.0 >> 32 & 0x3ff) << 10
        } else {
            (self.0 >> 32 & 7) << 10 | (self.0 >> 41 & 1) << 19
        };
        let bits = (self.0 & 0x3ff)
            | middle
            | (self.0 >> 51 & 0x1f) << 23
            | (self.0 >> 62 & 3) << 28
            | (self.0 >> 60 & 1) << 30
            | (self.0 >> 61 & 1) << 31;
        bits as u32
    }

    /// In this state.
    pub const fn with_state(self, pending: bool, active: bool) -> Self {
        Self(
            self.0 & !(Self::PENDING | Self::ACTIVE)
                | (pending as u64) << 62
                | (active as u64) << 63,
        )
    }

    /// Of group 1, or of group 0.
    pub const fn with_group1(self, group1: bool) -> Self {
        Self(self.0 & !Self::GROUP1 | (group1 as u64) << 60)
    }

    /// With a maintenance interrupt at its deactivation. There is none where a physical interrupt is attached.
    pub const fn with_eoi(self, eoi: bool) -> Self {
        Self(self.0 & !Self::EOI | (eoi as u64) << 41)
    }

    /// With a physical interrupt, which the guest's deactivation deactivates too (HW=1).
    pub const fn with_physical(self, intid: u32) -> Self {
        Self(self.0 & !(0x1fff << 32) | Self::HW | (intid as u64 & 0x1fff) << 32)
    }

    /// With the CPU that sent it, for an SGI of a GICv2.
    pub const fn with_source(self, source: u8) -> Self {
        Self(self.0 & !(7 << 32) | (source as u64 & 7) << 32)
    }

    /// The CPU that sent it, of an SGI of a GICv2.
    pub const fn source(self) -> u8 {
        if self.0 & Self::HW == 0 {
            (self.0 >> 32 & 7) as u8
        } else {
            0
        }
    }

    /// The virtual INTID.
    pub const fn intid(self) -> u32 {
        self.0 as u32
    }

    /// The priority.
    pub const fn priority(self) -> u8 {
        (self.0 >> 48) as u8
    }

    /// Whether it is pending.
    pub const fn pending(self) -> bool {
        self.0 & Self::PENDING != 0
    }

    /// Whether it is active.
    pub const fn active(self) -> bool {
        self.0 & Self::ACTIVE != 0
    }

    /// Whether it is neither, so that the register is free.
    pub const fn is_invalid(self) -> bool {
        self.0 & (Self::PENDING | Self::ACTIVE) == 0
    }

    /// Whether it is of group 1.
    pub const fn group1(self) -> bool {
        self.0 & Self::GROUP1 != 0
    }

    /// Whether its deactivation asks for a maintenance interrupt.
    pub const fn eoi(self) -> bool {
        self.0 & (Self::EOI | Self::HW) == Self::EOI
    }

    /// The physical interrupt.
    pub const fn physical(self) -> Option<u32> {
        if self.0 & Self::HW != 0 {
            Some((self.0 >> 32 & 0x1fff) as u32)
        } else {
            None
        }
    }
}

impl fmt::Debug for ListRegister {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match (self.pending(), self.active()) {
            (false, false) => "invalid",
            (true, false) => "pending",
            (false, true) => "active",
            (true, true) => "pending and active",
        };
        write!(f, "{} {state} at {:#x}", self.intid(), self.priority())?;
        if let Some(physical) = self.physical() {
            write!(f, " of physical {physical}")?;
        }
        if self.eoi() {
            f.write_str(" with EOI")?;
        }
        Ok(())
    }
}

/// The active priorities of a virtual CPU interface: ICH_AP0Rn_EL2 and ICH_AP1Rn_EL2, as many as there are. A GICv2 has
/// GICH_APR alone, which is `group0[0]`.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct ActivePriorities {
    /// Of group 0.
    pub group0: [u32; 4],
    /// Of group 1.
    pub group1: [u32; 4],
}

impl ActivePriorities {
    /// Nothing is active.
    pub const NONE: Self = Self {
        group0: [0; 4],
        group1: [0; 4],
    };
}

/// Bits of ICH_HCR_EL2 (of GICH_HCR, where it has them).
pub mod hcr {
    /// The virtual CPU interface works.
    pub const EN: u64 = 1;
    /// Maintenance interrupt: at most one list register is valid.
    pub const UIE: u64 = 1 << 1;
    /// Maintenance interrupt: EOIcount isn't 0.
    pub const LRENPIE: u64 = 1 << 2;
    /// Maintenance interrupt: no list register is pending.
    pub const NPIE: u64 = 1 << 3;
    /// Maintenance interrupt: the guest has enabled group 0.
    pub const VGRP0EIE: u64 = 1 << 4;
    /// Maintenance interrupt: the guest has disabled group 0.
    pub const VGRP0DIE: u64 = 1 << 5;
    /// Maintenance interrupt: the guest has enabled group 1.
    pub const VGRP1EIE: u64 = 1 << 6;
    /// Maintenance interrupt: the guest has disabled group 1.
    pub const VGRP1DIE: u64 = 1 << 7;
    /// The guest's writes of ICC_DIR_EL1 trap.
    pub const TDIR: u64 = 1 << 14;
    /// EOIcount: how many deactivations found no list register.
    pub const EOI_COUNT_SHIFT: u32 = 27;
    /// The largest EOIcount.
    pub const EOI_COUNT_MASK: u64 = 31;
}

/// Bits of ICH_VMCR_EL2 (of GICH_VMCR, in the same places).
pub mod vmcr {
    /// The guest has enabled group 0.
    pub const VENG0: u64 = 1;
    /// The guest has enabled group 1.
    pub const VENG1: u64 = 1 << 1;
    /// EOImode 1: EOIR drops the priority, DIR deactivates.
    pub const VEOIM: u64 = 1 << 9;
    /// Group 1 uses the binary point of group 0.
    pub const VCBPR: u64 = 1 << 4;
    /// Binary point of group 1.
    pub const VBPR1_SHIFT: u32 = 18;
    /// Binary point of group 0.
    pub const VBPR0_SHIFT: u32 = 21;
    /// Priority mask.
    pub const VPMR_SHIFT: u32 = 24;
}

/// The virtual CPU interface of a physical CPU, seen by its hypervisor, with its guest outside. The platform implements it for
/// ICH_*_EL2 and for GICH_*, and tests by a model.
///
/// Writes need take effect by the next entry only: an implementation may leave out an ISB after each.
pub trait VirtualInterface {
    /// How many list registers there are, 1 to [`MAX_LIST_REGISTERS`].
    fn list_registers(&self) -> usize;

    /// Reads a list register, below [`list_registers`](Self::list_registers).
    fn read_lr(&self, index: usize) -> ListRegister;

    /// Writes one.
    fn write_lr(&mut self, index: usize, value: ListRegister);

    /// Reads ICH_HCR_EL2 (GICH_HCR), as the guest left it: bits of [`hcr`].
    fn read_hcr(&self) -> u64;

    /// Writes it.
    fn write_hcr(&mut self, value: u64);

    /// Reads ICH_VMCR_EL2 (GICH_VMCR): bits of [`vmcr`].
    fn read_vmcr(&self) -> u64;

    /// Writes it.
    fn write_vmcr(&mut self, value: u64);

    /// Reads the active priorities.
    fn read_active_priorities(&self) -> ActivePriorities;

    /// Writes them.
    fn write_active_priorities(&mut self, value: ActivePriorities);

    /// How many bits of a priority the active priorities tell apart, 5 to 7 (ICH_VTR_EL2.PREbits + 1).
    fn preemption_bits(&self) -> u32 {
        5
    }

    /// Whether [`hcr::TDIR`] works (ICH_VTR_EL2.TDS).
    fn can_trap_deactivation(&self) -> bool {
        false
    }

    /// Deactivates a physical interrupt of this CPU or of all: for the platform, its GICC_DIR or ICC_DIR_EL1, or ICACTIVER where
    /// the interrupt isn't active on this CPU.
    fn deactivate(&mut self, physical: u32);

    /// Sets a physical private interrupt of this CPU active or not, as the vCPU that is put or loaded had it: GICR_ISACTIVER0 or
    /// GICR_ICACTIVER0.
    fn set_active(&mut self, physical: u32, active: bool);

    /// The level of a physical interrupt's line, where this CPU knows it (a timer's condition, and a device's while it is active):
    /// one that has fallen before its interrupt is in a list register raises nothing.
    fn line(&self, physical: u32) -> Option<bool> {
        let _ = physical;
        None
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn list_registers_have_the_fields_of_both_architectures() {
        let one = ListRegister::new(40, 0xa0)
            .with_state(true, false)
            .with_group1(true);
        assert_eq!(one.bits(), 1 << 62 | 1 << 60 | 0xa0 << 48 | 40);
        assert_eq!(one.v2_bits(), 1 << 30 | 1 << 28 | 0x14 << 23 | 40);
        let all = [
            one,
            one.with_eoi(true),
            one.with_physical(99).with_state(false, true),
            ListRegister::new(7, 0xf8)
                .with_source(5)
                .with_state(true, true),
            ListRegister::INVALID,
        ];
        for register in all {
            assert_eq!(ListRegister::from_v2_bits(register.v2_bits()), register);
            assert_eq!(ListRegister::from_bits(register.bits()), register);
        }
        assert_eq!(all[1].v2_bits() >> 19 & 1, 1);
        assert_eq!(
            all[2].v2_bits(),
            1 << 31 | 1 << 30 | 2 << 28 | 0x14 << 23 | 99 << 10 | 40
        );
        assert!(all[1].eoi() && !all[2].eoi() && all[2].physical() == Some(99));
        assert_eq!(all[3].v2_bits() >> 10 & 7, 5);
        assert_eq!(all.map(ListRegister::source), [0, 0, 0, 5, 0]);
    }
}
