//! The CPUs, by affinity.

use super::{DiscoveryError, MAX_CPUS, short};
use alloc::vec::Vec;
use core::fmt;
use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::{Node, Property, ToCellInt};

/// A CPU's affinity: the affinity fields of MPIDR_EL1, the others 0 (Arm ARM D23.2.127). Not an index: machines group their
/// CPUs in clusters, QEMU in clusters of 16.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mpidr(u64);

impl Mpidr {
    const AFFINITY: u64 = 0xff_00ff_ffff;

    /// From an affinity value. `None` if it has bits that no affinity has.
    pub const fn from_affinity(affinity: u64) -> Option<Self> {
        if affinity & !Self::AFFINITY == 0 {
            Some(Self(affinity))
        } else {
            None
        }
    }

    /// From a value of MPIDR_EL1.
    pub const fn from_register(value: u64) -> Self {
        Self(value & Self::AFFINITY)
    }

    /// The affinity, as PSCI and the device tree write it.
    pub const fn affinity(self) -> u64 {
        self.0
    }

    /// The four affinity fields, 0 to 3.
    pub const fn fields(self) -> [u8; 4] {
        [
            self.0 as u8,
            (self.0 >> 8) as u8,
            (self.0 >> 16) as u8,
            (self.0 >> 32) as u8,
        ]
    }
}

impl fmt::Display for Mpidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mpidr {:#x}", self.0)
    }
}

impl fmt::Debug for Mpidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A CPU in the tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cpu {
    /// Its affinity.
    pub mpidr: Mpidr,
    /// Whether it is started through PSCI. The boot CPU runs already.
    pub by_psci: bool,
}

/// The CPUs, `boot` first, the others in the tree's order.
pub fn cpus(tree: Fdt<'_>, boot: Mpidr) -> Result<Vec<Cpu>, DiscoveryError> {
    let mut cpus: Vec<Cpu> = Vec::new();
    let parent = tree.find_node("/cpus");
    for node in parent
        .iter()
        .flat_map(|parent| parent.children())
        .filter(is_usable_cpu)
    {
        for mpidr in affinities(&node)? {
            if cpus.len() == MAX_CPUS {
                return Err(DiscoveryError::TooMany {
                    what: "CPUs",
                    most: MAX_CPUS,
                });
            }
            if cpus.iter().any(|cpu| cpu.mpidr == mpidr) {
                return Err(DiscoveryError::DuplicateCpu(mpidr));
            }
            cpus.push(Cpu {
                mpidr,
                by_psci: starts_by_psci(&node),
            });
        }
    }
    let at = cpus
        .iter()
        .position(|cpu| cpu.mpidr == boot)
        .ok_or(DiscoveryError::NoBootCpu(boot))?;
    cpus[..=at].rotate_right(1);
    Ok(cpus)
}

/// A CPU that is "disabled" is only not running yet; one that failed is "fail" (Devicetree Specification 3.8.1).
fn is_usable_cpu(node: &FdtNode<'_>) -> bool {
    let is_cpu = node.name_without_address() == "cpu"
        || node
            .property("device_type")
            .is_some_and(|kind| kind.value() == b"cpu\0");
    is_cpu
        && node
            .property("status")
            .is_none_or(|status| !status.value().starts_with(b"fail"))
}

fn starts_by_psci(node: &FdtNode<'_>) -> bool {
    node.property("enable-method")
        .is_some_and(|method| method.value() == b"psci\0")
}

/// A node's affinities: one for each thread.
fn affinities(node: &FdtNode<'_>) -> Result<Vec<Mpidr>, DiscoveryError> {
    let malformed = || DiscoveryError::BadProperty {
        node: short(node.name()),
        property: "reg",
    };
    let regs = node.reg().map_err(|_| malformed())?.ok_or_else(malformed)?;
    regs.take(MAX_CPUS + 1)
        .map(|reg| {
            reg.address
                .to_int::<u64>()
                .ok()
                .and_then(Mpidr::from_affinity)
                .ok_or_else(malformed)
        })
        .collect()
}
