//! Trust domains: VMs that trust each other, and whose pages may be merged.
//!
//! A write to a shared page is copied, and takes a hundred times as long as another write. So a VM whose page is merged with
//! another VM's can learn the other page's contents. Equal pages of two VMs therefore stay apart unless the two are declared to
//! trust each other ([`MemorySystem::trust`](crate::MemorySystem::trust)). A fork trusts its parent, whose frames it shares
//! anyway.
//!
//! Memory that isn't charged to a single VM is merged only with itself, as any VM may map it. Pages of zeros are always freed:
//! this shows a VM only its own contents.
//!
//! Domains are numbered, and a number is never used again; a VM's number may be.

use crate::frames::{MAX_VMS, Owner, VmId};
use crate::system::reverse_map::ObjectId;
use core::sync::atomic::{AtomicU32, Ordering};

/// A trust domain: its pages may be merged with each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum TrustDomain {
    /// VMs that trust each other.
    Vms(u32),
    /// Memory that isn't charged to a single VM.
    Object(ObjectId),
}

impl TrustDomain {
    /// Bits that make the checksums of different domains differ, so that they seldom collide.
    pub(crate) fn bits(self) -> u32 {
        let (kind, number) = match self {
            Self::Vms(number) => (0, number),
            Self::Object(object) => (1 << 31, object.place() as u32),
        };
        kind ^ number.wrapping_mul(0x9e37_79b1)
    }
}

/// The domain of every VM. Changed when VMs are created or joined, read by CPUs that merge.
#[derive(Debug)]
pub(crate) struct TrustDomains {
    of: [AtomicU32; MAX_VMS],
    next: AtomicU32,
}

impl TrustDomains {
    /// No VM trusts another.
    pub(crate) fn new() -> Self {
        Self {
            of: core::array::from_fn(|vm| AtomicU32::new(vm as u32)),
            next: AtomicU32::new(MAX_VMS as u32),
        }
    }

    /// A new VM trusts nobody, whichever VM had its number before.
    pub(crate) fn begin(&self, vm: VmId) {
        let domain = self.next.fetch_add(1, Ordering::Relaxed);
        self.of[vm.number()].store(domain, Ordering::Relaxed);
    }

    /// Makes a VM trust another one, with all that trust that, and no VM that it trusted before. VMs that had joined it stay
    /// together, without it.
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
