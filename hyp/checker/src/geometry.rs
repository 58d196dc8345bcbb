//! The geometry of one tree: sizes, levels, address bits of descriptors, and the size changes that need no break.
//!
//! Derived again from the Arm ARM (D8.2, D8.7.1, D8.16.2). The stride may be chosen freely: trees for model checking have
//! tables of four entries.

use core::ops::Range;

/// Size of pages and tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Granule {
    /// 4 KiB.
    Size4K,
    /// 16 KiB.
    Size16K,
    /// 64 KiB.
    Size64K,
}

impl Granule {
    /// Address bits within a page.
    pub const fn page_shift(self) -> u32 {
        match self {
            Self::Size4K => 12,
            Self::Size16K => 14,
            Self::Size64K => 16,
        }
    }

    /// The TG field of operands by range, and the upper half of TTL.
    pub(crate) const fn field(self) -> u64 {
        match self {
            Self::Size4K => 1,
            Self::Size16K => 2,
            Self::Size64K => 3,
        }
    }
}

/// Where descriptors keep their output address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// Bits 47 to 12 in place.
    Narrow,
    /// VTCR_EL2.DS: bits 49 to 12 in place, 51 and 50 in bits 9 and 8, which then aren't shareability.
    Lpa2,
    /// 64 KiB pages with 52-bit addresses: bits 47 to 16 in place, 51 to 48 in bits 15 to 12.
    Lpa64K,
}

/// How far changes of size may skip the break (ID_AA64MMFR2_EL1.BBM).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Bbm {
    /// Not at all.
    Level0,
    /// The contiguous bit may change; blocks whose nT bit is set may become tables.
    Level1,
    /// Blocks and tables may replace each other.
    Level2,
}

/// The layout of one tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// Size of pages and tables.
    pub granule: Granule,
    /// Where descriptors keep their address.
    pub format: Format,
    /// What may skip the break.
    pub bbm: Bbm,
    /// Address bits that a table resolves: 9, 11 or 13, but for trees for model checking.
    pub stride: u32,
    /// The root's level.
    pub start: u32,
    /// Concatenated tables of the root.
    pub root_tables: usize,
    /// The leaves of a contiguous group at each level, 1 where there are no groups.
    pub groups: [usize; 4],
}

impl Geometry {
    /// A tree of full-sized tables.
    pub const fn new(granule: Granule, format: Format, start: u32, root_tables: usize) -> Self {
        let groups = match granule {
            Granule::Size4K => [1, 16, 16, 16],
            Granule::Size16K => [1, 1, 32, 128],
            Granule::Size64K => [1, 1, 32, 32],
        };
        Self {
            granule,
            format,
            bbm: Bbm::Level0,
            stride: granule.page_shift() - 3,
            start,
            root_tables,
            groups,
        }
    }

    /// The same with a level of FEAT_BBM.
    #[must_use]
    pub const fn with_bbm(self, bbm: Bbm) -> Self {
        Self { bbm, ..self }
    }

    /// Address bits below an entry of `level`.
    pub const fn shift(&self, level: u32) -> u32 {
        self.granule.page_shift() + self.stride * (3 - level)
    }

    /// Bytes of the address space that an entry of `level` spans.
    pub const fn span(&self, level: u32) -> u64 {
        1 << self.shift(level)
    }

    /// Entries of a table at `level`: of all the root's tables, at the root's.
    pub(crate) const fn entries(&self, level: u32) -> usize {
        if level == self.start {
            self.root_tables << self.stride
        } else {
            1 << self.stride
        }
    }

    /// Bytes that a table of `level` spans.
    pub(crate) const fn table_span(&self, level: u32) -> u64 {
        (self.entries(level) as u64) << self.shift(level)
    }

    /// The whole address space.
    pub(crate) const fn all(&self) -> Range<u64> {
        0..self.table_span(self.start)
    }

    /// The addresses that the group of the leaf at `ipa` spans.
    pub(crate) const fn group(&self, level: u32, ipa: u64) -> Range<u64> {
        let bytes = (self.groups[level as usize] as u64) << self.shift(level);
        let first = ipa & !(bytes - 1);
        first..first + bytes
    }
}
