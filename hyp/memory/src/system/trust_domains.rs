//! Whose pages may be merged with whose: VMs that trust each other.
//!
//! A write to a page that shares its frame takes a copy, and so a hundred times as long as one to a page that doesn't. Whoever
//! can have a page merged with another VM's learns from that what the other one holds. So equal pages of two VMs stay apart
//! unless somebody has said that the two trust each other ([`MemorySystem::trust`](crate::MemorySystem::trust)). A fork
//! trusts its parent, whose frames it shares anyway.
//!
//! What no single VM pays for is merged with itself only, as any VM may have it mapped. Pages of zeros give up their frames
//! in any case: that shows a VM nothing but its own contents.
//!
//! Domains are numbered through, and a number isn't used again: a VM's number may be.

use crate::frames::{MAX_VMS, Owner, VmId};
use crate::system::reverse_map::ObjectId;
use core::sync::atomic::{AtomicU32, Ordering};

/// Pages of one domain may be merged with each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum TrustDomain {
    /// VMs that trust each other.
    Vms(u32),
    /// What is no single VM's.
    Object(ObjectId),
}

impl TrustDomain {
    /// Bits in which checksums of different domains differ, so that they seldom meet.
    pub(crate) fn bits(self) -> u32 {
        let (kind, number) = match self {
            Self::Vms(number) => (0, number),
            Self::Object(object) => (1 << 31, object.place() as u32),
        };
        kind ^ number.wrapping_mul(0x9e37_79b1)
    }
}

/// The domain of every VM. Changed where VMs come to be, read by the CPU that merges.
#[derive(Debug)]
pub(crate) struct TrustDomains {
    of: [AtomicU32; MAX_VMS],
    next: AtomicU32,
}

impl TrustDomains {
    /// Nobody trusts anybody.
    pub(crate) fn new() -> Self {
        Self {
            of: core::array::from_fn(|vm| AtomicU32::new(vm as u32)),
            next: AtomicU32::new(MAX_VMS as u32),
        }
    }

    /// A VM that has just been made trusts nobody, whoever had its number before.
    pub(crate) fn begin(&self, vm: VmId) {
        let domain = self.next.fetch_add(1, Ordering::Relaxed);
        self.of[vm.number()].store(domain, Ordering::Relaxed);
    }

    /// A VM trusts another one, and all that trust that, and no VM that it trusted before. Those that had joined it stay with
    /// each other, without it.
    pub(crate) fn join(&self, vm: VmId, other: VmId) {
        let domain = self.number_of(other);
        self.of[vm.number()].store(domain, Ordering::Relaxed);
    }

    /// The number of a VM's domain.
    pub(crate) fn number_of(&self, vm: VmId) -> u32 {
        self.of[vm.number()].load(Ordering::Relaxed)
    }

    /// The domain of the pages of `object`, whose frames are charged to `account`.
    pub(crate) fn of(&self, account: Owner, object: ObjectId) -> TrustDomain {
        match account {
            Owner::Vm(vm) => TrustDomain::Vms(self.number_of(vm)),
            Owner::Shared | Owner::Hypervisor => TrustDomain::Object(object),
        }
    }
}
