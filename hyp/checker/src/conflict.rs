//! Decides whether two values may coexist, one in a TLB and one in the tables, or both in TLBs. Where they may not,
//! break-before-make is required (Arm ARM D8.16.1). Pure functions.

use crate::descriptor::{Decoded, Leaf, decode};
use crate::geometry::{Bbm, Geometry};
use core::fmt;
use core::ops::Range;

/// Why two values exclude each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Difference {
    /// They lead to different output addresses.
    OutputAddress,
    /// One is a table where the other is a block, or they are leaves of different sizes.
    Size,
    /// They lead to different tables.
    Table,
    /// Memory type, cacheability or shareability differ.
    MemoryType,
    /// The contiguous bit differs.
    Contiguous,
    /// They are of one contiguous group, and have different permissions.
    GroupPermissions,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OutputAddress => "the output addresses differ",
            Self::Size => "the sizes differ (block, page or table)",
            Self::Table => "they lead to different tables",
            Self::MemoryType => "the memory types differ",
            Self::Contiguous => "the contiguous bits differ",
            Self::GroupPermissions => "the permissions differ within one contiguous group",
        })
    }
}

/// A descriptor at its place: what it says about addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Claim {
    pub(crate) level: u32,
    /// First address that the entry is for.
    pub(crate) ipa: u64,
    pub(crate) word: u64,
}

impl Claim {
    fn decoded(self, geometry: &Geometry) -> Decoded {
        decode(self.word, self.level, geometry)
    }

    /// The addresses that a TLB may translate because of it.
    pub(crate) fn reach(self, geometry: &Geometry) -> Range<u64> {
        match self.decoded(geometry) {
            Decoded::Leaf(leaf) if leaf.contiguous => geometry.group(self.level, self.ipa),
            _ => self.ipa..self.ipa + geometry.span(self.level),
        }
    }

    /// Where the address would lead, if it is a leaf.
    pub(crate) fn output(self, ipa: u64, geometry: &Geometry) -> Option<u64> {
        match self.decoded(geometry) {
            Decoded::Leaf(leaf) => Some(leaf.output.wrapping_add(ipa.wrapping_sub(self.ipa))),
            Decoded::Table(_) | Decoded::Invalid => None,
        }
    }
}

pub(crate) fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

/// Why `a` and `b` can't both be in force; `None` if they can, or have no address in common.
pub(crate) fn conflict(a: Claim, b: Claim, geometry: &Geometry) -> Option<Difference> {
    if !overlap(&a.reach(geometry), &b.reach(geometry)) {
        return None;
    }
    match (a.decoded(geometry), b.decoded(geometry)) {
        (Decoded::Invalid, _) | (_, Decoded::Invalid) => None,
        (Decoded::Table(one), Decoded::Table(other)) => {
            (a.level == b.level && one != other).then_some(Difference::Table)
        }
        // A table above a leaf is how leaves are reached; a leaf at its level or above excludes it.
        (Decoded::Table(_), Decoded::Leaf(leaf)) => of_sizes(a.level, b.level, leaf, geometry),
        (Decoded::Leaf(leaf), Decoded::Table(_)) => of_sizes(b.level, a.level, leaf, geometry),
        (Decoded::Leaf(one), Decoded::Leaf(other)) => of_leaves((a, one), (b, other), geometry),
    }
}

/// For a table entry of level `table` and a leaf of level `at`.
fn of_sizes(table: u32, at: u32, leaf: Leaf, geometry: &Geometry) -> Option<Difference> {
    (at <= table && !size_may_change(leaf, geometry)).then_some(Difference::Size)
}

/// Whether translations of other sizes may replace the (larger) leaf without a break (D8.16.2).
fn size_may_change(leaf: Leaf, geometry: &Geometry) -> bool {
    match geometry.bbm {
        Bbm::Level0 => false,
        Bbm::Level1 => leaf.no_translation,
        Bbm::Level2 => true,
    }
}

fn of_leaves(
    (a, one): (Claim, Leaf),
    (b, other): (Claim, Leaf),
    geometry: &Geometry,
) -> Option<Difference> {
    let larger = if a.level <= b.level { one } else { other };
    if a.level != b.level && !size_may_change(larger, geometry) {
        return Some(Difference::Size);
    }
    if one.output.wrapping_sub(a.ipa) != other.output.wrapping_sub(b.ipa) {
        return Some(Difference::OutputAddress);
    }
    if one.memory != other.memory {
        return Some(Difference::MemoryType);
    }
    if a.level != b.level {
        return None;
    }
    if one.contiguous != other.contiguous && geometry.bbm == Bbm::Level0 {
        return Some(Difference::Contiguous);
    }
    let of_one_group = one.contiguous && other.contiguous && a.ipa != b.ipa;
    (of_one_group && rights(one) != rights(other)).then_some(Difference::GroupPermissions)
}

/// What the members of a group have in common: all but access and dirty state (D8.7.1).
fn rights(leaf: Leaf) -> (bool, bool, bool, u64) {
    (
        leaf.readable,
        leaf.writable || leaf.dirty_modifier,
        leaf.dirty_modifier,
        leaf.execute_never,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::{Format, Granule};

    const PAGE: u64 = 0x4000_07ff;
    const BLOCK: u64 = 0x4000_07fd;
    const TABLE: u64 = 0x5000_0003;
    const WRITE: u64 = 1 << 7;
    const NT: u64 = 1 << 16;
    const DBM: u64 = 1 << 51;
    const CONTIGUOUS: u64 = 1 << 52;

    fn check(a: (u32, u64, u64), b: (u32, u64, u64), bbm: Bbm) -> Option<Difference> {
        let geometry = Geometry::new(Granule::Size4K, Format::Narrow, 1, 1).with_bbm(bbm);
        let claim = |(level, ipa, word)| Claim { level, ipa, word };
        let found = conflict(claim(a), claim(b), &geometry);
        assert_eq!(found, conflict(claim(b), claim(a), &geometry));
        found
    }

    #[test]
    fn every_pair_of_values_for_one_address_is_judged_as_the_manual_says() {
        use Bbm::*;
        use Difference::*;
        for (a, b, bbm, expected) in [
            // One entry: rights, access and dirty state may change.
            (
                (3, 0, PAGE),
                (3, 0, PAGE & !WRITE & !(1 << 10)),
                Level0,
                None,
            ),
            ((3, 0, PAGE), (3, 0, PAGE | 1 << 54), Level0, None),
            (
                (3, 0, PAGE),
                (3, 0, PAGE + 0x1000),
                Level0,
                Some(OutputAddress),
            ),
            (
                (3, 0, PAGE),
                (3, 0, PAGE ^ 1 << 3),
                Level0,
                Some(MemoryType),
            ),
            (
                (3, 0, PAGE),
                (3, 0, PAGE ^ 1 << 8),
                Level0,
                Some(MemoryType),
            ),
            (
                (3, 0, PAGE),
                (3, 0, PAGE | CONTIGUOUS),
                Level0,
                Some(Contiguous),
            ),
            ((3, 0, PAGE), (3, 0, PAGE | CONTIGUOUS), Level1, None),
            ((3, 0, PAGE), (3, 0, 0), Level0, None),
            // Block and table.
            ((2, 0, BLOCK), (2, 0, TABLE), Level0, Some(Size)),
            ((2, 0, BLOCK), (2, 0, TABLE), Level1, Some(Size)),
            ((2, 0, BLOCK | NT), (2, 0, TABLE), Level0, Some(Size)),
            ((2, 0, BLOCK | NT), (2, 0, TABLE), Level1, None),
            ((2, 0, BLOCK), (2, 0, TABLE), Level2, None),
            ((2, 0, TABLE), (2, 0, TABLE + 0x1000), Level2, Some(Table)),
            ((1, 0, TABLE), (2, 0, BLOCK), Level0, None),
            ((2, 0, TABLE), (1, 0, BLOCK), Level0, Some(Size)),
            // A block and a page of it.
            (
                (2, 0, BLOCK),
                (3, 0x1000, PAGE + 0x1000),
                Level0,
                Some(Size),
            ),
            ((2, 0, BLOCK), (3, 0x1000, PAGE + 0x1000), Level2, None),
            (
                (2, 0, BLOCK),
                (3, 0x1000, PAGE),
                Level2,
                Some(OutputAddress),
            ),
            ((2, 0, BLOCK), (3, 0x20_0000, PAGE), Level0, None),
            // Neighbours, apart and in a group.
            ((3, 0, PAGE), (3, 0x1000, PAGE), Level0, None),
            (
                (3, 0, PAGE | CONTIGUOUS),
                (3, 0x1000, PAGE + 0x1000),
                Level0,
                Some(Contiguous),
            ),
            (
                (3, 0, PAGE | CONTIGUOUS),
                (3, 0x1000, PAGE + 0x1000),
                Level1,
                None,
            ),
            (
                (3, 0, PAGE | CONTIGUOUS),
                (3, 0x1000, PAGE),
                Level1,
                Some(OutputAddress),
            ),
            ((3, 0, PAGE | CONTIGUOUS), (3, 0x1_0000, PAGE), Level0, None),
            (
                (3, 0, PAGE | CONTIGUOUS),
                (3, 0x1000, ((PAGE + 0x1000) | CONTIGUOUS) & !WRITE),
                Level0,
                Some(GroupPermissions),
            ),
            (
                (3, 0, PAGE | CONTIGUOUS | DBM),
                (3, 0x1000, ((PAGE + 0x1000) | CONTIGUOUS | DBM) & !WRITE),
                Level0,
                None,
            ),
        ] {
            assert_eq!(check(a, b, bbm), expected, "{a:x?} {b:x?} {bbm:?}");
        }
    }
}
