//! The operands of TLB maintenance instructions (Arm ARM C5.5). Plain arithmetic.

use crate::address::{Granule, Ipa, IpaRange, Level};

/// TG and the upper half of the TTL hint (Arm ARM C5.5, TLBI IPAS2E1IS).
const fn granule_field(granule: Granule) -> u64 {
    match granule {
        Granule::Size4K => 0b01,
        Granule::Size16K => 0b10,
        Granule::Size64K => 0b11,
    }
}

/// The operand for one IPA, with the level of its leaf as a hint (FEAT_TTL), if there is one. Without a hint bits 47 to
/// 44 are zero, which CPUs that don't have the feature demand.
pub(crate) const fn address(granule: Granule, ipa: Ipa, hint: Option<Level>) -> u64 {
    with_hint(ipa, hint_bits(granule, hint))
}

/// What is beside the address in the operand for a leaf of a level.
pub(crate) const fn hint_bits(granule: Granule, hint: Option<Level>) -> u64 {
    match (hint, granule) {
        // Reserved: blocks of level 0 with 4 KiB pages only, of level 1 not with 16 KiB (C5.5).
        (None, _) | (Some(Level::L0), _) | (Some(Level::L1), Granule::Size16K) => 0,
        (Some(level), _) => (granule_field(granule) << 2 | level as u64) << 44,
    }
}

/// The operand for one IPA, with [these bits](hint_bits) beside it.
pub(crate) const fn with_hint(ipa: Ipa, hint: u64) -> u64 {
    const IPA_BITS: u64 = (1 << 40) - 1;
    hint | (ipa.get() >> 12 & IPA_BITS)
}

/// The operand for one virtual address in any address space (TLBI VAAE1).
pub(crate) const fn virtual_address(va: u64) -> u64 {
    va >> 12 & ((1 << 44) - 1)
}

/// One instruction's share of a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Piece {
    /// A single page: the operand of TLBI by IPA.
    Page(u64),
    /// Pages: the operand of TLBI by range (FEAT_TLBIRANGE).
    Range(u64),
}

/// Operands that together cover a range of IPAs exactly. One by range covers `(num + 1) << (5 * scale + 1)` pages; an odd
/// page, and what isn't aligned as the operand wants it, goes by itself.
#[derive(Clone, Debug)]
pub(crate) struct Pieces {
    granule: Granule,
    next: u64,
    pages: u64,
    /// Address bits below an operand's base: the page's, but 64 KiB with VTCR_EL2.DS.
    base_shift: u32,
}

impl Pieces {
    const MAX_SCALE: u32 = 3;

    /// For `range`, of whole pages of this granule, where VTCR_EL2.DS is as `wide` says.
    pub(crate) const fn new(granule: Granule, wide: bool, range: &IpaRange) -> Self {
        let page_shift = granule.page_shift();
        Self {
            granule,
            next: range.start.get(),
            pages: range.end.get().saturating_sub(range.start.get()) >> page_shift,
            base_shift: if wide { 16 } else { page_shift },
        }
    }
}

impl Iterator for Pieces {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        const BASE_BITS: u64 = (1 << 37) - 1;
        if self.pages == 0 {
            return None;
        }
        let page_shift = self.granule.page_shift();
        let at = self.next;
        let aligned = at & ((1 << self.base_shift) - 1) == 0;
        if self.pages == 1 || !aligned {
            self.next += 1 << page_shift;
            self.pages -= 1;
            return Some(Piece::Page(address(self.granule, Ipa::new(at), None)));
        }
        // The largest scale of which at least one unit fits.
        let mut scale = Self::MAX_SCALE;
        while scale > 0 && self.pages >> (5 * scale + 1) == 0 {
            scale -= 1;
        }
        let unit_shift = 5 * scale + 1;
        let units = (self.pages >> unit_shift).min(32);
        let covered = units << unit_shift;
        self.next += covered << page_shift;
        self.pages -= covered;
        Some(Piece::Range(
            granule_field(self.granule) << 46
                | u64::from(scale) << 44
                | (units - 1) << 39
                | (at >> self.base_shift & BASE_BITS),
        ))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    /// How operands are encoded.
    struct Encoding {
        granule: Granule,
        wide: bool,
    }

    /// The first page's address and the pages that a piece covers, decoded as C5.5 says.
    fn covered(piece: Piece, vm: &Encoding) -> (u64, u64) {
        match piece {
            Piece::Page(operand) => ((operand & ((1 << 40) - 1)) << 12, 1),
            Piece::Range(operand) => {
                let (num, scale) = (operand >> 39 & 0x1f, operand >> 44 & 3);
                let shift = if vm.wide { 16 } else { vm.granule.page_shift() };
                let base = (operand & ((1 << 37) - 1)) << shift;
                (base, (num + 1) << (5 * scale + 1))
            }
        }
    }

    fn pieces(vm: &Encoding, first: u64, pages: u64) -> Vec<Piece> {
        let size = 1 << vm.granule.page_shift();
        let range = Ipa::new(first * size)..Ipa::new((first + pages) * size);
        Pieces::new(vm.granule, vm.wide, &range).collect()
    }

    #[test]
    fn a_block_takes_one_operand() {
        let vm = Encoding {
            granule: Granule::Size4K,
            wide: false,
        };
        let block = pieces(&vm, 0x4_0000, 512);
        assert_eq!(block.len(), 1);
        assert_eq!(covered(block[0], &vm), (0x4000_0000, 512));
        let most = 32 << 16;
        assert_eq!(pieces(&vm, 0, most).len(), 1);
        assert!(pieces(&vm, 5, 0).is_empty());
    }

    #[test]
    fn a_single_address_carries_its_level_as_a_hint() {
        let ipa = Ipa::new(0x8020_3000);
        let operand = |granule, level| address(granule, ipa, level);
        assert_eq!(operand(Granule::Size4K, None), 0x8_0203);
        assert_eq!(
            operand(Granule::Size4K, Some(Level::L3)),
            0b0111 << 44 | 0x8_0203
        );
        assert_eq!(
            operand(Granule::Size16K, Some(Level::L2)),
            0b1010 << 44 | 0x8_0203
        );
        assert_eq!(
            operand(Granule::Size64K, Some(Level::L1)),
            0b1101 << 44 | 0x8_0203
        );
        // Reserved encodings say nothing instead.
        assert_eq!(operand(Granule::Size16K, Some(Level::L1)), 0x8_0203);
        assert_eq!(virtual_address(0xffff_8000_1234_5678), 0xff8_0001_2345);
    }

    proptest! {
        #![proptest_config(crate::tests::cases())]

        #[test]
        fn operands_cover_the_range_exactly(
            granule in 0..3usize,
            wide: bool,
            first in 0u64..1 << 34,
            pages in 1u64..1 << 20,
        ) {
            let vm = Encoding {
                granule: Granule::ALL[granule],
                wide: wide && granule < 2,
            };
            let size = 1 << vm.granule.page_shift();
            let mut next = first * size;
            let pieces = pieces(&vm, first, pages);
            for piece in &pieces {
                let (start, count) = covered(*piece, &vm);
                prop_assert_eq!(start, next);
                next += count * size;
                if let Piece::Range(operand) = piece {
                    prop_assert_eq!(operand >> 46 & 3, granule_field(vm.granule));
                }
            }
            prop_assert_eq!(next, (first + pages) * size);
            prop_assert!(pieces.len() <= 5 + 16);
        }
    }
}
