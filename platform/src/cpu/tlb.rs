//! This CPU's TLB maintenance instructions, from which [`stage2::Maintenance`] builds the engine's invalidations.

use crate::cpu::features::CpuFeatures;
use stage2::{Barrier, Instructions, TlbPolicy, Tlbi};

/// The instructions of the CPU that calls them.
#[derive(Clone, Copy, Debug)]
pub struct CpuInstructions(stage2::CpuInstructions);

impl CpuInstructions {
    /// Those of whichever CPU calls them.
    #[expect(
        clippy::new_without_default,
        reason = "there is nothing to be by default"
    )]
    pub const fn new() -> Self {
        // SAFETY: this is EL2 without VHE, a CPU has left its guest here, and policies are made of what all CPUs have.
        Self(unsafe { stage2::CpuInstructions::new() })
    }
}

impl Instructions for CpuInstructions {
    #[inline(always)]
    fn tlbi(&self, operation: Tlbi) {
        self.0.tlbi(operation);
    }

    #[inline(always)]
    fn barrier(&self, barrier: Barrier) {
        self.0.barrier(barrier);
    }

    #[inline(always)]
    fn vttbr(&self) -> u64 {
        self.0.vttbr()
    }

    #[inline(always)]
    fn set_vttbr(&self, value: u64) {
        self.0.set_vttbr(value);
    }

    #[inline(always)]
    fn vtcr(&self) -> u64 {
        self.0.vtcr()
    }

    #[inline(always)]
    fn set_vtcr(&self, value: u64) {
        self.0.set_vtcr(value);
    }
}

/// TLB and cache maintenance by this CPU's instructions. Any CPU may use its own value, or a copy of another's.
pub type Maintenance = stage2::Maintenance<CpuInstructions>;

/// Maintenance for CPUs that have `features`, an invalidation consisting of at most so many instructions
/// ([calibration](crate::calibration)).
pub const fn maintenance(features: &CpuFeatures, most_instructions: u32) -> Maintenance {
    Maintenance::new(CpuInstructions::new(), policy(features, most_instructions))
}

/// What such CPUs use of the TLB instructions.
pub const fn policy(features: &CpuFeatures, most_instructions: u32) -> TlbPolicy {
    TlbPolicy {
        range: features.tlbi_range,
        level_hint: features.ttl,
        most_instructions,
    }
}
