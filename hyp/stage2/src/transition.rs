//! Decides whether a change of an entry may skip the break (rule 2): one pure function for every change.

use crate::descriptor::{Descriptor, Leaf};
use crate::features::Bbm;

/// How an entry may change from one descriptor to another (Arm ARM D8.17.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transition {
    /// By one exchange. TLB entries of the old descriptor are invalidated if they would do harm.
    InPlace,
    /// By way of the block's nT bit, once no TLB holds the block without it (FEAT_BBM level 1).
    Marked,
    /// By break-before-make.
    Break,
}

impl Transition {
    /// How an entry of one level may change from `old` to `new`. For a table and a leaf, `maps_the_same` says whether both map
    /// the same; other changes ignore it.
    ///
    /// A change of output address or memory type needs the break. A change of size (a block and a table that maps the same), or
    /// of the contiguous bit, needs it unless `bbm` spares it. Permissions, the access flag, dirty state and software bits
    /// never do, nor does anything from or to an invalid descriptor.
    pub const fn of(old: Descriptor, new: Descriptor, maps_the_same: bool, bbm: Bbm) -> Self {
        match (old, new) {
            (Descriptor::Leaf(old), Descriptor::Leaf(new)) => Self::of_leaves(old, new, bbm),
            (Descriptor::Table(old), Descriptor::Table(new)) => {
                if old.get() == new.get() {
                    Self::InPlace
                } else {
                    Self::Break
                }
            }
            (Descriptor::Leaf(leaf), Descriptor::Table(_))
            | (Descriptor::Table(_), Descriptor::Leaf(leaf)) => {
                if !maps_the_same {
                    return Self::Break;
                }
                match bbm {
                    Bbm::Level0 => Self::Break,
                    Bbm::Level1 if leaf.no_translation() => Self::InPlace,
                    Bbm::Level1 => Self::Marked,
                    Bbm::Level2 => Self::InPlace,
                }
            }
            _ => Self::InPlace,
        }
    }

    const fn of_leaves(old: Leaf, new: Leaf, bbm: Bbm) -> Self {
        let changes_group = old.contiguous() != new.contiguous();
        if !old.translates_as(new) || changes_group && matches!(bbm, Bbm::Level0) {
            Self::Break
        } else {
            Self::InPlace
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::address::{Level, Pa};
    use crate::descriptor::{Attributes, MemoryType, Permissions};
    use crate::features::Features;
    use crate::layout::Layout;
    use Transition::{Break, InPlace, Marked};

    /// One row for every kind of change: what it is from, what to, whether a table maps the same, and how it is made with no
    /// FEAT_BBM, with level 1, with level 2.
    #[test]
    fn every_change_skips_the_break_where_the_architecture_lets_it() {
        let layout = Layout::new(Features::armv8_0(40, 48)).unwrap();
        let block = |pa, memory, permissions| {
            let attributes = Attributes {
                memory,
                permissions,
            };
            layout.leaf(Level::L2, Pa::new(pa), attributes)
        };
        let (normal, device) = (MemoryType::WriteBack, MemoryType::DeviceNgnre);
        let ram = block(0x8000_0000, normal, Permissions::RAM);
        let leaf = Descriptor::Leaf;
        let (invalid, locked, frozen) =
            (Descriptor::Invalid, Descriptor::Locked, Descriptor::Frozen);
        let table = Descriptor::Table(Pa::new(0x9000_0000));
        let elsewhere = Descriptor::Table(Pa::new(0x9000_1000));
        let logged = leaf(block(0x8000_0000, normal, Permissions::LOGGED));
        let moved = leaf(block(0x8020_0000, normal, Permissions::RAM));
        let typed = leaf(block(0x8000_0000, device, Permissions::RAM));
        let old = leaf(ram.without_accessed());
        let marked = leaf(ram.with_no_translation());
        let grouped = leaf(ram.with_contiguous());
        let ram = leaf(ram);
        let always = |way| [way; 3];
        let by_size = [Break, Marked, InPlace];
        let rows = [
            ("nothing to a leaf", invalid, ram, true, always(InPlace)),
            ("nothing to a table", invalid, table, true, always(InPlace)),
            ("a leaf goes", ram, invalid, true, always(InPlace)),
            ("a table goes", table, invalid, true, always(InPlace)),
            ("a leaf is locked", ram, locked, true, always(InPlace)),
            ("a lock ends in a leaf", locked, ram, true, always(InPlace)),
            ("a leaf is frozen", ram, frozen, true, always(InPlace)),
            ("tightened", ram, logged, true, always(InPlace)),
            ("relaxed", logged, ram, true, always(InPlace)),
            ("grows old", ram, old, true, always(InPlace)),
            ("is accessed", old, ram, true, always(InPlace)),
            ("another address", ram, moved, true, always(Break)),
            ("another type", ram, typed, true, always(Break)),
            (
                "into a group",
                ram,
                grouped,
                true,
                [Break, InPlace, InPlace],
            ),
            (
                "out of a group",
                grouped,
                ram,
                true,
                [Break, InPlace, InPlace],
            ),
            ("a block is marked", ram, marked, true, always(InPlace)),
            ("a mark is taken back", marked, ram, true, always(InPlace)),
            ("a block is split", ram, table, true, by_size),
            (
                "a marked block is split",
                marked,
                table,
                true,
                [Break, InPlace, InPlace],
            ),
            (
                "a block is replaced by a table of something else",
                ram,
                table,
                false,
                always(Break),
            ),
            ("a table becomes a block", table, ram, true, by_size),
            (
                "a table becomes a marked block",
                table,
                marked,
                true,
                [Break, InPlace, InPlace],
            ),
            (
                "a table becomes a block of something else",
                table,
                ram,
                false,
                always(Break),
            ),
            ("another table", table, elsewhere, true, always(Break)),
            ("the same table", table, table, true, always(InPlace)),
        ];
        for (what, from, to, same, expected) in rows {
            let ways = [Bbm::Level0, Bbm::Level1, Bbm::Level2]
                .map(|bbm| Transition::of(from, to, same, bbm));
            assert_eq!(ways, expected, "{what}");
        }
    }
}
