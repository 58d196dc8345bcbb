//! The layout of one VM's stage 2: the geometry that follows from the features that its tables use.
//!
//! [`Features`] is a plain choice, [`Layout`] the same choice checked and worked out: starting level, concatenated roots,
//! shifts, address format, VTCR_EL2. A layout never changes while its tables exist. Sources: Arm ARM D8.2 (granules,
//! concatenation), D23.2.216 (VTCR_EL2).

use crate::address::{Granule, Ipa, Level, Pa};
use crate::descriptor::{Attributes, Leaf, LeafBits, Permissions};
use crate::features::{Bbm, Features, Format};
use crate::tlbi_operand::hint_bits;
use core::fmt;
use core::num::NonZeroUsize;

/// Most tables that a root may concatenate (Arm ARM D8.2.1).
const MAX_CONCATENATED: u64 = 16;
/// Fewest IPA bits that a VM gets: what every guest expects.
const MIN_IPA_BITS: u32 = 32;

/// The features exclude each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum BadLayout {
    /// Stage 2, or the CPU, doesn't support this IPA size.
    IpaBits {
        /// What was asked for.
        bits: u32,
        /// The most that is possible here.
        most: u32,
    },
    /// Dirty state by hardware without the access flag by hardware.
    DirtyWithoutAccess,
}

impl fmt::Display for BadLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::IpaBits { bits, most } => write!(
                f,
                "an IPA size of {bits} bits is not possible here: {MIN_IPA_BITS} to {most}"
            ),
            Self::DirtyWithoutAccess => f.write_str(
                "dirty state can be left to the hardware only together with the access flag",
            ),
        }
    }
}

impl core::error::Error for BadLayout {}

/// The layout of one VM's tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    features: Features,
    format: Format,
    stride: u32,
    shifts: [u32; 4],
    /// Of a table. Known not to be zero, an index that is masked with it needs no check.
    entries: NonZeroUsize,
    start: Level,
    tables: usize,
    root_entries: usize,
    /// Address bits below an entry of the root.
    root_shift: u32,
    /// As `stride`, if it is a plain tree; else 0.
    plain_stride: u32,
    /// What is beside the address in the operands of TLB maintenance for pages, where a hint may be given.
    page_hint: u64,
    bits: LeafBits,
}

impl Layout {
    /// The layout with the fewest levels. Concatenating up to 16 tables saves a level.
    pub fn new(features: Features) -> Result<Self, BadLayout> {
        let granule = features.granule;
        let format = match granule {
            Granule::Size64K if features.pa_bits > 48 => Format::Lpa64K,
            Granule::Size4K | Granule::Size16K if features.lpa2 => Format::Lpa2,
            _ => Format::Narrow,
        };
        let widest = if format == Format::Narrow { 48 } else { 52 };
        let most = features.pa_bits.min(widest);
        if !(MIN_IPA_BITS..=most).contains(&features.ipa_bits) {
            let bits = features.ipa_bits;
            return Err(BadLayout::IpaBits { bits, most });
        }
        if features.hardware_dirty && !features.hardware_access {
            return Err(BadLayout::DirtyWithoutAccess);
        }
        Ok(Self::with_stride(features, format, granule.stride()))
    }

    /// A tree for model checking: tables of four entries, the root one table at `start`. The protocol doesn't depend on
    /// their number, and 512 entries are too many to explore. The IPA size of `features` doesn't count. FEAT_BBM level 1 takes
    /// blocks whose bit 16 is free: those of 64 KiB pages, or at addresses without it.
    #[doc(hidden)]
    pub const fn small(start: Level, features: Features) -> Self {
        const STRIDE: u32 = 2;
        let page_shift = features.granule.page_shift();
        let features = Features {
            ipa_bits: page_shift + STRIDE * (4 - start as u32),
            ..features
        };
        Self {
            start,
            tables: 1,
            root_entries: 1 << STRIDE,
            root_shift: page_shift + STRIDE * (3 - start as u32),
            ..Self::with_stride(features, Format::Narrow, STRIDE)
        }
    }

    const fn with_stride(features: Features, format: Format, stride: u32) -> Self {
        let page_shift = features.granule.page_shift();
        let shifts = [
            page_shift + stride * 3,
            page_shift + stride * 2,
            page_shift + stride,
            page_shift,
        ];
        let mut start = Level::L2;
        loop {
            let resolved = shifts[start as usize] + stride;
            let tables = 1u64 << features.ipa_bits.saturating_sub(resolved);
            match start.above() {
                Some(above) if tables > MAX_CONCATENATED => start = above,
                _ => {
                    return Self {
                        features,
                        format,
                        stride,
                        shifts,
                        entries: NonZeroUsize::new(1 << stride).expect("a power of two"),
                        start,
                        tables: tables as usize,
                        root_entries: 1 << (features.ipa_bits - shifts[start as usize]),
                        root_shift: shifts[start as usize],
                        plain_stride: match (features.granule, format) {
                            (Granule::Size4K, Format::Narrow) => stride,
                            _ => 0,
                        },
                        page_hint: match features.bbm {
                            Bbm::Level0 => hint_bits(features.granule, Some(Level::L3)),
                            _ => 0,
                        },
                        bits: LeafBits::new(format, &features),
                    };
                }
            }
        }
    }

    /// Its features.
    pub const fn features(&self) -> &Features {
        &self.features
    }

    /// Where descriptors keep their addresses.
    pub const fn format(&self) -> Format {
        self.format
    }

    /// The IPA space's size in bits.
    pub const fn ipa_bits(&self) -> u32 {
        self.features.ipa_bits
    }

    /// A leaf of `level` that maps `pa`, accessed, in no contiguous group. `pa` is aligned to the level's span and
    /// [within](Self::check_backing) the physical addresses; otherwise the leaf maps other memory. Debug builds check the
    /// address.
    #[inline]
    pub const fn leaf(&self, level: Level, pa: Pa, attributes: Attributes) -> Leaf {
        debug_assert!(pa.is_aligned(self.span(level)));
        debug_assert!(self.check_backing(pa, self.span(level)).is_ok());
        self.bits.leaf(self.format, level, pa, attributes)
    }

    /// The first level that is looked up.
    pub const fn start(&self) -> Level {
        self.start
    }

    /// Bytes of a page.
    pub const fn page_size(&self) -> u64 {
        self.span(Level::L3)
    }

    /// Bytes of a table. One of a tree for model checking has fewer entries than it has room for.
    pub const fn table_size(&self) -> u64 {
        self.page_size()
    }

    /// Address bits that one level resolves.
    pub(crate) const fn stride(&self) -> u32 {
        self.stride
    }

    /// As [`stride`](Self::stride), if the tree is a plain one: pages of 4 KiB, addresses where they always were. Else 0.
    #[inline(always)]
    pub(crate) const fn plain_stride(&self) -> u32 {
        self.plain_stride
    }

    /// See [`Regime::page_hint`](crate::Regime).
    #[inline(always)]
    pub(crate) const fn page_hint(&self) -> u64 {
        self.page_hint
    }

    /// Address bits below an entry of the root.
    #[inline(always)]
    pub(crate) const fn root_shift(&self) -> u32 {
        self.root_shift
    }

    /// Address bits below an entry of `level`.
    pub const fn shift(&self, level: Level) -> u32 {
        self.shifts[level as usize]
    }

    /// The bytes that one entry of `level` spans.
    pub const fn span(&self, level: Level) -> u64 {
        1 << self.shift(level)
    }

    /// Entries of a table below the root.
    #[inline(always)]
    pub const fn table_entries(&self) -> usize {
        self.entries.get()
    }

    /// Frames of the root: concatenated tables, a power of two, to be allocated in one run aligned to its size.
    pub const fn root_tables(&self) -> usize {
        self.tables
    }

    /// The root's size and alignment in bytes.
    pub const fn root_bytes(&self) -> u64 {
        self.tables as u64 * self.table_size()
    }

    /// Entries of the root that addresses of this IPA size can reach.
    pub const fn root_entries(&self) -> usize {
        self.root_entries
    }

    /// The index of `ipa` in a table below the root, `shift` being that of the table's level.
    #[inline(always)]
    pub(crate) const fn index(&self, ipa: Ipa, shift: u32) -> usize {
        (ipa.get() >> shift) as usize & (self.table_entries() - 1)
    }

    /// The largest leaves that the granule has (Arm ARM D8.3): 1 GiB, 32 MiB and 512 MiB, and one level more with 52-bit
    /// addresses.
    pub const fn largest_leaf(&self) -> Level {
        match (self.features.granule, self.format) {
            (Granule::Size4K, Format::Lpa2) => Level::L0,
            (Granule::Size4K, _) | (_, Format::Lpa2 | Format::Lpa64K) => Level::L1,
            (Granule::Size16K | Granule::Size64K, Format::Narrow) => Level::L2,
        }
    }

    /// Adjacent leaves of `level` that one contiguous bit joins (Arm ARM D8.7.1), or `None` where they aren't used: blocks
    /// of level 1 and above.
    pub const fn group(&self, level: Level) -> Option<usize> {
        if !self.features.contiguous {
            return None;
        }
        // Trees for model checking have tables too small for the real ones.
        if self.stride < 4 {
            return Some(2);
        }
        match (self.features.granule, level) {
            (Granule::Size4K, Level::L2 | Level::L3) => Some(16),
            (Granule::Size16K, Level::L2) | (Granule::Size64K, Level::L2 | Level::L3) => Some(32),
            (Granule::Size16K, Level::L3) => Some(128),
            (_, Level::L0 | Level::L1) => None,
        }
    }

    /// VTCR_EL2 for this layout: walks inner shareable and write-back, leaves inner shareable. TLB maintenance goes by
    /// it as well as walks do (rule 12): VS decides how much of a VMID counts, DS what an operand by range means.
    pub const fn vtcr(&self) -> u64 {
        const RES1: u64 = 1 << 31;
        const WALKS: u64 = 0b01 << 8 | 0b01 << 10 | 0b11 << 12;
        let t0sz = 64 - self.features.ipa_bits as u64;
        // SL0 counts from the granule's own lowest starting level.
        let (tg0, sl0) = match self.features.granule {
            Granule::Size4K => (0b00, 2 - self.start as u64),
            Granule::Size16K => (0b10, 3 - self.start as u64),
            Granule::Size64K => (0b01, 3 - self.start as u64),
        };
        // As ID_AA64MMFR0_EL1.PARange counts (D23.2.73).
        let ps = match (self.features.pa_bits, self.format) {
            (52.., Format::Lpa2 | Format::Lpa64K) => 0b110,
            (48.., _) => 0b101,
            (44.., _) => 0b100,
            (42.., _) => 0b011,
            (40.., _) => 0b010,
            (36.., _) => 0b001,
            _ => 0b000,
        };
        let vs = self.features.wide_vmids as u64;
        let ha = self.features.hardware_access as u64;
        let hd = self.features.hardware_dirty as u64;
        let ds = matches!(self.format, Format::Lpa2) as u64;
        RES1 | t0sz
            | sl0 << 6
            | WALKS
            | tg0 << 14
            | ps << 16
            | vs << 19
            | ha << 21
            | hd << 22
            | ds << 32
    }
}

impl Leaf {
    /// The same mapping with these permissions, as far as `layout` has the features for them.
    #[must_use]
    #[inline]
    pub const fn with_permissions(self, layout: &Layout, permissions: Permissions) -> Self {
        self.with_permission_bits(layout.bits.permissions(permissions))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn features(granule: Granule, ipa_bits: u32, lpa2: bool) -> Features {
        Features {
            granule,
            lpa2,
            ..Features::armv8_0(ipa_bits, 52)
        }
    }

    fn top(granule: Granule, ipa_bits: u32, lpa2: bool) -> Result<(Level, usize), BadLayout> {
        let layout = Layout::new(features(granule, ipa_bits, lpa2))?;
        Ok((layout.start(), layout.root_tables()))
    }

    #[test]
    fn roots_start_as_low_as_sixteen_tables_allow() {
        use Granule::*;
        for (granule, bits, lpa2, start, tables) in [
            (Size4K, 32, false, Level::L2, 4),
            (Size4K, 34, false, Level::L2, 16),
            (Size4K, 35, false, Level::L1, 1),
            (Size4K, 39, false, Level::L1, 1),
            (Size4K, 40, false, Level::L1, 2),
            (Size4K, 43, false, Level::L1, 16),
            (Size4K, 44, false, Level::L0, 1),
            (Size4K, 48, false, Level::L0, 1),
            (Size4K, 49, true, Level::L0, 2),
            (Size4K, 52, true, Level::L0, 16),
            (Size16K, 40, false, Level::L2, 16),
            (Size16K, 41, false, Level::L1, 1),
            (Size16K, 47, false, Level::L1, 1),
            (Size16K, 48, false, Level::L1, 2),
            (Size16K, 51, true, Level::L1, 16),
            (Size16K, 52, true, Level::L0, 1),
            (Size64K, 42, false, Level::L2, 1),
            (Size64K, 46, false, Level::L2, 16),
            (Size64K, 48, false, Level::L1, 1),
            (Size64K, 52, false, Level::L1, 1),
        ] {
            assert_eq!(
                top(granule, bits, lpa2),
                Ok((start, tables)),
                "{granule:?} {bits}"
            );
        }
    }

    #[test]
    fn what_the_cpu_lacks_is_refused() {
        let refused = |bits, most| Err(BadLayout::IpaBits { bits, most });
        assert_eq!(Layout::new(Features::armv8_0(48, 40)), refused(48, 40));
        assert_eq!(Layout::new(Features::armv8_0(31, 48)), refused(31, 48));
        assert_eq!(Layout::new(Features::armv8_0(49, 52)), refused(49, 48));
        let dirty = Features {
            hardware_dirty: true,
            ..Features::armv8_0(40, 40)
        };
        assert_eq!(Layout::new(dirty), Err(BadLayout::DirtyWithoutAccess));
    }

    #[test]
    fn vtcr_matches_the_layout() {
        let vtcr = |features| Layout::new(features).unwrap().vtcr();
        let wide_vmids = |features| Features {
            wide_vmids: true,
            ..features
        };
        for (pa_bits, ps) in [
            (32, 0),
            (36, 1),
            (40, 2),
            (42, 3),
            (44, 4),
            (48, 5),
            (52, 5),
        ] {
            let narrow = vtcr(Features::armv8_0(32, pa_bits));
            assert_eq!(narrow >> 16 & 7, ps, "{pa_bits} bits");
        }
        assert_eq!(vtcr(Features::armv8_0(40, 40)), 0x8002_3558);
        assert_eq!(vtcr(wide_vmids(Features::armv8_0(48, 52))), 0x800d_3590);
        assert_eq!(
            vtcr(wide_vmids(features(Granule::Size4K, 52, true))),
            0x1_800e_358c
        );
        assert_eq!(vtcr(features(Granule::Size16K, 48, false)), 0x8005_b590);
        assert_eq!(vtcr(features(Granule::Size16K, 52, true)), 0x1_8006_b5cc);
        assert_eq!(vtcr(features(Granule::Size64K, 52, false)), 0x8006_758c);
        let by_hardware = Features {
            hardware_access: true,
            hardware_dirty: true,
            ..Features::armv8_0(40, 40)
        };
        assert_eq!(vtcr(by_hardware), 0x8062_3558);
    }

    #[test]
    fn only_reachable_entries_count() {
        let entries = |bits| {
            let layout = Layout::new(Features::armv8_0(bits, 48)).unwrap();
            layout.root_entries()
        };
        assert_eq!([entries(40), entries(36), entries(48)], [1024, 64, 512]);
    }
}
