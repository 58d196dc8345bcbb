//! A slot's dirty bitmap: one bit for each page that was written since the last harvest, and the log's policy.
//!
//! vCPUs set bits, one harvester at a time takes them; both may hit the same word at any time. Each word has its own cache
//! line, so vCPUs that dirty pages of different words share none.

use crate::dirty::policy::LogPolicy;
use alloc::vec::Vec;
use core::array;
use core::ops::Range;
use core::slice;
use stage2::sync::{AtomicU64, Ordering, clear_bits, fence, set_bits};
use stage2::{Level, PAGE_SIZE};

/// Pages per word of a bitmap.
pub const PAGES_PER_WORD: u64 = 64;
/// Bytes that one word of a bitmap stands for.
pub const BYTES_PER_WORD: u64 = PAGES_PER_WORD * PAGE_SIZE;

/// Words of a cache line. The model checker's words are larger, and each is some work for it: a line is one of them.
const WORDS_PER_LINE: usize = if cfg!(loom) { 1 } else { 8 };

/// A cache line of a bitmap.
#[derive(Debug)]
#[repr(C)]
#[cfg_attr(not(loom), repr(align(64)))]
struct Line([AtomicU64; WORDS_PER_LINE]);

/// The memory of a log, prepared before logging is enabled: all words zero.
#[derive(Debug)]
pub(crate) struct Words {
    lines: Vec<Line>,
    /// How many words there are of use.
    count: usize,
}

impl Words {
    /// For `pages` pages, or `None` where memory doesn't suffice.
    pub(crate) fn new(pages: u64) -> Option<Self> {
        let count = usize::try_from(pages.div_ceil(PAGES_PER_WORD)).ok()?;
        let needed = count.div_ceil(WORDS_PER_LINE);
        let mut lines = Vec::new();
        lines.try_reserve_exact(needed).ok()?;
        lines.resize_with(needed, || Line(array::from_fn(|_| AtomicU64::new(0))));
        Some(Self { lines, count })
    }

    #[inline(always)]
    fn all(&self) -> &[AtomicU64] {
        const {
            assert!(size_of::<Line>() == WORDS_PER_LINE * size_of::<AtomicU64>());
        }
        // SAFETY: lines are words and nothing else, so they follow each other through all lines; there are at least so many
        // (`new`), and whoever borrows this borrows them.
        unsafe { slice::from_raw_parts(self.lines.as_ptr().cast(), self.count) }
    }
}

/// A bitmap of dirty pages. Little-endian in the sense of KVM_GET_DIRTY_LOG: page 0 is bit 0 of word 0.
#[derive(Debug)]
pub(crate) struct DirtyLog {
    words: Words,
    pages: u64,
    /// The value of a word whose pages are all clean. A log that is initially set is stored inverted, so that its zeroed words
    /// mean that all pages are dirty.
    clean: u64,
    policy: LogPolicy,
    /// Derived from the policy, for the fault path.
    largest_written: Level,
}

impl DirtyLog {
    /// A log for `pages` pages in `words`, which were made for as many. Takes no time.
    pub(crate) fn new(words: Words, pages: u64, policy: LogPolicy) -> Self {
        Self {
            words,
            pages,
            clean: if policy.initially_set { u64::MAX } else { 0 },
            policy,
            largest_written: policy.largest_written(),
        }
    }

    /// Whether vCPUs report their writes in rings.
    #[inline]
    pub(crate) fn by_ring(&self) -> bool {
        self.policy.ring
    }

    /// The level of the largest leaf that is logged as one.
    #[inline]
    pub(crate) fn largest_written(&self) -> Level {
        self.largest_written
    }

    /// How writes are logged.
    #[inline]
    pub(crate) fn policy(&self) -> &LogPolicy {
        &self.policy
    }

    /// Marks those of `pages` that the slot has.
    ///
    /// The caller made them writable before (rule 9). Release: pairs with the acquire of [`Self::take`], so a harvester that
    /// sees the mark sees the writable entry.
    pub(crate) fn mark(&self, pages: Range<u64>) {
        self.for_each_word(pages, |word, bits| self.set(&self.words.all()[word], bits));
    }

    /// Marks those of `pages` that the bitmap `named`, which begins with the log's word `first_word`, doesn't name. `pages` may
    /// extend beyond it on both sides; pages without a bit in it count as not named.
    #[cold]
    pub(crate) fn mark_unnamed(&self, pages: Range<u64>, first_word: usize, named: &[u64]) {
        self.for_each_word(pages, |word, bits| {
            let index = word.checked_sub(first_word);
            let named = index.and_then(|index| named.get(index)).unwrap_or(&0);
            if bits & !named != 0 {
                self.set(&self.words.all()[word], bits & !named);
            }
        });
    }

    /// Calls `each` for every word that covers some of these pages, as far as the slot has them, with the word's index and
    /// their bits.
    fn for_each_word(&self, pages: Range<u64>, mut each: impl FnMut(usize, u64)) {
        let end = pages.end.min(self.pages);
        let mut at = pages.start;
        while at < end {
            let shift = at % PAGES_PER_WORD;
            let count = (end - at).min(PAGES_PER_WORD - shift);
            let bits = u64::MAX >> (PAGES_PER_WORD - count) << shift;
            each((at / PAGES_PER_WORD) as usize, bits);
            at += count;
        }
    }

    /// [`Self::mark`] for one page, which the slot has.
    #[inline]
    pub(crate) fn mark_page(&self, page: u64) {
        let word = (page / PAGES_PER_WORD) as usize;
        self.set(&self.words.all()[word], 1 << (page % PAGES_PER_WORD));
    }

    /// Marks the pages from `first` on whose bits are set in `bits`. All of them belong to the slot.
    pub(crate) fn mark_bits(&self, first: u64, bits: u64) {
        let (word, shift) = ((first / PAGES_PER_WORD) as usize, first % PAGES_PER_WORD);
        let high = bits
            .checked_shr((PAGES_PER_WORD - shift) as u32)
            .unwrap_or(0);
        for (word, bits) in [(word, bits << shift), (word + 1, high)] {
            if bits != 0 {
                self.set(&self.words.all()[word], bits);
            }
        }
    }

    #[inline]
    fn set(&self, word: &AtomicU64, bits: u64) {
        if self.clean == 0 {
            set_bits(word, bits);
        } else {
            clear_bits(word, bits);
        }
    }

    /// The bits of a word that belong to existing pages.
    fn of_pages(&self, word: usize) -> u64 {
        let rest = self.pages - word as u64 * PAGES_PER_WORD;
        u64::MAX >> PAGES_PER_WORD.saturating_sub(rest)
    }

    /// Relaxed: nothing is read after it that a mark stands for.
    fn dirty(&self, word: usize) -> u64 {
        (self.words.all()[word].load(Ordering::Relaxed) ^ self.clean) & self.of_pages(word)
    }

    /// Copies the words from `first_word` on, changing nothing.
    pub(crate) fn copy(&self, first_word: usize, into: &mut [u64]) {
        let words = &self.words.all()[first_word..][..into.len()];
        for (copy, word) in into.iter_mut().zip(words) {
            *copy = word.load(Ordering::Relaxed) ^ self.clean;
        }
        // Acquire, for all of them: pairs with the release of the marks.
        fence(Ordering::Acquire);
        // The last word of all may have bits for more pages than there are.
        let end = first_word + into.len();
        if let Some(last) = into.last_mut()
            && end == self.len()
        {
            *last &= self.of_pages(end - 1);
        }
    }

    /// Whether all pages of `[first, first + count)` are dirty already.
    pub(crate) fn is_full(&self, first: u64, count: u64) -> bool {
        let (start, end) = (
            first / PAGES_PER_WORD,
            (first + count).div_ceil(PAGES_PER_WORD),
        );
        (start as usize..end as usize).all(|word| self.dirty(word) == self.of_pages(word))
    }

    /// Takes the bits that are set in `wanted` from the log, and leaves only the dirty ones set in `wanted`.
    pub(crate) fn take(&self, first_word: usize, wanted: &mut [u64]) {
        for (index, want) in wanted.iter_mut().enumerate() {
            *want &= self.of_pages(first_word + index);
            if *want == 0 {
                continue;
            }
            let word = &self.words.all()[first_word + index];
            *want &= if self.clean == 0 {
                word.fetch_and(!*want, Ordering::AcqRel)
            } else {
                !word.fetch_or(*want, Ordering::AcqRel)
            };
        }
    }

    /// Words of the bitmap.
    pub(crate) fn len(&self) -> usize {
        self.words.count
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use alloc::vec;
    use core::ptr;
    use proptest::prelude::*;

    fn log_of(pages: u64, initially_set: bool) -> DirtyLog {
        let policy = LogPolicy {
            initially_set,
            ..LogPolicy::default()
        };
        DirtyLog::new(Words::new(pages).unwrap(), pages, policy)
    }

    #[test]
    fn a_mark_is_taken_once() {
        let log = log_of(130, false);
        assert_eq!(log.len(), 3);
        log.mark(0..1);
        log.mark(129..130);
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
        let log = log_of(64, false);
        log.mark(3..4);
        log.mark(5..6);
        let mut wanted = [1 << 5];
        log.take(0, &mut wanted);
        assert_eq!(wanted, [1 << 5]);
        log.copy(0, &mut wanted);
        assert_eq!(wanted, [1 << 3]);
    }

    #[test]
    fn a_block_marks_all_its_pages() {
        let log = log_of(1024, false);
        log.mark(512..1024);
        let mut copy = vec![0; 16];
        log.copy(0, &mut copy);
        assert!(copy[..8].iter().all(|w| *w == 0) && copy[8..].iter().all(|w| *w == u64::MAX));
        assert!(log.is_full(512, 512) && !log.is_full(511, 512));
    }

    #[test]
    fn a_log_that_is_initially_set_has_every_page_and_none_beyond() {
        let log = log_of(70, true);
        let mut copy = vec![0; 2];
        log.copy(0, &mut copy);
        assert_eq!(copy, [u64::MAX, 0x3f]);
        assert!(log.is_full(0, 70));
        let mut all = [u64::MAX; 2];
        log.take(0, &mut all);
        assert_eq!(all, [u64::MAX, 0x3f]);
        log.mark(64..65);
        log.copy(0, &mut copy);
        assert_eq!(copy, [0, 1]);
    }

    #[test]
    fn a_cache_line_has_the_pages_of_one_table() {
        assert_eq!((size_of::<Line>(), align_of::<Line>()), (64, 64));
        let log = log_of(1025, false);
        let line = |page: u64| {
            let word = &log.words.all()[(page / PAGES_PER_WORD) as usize];
            ptr::from_ref(word).addr() / 64
        };
        assert_eq!((line(0), line(511)), (line(511), line(512) - 1));
        assert_eq!((log.len(), line(1024)), (17, line(512) + 1));
    }

    proptest! {
        #[test]
        fn pages_are_marked_wherever_they_begin_and_end(
            start in 0u64..200,
            count in 0u64..200,
            first_word in 0usize..5,
            named in prop::collection::vec(any::<u64>(), 0..4),
            initially_set: bool,
        ) {
            const PAGES: u64 = 300;
            let pages = start..start + count;
            let is_named = |page: u64| {
                let word = (page as usize / 64).checked_sub(first_word).and_then(|index| named.get(index));
                word.is_some_and(|word| word & 1 << (page % 64) != 0)
            };
            let marked = |mark: &dyn Fn(&DirtyLog)| -> Vec<u64> {
                let log = log_of(PAGES, initially_set);
                log.take(0, &mut [u64::MAX; 5]);
                mark(&log);
                let mut copy = [0; 5];
                log.copy(0, &mut copy);
                (0..320).filter(|page| copy[*page as usize / 64] & 1 << (page % 64) != 0).collect()
            };
            let there = || pages.clone().filter(|page| *page < PAGES);
            prop_assert_eq!(marked(&|log| log.mark(pages.clone())), there().collect::<Vec<_>>());
            let unnamed: Vec<u64> = there().filter(|page| !is_named(*page)).collect();
            prop_assert_eq!(marked(&|log| log.mark_unnamed(pages.clone(), first_word, &named)), unnamed);
        }

        #[test]
        fn bits_are_marked_wherever_they_lie(first in 0u64..200, bits: u64, initially_set: bool) {
            let log = log_of(300, initially_set);
            log.take(0, &mut [u64::MAX; 5]);
            let pages: Vec<u64> = (0..64).filter(|bit| bits & 1 << bit != 0).map(|bit| first + bit).collect();
            log.mark_bits(first, bits);
            let mut copy = [0; 5];
            log.copy(0, &mut copy);
            let marked: Vec<u64> = (0..320).filter(|page| copy[*page as usize / 64] & 1 << (page % 64) != 0).collect();
            prop_assert_eq!(marked, pages);
        }
    }
}
