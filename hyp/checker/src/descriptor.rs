//! Stage-2 descriptors as a walker reads them (Arm ARM D8.3), decoded independently for this crate.

use crate::geometry::{Bbm, Format, Geometry};

/// What a walker makes of a descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Decoded {
    /// It faults.
    Invalid,
    /// The table at this address follows.
    Table(u64),
    /// The translation ends here.
    Leaf(Leaf),
}

/// A block or page descriptor, decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Leaf {
    /// Output address.
    pub(crate) output: u64,
    /// MemAttr, and SH where the format has it.
    pub(crate) memory: u64,
    /// XN.
    pub(crate) execute_never: u64,
    /// S2AP[0].
    pub(crate) readable: bool,
    /// S2AP[1]: writes go through, unseen.
    pub(crate) writable: bool,
    /// DBM: hardware may set S2AP[1].
    pub(crate) dirty_modifier: bool,
    /// AF.
    pub(crate) accessed: bool,
    /// The contiguous bit.
    pub(crate) contiguous: bool,
    /// nT.
    pub(crate) no_translation: bool,
}

const fn bit(word: u64, index: u32) -> bool {
    word >> index & 1 != 0
}

const fn field(word: u64, high: u32, low: u32) -> u64 {
    word >> low & ((1 << (high - low + 1)) - 1)
}

/// The output address field, with the bits of a wider format put in their places.
const fn address(word: u64, format: Format) -> u64 {
    match format {
        Format::Narrow => field(word, 47, 12) << 12,
        Format::Lpa2 => field(word, 49, 12) << 12 | field(word, 9, 8) << 50,
        Format::Lpa64K => field(word, 47, 16) << 16 | field(word, 15, 12) << 48,
    }
}

/// Decodes `word`, found in a table of `level`.
pub(crate) const fn decode(word: u64, level: u32, geometry: &Geometry) -> Decoded {
    if !bit(word, 0) {
        return Decoded::Invalid;
    }
    let address = address(word, geometry.format);
    match (bit(word, 1), level) {
        (true, 0..3) => {
            return Decoded::Table(address & !((1 << geometry.granule.page_shift()) - 1));
        }
        // Reserved: level 3 has no blocks.
        (false, 3) => return Decoded::Invalid,
        _ => {}
    }
    let shareability = match geometry.format {
        Format::Lpa2 => 0,
        Format::Narrow | Format::Lpa64K => field(word, 9, 8),
    };
    // Below every block's address, but in the small blocks of trees for model checking, which do without that address bit.
    let no_translation = bit(word, 16) && level < 3 && matches!(geometry.bbm, Bbm::Level1);
    let below = (geometry.span(level) - 1) | ((no_translation as u64) << 16);
    Decoded::Leaf(Leaf {
        output: address & !below,
        memory: field(word, 5, 2) | shareability << 4,
        execute_never: field(word, 54, 53),
        readable: bit(word, 6),
        writable: bit(word, 7),
        dirty_modifier: bit(word, 51),
        accessed: bit(word, 10),
        contiguous: bit(word, 52) && geometry.groups[level as usize] > 1,
        no_translation,
    })
}

/// Whether a TLB may hold it. A leaf without access flag may not (D8.5.1).
pub(crate) const fn is_cached(word: u64, level: u32, geometry: &Geometry) -> bool {
    match decode(word, level, geometry) {
        Decoded::Invalid => false,
        Decoded::Table(_) => true,
        Decoded::Leaf(leaf) => leaf.accessed,
    }
}

/// Whether hardware on its own may have made `new` of `old`: set the access flag, or made it dirty (D8.5).
pub(crate) const fn is_hardware_update(old: u64, new: u64) -> bool {
    const ACCESSED: u64 = 1 << 10;
    const WRITABLE: u64 = 1 << 7;
    let dirty = if bit(old, 51) { WRITABLE } else { 0 };
    bit(old, 0) && (old ^ new) & !(ACCESSED | dirty) == 0 && new & old == old
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::Granule;

    fn leaf(word: u64, level: u32, geometry: &Geometry) -> Leaf {
        match decode(word, level, geometry) {
            Decoded::Leaf(leaf) => leaf,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_writable_page_decodes_field_by_field() {
        let geometry = Geometry::new(Granule::Size4K, Format::Narrow, 1, 1);
        let word = 0x0010_0000_4020_37ff | 1 << 54;
        assert_eq!(
            leaf(word, 3, &geometry),
            Leaf {
                output: 0x4020_3000,
                memory: 0b11_1111,
                execute_never: 0b10,
                readable: true,
                writable: true,
                dirty_modifier: false,
                accessed: true,
                contiguous: true,
                no_translation: false,
            }
        );
    }

    #[test]
    fn wide_addresses_come_from_where_each_format_has_them() {
        let lpa2 = Geometry::new(Granule::Size4K, Format::Lpa2, 0, 1);
        let found = leaf(0x0003_8000_0000_1743, 3, &lpa2);
        assert_eq!((found.output, found.memory), (0xf_8000_0000_1000, 0));
        let large = Geometry::new(Granule::Size64K, Format::Lpa64K, 1, 1);
        assert_eq!(
            leaf(0x0000_8000_0001_f443, 3, &large).output,
            0xf_8000_0001_0000
        );
        assert_eq!(
            decode(0x0000_8000_0001_3003, 2, &large),
            Decoded::Table(0x3_8000_0001_0000)
        );
    }

    #[test]
    fn what_cannot_be_walked_is_invalid_and_what_was_not_accessed_is_not_kept() {
        let geometry = Geometry::new(Granule::Size4K, Format::Narrow, 1, 1);
        assert_eq!(decode(0x4000_0002, 2, &geometry), Decoded::Invalid);
        assert_eq!(decode(0x4000_0401, 3, &geometry), Decoded::Invalid);
        assert!(is_cached(0x4000_0401, 2, &geometry));
        assert!(!is_cached(0x4000_0001, 2, &geometry));
    }

    #[test]
    fn hardware_sets_bits_only_and_dirty_only_with_the_modifier() {
        assert!(is_hardware_update(0x4000_0003, 0x4000_0403));
        assert!(!is_hardware_update(0x4000_0403, 0x4000_0003));
        assert!(!is_hardware_update(0x4000_0403, 0x4000_0483));
        assert!(is_hardware_update(
            0x4000_0403 | 1 << 51,
            0x4000_0483 | 1 << 51
        ));
    }
}
