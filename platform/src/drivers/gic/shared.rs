//! Interrupts of devices, which any CPU can take (SPIs): the console's, and those of devices that guests have.
//!
//! Registers that several interrupts share are changed by the boot CPU only; those that take single bits by any.

use super::registers::Registers;

/// Registers of the distributor (IHI 0069, 12.9), the same in GICv2.
const GICD_CTLR: u64 = 0;
const GICD_ISENABLER: u64 = 0x100;
const GICD_ICENABLER: u64 = 0x180;
const GICD_ISPENDR: u64 = 0x200;
const GICD_ICPENDR: u64 = 0x280;
const GICD_ISACTIVER: u64 = 0x300;
const GICD_ICACTIVER: u64 = 0x380;
const GICD_IPRIORITYR: u64 = 0x400;
const GICD_ITARGETSR: u64 = 0x800;
const GICD_ICFGR: u64 = 0xc00;
const GICD_IROUTER: u64 = 0x6000;
/// GICD_CTLR.RWP: what was disabled may still be taken. In a GICv2 the bit reads as zero.
const WRITE_PENDING: u32 = 1 << 31;
/// GICD_ICFGR: an edge.
const EDGE: u32 = 0b10;
/// Above what is masked, below kicks.
const PRIORITY: u32 = 0x80;

/// Who takes an interrupt.
pub enum Target {
    /// A bit for each CPU (GICv2).
    List(u8),
    /// An affinity (GICv3).
    Affinity(u64),
}

/// The register and the bit of an interrupt, where each has one.
const fn bit(register: u64, interrupt: u32) -> (u64, u32) {
    (register + interrupt as u64 / 32 * 4, 1 << (interrupt % 32))
}

/// The register and the lowest bit of an interrupt's byte.
const fn byte(register: u64, interrupt: u32) -> (u64, u32) {
    (register + interrupt as u64 / 4 * 4, interrupt % 4 * 8)
}

fn set(distributor: Registers, register: u64, interrupt: u32) {
    let (register, bit) = bit(register, interrupt);
    distributor.write(register, bit);
}

pub fn set_active(distributor: Registers, interrupt: u32, active: bool) {
    let register = if active {
        GICD_ISACTIVER
    } else {
        GICD_ICACTIVER
    };
    set(distributor, register, interrupt);
}

/// The level of the line of an interrupt that is active: then it is pending again if it asks for that. `None` for an edge.
pub fn line(distributor: Registers, interrupt: u32) -> Option<bool> {
    let (register, shift) = trigger(interrupt);
    if distributor.read(register) >> shift & EDGE != 0 {
        return None;
    }
    let (register, bit) = bit(GICD_ISPENDR, interrupt);
    Some(distributor.read(register) & bit != 0)
}

/// The register and the lowest bit of an interrupt's trigger.
const fn trigger(interrupt: u32) -> (u64, u32) {
    (GICD_ICFGR + interrupt as u64 / 16 * 4, interrupt % 16 * 2)
}

pub fn route(distributor: Registers, interrupt: u32, is_edge: bool, target: Target) {
    mask(distributor, interrupt);
    let (register, shift) = byte(GICD_IPRIORITYR, interrupt);
    distributor.change(register, shift, 0xff, PRIORITY);
    let (register, shift) = trigger(interrupt);
    distributor.change(register, shift, EDGE, if is_edge { EDGE } else { 0 });
    match target {
        Target::List(list) => {
            let (register, shift) = byte(GICD_ITARGETSR, interrupt);
            distributor.change(register, shift, 0xff, list.into());
        }
        Target::Affinity(affinity) => {
            let register = GICD_IROUTER + u64::from(interrupt) * 8;
            distributor.write(register, affinity as u32);
            distributor.write(register + 4, (affinity >> 32) as u32);
        }
    }
    set(distributor, GICD_ICPENDR, interrupt);
}

/// Masks an interrupt, which may still be taken for a moment.
pub fn disable(distributor: Registers, interrupt: u32) {
    set(distributor, GICD_ICENABLER, interrupt);
}

pub fn unmask(distributor: Registers, interrupt: u32) {
    set(distributor, GICD_ISENABLER, interrupt);
}

/// An interrupt that a CPU has taken before is active by the end of this loop, so ending it afterwards ends it for good.
pub fn mask(distributor: Registers, interrupt: u32) {
    disable(distributor, interrupt);
    while distributor.read(GICD_CTLR) & WRITE_PENDING != 0 {
        core::hint::spin_loop();
    }
    set_active(distributor, interrupt, false);
}
