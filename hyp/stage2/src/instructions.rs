//! The CPU's own TLB invalidations and barriers (Arm ARM C5.5, B2.3), for EL2.

use crate::maintenance::{Barrier, Instructions, Tlbi};
use core::arch::asm;

/// The instructions of the CPU that calls them. Any CPU may use its own value, or a copy of another's.
#[derive(Clone, Copy, Debug)]
pub struct CpuInstructions(());

impl CpuInstructions {
    /// Those of whichever CPU calls them.
    ///
    /// # Safety
    /// All of it runs at EL2, with HCR_EL2.TGE clear (see [`Instructions::tlbi`]). No guest runs on a CPU while it is inside one
    /// of the functions. TLB invalidations by range are asked for ([`TlbPolicy::range`](crate::TlbPolicy::range)) only where
    /// every CPU has FEAT_TLBIRANGE.
    pub const unsafe fn new() -> Self {
        Self(())
    }
}

/// A TLB invalidation, with or without an operand. Those by range by their encoding, as assemblers take their names only for
/// CPUs that have them.
macro_rules! tlbi {
    ($operation:literal) => {
        // SAFETY: dropping TLB entries changes no translation.
        unsafe { asm!($operation, options(nostack, preserves_flags)) }
    };
    ($operation:literal, $operand:expr) => {
        // SAFETY: dropping TLB entries changes no translation, and the CPU has the instruction, as `new` was promised.
        unsafe { asm!(concat!($operation, ", {}"), in(reg) $operand, options(nostack, preserves_flags)) }
    };
}

macro_rules! barrier {
    ($operation:literal) => {
        // SAFETY: a barrier changes nothing. The compiler moves no access to memory across it.
        unsafe { asm!($operation, options(nostack, preserves_flags)) }
    };
}

macro_rules! read {
    ($register:literal) => {{
        let value: u64;
        // SAFETY: reading it has no effect.
        unsafe {
            asm!(concat!("mrs {}, ", $register), out(reg) value, options(nomem, nostack, preserves_flags));
        }
        value
    }};
}

macro_rules! write {
    ($register:literal, $value:expr) => {
        // SAFETY: no guest runs on this CPU before it has a running VM's value again, as `new` was promised.
        unsafe { asm!(concat!("msr ", $register, ", {}"), in(reg) $value, options(nostack, preserves_flags)) }
    };
}

impl Instructions for CpuInstructions {
    #[inline(always)]
    fn tlbi(&self, operation: Tlbi) {
        match operation {
            Tlbi::Ipas2e1is(operand) => tlbi!("tlbi ipas2e1is", operand),
            Tlbi::Ipas2le1is(operand) => tlbi!("tlbi ipas2le1is", operand),
            Tlbi::Ripas2e1is(operand) => tlbi!("sys #4, c8, c0, #2", operand),
            Tlbi::Ripas2le1is(operand) => tlbi!("sys #4, c8, c0, #6", operand),
            Tlbi::Ipas2le1(operand) => tlbi!("tlbi ipas2le1", operand),
            Tlbi::Vmalle1is => tlbi!("tlbi vmalle1is"),
            Tlbi::Vmalle1 => tlbi!("tlbi vmalle1"),
            Tlbi::Vaae1(operand) => tlbi!("tlbi vaae1", operand),
            Tlbi::Vmalls12e1is => tlbi!("tlbi vmalls12e1is"),
            Tlbi::Alle1is => tlbi!("tlbi alle1is"),
        }
    }

    #[inline(always)]
    fn barrier(&self, barrier: Barrier) {
        match barrier {
            Barrier::DsbIshst => barrier!("dsb ishst"),
            Barrier::DsbIsh => barrier!("dsb ish"),
            Barrier::DsbNshst => barrier!("dsb nshst"),
            Barrier::DsbNsh => barrier!("dsb nsh"),
            Barrier::Isb => barrier!("isb"),
        }
    }

    #[inline(always)]
    fn vttbr(&self) -> u64 {
        read!("vttbr_el2")
    }

    #[inline(always)]
    fn set_vttbr(&self, value: u64) {
        write!("vttbr_el2", value);
    }

    #[inline(always)]
    fn vtcr(&self) -> u64 {
        read!("vtcr_el2")
    }

    #[inline(always)]
    fn set_vtcr(&self, value: u64) {
        write!("vtcr_el2", value);
    }
}
