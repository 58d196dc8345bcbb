//! Addresses, levels and the geometry of a translation table (4 KiB granule).
//!
//! An [`Ipa`] and a [`Pa`] are different types, so that a guest's address can't be mistaken for a machine's. All of it
//! is plain arithmetic; nothing here is shared.

use core::fmt;
use core::ops::Range;

/// Bytes of a page, as a power of two (4 KiB granule; Arm ARM D8.2).
pub const PAGE_SHIFT: u32 = 12;
/// Bytes of a page.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;
/// Address bits that one level of table resolves. Model checking uses tables of four entries: the protocol doesn't
/// depend on their number, and 512 entries are too many to explore.
pub const STRIDE: u32 = if cfg!(loom) { 2 } else { 9 };
/// Entries of one table.
pub const TABLE_ENTRIES: usize = 1 << STRIDE;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// Wraps an address, in bytes.
            pub const fn new(address: u64) -> Self {
                Self(address)
            }

            /// The address in bytes.
            pub const fn get(self) -> u64 {
                self.0
            }

            /// This address rounded down to a multiple of `size` (a power of two).
            pub const fn align_down(self, size: u64) -> Self {
                Self(self.0 & !(size - 1))
            }

            /// Whether this address is a multiple of `size` (a power of two).
            pub const fn is_aligned(self, size: u64) -> bool {
                self.0 & (size - 1) == 0
            }

            /// The bytes by which this address lies above a multiple of `size` (a power of two).
            pub const fn offset_in(self, size: u64) -> u64 {
                self.0 & (size - 1)
            }

            /// This address plus `bytes`, or `None` past the end of 64 bits.
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(sum) => Some(Self(sum)),
                    None => None,
                }
            }

            /// This address plus `bytes`, where the caller knows that the sum lies within the same region.
            #[must_use]
            pub const fn offset(self, bytes: u64) -> Self {
                Self(self.0.wrapping_add(bytes))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

address! {
    /// An intermediate physical address: what a guest takes for a physical one, and stage 2 translates.
    Ipa
}
address! {
    /// A physical address of the machine.
    Pa
}

/// A level of the translation: 0 is the topmost, 3 holds pages (Arm ARM D8.2).
///
/// A whole word, so that what holds one has no padding: copying odd bytes is a call on targets that align strictly, and
/// levels are passed around in the fault path.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u64)]
pub enum Level {
    /// Each entry spans 512 GiB; never a leaf with the 4 KiB granule.
    L0 = 0,
    /// Each entry spans 1 GiB.
    L1 = 1,
    /// Each entry spans 2 MiB.
    L2 = 2,
    /// Each entry is a 4 KiB page.
    L3 = 3,
}

impl Level {
    /// The address bits below an entry of this level.
    pub const fn shift(self) -> u32 {
        PAGE_SHIFT + STRIDE * (3 - self as u32)
    }

    /// The bytes that one entry of this level spans.
    pub const fn span(self) -> u64 {
        1 << self.shift()
    }

    /// The level below, or `None` from the lowest one.
    pub const fn below(self) -> Option<Self> {
        match self {
            Self::L0 => Some(Self::L1),
            Self::L1 => Some(Self::L2),
            Self::L2 => Some(Self::L3),
            Self::L3 => None,
        }
    }

    /// The level above, or `None` from the topmost one.
    pub const fn above(self) -> Option<Self> {
        match self {
            Self::L0 => None,
            Self::L1 => Some(Self::L0),
            Self::L2 => Some(Self::L1),
            Self::L3 => Some(Self::L2),
        }
    }

    /// Whether an entry of this level may map memory (4 KiB granule: 1 GiB and 2 MiB blocks, pages).
    pub const fn may_be_leaf(self) -> bool {
        !matches!(self, Self::L0)
    }
}

/// A virtual machine identifier: what tells TLB entries of VMs apart (VTTBR_EL2.VMID, 8 or 16 bits).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Vmid(pub u16);

/// What VTTBR_EL2 holds for a VM: the root's address and the VMID. Every TLB invalidation of stage 2 acts on the VMID
/// that this register holds on the CPU that issues it (Arm ARM D8.17).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Vttbr(u64);

impl Vttbr {
    /// The register's value for a root table and a VMID.
    pub const fn new(root: Pa, vmid: Vmid) -> Self {
        Self(root.get() | (vmid.0 as u64) << 48)
    }

    /// The bits to write to VTTBR_EL2.
    pub const fn bits(self) -> u64 {
        self.0
    }
}

/// A range of IPAs, its end exclusive.
pub type IpaRange = Range<Ipa>;

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn spans_are_those_of_the_4k_granule() {
        assert_eq!(Level::L3.span(), 4 << 10);
        assert_eq!(Level::L2.span(), 2 << 20);
        assert_eq!(Level::L1.span(), 1 << 30);
        assert_eq!(Level::L0.span(), 512 << 30);
    }

    #[test]
    fn addresses_align_and_overflow_visibly() {
        let ipa = Ipa::new(0x1234_5678);
        assert_eq!(ipa.align_down(0x1000), Ipa::new(0x1234_5000));
        assert_eq!(ipa.offset_in(0x1000), 0x678);
        assert!(!ipa.is_aligned(0x10));
        assert_eq!(Ipa::new(u64::MAX).checked_add(1), None);
    }
}
