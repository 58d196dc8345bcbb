//! What a virtual GIC is made from, and where its registers are.

use alloc::vec::Vec;
use core::fmt;

/// The architecture that the guest sees.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    /// GICv2: at most 8 vCPUs; the CPU interface is memory-mapped (GICV), which the platform maps.
    V2,
    /// GICv3: affinity routing, system registers.
    V3,
}

/// The form of a virtual GIC.
#[derive(Clone, Copy)]
pub struct VgicConfig<'a> {
    /// The architecture.
    pub version: Version,
    /// How many vCPUs there are, 1 to [`MAX_VCPUS`], with GICv2 at most 8.
    pub vcpus: usize,
    /// How many SPIs there are: a multiple of 32, 32 to [`MAX_SPIS`].
    pub spis: usize,
    /// The affinity of a vCPU, as its MPIDR_EL1 has it: Aff2, Aff1, Aff0 from bit 16 down. Each vCPU has its own.
    pub affinity: &'a dyn Fn(usize) -> u32,
    /// Where the distributor is: GICD, 64 KiB (GICv2: 4 KiB).
    pub distributor: u64,
    /// Where the redistributors are: GICR, 128 KiB for each vCPU. With GICv2 there are none.
    pub redistributors: u64,
    /// Where the ITS is, with GICv3 if there is one: GITS, 128 KiB. Then there are LPIs.
    pub its: Option<u64>,
    /// How many bits priorities have, 4 to 8 (ICH_VTR_EL2.PREbits is no more than the CPUs' PRIbits, usually 5).
    pub priority_bits: u32,
    /// Virtual interrupts that physical ones stand behind: timers and the devices that a VM owns.
    pub forwarded: &'a [Forwarded],
}

/// A virtual interrupt with a physical one behind it, which the guest's deactivation deactivates.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Forwarded {
    /// The guest's PPI or SPI.
    pub virtual_id: u32,
    /// The machine's PPI or SPI, of the same kind.
    pub physical_id: u32,
}

/// The most vCPUs.
pub const MAX_VCPUS: usize = 512;
/// The most SPIs.
pub const MAX_SPIS: usize = 960;

/// Why there is no virtual GIC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VgicError {
    /// No vCPU, or more than the architecture has or this crate serves.
    Vcpus(usize),
    /// No multiple of 32 from 32 to [`MAX_SPIS`].
    Spis(usize),
    /// Two vCPUs have this affinity, or it has more than three levels.
    Affinity(u32),
    /// Priorities of so many bits.
    PriorityBits(u32),
    /// A forwarded interrupt that is an SGI, or that there isn't, or that is named twice.
    Forwarded(u32),
    /// The frames overlap, or aren't aligned to 64 KiB (GICv2: 4 KiB).
    Frames,
    /// No memory.
    OutOfMemory,
}

impl fmt::Display for VgicError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vcpus(vcpus) => write!(f, "no GIC serves {vcpus} vCPUs"),
            Self::Spis(spis) => write!(f, "no GIC has {spis} shared interrupts here"),
            Self::Affinity(affinity) => {
                write!(f, "the affinity {affinity:#x} isn't one vCPU's alone")
            }
            Self::PriorityBits(bits) => write!(f, "interrupt priorities have no {bits} bits"),
            Self::Forwarded(intid) => write!(f, "interrupt {intid} can't be forwarded"),
            Self::Frames => f.write_str("the GIC's registers overlap or aren't aligned"),
            Self::OutOfMemory => f.write_str("no memory for the GIC"),
        }
    }
}

impl core::error::Error for VgicError {}

pub(crate) fn reserve<T>(vec: &mut Vec<T>, count: usize) -> Result<(), VgicError> {
    vec.try_reserve_exact(count)
        .map_err(|_| VgicError::OutOfMemory)
}

/// A group of memory-mapped registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Frame {
    /// GICD.
    Distributor,
    /// GICR of a vCPU: RD_base, and from 64 KiB on SGI_base.
    Redistributor(usize),
    /// GITS, and from 64 KiB on GITS_TRANSLATER.
    Its,
}

/// An access isn't done: it has to be executed again. The guest's PC stays where it is, so that whatever came meanwhile is
/// served first (rule V10).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Again;

/// The register by which a guest sends SGIs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SgiRegister {
    /// ICC_SGI1R_EL1.
    Sgi1,
    /// ICC_ASGI1R_EL1.
    Asgi1,
    /// ICC_SGI0R_EL1.
    Sgi0,
}
