//! Stage-2 descriptors: every attribute bit is written out here and nowhere else.
//!
//! A 64-bit word is decoded once into a [`Descriptor`], by the level and the format in which it was read; only its variants can
//! be expressed. Source: Arm ARM D8.3, VMSAv8-64 stage-2 descriptors.

mod attributes;

pub(crate) use self::attributes::LeafBits;
pub use self::attributes::{Attributes, Execute, MemoryType, Permissions};
use crate::address::{Level, Pa};
use crate::features::Format;
use core::fmt;

const VALID: u64 = 1 << 0;
/// With VALID: a table (levels 0 to 2) or a page (level 3). Clear: a block.
const TABLE_OR_PAGE: u64 = 1 << 1;
/// Distinguish invalid descriptors; hardware ignores these bits as VALID is clear. A locked one may keep the other bits of its
/// former leaf.
const LOCKED: u64 = 1 << 1;
const FROZEN: u64 = 1 << 2;
/// MemAttr[3:0] (D8.6.5; with FEAT_S2FWB D8.6.6).
const MEMORY_TYPE_SHIFT: u32 = 2;
const MEMORY_TYPE: u64 = 0b1111 << MEMORY_TYPE_SHIFT;
const FORCED_WRITE_BACK: u64 = 0b0110 << MEMORY_TYPE_SHIFT;
const S2AP_READ: u64 = 1 << 6;
const S2AP_WRITE: u64 = 1 << 7;
/// SH, but with FEAT_LPA2, where VTCR_EL2.SH0 holds for all and the bits are the address's.
const INNER_SHAREABLE: u64 = 0b11 << 8;
const ACCESSED: u64 = 1 << 10;
/// nT, FEAT_BBM level 1: TLBs keep the block only in ways that can't conflict with the table that replaces it, or don't
/// translate by it at all: whether the bit causes a translation fault is the implementation's choice (Arm ARM, pseudocode of
/// AArch64.BlocknTFaults). So whoever sets it also clears it ([`Entry::mark`](crate::Entry::mark)).
const NO_TRANSLATION: u64 = 1 << 16;
/// Dirty bit modifier: hardware may set S2AP_WRITE (FEAT_HAFDBS, D8.5.2).
const HARDWARE_DIRTY: u64 = 1 << 51;
const CONTIGUOUS: u64 = 1 << 52;
/// XN[1:0] (D8.4.2). XN[0] stays clear where FEAT_XNX is missing.
const EXECUTE_SHIFT: u32 = 53;
const EXECUTE_NEVER: u64 = 0b11 << EXECUTE_SHIFT;
/// Software: a fault may make this entry writable by a single exchange (rule 3).
const MAY_WRITE: u64 = 1 << 55;
/// Software: the block is marked with NO_TRANSLATION by a CPU that is replacing it. A second bit is needed because in a page,
/// and in the small blocks of a tree for model checking, the first is part of the address.
const MARKED: u64 = 1 << 56;

/// A valid leaf: block or page.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Leaf {
    word: u64,
    format: Format,
}

impl Leaf {
    const fn with(self, bits: u64) -> Self {
        Self {
            word: self.word | bits,
            ..self
        }
    }

    const fn without(self, bits: u64) -> Self {
        Self {
            word: self.word & !bits,
            ..self
        }
    }

    const fn has(self, bit: u64) -> bool {
        self.word & bit != 0
    }

    /// The first byte that is mapped.
    pub const fn pa(self) -> Pa {
        if self.no_translation() {
            self.format.address(self.word & !NO_TRANSLATION)
        } else {
            self.format.address(self.word)
        }
    }

    /// Whether the guest can write through it now, without a fault and without hardware noting it.
    pub const fn writable(self) -> bool {
        self.has(S2AP_WRITE)
    }

    /// Whether a fault may make it writable by a single exchange (rule 3).
    pub const fn may_write(self) -> bool {
        self.has(MAY_WRITE)
    }

    /// Whether hardware makes it writable at the first write.
    pub const fn hardware_dirty(self) -> bool {
        self.has(HARDWARE_DIRTY)
    }

    /// Whether hardware has noted a write through it that nobody has collected yet.
    pub const fn dirty(self) -> bool {
        self.word & (HARDWARE_DIRTY | S2AP_WRITE) == HARDWARE_DIRTY | S2AP_WRITE
    }

    /// Whether anything was accessed through it since its access flag was last cleared.
    pub const fn accessed(self) -> bool {
        self.has(ACCESSED)
    }

    /// Whether it is one of a group of adjacent leaves that TLBs may keep as one.
    pub const fn contiguous(self) -> bool {
        self.has(CONTIGUOUS)
    }

    /// Whether it only needs write permission, which a single exchange can give.
    #[inline(always)]
    pub(crate) const fn can_be_relaxed(self) -> bool {
        self.word & (MAY_WRITE | S2AP_WRITE | CONTIGUOUS) == MAY_WRITE
    }

    pub(crate) const fn no_translation(self) -> bool {
        self.has(MARKED)
    }

    /// The memory type.
    pub const fn memory(self) -> MemoryType {
        match (self.word & MEMORY_TYPE) >> MEMORY_TYPE_SHIFT {
            0b0000 => MemoryType::DeviceNgnrne,
            0b0001 => MemoryType::DeviceNgnre,
            0b0101 => MemoryType::NonCacheable,
            _ => MemoryType::WriteBack,
        }
    }

    /// Who may execute.
    pub const fn execute(self) -> Execute {
        match (self.word & EXECUTE_NEVER) >> EXECUTE_SHIFT {
            0b00 => Execute::Everywhere,
            0b01 => Execute::AtEl0,
            0b10 => Execute::Nowhere,
            _ => Execute::AtEl1,
        }
    }

    /// Its permissions.
    pub const fn permissions(self) -> Permissions {
        Permissions {
            write: self.writable(),
            may_write: self.may_write(),
            execute: self.execute(),
            hardware_dirty: self.hardware_dirty(),
        }
    }

    /// Its attributes: all but the address.
    pub const fn attributes(self) -> Attributes {
        Attributes {
            memory: self.memory(),
            permissions: self.permissions(),
        }
    }

    /// The same mapping with the permissions that `bits` encode ([`LeafBits::permissions`]).
    #[inline]
    pub(crate) const fn with_permission_bits(self, bits: u64) -> Self {
        self.without(EXECUTE_NEVER | S2AP_WRITE | MAY_WRITE | HARDWARE_DIRTY)
            .with(bits)
    }

    /// The same mapping, writable (and dirty, where hardware tracks that).
    #[must_use]
    pub const fn with_write(self) -> Self {
        self.with(S2AP_WRITE)
    }

    /// The same mapping, read-only until a fault relaxes it; or, where hardware tracks writes, clean.
    #[must_use]
    pub const fn without_write(self) -> Self {
        self.without(S2AP_WRITE)
    }

    /// The same mapping, read-only until a fault relaxes it, also where hardware tracks writes.
    #[must_use]
    pub const fn write_protected(self) -> Self {
        self.without(S2AP_WRITE | HARDWARE_DIRTY)
    }

    /// The same mapping, accessed.
    #[must_use]
    pub const fn with_accessed(self) -> Self {
        self.with(ACCESSED)
    }

    /// The same mapping, not accessed: the next access faults, or hardware sets the flag.
    #[must_use]
    pub const fn without_accessed(self) -> Self {
        self.without(ACCESSED)
    }

    pub(crate) const fn with_contiguous(self) -> Self {
        self.with(CONTIGUOUS)
    }

    pub(crate) const fn without_contiguous(self) -> Self {
        self.without(CONTIGUOUS)
    }

    pub(crate) const fn with_no_translation(self) -> Self {
        self.with(NO_TRANSLATION | MARKED)
    }

    pub(crate) const fn without_no_translation(self) -> Self {
        self.without(NO_TRANSLATION | MARKED)
    }

    /// This leaf as the descriptor of an entry of `level`; or the leaf itself, if it belongs to another level. A page's word
    /// would be a link in the tables above.
    pub(crate) const fn at(self, level: Level) -> Result<Descriptor, Self> {
        if self.has(TABLE_OR_PAGE) == matches!(level, Level::L3) {
            Ok(Descriptor::Leaf(self))
        } else {
            Err(self)
        }
    }

    /// The bits of this leaf that don't depend on its address or level.
    const fn kept_by_size_change(self) -> u64 {
        const KEPT: u64 = MEMORY_TYPE
            | S2AP_READ
            | S2AP_WRITE
            | ACCESSED
            | HARDWARE_DIRTY
            | EXECUTE_NEVER
            | MAY_WRITE
            | VALID;
        self.word & KEPT
    }

    /// A leaf of `level` with this one's attributes, access and dirty state included, that maps `pa`. In no group.
    #[must_use]
    pub(crate) const fn moved_to(self, level: Level, pa: Pa) -> Self {
        let mut word = self.kept_by_size_change() | self.format.address_bits(pa);
        if matches!(level, Level::L3) {
            word |= TABLE_OR_PAGE;
        }
        if !matches!(self.format, Format::Lpa2) {
            word |= INNER_SHAREABLE;
        }
        Self { word, ..self }
    }

    /// The leaf of the same level that maps the memory `bytes` further on, where both lie in one aligned block: so all of
    /// the difference is in address bits that every format keeps in place.
    pub(crate) const fn advanced(self, bytes: u64) -> Self {
        Self {
            word: self.word + bytes,
            ..self
        }
    }

    /// Whether the two differ, apart from their addresses, only in bits that hardware and faults change.
    pub(crate) const fn is_like(self, other: Self) -> bool {
        const CHANGES: u64 = S2AP_WRITE | ACCESSED;
        (self.kept_by_size_change() ^ other.kept_by_size_change()) & !CHANGES == 0
    }
}

impl Leaf {
    /// Whether TLBs may hold both leaves at once but for the contiguous bit: same output address and same memory type.
    pub(crate) const fn translates_as(self, other: Self) -> bool {
        self.pa().get() == other.pa().get() && (self.word ^ other.word) & MEMORY_TYPE == 0
    }
}

impl fmt::Debug for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = [
            (self.accessed(), "accessed"),
            (self.dirty(), "dirty"),
            (self.contiguous(), "contiguous"),
        ];
        write!(f, "Leaf({} {:?}", self.pa(), self.attributes())?;
        for (_, name) in state.iter().filter(|(set, _)| *set) {
            write!(f, " {name}")?;
        }
        f.write_str(")")
    }
}

/// The decoded meaning of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Descriptor {
    /// Nothing is mapped.
    Invalid,
    /// Invalid to hardware; a CPU is between break and make (rule 2). Or a block marked with nT by a CPU that is replacing it:
    /// hardware may fault on it or translate by it.
    Locked,
    /// Invalid to hardware for ever: the table that holds it is no longer part of the tree (rule 5).
    Frozen,
    /// Maps memory.
    Leaf(Leaf),
    /// Leads to the table of the next level at this address.
    Table(Pa),
}

impl Descriptor {
    /// Decodes a word read from a table of `level`. Words that the engine never writes count as invalid, except blocks of sizes
    /// that only other granules have.
    #[inline]
    pub const fn decode(word: u64, level: Level, format: Format) -> Self {
        if word & VALID == 0 {
            return match word {
                FROZEN => Self::Frozen,
                _ if word & LOCKED != 0 => Self::Locked,
                _ => Self::Invalid,
            };
        }
        match (word & TABLE_OR_PAGE != 0, level) {
            (false, Level::L0 | Level::L1 | Level::L2) if word & MARKED != 0 => Self::Locked,
            (true, Level::L3) | (false, Level::L0 | Level::L1 | Level::L2) => {
                Self::Leaf(Leaf { word, format })
            }
            (true, _) => Self::Table(format.address(word)),
            (false, Level::L3) => Self::Invalid,
        }
    }

    /// The word of a locked entry whose holder keeps `leaf` mapped: if another CPU ends the entry meanwhile, it gets the leaf.
    pub(crate) const fn locked_keeping(leaf: Leaf) -> u64 {
        leaf.word & !VALID | LOCKED
    }

    /// The block in a word of `level` without its nT mark, if the word has that mark.
    pub(crate) const fn marked(word: u64, level: Level, format: Format) -> Option<Leaf> {
        const BITS: u64 = VALID | TABLE_OR_PAGE | MARKED;
        if word & BITS == VALID | MARKED && !matches!(level, Level::L3) {
            Some(Leaf { word, format }.without_no_translation())
        } else {
            None
        }
    }

    /// The leaf that the holder of a locked entry keeps mapped.
    pub(crate) const fn kept(word: u64, level: Level, format: Format) -> Option<Leaf> {
        if let Some(block) = Self::marked(word, level, format) {
            return Some(block);
        }
        if word & (VALID | LOCKED) != LOCKED || word == LOCKED {
            return None;
        }
        let word = match level {
            Level::L3 => word | VALID | TABLE_OR_PAGE,
            Level::L0 | Level::L1 | Level::L2 => word & !LOCKED | VALID,
        };
        Some(Leaf { word, format })
    }

    /// The table that a word of `level` links to, if it does: the walker's question, in the fewest instructions.
    #[inline(always)]
    pub(crate) const fn link(word: u64, level: Level, format: Format) -> Option<Pa> {
        const LINK: u64 = VALID | TABLE_OR_PAGE;
        if word & LINK == LINK && !matches!(level, Level::L3) {
            Some(format.address(word))
        } else {
            None
        }
    }

    /// The write-protected form of a word of level 3, if that is a writable page, in no group and untracked: the inner step of
    /// a harvest, in the fewest instructions.
    #[inline(always)]
    pub(crate) const fn plain_page_protected(word: u64, format: Format) -> Option<Leaf> {
        const PLAIN: u64 = VALID | TABLE_OR_PAGE | S2AP_WRITE;
        if word & (PLAIN | HARDWARE_DIRTY | CONTIGUOUS) == PLAIN {
            let word = word - S2AP_WRITE;
            Some(Leaf { word, format })
        } else {
            None
        }
    }

    /// For words of level 3 that map a page which a single exchange makes writable: the bits that identify them, their values,
    /// and the bits to set.
    pub(crate) const RELAXED_PAGE: (u64, u64, u64) = {
        const PAGE: u64 = VALID | TABLE_OR_PAGE;
        let mask = PAGE | MAY_WRITE | S2AP_WRITE | CONTIGUOUS;
        (mask, PAGE | MAY_WRITE, S2AP_WRITE | ACCESSED)
    };

    /// Whether a word of level 3 is a page that hardware has noted as written.
    #[inline(always)]
    pub(crate) const fn is_dirty_page(word: u64) -> bool {
        const DIRTY: u64 = VALID | HARDWARE_DIRTY | S2AP_WRITE;
        word & DIRTY == DIRTY
    }

    /// The clean form of such a word, if it is in no group.
    #[inline(always)]
    pub(crate) const fn dirty_page_cleaned(word: u64, format: Format) -> Option<Leaf> {
        if Self::is_dirty_page(word) && word & CONTIGUOUS == 0 {
            let word = word - S2AP_WRITE;
            Some(Leaf { word, format })
        } else {
            None
        }
    }

    /// The word to store.
    #[inline]
    pub const fn encode(self, format: Format) -> u64 {
        match self {
            Self::Invalid => 0,
            Self::Locked => LOCKED,
            Self::Frozen => FROZEN,
            Self::Leaf(leaf) => leaf.word,
            Self::Table(pa) => format.address_bits(pa) | VALID | TABLE_OR_PAGE,
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
