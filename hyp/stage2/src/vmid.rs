//! A VM's VMID: tags its TLB entries, to tell them from other VMs' (VTTBR_EL2.VMID, 8 or 16 bits).

use crate::address::Vmid;
use crate::sync::{AtomicU64, Ordering};

/// Bits of the VMID in the word; the generation is above.
pub(crate) const NUMBER_BITS: u32 = 16;

/// The generation of a VMID that no allocator has given.
pub(crate) const FIXED: u64 = u64::MAX >> NUMBER_BITS;

/// The VMID of a word that holds one and the generation that it was given in. Zero is none.
pub(crate) fn number(value: u64) -> u16 {
    value as u16
}

/// The generation of such a word.
#[cfg(feature = "vmids")]
pub(crate) fn generation(value: u64) -> u64 {
    value >> NUMBER_BITS
}

/// A VM's VMID. Any number of CPUs may read it while [`VmidAllocator::activate`](crate::VmidAllocator::activate) gives the VM
/// another one.
#[derive(Debug)]
pub struct VmidHolder {
    /// The VMID and the generation that it was given in.
    pub(crate) value: AtomicU64,
}

impl VmidHolder {
    /// A VM without a VMID. It reports VMID 0, which an allocator never gives out, so it shares TLB entries with nobody.
    pub fn new() -> Self {
        Self {
            value: AtomicU64::new(0),
        }
    }

    /// A VM that has this VMID for as long as it lives: for a hypervisor with fewer VMs than VMIDs, which needs no
    /// allocator, and must have none. Whoever gives the VMID to another VM afterwards has invalidated it before
    /// ([`Tlb::invalidate_vmid`](crate::Tlb::invalidate_vmid)).
    pub fn fixed(vmid: Vmid) -> Self {
        Self {
            value: AtomicU64::new(FIXED << NUMBER_BITS | u64::from(vmid.0)),
        }
    }

    /// The VMID. It stays the same while any vCPU of the VM is active on a CPU. Relaxed: whoever invalidates by it asks
    /// after a barrier, and the allocator has one after the store of another VMID (rule 12).
    #[inline]
    pub fn current(&self) -> Vmid {
        Vmid(number(self.value.load(Ordering::Relaxed)))
    }
}

impl Default for VmidHolder {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_fixed_vmid_is_the_one_that_was_given() {
        for number in [1, 0xff, 0x1234, u16::MAX] {
            assert_eq!(VmidHolder::fixed(Vmid(number)).current(), Vmid(number));
        }
        assert_eq!(VmidHolder::new().current(), Vmid(0));
    }
}
