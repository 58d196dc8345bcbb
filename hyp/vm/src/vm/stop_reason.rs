//! The reason why a VM ended. A VM ends once: the first reason stays.

use core::fmt;

use stage2::Ipa;

use crate::ids::VcpuId;

/// The reason why a VM ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The guest turned itself off (PSCI SYSTEM_OFF).
    PoweredOff,
    /// The guest asked for a reset (PSCI SYSTEM_RESET).
    Reset,
    /// The guest's last vCPU turned itself off, and nobody is left to turn one on.
    AllVcpusOff,
    /// A test program gave its verdict.
    Reported {
        /// The vCPU.
        vcpu: VcpuId,
        /// 0 if it passed, else its own failure code.
        code: u64,
        /// Details, by the program's own convention.
        details: [u64; 2],
    },
    /// A system error came while the guest ran.
    SystemError {
        /// The vCPU.
        vcpu: VcpuId,
        /// The syndrome (ESR_EL2).
        esr: u64,
    },
    /// The guest's translations conflict in the TLB.
    TlbConflict {
        /// The vCPU.
        vcpu: VcpuId,
        /// The virtual address.
        va: u64,
    },
    /// The guest's exception vectors have no memory, so it would take exceptions for ever.
    NoVectors {
        /// The vCPU.
        vcpu: VcpuId,
        /// The vector.
        pc: u64,
    },
    /// No frame was left to resolve a fault with, and none was freed.
    OutOfFrames {
        /// The vCPU.
        vcpu: VcpuId,
        /// The address.
        ipa: Ipa,
    },
    /// The VM didn't end by itself in its time limit.
    TimedOut,
    /// It was ended from outside the VM.
    Requested,
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PoweredOff => f.write_str("the guest powered off"),
            Self::Reset => f.write_str("the guest asked for a reset"),
            Self::AllVcpusOff => f.write_str("the guest's last vCPU turned itself off"),
            Self::Reported { code: 0, .. } => f.write_str("the guest program passed"),
            Self::Reported {
                vcpu,
                code,
                details: [a, b],
            } => {
                write!(
                    f,
                    "the guest program failed on {vcpu} with code {code:#x} ({a:#x}, {b:#x})"
                )
            }
            Self::SystemError { vcpu, esr } => write!(
                f,
                "a system error came in the guest on {vcpu} (ESR_EL2 {esr:#x})"
            ),
            Self::TlbConflict { vcpu, va } => write!(
                f,
                "the guest made a TLB conflict on {vcpu} at address {va:#x}"
            ),
            Self::NoVectors { vcpu, pc } => write!(
                f,
                "an exception led the guest on {vcpu} to {pc:#x}, where it has no memory: its image can't run here, or it set \
                 no vectors"
            ),
            Self::OutOfFrames { vcpu, ipa } => Starvation {
                vcpu: *vcpu,
                ipa: *ipa,
            }
            .fmt(f),
            Self::TimedOut => f.write_str("the guest didn't end in the time it had"),
            Self::Requested => f.write_str("the guest was stopped"),
        }
    }
}

/// A VM is paused because no frame was left for a vCPU's access. The vCPU tries again when the VM goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Starvation {
    /// Whose access.
    pub vcpu: VcpuId,
    /// Where.
    pub ipa: Ipa,
}

impl fmt::Display for Starvation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vcpu, ipa } = self;
        write!(
            f,
            "no memory was left for the guest's access to {ipa} on {vcpu}"
        )
    }
}

impl From<Starvation> for StopReason {
    fn from(Starvation { vcpu, ipa }: Starvation) -> Self {
        Self::OutOfFrames { vcpu, ipa }
    }
}
