//! Sets of INTIDs: a bitmap with a summary.

use crate::word::FIRST_LPI;

/// The first words are those of the INTIDs below 1024; LPIs follow.
const CLASSIC: usize = 16;
const LPI_WORDS: usize = 128;

/// A set of INTIDs below 1024.
pub(crate) type IntidSet = Set<CLASSIC, 1>;
/// The same, and of LPIs.
pub(crate) type WithLpis = Set<{ CLASSIC + LPI_WORDS }, 3>;

/// A set of INTIDs, with so many words, and a bit for each of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Set<const WORDS: usize, const SUMMARY: usize> {
    words: [u64; WORDS],
    /// Which words aren't zero.
    summary: [u64; SUMMARY],
}

/// The word of an INTID.
const fn word_of(intid: u32) -> usize {
    if intid >= FIRST_LPI {
        CLASSIC + ((intid - FIRST_LPI) / 64) as usize
    } else if intid < CLASSIC as u32 * 64 {
        (intid / 64) as usize
    } else {
        usize::MAX
    }
}

/// The first INTID of a word.
const fn first_of(word: usize) -> u32 {
    if word < CLASSIC {
        word as u32 * 64
    } else {
        FIRST_LPI + (word - CLASSIC) as u32 * 64
    }
}

impl<const WORDS: usize, const SUMMARY: usize> Set<WORDS, SUMMARY> {
    pub(crate) const EMPTY: Self = Self {
        words: [0; WORDS],
        summary: [0; SUMMARY],
    };

    #[inline(always)]
    pub(crate) fn is_empty(&self) -> bool {
        self.summary.iter().fold(0, |all, one| all | one) == 0
    }

    /// Adds 64 at once: `bits` from `first` on, which is a multiple of 32.
    pub(crate) fn insert_all(&mut self, first: u32, bits: u64) {
        let shift = first % 64;
        self.add(word_of(first), bits << shift);
        if shift != 0 {
            self.add(word_of(first + 32), bits >> (64 - shift));
        }
    }

    fn add(&mut self, index: usize, bits: u64) {
        if bits != 0
            && let Some(word) = self.words.get_mut(index)
            && let Some(summary) = self.summary.get_mut(index / 64)
        {
            *word |= bits;
            *summary |= 1 << (index % 64);
        }
    }

    pub(crate) fn insert(&mut self, intid: u32) {
        self.add(word_of(intid), 1 << (intid % 64));
    }

    pub(crate) fn remove(&mut self, intid: u32) {
        let index = word_of(intid);
        if let Some(word) = self.words.get_mut(index)
            && let Some(summary) = self.summary.get_mut(index / 64)
        {
            *word &= !(1 << (intid % 64));
            if *word == 0 {
                *summary &= !(1 << (index % 64));
            }
        }
    }

    /// The smallest that is at least `from`.
    #[inline]
    pub(crate) fn next(&self, from: u32) -> Option<u32> {
        let is_between = (CLASSIC as u32 * 64..FIRST_LPI).contains(&from);
        let from = if is_between { FIRST_LPI } else { from };
        let index = word_of(from);
        let here = self.words.get(index)? >> (from % 64);
        if here != 0 {
            return Some(from + here.trailing_zeros());
        }
        let mut mask = (u64::MAX << (index % 64)) << 1;
        for (number, summary) in self.summary.iter().enumerate().skip(index / 64) {
            let later = summary & mask;
            if later != 0 {
                let index = number * 64 + later.trailing_zeros() as usize;
                return Some(first_of(index) + self.words.get(index)?.trailing_zeros());
            }
            mask = u64::MAX;
        }
        None
    }

    /// All, in ascending order, as the set is now.
    #[cfg(all(test, not(loom)))]
    fn iter(&self) -> impl Iterator<Item = u32> {
        let mut from = 0;
        core::iter::from_fn(move || {
            let next = self.next(from)?;
            from = next + 1;
            Some(next)
        })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::collection::{btree_set, vec};
    use proptest::prelude::*;

    fn intid() -> impl Strategy<Value = u32> {
        prop_oneof![0_u32..1024, 8192_u32..16384]
    }

    proptest! {
        #[test]
        fn a_set_holds_what_was_put_into_it(inserted in btree_set(intid(), 0..80), removed in vec(intid(), 0..80)) {
            let mut set = WithLpis::EMPTY;
            inserted.iter().for_each(|intid| set.insert(*intid));
            removed.iter().for_each(|intid| set.remove(*intid));
            let expected: Vec<u32> = inserted.into_iter().filter(|intid| !removed.contains(intid)).collect();
            prop_assert_eq!(set.is_empty(), expected.is_empty());
            prop_assert_eq!(set.iter().collect::<Vec<_>>(), expected);
        }

        #[test]
        fn hints_land_where_they_belong(word in 0_u32..15, bits: u64) {
            let mut set = IntidSet::EMPTY;
            let first = 32 + 64 * word;
            set.insert_all(first, bits);
            let expected: Vec<u32> = (0..64).filter(|bit| bits >> bit & 1 != 0).map(|bit| first + bit).collect();
            prop_assert_eq!(set.iter().collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn what_is_beyond_the_end_is_in_no_set() {
        let mut set = IntidSet::EMPTY;
        set.insert(1024);
        set.insert(8192);
        set.insert(u32::MAX);
        set.remove(u32::MAX);
        assert!(set.is_empty() && set.next(1024).is_none() && set.next(u32::MAX).is_none());
        let mut set = WithLpis::EMPTY;
        for intid in [1024, 8191, 16384, u32::MAX] {
            set.insert(intid);
        }
        assert!(set.is_empty());
        set.insert(16383);
        assert_eq!(set.next(1024), Some(16383));
        assert_eq!(set.next(16384), None);
    }
}
