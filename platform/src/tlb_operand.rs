//! The operands of TLB maintenance instructions (Arm ARM C5.5), 4 KiB granule. Plain arithmetic, tested on the host.

use stage2::{Ipa, IpaRange, Level, PAGE_SHIFT, PAGE_SIZE};

const GRANULE_4K: u64 = 0b01;
const VIRTUAL_PAGE_BITS: u64 = (1 << 44) - 1;

/// The operand for one IPA, with the level of its leaf as a hint on CPUs with FEAT_TTL.
pub const fn address(ipa: Ipa, level: Option<Level>) -> u64 {
    const IPA_PAGE_BITS: u64 = (1 << 36) - 1;
    let hint = match level {
        Some(level) => (GRANULE_4K << 2 | level as u64) << 44,
        None => 0,
    };
    hint | (ipa.get() >> PAGE_SHIFT & IPA_PAGE_BITS)
}

/// The operand for one virtual address in any address space.
pub const fn virtual_address(va: u64) -> u64 {
    va >> PAGE_SHIFT & VIRTUAL_PAGE_BITS
}

/// The operands that cover a range of IPAs exactly, for FEAT_TLBIRANGE: each covers `(num + 1) << (5 * scale + 1)` pages.
/// A last odd page is covered together with the one behind it.
#[derive(Clone, Debug)]
pub struct RangeOperands {
    next_page: u64,
    pages: u64,
}

impl RangeOperands {
    const MAX_SCALE: u32 = 3;
    /// Pages that a range may have so that few operands cover it.
    pub const MAX_PAGES: u64 = 32 << (5 * Self::MAX_SCALE + 1);

    /// For `range`, of whole pages.
    pub const fn new(range: IpaRange) -> Self {
        let pages = range
            .end
            .get()
            .saturating_sub(range.start.get())
            .div_ceil(PAGE_SIZE);
        Self {
            next_page: range.start.get() >> PAGE_SHIFT,
            pages,
        }
    }
}

impl Iterator for RangeOperands {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        const BASE_BITS: u64 = (1 << 37) - 1;
        if self.pages == 0 {
            return None;
        }
        // The largest scale of which at least one unit fits; below that, the smallest.
        let mut scale = Self::MAX_SCALE;
        while scale > 0 && self.pages >> (5 * scale + 1) == 0 {
            scale -= 1;
        }
        let unit_shift = 5 * scale + 1;
        let units = (self.pages >> unit_shift).clamp(1, 32);
        let operand = GRANULE_4K << 46
            | u64::from(scale) << 44
            | (units - 1) << 39
            | (self.next_page & BASE_BITS);
        let covered = units << unit_shift;
        self.next_page += covered;
        self.pages = self.pages.saturating_sub(covered);
        Some(operand)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    fn covered(operand: u64) -> (u64, u64) {
        let (num, scale) = (operand >> 39 & 0x1f, operand >> 44 & 3);
        (operand & ((1 << 37) - 1), (num + 1) << (5 * scale + 1))
    }

    fn operands(first_page: u64, pages: u64) -> Vec<u64> {
        let start = Ipa::new(first_page * PAGE_SIZE);
        RangeOperands::new(start..start.offset(pages * PAGE_SIZE)).collect()
    }

    #[test]
    fn a_block_takes_one_operand() {
        let of_2_mib = operands(0x4_0000, 512);
        assert_eq!(
            of_2_mib
                .iter()
                .map(|operand| covered(*operand))
                .collect::<Vec<_>>(),
            [(0x4_0000, 512)]
        );
        assert!(
            of_2_mib
                .iter()
                .all(|operand| operand >> 46 & 3 == GRANULE_4K)
        );
        assert_eq!(operands(0, RangeOperands::MAX_PAGES).len(), 1);
        assert!(operands(5, 0).is_empty());
    }

    #[test]
    fn a_single_address_carries_its_level_as_a_hint() {
        let ipa = Ipa::new(0x8020_3000);
        assert_eq!(address(ipa, None), 0x8_0203);
        assert_eq!(address(ipa, Some(Level::L3)), 0b0111 << 44 | 0x8_0203);
        assert_eq!(virtual_address(0xffff_8000_1234_5678), 0xff8_0001_2345);
    }

    proptest! {
        #[test]
        fn operands_cover_the_range_and_at_most_one_page_more(first in 0u64..1 << 36, pages in 1u64..1 << 20) {
            let mut next = first;
            let operands = operands(first, pages);
            for operand in &operands {
                let (start, count) = covered(*operand);
                prop_assert_eq!(start, next);
                next += count;
            }
            prop_assert_eq!(next, first + pages + pages % 2);
            prop_assert!(operands.len() <= 5);
        }
    }
}
