//! The architecture features that tables use, and the format of descriptors that follows from them.
//!
//! Sources: Arm ARM D8.3 (descriptor formats), D23.2 (ID registers).

use crate::address::{Granule, Pa};

/// Bits 47 to 12 of an address, which the narrow format has in place.
pub(crate) const ADDRESS: u64 = 0x0000_ffff_ffff_f000;

/// The CPUs' support for changing the size of a mapping or its contiguous bit without a break (FEAT_BBM, ID_AA64MMFR2_EL1.BBM).
/// Only to be claimed for CPUs that raise no TLB conflict abort.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Bbm {
    /// Every such change needs the break.
    Level0,
    /// The contiguous bit may change; a block becomes a table by way of its nT bit.
    Level1,
    /// Block and table may replace each other.
    Level2,
}

/// The architecture features that a VM's tables use. Every CPU that runs the VM must have them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Features {
    /// Size of pages and tables.
    pub granule: Granule,
    /// Bits of a guest's physical addresses: 32 to 48, to 52 where physical addresses have that many.
    pub ipa_bits: u32,
    /// Bits of a physical address (ID_AA64MMFR0_EL1.PARange): 32 to 52.
    pub pa_bits: u32,
    /// FEAT_LPA2 for this granule: descriptors with 52-bit addresses (VTCR_EL2.DS). Has no effect with 64 KiB pages, whose
    /// descriptors have room for them anyway.
    pub lpa2: bool,
    /// FEAT_S2FWB: stage 2 forces write-back, whatever the guest asks for (HCR_EL2.FWB).
    pub fwb: bool,
    /// FEAT_XNX: execution at EL1 and at EL0 are told apart.
    pub xnx: bool,
    /// FEAT_BBM.
    pub bbm: Bbm,
    /// FEAT_HAFDBS: hardware sets the access flag (VTCR_EL2.HA).
    pub hardware_access: bool,
    /// FEAT_HAFDBS: hardware makes writable-clean entries writable-dirty (VTCR_EL2.HD). Needs `hardware_access`.
    pub hardware_dirty: bool,
    /// Groups of adjacent leaves carry the contiguous bit.
    pub contiguous: bool,
    /// FEAT_LSE, on each CPU that works on the tables: runs of entries are changed by its single-instruction atomics.
    pub atomics: Atomics,
    /// FEAT_VMID16: VMIDs have 16 bits, not 8 (VTCR_EL2.VS).
    pub wide_vmids: bool,
}

/// Whether all CPUs that work on the tables have FEAT_LSE. Not a plain bool, as its instructions are undefined elsewhere.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Atomics(bool);

impl Atomics {
    /// Some may not have it.
    pub const NONE: Self = Self(false);

    /// They have it.
    ///
    /// # Safety
    /// That is so (ID_AA64ISAR0_EL1.Atomic on each of them).
    pub const unsafe fn everywhere() -> Self {
        Self(true)
    }

    /// Whether they have it.
    pub const fn are_everywhere(self) -> bool {
        self.0
    }
}

impl Features {
    /// Armv8.0's: 4 KiB pages, nothing optional.
    pub const fn armv8_0(ipa_bits: u32, pa_bits: u32) -> Self {
        Self {
            granule: Granule::Size4K,
            ipa_bits,
            pa_bits,
            lpa2: false,
            fwb: false,
            xnx: false,
            bbm: Bbm::Level0,
            hardware_access: false,
            hardware_dirty: false,
            contiguous: false,
            atomics: Atomics::NONE,
            wide_vmids: false,
        }
    }
}

/// The position of a descriptor's output address (Arm ARM D8.3).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u32)]
pub enum Format {
    /// In place, up to 48 bits.
    Narrow,
    /// FEAT_LPA2: bits 49 to 12 in place, 51 and 50 in bits 9 and 8.
    Lpa2,
    /// FEAT_LPA with 64 KiB pages: bits 47 to 16 in place, 51 to 48 in bits 15 to 12.
    Lpa64K,
}

impl Format {
    #[inline(always)]
    pub(crate) const fn address(self, word: u64) -> Pa {
        match self {
            Self::Narrow => Pa::new(word & ADDRESS),
            Self::Lpa2 | Self::Lpa64K => self.wide_address(word),
        }
    }

    /// Out of line, as it is too rare for the fault path.
    #[cold]
    const fn wide_address(self, word: u64) -> Pa {
        Pa::new(match self {
            Self::Narrow | Self::Lpa2 => word & 0x0003_ffff_ffff_f000 | (word >> 8 & 0b11) << 50,
            Self::Lpa64K => word & 0x0000_ffff_ffff_0000 | (word >> 12 & 0xf) << 48,
        })
    }

    #[inline(always)]
    pub(crate) const fn address_bits(self, pa: Pa) -> u64 {
        match self {
            Self::Narrow => pa.get() & ADDRESS,
            Self::Lpa2 | Self::Lpa64K => self.wide_address_bits(pa),
        }
    }

    #[cold]
    const fn wide_address_bits(self, pa: Pa) -> u64 {
        let pa = pa.get();
        match self {
            Self::Narrow | Self::Lpa2 => pa & 0x0003_ffff_ffff_f000 | (pa >> 50 & 0b11) << 8,
            Self::Lpa64K => pa & 0x0000_ffff_ffff_0000 | (pa >> 48 & 0xf) << 12,
        }
    }
}
