//! A CPU's list registers: the virtual CPU interface of the guest that it has loaded, by system registers (GICv3) or
//! memory-mapped ones (GICv2).

use super::registers::Registers;
use crate::cpu::register::{read_register, write_register};
use vgic::{ActivePriorities, ListRegister, VirtualInterface};
use vm::{PHYSICAL_TIMER, PMU_INTERRUPT, PmuState, VIRTUAL_TIMER};

/// ICH_HCR_EL2 without a virtual GIC: no virtual interrupts; EL1's accesses to the CPU interface trap (IHI 0069, 12.4.7: TC,
/// TALL0, TALL1, TDIR).
const HCR_TRAPS: u64 = 1 << 10 | 1 << 11 | 1 << 12 | 1 << 14;

/// Registers of GICH (IHI 0048, 5.3).
const GICH_HCR: u64 = 0;
const GICH_VTR: u64 = 0x4;
const GICH_VMCR: u64 = 0x8;
const GICH_APR: u64 = 0xf0;
const GICH_LR0: u64 = 0x100;

/// The list registers of the calling CPU.
#[derive(Clone, Copy, Debug)]
pub struct ListRegisters {
    /// How they are accessed.
    access: Access,
    count: u8,
    /// Of each group: registers for the active priorities.
    active_priorities: u8,
    preemption_bits: u8,
    traps_deactivation: bool,
}

#[derive(Clone, Copy, Debug)]
enum Access {
    System,
    Mapped(Registers),
}

/// `$action` (`read` or `write`) on the list register with this number.
macro_rules! numbered {
    ($action:ident $index:expr $(, $value:expr)?) => {
        numbered!(@$action $index, ($($value)?), 0 "ich_lr0_el2", 1 "ich_lr1_el2", 2 "ich_lr2_el2", 3 "ich_lr3_el2", 4 "ich_lr4_el2",
            5 "ich_lr5_el2", 6 "ich_lr6_el2", 7 "ich_lr7_el2", 8 "ich_lr8_el2", 9 "ich_lr9_el2",
            10 "ich_lr10_el2", 11 "ich_lr11_el2", 12 "ich_lr12_el2", 13 "ich_lr13_el2", 14 "ich_lr14_el2",
            15 "ich_lr15_el2")
    };
    (@read $index:expr, (), $($number:literal $name:literal),*) => {
        match $index { $($number => read_register!($name),)* _ => 0 }
    };
    (@write $index:expr, ($value:expr), $($number:literal $name:literal),*) => {
        match $index { $($number => write_register!($name, $value),)* _ => {} }
    };
}

impl ListRegisters {
    /// Those of a GICv3, which has system registers in use.
    pub fn system() -> Self {
        let vtr = read_register!("ich_vtr_el2");
        let preemption_bits = 1 + (vtr >> 26 & 7) as u8;
        Self {
            access: Access::System,
            count: 1 + (vtr & 0x1f) as u8,
            active_priorities: 1 << preemption_bits.saturating_sub(5).min(2),
            preemption_bits,
            traps_deactivation: vtr >> 19 & 1 != 0,
        }
    }

    /// Those of a GICv2.
    pub fn mapped(registers: Registers) -> Self {
        Self {
            access: Access::Mapped(registers),
            count: 1 + (registers.read(GICH_VTR) & 0x3f) as u8,
            active_priorities: 1,
            preemption_bits: 5,
            traps_deactivation: false,
        }
    }

    /// Switches the virtual interface off, for guests that have none.
    pub fn switch_off(&mut self) {
        match self.access {
            Access::System => self.write_hcr(HCR_TRAPS),
            Access::Mapped(_) => self.write_hcr(0),
        }
    }
}

impl VirtualInterface for ListRegisters {
    fn list_registers(&self) -> usize {
        self.count.into()
    }

    fn read_lr(&self, index: usize) -> ListRegister {
        match self.access {
            // Those that are used most, without a table of all.
            Access::System if index == 0 => ListRegister::from_bits(read_register!("ich_lr0_el2")),
            Access::System if index == 1 => ListRegister::from_bits(read_register!("ich_lr1_el2")),
            Access::System => ListRegister::from_bits(numbered!(read index)),
            Access::Mapped(gich) => {
                ListRegister::from_v2_bits(gich.read(GICH_LR0 + 4 * index as u64))
            }
        }
    }

    fn write_lr(&mut self, index: usize, value: ListRegister) {
        match self.access {
            // SAFETY: interrupts of the guest; the CPU has the register.
            Access::System => unsafe {
                match index {
                    0 => write_register!("ich_lr0_el2", value.bits()),
                    1 => write_register!("ich_lr1_el2", value.bits()),
                    _ => numbered!(write index, value.bits()),
                }
            },
            Access::Mapped(gich) => gich.write(GICH_LR0 + 4 * index as u64, value.v2_bits()),
        }
    }

    fn read_hcr(&self) -> u64 {
        match self.access {
            Access::System => read_register!("ich_hcr_el2"),
            Access::Mapped(gich) => gich.read(GICH_HCR).into(),
        }
    }

    fn write_hcr(&mut self, value: u64) {
        match self.access {
            // SAFETY: it acts on EL1 only.
            Access::System => unsafe { write_register!("ich_hcr_el2", value) },
            Access::Mapped(gich) => gich.write(GICH_HCR, value as u32),
        }
    }

    fn read_vmcr(&self) -> u64 {
        match self.access {
            Access::System => read_register!("ich_vmcr_el2"),
            Access::Mapped(gich) => gich.read(GICH_VMCR).into(),
        }
    }

    fn write_vmcr(&mut self, value: u64) {
        match self.access {
            // SAFETY: the guest's own controls of its interrupts.
            Access::System => unsafe { write_register!("ich_vmcr_el2", value) },
            Access::Mapped(gich) => gich.write(GICH_VMCR, value as u32),
        }
    }

    fn read_active_priorities(&self) -> ActivePriorities {
        let mut active = ActivePriorities::NONE;
        match self.access {
            Access::System => {
                active.group0[0] = read_register!("ich_ap0r0_el2") as u32;
                active.group1[0] = read_register!("ich_ap1r0_el2") as u32;
                if self.active_priorities > 1 {
                    active.group0[1] = read_register!("ich_ap0r1_el2") as u32;
                    active.group1[1] = read_register!("ich_ap1r1_el2") as u32;
                }
                if self.active_priorities > 2 {
                    active.group0[2] = read_register!("ich_ap0r2_el2") as u32;
                    active.group1[2] = read_register!("ich_ap1r2_el2") as u32;
                    active.group0[3] = read_register!("ich_ap0r3_el2") as u32;
                    active.group1[3] = read_register!("ich_ap1r3_el2") as u32;
                }
            }
            Access::Mapped(gich) => active.group0[0] = gich.read(GICH_APR),
        }
        active
    }

    fn write_active_priorities(&mut self, value: ActivePriorities) {
        let ActivePriorities { group0, group1 } = value;
        match self.access {
            // SAFETY: the guest's own; the CPU has the registers.
            Access::System => unsafe {
                write_register!("ich_ap0r0_el2", u64::from(group0[0]));
                write_register!("ich_ap1r0_el2", u64::from(group1[0]));
                if self.active_priorities > 1 {
                    write_register!("ich_ap0r1_el2", u64::from(group0[1]));
                    write_register!("ich_ap1r1_el2", u64::from(group1[1]));
                }
                if self.active_priorities > 2 {
                    write_register!("ich_ap0r2_el2", u64::from(group0[2]));
                    write_register!("ich_ap1r2_el2", u64::from(group1[2]));
                    write_register!("ich_ap0r3_el2", u64::from(group0[3]));
                    write_register!("ich_ap1r3_el2", u64::from(group1[3]));
                }
            },
            Access::Mapped(gich) => gich.write(GICH_APR, group0[0]),
        }
    }

    fn preemption_bits(&self) -> u32 {
        self.preemption_bits.into()
    }

    fn line(&self, physical: u32) -> Option<bool> {
        // ENABLE and ISTATUS of a timer's control register, but not IMASK.
        const FIELDS: u64 = 0b111;
        const RAISED: u64 = 0b101;
        let control = match physical {
            VIRTUAL_TIMER => read_register!("cntv_ctl_el0"),
            PHYSICAL_TIMER => read_register!("cntp_ctl_el0"),
            // Forwarded only where the CPUs have a PMU.
            PMU_INTERRUPT => {
                return Some(PmuState::raises(
                    read_register!("pmcr_el0"),
                    read_register!("pmovsset_el0"),
                    read_register!("pmintenset_el1"),
                ));
            }
            _ => return super::line(physical),
        };
        Some(control & FIELDS == RAISED)
    }

    fn can_trap_deactivation(&self) -> bool {
        self.traps_deactivation
    }

    fn deactivate(&mut self, physical: u32) {
        super::set_active(physical, false);
    }

    fn set_active(&mut self, physical: u32, active: bool) {
        super::set_active(physical, active);
    }
}
