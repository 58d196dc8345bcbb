//! This CPU's TLB maintenance instructions (Arm ARM C5.5), out of which [`stage2::Maintenance`] makes what the engine asks
//! for.

use crate::features::CpuFeatures;
use crate::register::{read_register, write_register};
use aarch64_cpu::asm::barrier::{self, ISH, ISHST, NSH, NSHST, SY};
use core::arch::asm;
use stage2::{Barrier, Instructions, TlbPolicy, Tlbi};

/// The instructions of the CPU that calls them.
#[derive(Clone, Copy, Debug)]
pub struct CpuInstructions(());

impl CpuInstructions {
    /// Those of whichever CPU calls them.
    #[expect(
        clippy::new_without_default,
        reason = "there is nothing to be by default"
    )]
    pub const fn new() -> Self {
        Self(())
    }
}

/// TLB and cache maintenance by this CPU's instructions. Any CPU may use its own value, or a copy of another's.
pub type Maintenance = stage2::Maintenance<CpuInstructions>;

/// Maintenance for CPUs that have `features`, an invalidation consisting of at most so many instructions
/// ([calibration](crate::calibration)).
pub const fn maintenance(features: &CpuFeatures, most_instructions: u32) -> Maintenance {
    let policy = policy(features, most_instructions);
    Maintenance::new(CpuInstructions::new(), policy)
}

/// What such CPUs use of the TLB instructions.
pub const fn policy(features: &CpuFeatures, most_instructions: u32) -> TlbPolicy {
    TlbPolicy {
        range: features.tlbi_range,
        level_hint: features.ttl,
        most_instructions,
    }
}

/// A TLB invalidation instruction, with or without an operand. Those by range by their encoding, as assemblers take their
/// names only for CPUs that have them.
macro_rules! tlbi {
    ($operation:literal) => {
        // SAFETY: dropping TLB entries changes no translation.
        unsafe { asm!($operation, options(nostack, preserves_flags)) }
    };
    ($operation:literal, $operand:expr) => {
        // SAFETY: dropping TLB entries changes no translation. Those by range are issued only where the features that
        // the policy was made of have them.
        unsafe { asm!(concat!($operation, ", {}"), in(reg) $operand, options(nostack, preserves_flags)) }
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
            Barrier::DsbIshst => barrier::dsb(ISHST),
            Barrier::DsbIsh => barrier::dsb(ISH),
            Barrier::DsbNshst => barrier::dsb(NSHST),
            Barrier::DsbNsh => barrier::dsb(NSH),
            Barrier::Isb => barrier::isb(SY),
        }
    }

    #[inline(always)]
    fn vttbr(&self) -> u64 {
        read_register!("vttbr_el2")
    }

    #[inline(always)]
    fn set_vttbr(&self, value: u64) {
        // SAFETY: no guest runs on this CPU until the world switch has set its own value again, or this one is put back.
        unsafe { write_register!("vttbr_el2", value) };
    }

    #[inline(always)]
    fn vtcr(&self) -> u64 {
        read_register!("vtcr_el2")
    }

    #[inline(always)]
    fn set_vtcr(&self, value: u64) {
        // SAFETY: as above.
        unsafe { write_register!("vtcr_el2", value) };
    }
}
