//! What a vCPU alone has, on whichever CPU it is loaded.

use crate::interface::{ActivePriorities, MAX_LIST_REGISTERS};
use crate::outside::Outside;
use crate::set::WithLpis;
use crate::settle::Held;
use crate::word::FIRST_PPI;

/// A register of pending or active state: whose private interrupts it shows, its offset, and whether it is of pending state.
pub(crate) type Asked = (usize, u64, bool);

/// The interrupts of a vCPU: part of its context, cloned by a fork.
///
/// Methods that take a [`VirtualInterface`](crate::VirtualInterface) are for the CPU that the vCPU is loaded on, with its guest
/// outside. `kick` is called with a physical CPU that has to leave its guest, or wake; it may be called for the own CPU, and may
/// ignore that: whoever enters asks [`needs_look`](Self::needs_look) first.
#[derive(Clone, Debug)]
pub struct VcpuInterrupts {
    pub(crate) vcpu: usize,
    /// What the list registers hold that are claimed.
    pub(crate) held: [Held; MAX_LIST_REGISTERS],
    /// Which are: their words have CLAIMED.
    pub(crate) claimed: u32,
    /// Seen, and not in a list register.
    pub(crate) backlog: WithLpis,
    /// Active without a list register, acknowledged by this vCPU.
    pub(crate) outside: Outside,
    /// With GICv2: the source of each SGI that is in a list register or active.
    pub(crate) sources: [u8; FIRST_PPI as usize],
    /// The register whose read has asked others, and has to be executed again.
    pub(crate) asked: Option<Asked>,
    /// ICH_HCR_EL2 as written last.
    pub(crate) hcr: u64,
    /// ICH_VMCR_EL2 while it isn't loaded.
    pub(crate) vmcr: u64,
    /// The active priorities while it isn't loaded.
    pub(crate) active_priorities: ActivePriorities,
}

impl VcpuInterrupts {
    /// Those of a vCPU in its reset state, which isn't loaded.
    pub const fn new(vcpu: usize) -> Self {
        Self {
            vcpu,
            held: [Held {
                intid: 0,
                latched: false,
                active_at: None,
                has_source: false,
            }; MAX_LIST_REGISTERS],
            claimed: 0,
            backlog: WithLpis::EMPTY,
            outside: Outside::EMPTY,
            sources: [0; FIRST_PPI as usize],
            asked: None,
            hcr: 0,
            vmcr: 0,
            active_priorities: ActivePriorities::NONE,
        }
    }

    /// The number of the vCPU.
    pub const fn vcpu(&self) -> usize {
        self.vcpu
    }
}
