//! A set of INTIDs below 1024: a bitmap with a summary.

const WORDS: usize = 16;

/// The set.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct IntidSet {
    words: [u64; WORDS],
    /// Which words aren't zero.
    summary: u16,
}

impl IntidSet {
    pub(crate) const EMPTY: Self = Self {
        words: [0; WORDS],
        summary: 0,
    };

    pub(crate) const fn is_empty(&self) -> bool {
        self.summary == 0
    }

    /// Adds 64 at once: `bits` from `first` on, which is a multiple of 32.
    pub(crate) fn insert_all(&mut self, first: u32, bits: u64) {
        let shift = first % 64;
        self.add((first / 64) as usize, bits << shift);
        if shift != 0 {
            self.add((first / 64 + 1) as usize, bits >> (64 - shift));
        }
    }

    fn add(&mut self, index: usize, bits: u64) {
        if bits != 0
            && let Some(word) = self.words.get_mut(index)
        {
            *word |= bits;
            self.summary |= 1 << index;
        }
    }

    pub(crate) fn insert(&mut self, intid: u32) {
        self.add((intid / 64) as usize, 1 << (intid % 64));
    }

    pub(crate) fn remove(&mut self, intid: u32) {
        let index = (intid / 64) as usize;
        if let Some(word) = self.words.get_mut(index) {
            *word &= !(1 << (intid % 64));
            if *word == 0 {
                self.summary &= !(1 << index);
            }
        }
    }

    /// The smallest that is at least `from`.
    pub(crate) fn next(&self, from: u32) -> Option<u32> {
        let index = (from / 64) as usize;
        if index >= WORDS {
            return None;
        }
        let here = self.words[index] >> (from % 64);
        if here != 0 {
            return Some(from + here.trailing_zeros());
        }
        let later = u32::from(self.summary) & u32::MAX.checked_shl(index as u32 + 1)?;
        if later == 0 {
            return None;
        }
        let index = later.trailing_zeros() as usize;
        let word = self.words.get(index)?;
        Some(index as u32 * 64 + word.trailing_zeros())
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

    proptest! {
        #[test]
        fn a_set_holds_what_was_put_into_it(inserted in btree_set(0_u32..1024, 0..80), removed in vec(0_u32..1024, 0..80)) {
            let mut set = IntidSet::EMPTY;
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
        set.insert(u32::MAX);
        set.remove(u32::MAX);
        assert!(set.is_empty() && set.next(1024).is_none() && set.next(u32::MAX).is_none());
    }
}
