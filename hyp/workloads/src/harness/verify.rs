//! The expected harvest: exactly the pages that the guest wrote, with the contents that it wrote. Pure functions.

use abi::pattern;
use alloc::vec::Vec;
use core::fmt;

/// Pages per word of a bitmap.
const PAGES: u64 = u64::BITS as u64;

/// The harvested pages differ from the pages that the guest says it wrote.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mismatch {
    /// Pages that were written and not harvested.
    pub lost: u64,
    /// Pages that were harvested and not written.
    pub invented: u64,
    /// The first page of either kind.
    pub first: u64,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            lost,
            invented,
            first,
        } = self;
        write!(
            f,
            "{lost} written pages were lost and {invented} unwritten ones were harvested, the first is page {first}"
        )
    }
}

/// Compares the written pages with the harvested ones: bitmaps of the same pages, page 0 in bit 0 of word 0. If one is shorter,
/// the rest counts as clear.
pub fn compare(written: &[u64], harvested: &[u64]) -> Result<(), Mismatch> {
    let mut mismatch: Option<Mismatch> = None;
    let word = |bitmap: &[u64], index| bitmap.get(index).copied().unwrap_or(0);
    for index in 0..written.len().max(harvested.len()) {
        let (wrote, took) = (word(written, index), word(harvested, index));
        let different = wrote ^ took;
        if different == 0 {
            continue;
        }
        let first = index as u64 * PAGES + u64::from(different.trailing_zeros());
        let sum = mismatch.get_or_insert(Mismatch {
            lost: 0,
            invented: 0,
            first,
        });
        sum.lost += u64::from((wrote & !took).count_ones());
        sum.invented += u64::from((took & !wrote).count_ones());
    }
    mismatch.map_or(Ok(()), Err)
}

/// The number of pages in a bitmap.
pub fn count(bitmap: &[u64]) -> u64 {
    bitmap.iter().map(|word| u64::from(word.count_ones())).sum()
}

/// The pages of a bitmap, in order.
pub fn pages(bitmap: &[u64]) -> impl Iterator<Item = u64> + '_ {
    bitmap.iter().enumerate().flat_map(|(index, word)| {
        (0..PAGES)
            .filter(move |bit| word >> bit & 1 != 0)
            .map(move |bit| index as u64 * PAGES + bit)
    })
}

/// Adds `count` pages from `first` on. Pages beyond the bitmap are ignored.
pub fn add(bitmap: &mut [u64], first: u64, count: u64) {
    let room = bitmap.len() as u64 * PAGES;
    let end = first.saturating_add(count).min(room);
    let mut page = first;
    while page < end {
        let bit = page % PAGES;
        let bits = (end - page).min(PAGES - bit);
        bitmap[(page / PAGES) as usize] |= u64::MAX >> (PAGES - bits) << bit;
        page += bits;
    }
}

/// Adds all pages of each block that contains a page of the bitmap. A block has so many pages, a multiple of 64, and page 0
/// begins one.
pub fn widen(bitmap: &mut [u64], pages_in_block: u64) {
    for block in bitmap.chunks_mut((pages_in_block / PAGES) as usize) {
        if block.iter().any(|word| *word != 0) {
            block.fill(u64::MAX);
        }
    }
}

/// A vCPU's journal names a page beyond its share.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BeyondShare {
    /// The page, counted from the start of the share.
    pub page: u64,
}

impl fmt::Display for BeyondShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the journal names page {}, beyond the vCPU's share",
            self.page
        )
    }
}

/// Adds the journal of a vCPU, whose share is `share` pages from page `first` on, to the bitmap of all pages. Pages beyond the
/// bitmap are ignored.
pub fn merge(all: &mut [u64], first: u64, share: u64, journal: &[u64]) -> Result<(), BeyondShare> {
    for page in pages(journal) {
        if page >= share {
            return Err(BeyondShare { page });
        }
        let page = first.saturating_add(page);
        let word = usize::try_from(page / PAGES)
            .ok()
            .and_then(|index| all.get_mut(index));
        if let Some(word) = word {
            *word |= 1 << (page % PAGES);
        }
    }
    Ok(())
}

/// Which iteration last wrote each page of the test memory.
#[derive(Debug)]
pub struct Contents {
    iterations: Vec<u16>,
}

/// A page doesn't hold the contents that the guest wrote.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WrongContent {
    /// The page, counted from the start of the test memory.
    pub page: u64,
    /// The expected value.
    pub expected: u64,
    /// The value found.
    pub found: u64,
}

impl fmt::Display for WrongContent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "page {} holds {:#x} instead of {:#x}",
            self.page, self.found, self.expected
        )
    }
}

impl Contents {
    /// The contents after all pages were written in iteration 0. `None` without heap.
    pub fn populated(pages: u64) -> Option<Self> {
        let pages = usize::try_from(pages).ok()?;
        let mut iterations = Vec::new();
        iterations.try_reserve_exact(pages).ok()?;
        iterations.resize(pages, 0);
        Some(Self { iterations })
    }

    /// Notes that the pages of this bitmap, which begins at page `first`, were written in `iteration`. Pages beyond the memory
    /// are ignored.
    pub fn write(&mut self, iteration: u16, first: u64, bitmap: &[u64]) {
        for page in pages(bitmap) {
            let index = usize::try_from(first.saturating_add(page)).ok();
            if let Some(last) = index.and_then(|index| self.iterations.get_mut(index)) {
                *last = iteration;
            }
        }
    }

    /// Checks a page's first word.
    pub fn check(&self, page: u64, found: u64) -> Result<(), WrongContent> {
        let iteration = usize::try_from(page)
            .ok()
            .and_then(|index| self.iterations.get(index));
        let expected = pattern(iteration.copied().unwrap_or(0).into(), page);
        if found == expected {
            Ok(())
        } else {
            Err(WrongContent {
                page,
                expected,
                found,
            })
        }
    }

    /// How many pages there are.
    pub fn pages(&self) -> u64 {
        self.iterations.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use alloc::vec;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn equal_bitmaps_agree_also_where_one_has_clear_words_more() {
        assert_eq!(compare(&[1, 2, 0], &[1, 2]), Ok(()));
        assert_eq!(compare(&[], &[0]), Ok(()));
    }

    #[test]
    fn the_first_page_and_the_counts_are_told() {
        let mismatch = compare(&[0, 0b1100, 1], &[0, 0b0110, 0]).unwrap_err();
        assert_eq!(
            mismatch,
            Mismatch {
                lost: 2,
                invented: 1,
                first: 65
            }
        );
        let text =
            "2 written pages were lost and 1 unwritten ones were harvested, the first is page 65";
        assert_eq!(mismatch.to_string(), text);
    }

    #[test]
    fn contents_follow_the_last_write() {
        let mut contents = Contents::populated(128).unwrap();
        contents.write(3, 64, &[0b10]);
        contents.write(4, 120, &[u64::MAX]);
        assert_eq!(contents.check(0, 0), Ok(()));
        assert_eq!(contents.check(65, 3 << 48 | 65), Ok(()));
        assert_eq!(contents.check(127, 4 << 48 | 127), Ok(()));
        let wrong = contents.check(65, 65).unwrap_err();
        assert_eq!(
            wrong.to_string(),
            "page 65 holds 0x41 instead of 0x3000000000041"
        );
        assert!(contents.check(1000, 5).is_err());
    }

    #[test]
    fn journals_merge_at_any_page() {
        let mut all = [0; 3];
        assert_eq!(merge(&mut all, 0, 70, &[1 << 63, 1 << 5]), Ok(()));
        assert_eq!(merge(&mut all, 70, 70, &[1 << 63, 1 << 5]), Ok(()));
        assert_eq!(pages(&all).collect::<Vec<_>>(), vec![63, 69, 133, 139]);
        assert_eq!(
            merge(&mut all, 0, 70, &[0, 1 << 6]),
            Err(BeyondShare { page: 70 })
        );
        assert_eq!(merge(&mut all, u64::MAX, 70, &[1]), Ok(()));
    }

    proptest! {
        #[test]
        fn a_comparison_is_the_difference_of_sets(written in prop::collection::vec(0u64..4, 0..5), harvested in prop::collection::vec(0u64..4, 0..5)) {
            let set = |bitmap: &[u64]| pages(bitmap).collect::<BTreeSet<_>>();
            let (wrote, took) = (set(&written), set(&harvested));
            let lost = wrote.difference(&took).count() as u64;
            let invented = took.difference(&wrote).count() as u64;
            match compare(&written, &harvested) {
                Ok(()) => prop_assert!(lost + invented == 0),
                Err(mismatch) => {
                    let first = *wrote.symmetric_difference(&took).next().unwrap();
                    prop_assert_eq!(mismatch, Mismatch { lost, invented, first });
                }
            }
            prop_assert_eq!(count(&written), wrote.len() as u64);
        }
    }

    proptest! {
        #[test]
        fn pages_are_added_where_there_is_room(first in 0u64..300, count in 0u64..300) {
            let mut bitmap = [0; 4];
            add(&mut bitmap, first, count);
            let expected: Vec<u64> = (first..first + count).filter(|page| *page < 256).collect();
            prop_assert_eq!(pages(&bitmap).collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn a_page_stands_for_its_block() {
        let mut bitmap = [0, 1, 0, 0, 0, 0];
        widen(&mut bitmap, 128);
        assert_eq!(bitmap, [u64::MAX, u64::MAX, 0, 0, 0, 0]);
    }

    #[test]
    fn pages_are_listed_in_order() {
        assert_eq!(pages(&[5, 0, 1 << 63]).collect::<Vec<_>>(), vec![0, 2, 191]);
    }
}
