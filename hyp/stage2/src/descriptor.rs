//! Stage-2 descriptors: every attribute bit is written out here and nowhere else.
//!
//! A 64-bit word is decoded once into a [`Descriptor`], together with the level that it was read at; what isn't one of
//! its variants can't be expressed. Source: Arm ARM D8.3, VMSAv8-64 stage-2 descriptors, 4 KiB granule.

use crate::address::{Level, Pa};

const VALID: u64 = 1 << 0;
/// With VALID: a table (levels 0 to 2) or a page (level 3). Clear: a block.
const TABLE_OR_PAGE: u64 = 1 << 1;
/// Invalid descriptors are told apart by these bits, which hardware ignores as VALID is clear.
const LOCKED: u64 = 1 << 1;
const FROZEN: u64 = 1 << 2;
/// MemAttr[3:0] = 0b1111: normal memory, inner and outer write-back cacheable (D8.6.5, without FEAT_S2FWB).
const NORMAL_WRITE_BACK: u64 = 0b1111 << 2;
const S2AP_READ: u64 = 1 << 6;
const S2AP_WRITE: u64 = 1 << 7;
const INNER_SHAREABLE: u64 = 0b11 << 8;
const ACCESSED: u64 = 1 << 10;
/// XN[1]: no execution at EL1 or EL0 (XN[0] stays clear, as CPUs without FEAT_XNX demand).
const EXECUTE_NEVER: u64 = 1 << 54;
/// Software: a fault may make this entry writable by a single exchange (rule 3).
const MAY_WRITE: u64 = 1 << 55;
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;

/// What a guest may do with a mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Permissions {
    /// Writable now.
    pub write: bool,
    /// A fault may make it writable. Always set where `write` is.
    pub may_write: bool,
    /// Executable.
    pub execute: bool,
}

impl Permissions {
    /// Readable, writable, executable: ordinary RAM.
    pub const RAM: Self = Self {
        write: true,
        may_write: true,
        execute: true,
    };
    /// As [`Self::RAM`], but the first write faults: RAM whose writes are logged.
    pub const LOGGED: Self = Self {
        write: false,
        may_write: true,
        execute: true,
    };
    /// Never writable.
    pub const READ_ONLY: Self = Self {
        write: false,
        may_write: false,
        execute: true,
    };
}

/// A valid leaf: block or page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaf(u64);

impl Leaf {
    /// A leaf of `level` that maps `pa` (aligned to the level's span) as normal write-back memory, accessed.
    pub const fn new(level: Level, pa: Pa, permissions: Permissions) -> Self {
        debug_assert!(level.may_be_leaf() && pa.is_aligned(level.span()));
        let kind = if matches!(level, Level::L3) {
            VALID | TABLE_OR_PAGE
        } else {
            VALID
        };
        let mut word =
            pa.get() & ADDRESS | kind | NORMAL_WRITE_BACK | S2AP_READ | INNER_SHAREABLE | ACCESSED;
        if permissions.write {
            word |= S2AP_WRITE;
        }
        if permissions.may_write || permissions.write {
            word |= MAY_WRITE;
        }
        if !permissions.execute {
            word |= EXECUTE_NEVER;
        }
        Self(word)
    }

    /// The first byte that is mapped.
    pub const fn pa(self) -> Pa {
        Pa::new(self.0 & ADDRESS)
    }

    /// Whether the guest can write through it.
    pub const fn writable(self) -> bool {
        self.0 & S2AP_WRITE != 0
    }

    /// Whether a fault may make it writable by a single exchange (rule 3).
    pub const fn may_write(self) -> bool {
        self.0 & MAY_WRITE != 0
    }

    /// Whether the guest can fetch instructions through it.
    pub const fn executable(self) -> bool {
        self.0 & EXECUTE_NEVER == 0
    }

    /// The same mapping, writable.
    #[must_use]
    pub const fn with_write(self) -> Self {
        Self(self.0 | S2AP_WRITE)
    }

    /// The same mapping, read-only until a fault relaxes it.
    #[must_use]
    pub const fn without_write(self) -> Self {
        Self(self.0 & !S2AP_WRITE)
    }

    /// The permissions that it carries.
    pub const fn permissions(self) -> Permissions {
        Permissions {
            write: self.writable(),
            may_write: self.may_write(),
            execute: self.executable(),
        }
    }

    /// A leaf of `level` with this one's attributes that maps `pa`.
    pub const fn moved_to(self, level: Level, pa: Pa) -> Self {
        Self::new(level, pa, self.permissions())
    }
}

/// An entry's meaning.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Descriptor {
    /// Nothing is mapped.
    Invalid,
    /// Invalid to hardware; somebody is between break and make (rule 2).
    Locked,
    /// Invalid to hardware for ever: the table that holds it is no longer part of the tree (rule 5).
    Frozen,
    /// Maps memory.
    Leaf(Leaf),
    /// Leads to the table of the next level at this address.
    Table(Pa),
}

impl Descriptor {
    /// Decodes a word that was read from a table of `level`. Words that the engine never writes count as invalid.
    pub const fn decode(word: u64, level: Level) -> Self {
        if word & VALID == 0 {
            return match word {
                LOCKED => Self::Locked,
                FROZEN => Self::Frozen,
                _ => Self::Invalid,
            };
        }
        match (word & TABLE_OR_PAGE != 0, level) {
            (true, Level::L3) | (false, Level::L1 | Level::L2) => Self::Leaf(Leaf(word)),
            (true, _) => Self::Table(Pa::new(word & ADDRESS)),
            (false, Level::L0 | Level::L3) => Self::Invalid,
        }
    }

    /// The word to store.
    pub const fn encode(self) -> u64 {
        match self {
            Self::Invalid => 0,
            Self::Locked => LOCKED,
            Self::Frozen => FROZEN,
            Self::Leaf(leaf) => leaf.0,
            Self::Table(pa) => pa.get() & ADDRESS | VALID | TABLE_OR_PAGE,
        }
    }

    /// Whether going from `self` to `new` at one level needs break-before-make (Arm ARM D8.17.1): a change of output
    /// address, of size (block against table), of memory type. Permissions, the access flag and software bits don't.
    pub const fn change_needs_break(self, new: Self) -> bool {
        match (self, new) {
            (Self::Leaf(old), Self::Leaf(new)) => {
                const FREE: u64 = S2AP_READ | S2AP_WRITE | ACCESSED | EXECUTE_NEVER | MAY_WRITE;
                old.0 & !FREE != new.0 & !FREE
            }
            (Self::Table(old), Self::Table(new)) => old.get() != new.get(),
            (Self::Leaf(_), Self::Table(_)) | (Self::Table(_), Self::Leaf(_)) => true,
            _ => false,
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAGE: Leaf = Leaf::new(Level::L3, Pa::new(0x8000_1000), Permissions::LOGGED);

    #[test]
    fn relaxing_and_tightening_a_permission_needs_no_break() {
        let (ro, rw) = (Descriptor::Leaf(PAGE), Descriptor::Leaf(PAGE.with_write()));
        assert!(!ro.change_needs_break(rw) && !rw.change_needs_break(ro));
    }

    #[test]
    fn address_size_and_table_changes_need_a_break() {
        let block = Leaf::new(Level::L2, Pa::new(0x8000_0000), Permissions::RAM);
        let other = Leaf::new(Level::L2, Pa::new(0x8020_0000), Permissions::RAM);
        let table = Descriptor::Table(Pa::new(0x9000_0000));
        assert!(Descriptor::Leaf(block).change_needs_break(Descriptor::Leaf(other)));
        assert!(Descriptor::Leaf(block).change_needs_break(table));
        assert!(table.change_needs_break(Descriptor::Leaf(block)));
        assert!(table.change_needs_break(Descriptor::Table(Pa::new(0x9000_1000))));
        assert!(!Descriptor::Invalid.change_needs_break(table));
        assert!(!table.change_needs_break(Descriptor::Invalid));
    }

    #[test]
    fn markers_are_invalid_to_hardware() {
        for marker in [Descriptor::Invalid, Descriptor::Locked, Descriptor::Frozen] {
            assert_eq!(marker.encode() & VALID, 0);
            assert_eq!(Descriptor::decode(marker.encode(), Level::L2), marker);
        }
    }

    #[test]
    fn the_words_are_those_of_the_manual() {
        assert_eq!(
            Descriptor::Leaf(PAGE.with_write()).encode(),
            0x0080_0000_8000_17ff
        );
        let block = Leaf::new(Level::L1, Pa::new(0x4000_0000), Permissions::READ_ONLY);
        assert_eq!(Descriptor::Leaf(block).encode(), 0x0000_0000_4000_077d);
        assert_eq!(
            Descriptor::Table(Pa::new(0x4000_1000)).encode(),
            0x4000_1003
        );
    }

    proptest! {
        #[test]
        fn every_word_decodes_and_leaves_keep_their_meaning(word: u64, level in 0..4usize) {
            let level = [Level::L0, Level::L1, Level::L2, Level::L3][level];
            match Descriptor::decode(word, level) {
                Descriptor::Leaf(leaf) => {
                    prop_assert!(leaf.with_write().writable());
                    prop_assert!(!leaf.without_write().writable());
                    prop_assert_eq!(leaf.with_write().pa(), leaf.pa());
                    prop_assert_eq!(Descriptor::Leaf(leaf).encode(), word);
                }
                Descriptor::Table(pa) => prop_assert!(pa.is_aligned(4096)),
                Descriptor::Invalid | Descriptor::Locked | Descriptor::Frozen => {}
            }
        }
    }
}
