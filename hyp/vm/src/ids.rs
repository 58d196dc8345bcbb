//! Numbers of CPUs and vCPUs.

use core::fmt;

/// vCPUs of one cluster: the values that affinity level 0 takes.
pub(crate) const CLUSTER: usize = 16;
/// The most vCPUs that a VM may have: those with affinity levels 0 and 1.
pub const MAX_VCPUS: usize = CLUSTER * 256;
/// MPIDR_EL1 bit 31, RES1.
const MPIDR_RES1: u64 = 1 << 31;

/// A physical CPU's logical number: its place in the machine's device tree, the boot CPU's being 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CpuId(pub usize);

/// A vCPU's number within its VM, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VcpuId(pub usize);

impl VcpuId {
    /// The affinity that this vCPU reads in MPIDR_EL1, and by which guests name it: 16 to a cluster.
    pub const fn affinity(self) -> u64 {
        ((self.0 / CLUSTER) as u64) << 8 | (self.0 % CLUSTER) as u64
    }

    /// MPIDR_EL1 of this vCPU.
    pub const fn mpidr(self) -> u64 {
        MPIDR_RES1 | self.affinity()
    }
}

impl fmt::Display for VcpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vCPU {}", self.0)
    }
}
