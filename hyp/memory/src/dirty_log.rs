//! The dirty log of one slot: a bit for every page that was written since it was last taken.
//!
//! vCPUs mark, one harvester at a time takes; marks and takes may meet in a word at any time.

use alloc::vec::Vec;
use stage2::PAGE_SIZE;
use stage2::sync::{AtomicU64, Ordering};

/// Pages per word of a bitmap.
pub const PAGES_PER_WORD: u64 = 64;

/// A bitmap of dirty pages. Little-endian in the sense of KVM_GET_DIRTY_LOG: page 0 is bit 0 of word 0.
#[derive(Debug)]
pub struct DirtyLog {
    words: Vec<AtomicU64>,
}

impl DirtyLog {
    /// An empty log for `pages` pages, or `None` where memory doesn't suffice.
    pub(crate) fn new(pages: u64) -> Option<Self> {
        let count = usize::try_from(pages.div_ceil(PAGES_PER_WORD)).ok()?;
        let mut words = Vec::new();
        words.try_reserve_exact(count).ok()?;
        words.resize_with(count, || AtomicU64::new(0));
        Some(Self { words })
    }

    /// Marks the pages of `[first, first + count)` that the slot has.
    ///
    /// The caller made them writable before (rule 9). Release: pairs with the acquire of [`Self::take`], so a harvester
    /// that sees the mark sees the writable entry.
    #[inline]
    pub(crate) fn mark(&self, first: u64, count: u64) {
        if count == 1 {
            self.words[(first / PAGES_PER_WORD) as usize]
                .fetch_or(1 << (first % PAGES_PER_WORD), Ordering::Release);
        } else {
            self.mark_span(first, count);
        }
    }

    #[cold]
    fn mark_span(&self, first: u64, count: u64) {
        // Spans are whole blocks: powers of two of at least 512 pages, aligned to their size.
        let words =
            (first / PAGES_PER_WORD) as usize..((first + count).div_ceil(PAGES_PER_WORD)) as usize;
        for word in &self.words[words.start..words.end.min(self.words.len())] {
            word.fetch_or(u64::MAX, Ordering::Release);
        }
    }

    /// Copies the words from `first_word` on, changing nothing.
    pub(crate) fn copy(&self, first_word: usize, into: &mut [u64]) {
        for (copy, word) in into.iter_mut().zip(&self.words[first_word..]) {
            *copy = word.load(Ordering::Acquire);
        }
    }

    /// Clears the bits that are set in `wanted` and leaves there those that really were set.
    pub(crate) fn take(&self, first_word: usize, wanted: &mut [u64]) {
        for (want, word) in wanted.iter_mut().zip(&self.words[first_word..]) {
            if *want != 0 {
                *want &= word.fetch_and(!*want, Ordering::AcqRel);
            }
        }
    }

    /// Words of the bitmap.
    pub(crate) fn len(&self) -> usize {
        self.words.len()
    }
}

/// Bytes that one word of a bitmap stands for.
pub const BYTES_PER_WORD: u64 = PAGES_PER_WORD * PAGE_SIZE;

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn a_mark_is_taken_once() {
        let log = DirtyLog::new(130).unwrap();
        assert_eq!(log.len(), 3);
        log.mark(0, 1);
        log.mark(129, 1);
        let mut copy = vec![0; 3];
        log.copy(0, &mut copy);
        assert_eq!(copy, [1, 0, 2]);
        log.take(0, &mut copy);
        assert_eq!(copy, [1, 0, 2]);
        log.take(0, &mut copy);
        assert_eq!(copy, [0, 0, 0]);
    }

    #[test]
    fn only_wanted_bits_are_taken() {
        let log = DirtyLog::new(64).unwrap();
        log.mark(3, 1);
        log.mark(5, 1);
        let mut wanted = [1 << 5];
        log.take(0, &mut wanted);
        assert_eq!(wanted, [1 << 5]);
        log.copy(0, &mut wanted);
        assert_eq!(wanted, [1 << 3]);
    }

    #[test]
    fn a_block_marks_all_its_pages() {
        let log = DirtyLog::new(1024).unwrap();
        log.mark(512, 512);
        let mut copy = vec![0; 16];
        log.copy(0, &mut copy);
        assert!(copy[..8].iter().all(|w| *w == 0) && copy[8..].iter().all(|w| *w == u64::MAX));
    }
}
