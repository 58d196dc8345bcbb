//! Addresses, levels and granules.
//!
//! An [`Ipa`] and a [`Pa`] are different types, so that a guest's address can't be mistaken for a machine's. All of it
//! is plain arithmetic; nothing here is shared.

use core::fmt;
use core::ops::Range;

/// Bytes of the smallest granule's page, as a power of two: what owners of guest memory count in.
pub const PAGE_SHIFT: u32 = 12;
/// Bytes of the smallest granule's page.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;
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

            /// This address plus `bytes`, if the caller knows that the sum lies within the same region.
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
    /// An intermediate physical address: a guest's physical address, which stage 2 translates.
    Ipa
}
address! {
    /// A physical address of the machine.
    Pa
}

/// A level of the translation: 0 is the topmost, 3 holds pages (Arm ARM D8.2). A stage 2 needs no level -1: sixteen
/// concatenated tables at level 0 resolve 52 bits.
///
/// A 32-bit word, so that a struct with a level and a [`Format`](crate::Format) has no padding: copying odd bytes is a call on
/// targets that align strictly, and levels are passed around in the fault path.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u32)]
pub enum Level {
    /// With 4 KiB pages each entry spans 512 GiB.
    L0 = 0,
    /// With 4 KiB pages each entry spans 1 GiB.
    L1 = 1,
    /// With 4 KiB pages each entry spans 2 MiB.
    L2 = 2,
    /// Each entry is a page.
    L3 = 3,
}

impl Level {
    /// All levels, from the top down.
    pub const ALL: [Self; 4] = [Self::L0, Self::L1, Self::L2, Self::L3];

    /// The level below, or `None` from the lowest one.
    #[inline]
    pub const fn below(self) -> Option<Self> {
        let next = self as usize + 1;
        if next < Self::ALL.len() {
            Some(Self::ALL[next])
        } else {
            None
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
}

/// The translation granule: the size of a page and of a table (Arm ARM D8.2, VTCR_EL2.TG0).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Granule {
    /// 4 KiB.
    Size4K,
    /// 16 KiB.
    Size16K,
    /// 64 KiB.
    Size64K,
}

impl Granule {
    /// All granules.
    pub const ALL: [Self; 3] = [Self::Size4K, Self::Size16K, Self::Size64K];

    /// The bytes of a page, as a power of two.
    pub const fn page_shift(self) -> u32 {
        match self {
            Self::Size4K => 12,
            Self::Size16K => 14,
            Self::Size64K => 16,
        }
    }

    /// Address bits that one level resolves: a table fills a page with 8-byte entries.
    pub const fn stride(self) -> u32 {
        self.page_shift() - 3
    }

    /// Address bits below an entry of `level`.
    pub const fn shift(self, level: Level) -> u32 {
        self.page_shift() + self.stride() * (3 - level as u32)
    }

    /// The bytes that one entry of `level` spans.
    pub const fn span(self, level: Level) -> u64 {
        1 << self.shift(level)
    }
}

/// A virtual machine identifier: tags TLB entries by VM (VTTBR_EL2.VMID, 8 or 16 bits).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Vmid(pub u16);

/// The value of VTTBR_EL2 for a VM: the root's address and the VMID. Every stage-2 TLB invalidation acts on the VMID in this
/// register on the issuing CPU (Arm ARM D8.17).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Vttbr(u64);

impl Vttbr {
    /// The register's value for a root table and a VMID. A root above 48 bits has its top bits in `BADDR[5:2]`, so it is
    /// aligned to 64 bytes at least, as every root is.
    pub const fn new(root: Pa, vmid: Vmid) -> Self {
        const LOW: u64 = (1 << 48) - 1;
        Self(root.get() & LOW | (root.get() >> 48 & 0xf) << 2).with_vmid(vmid)
    }

    /// The value with another VMID, from one with VMID 0.
    #[inline(always)]
    pub(crate) const fn with_vmid(self, vmid: Vmid) -> Self {
        Self(self.0 | (vmid.0 as u64) << 48)
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
    fn spans_are_those_of_the_manual() {
        let spans = |granule: Granule| Level::ALL.map(|level| granule.span(level));
        assert_eq!(
            spans(Granule::Size4K),
            [512 << 30, 1 << 30, 2 << 20, 4 << 10]
        );
        assert_eq!(
            spans(Granule::Size16K),
            [128 << 40, 64 << 30, 32 << 20, 16 << 10]
        );
        assert_eq!(spans(Granule::Size64K)[1..], [4 << 40, 512 << 20, 64 << 10]);
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
