//! A guest's violations of a workload's rules.

use core::fmt;
use vm::VcpuId;

/// A guest's violation of the rules.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GuestViolation {
    /// Its journals are too small, or don't lie in its RAM.
    BadJournals {
        /// Their address.
        start: u64,
        /// The size of one.
        bytes_per_vcpu: u64,
        /// The size that one needs.
        needed: u64,
    },
    /// It announced itself twice, or not by its first vCPU.
    SecondHello(VcpuId),
    /// It asked for a step before it announced itself.
    NoHello(VcpuId),
}

impl fmt::Display for GuestViolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the guest breaks the benchmark's rules: ")?;
        match self {
            Self::BadJournals {
                start,
                bytes_per_vcpu,
                needed,
            } => write!(
                f,
                "its journals at {start:#x}, {bytes_per_vcpu} bytes each, must have {needed} bytes and lie in its RAM"
            ),
            Self::SecondHello(vcpu) => write!(f, "{vcpu} announces it, which vCPU 0 does once"),
            Self::NoHello(vcpu) => write!(
                f,
                "{vcpu} wants a step before the guest has announced itself"
            ),
        }
    }
}
