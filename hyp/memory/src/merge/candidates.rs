//! The candidates of a scan, by checksum, and the shared frames. Filled anew by each scan, by all its scanners at once: each
//! entry is one word, and changed by compare-exchange. All memory is allocated in advance, so a scan neither allocates nor moves
//! entries.
//!
//! An entry is a hint: whatever it leads to is claimed and compared.

use alloc::vec::Vec;
use core::iter;
use stage2::sync::{AtomicU64, Ordering};
use stage2::{PAGE_SHIFT, Pa};

/// Set in a candidate once another page was found for it.
const MET: u64 = 1 << 31;
/// Pages of all objects are numbered consecutively, below this.
pub(super) const MOST_PAGES: u64 = MET;
/// The position of the number of its generation in an entry.
const GENERATION: u32 = 60;
/// An entry of generation 0 is empty, as is every entry of an earlier generation.
const GENERATIONS: u64 = 1 << (u64::BITS - GENERATION);

/// The most entries that are looked at for a word: what a guest puts into its pages may have them all begin at one place. A word
/// that finds no place among them is left out, as if the table were full.
const MOST_PROBES: usize = 128;

/// A hash table of words below `1 << GENERATION`, with open addressing. Within a generation entries are added and exchanged, but
/// never removed.
#[derive(Debug)]
struct Table {
    /// As many as a power of two, of which a quarter stays empty; or none.
    entries: Vec<AtomicU64>,
    /// Changed only when nobody uses the table, or by who ends a scan.
    generation: AtomicU64,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
            generation: AtomicU64::new(1),
        }
    }
}

impl Table {
    /// Allocates memory for `count` entries; `None` without heap.
    fn reserve(&mut self, count: usize, hash_of: impl Fn(u64) -> u64) -> Option<()> {
        let wanted = count.checked_add(count.div_ceil(3))?;
        let wanted = wanted.checked_next_power_of_two()?;
        if wanted <= self.entries.len() {
            return Some(());
        }
        let mut entries = Vec::new();
        entries.try_reserve_exact(wanted).ok()?;
        entries.resize_with(wanted, || AtomicU64::new(0));
        let old = core::mem::replace(&mut self.entries, entries);
        let old = old.iter().filter_map(|entry| self.live(entry));
        for word in old {
            self.enter(hash_of(word), word, |_| false);
        }
        Some(())
    }

    /// An entry without its generation; `None` if it is empty.
    fn live(&self, entry: &AtomicU64) -> Option<u64> {
        let entry = entry.load(Ordering::Relaxed);
        let is_live = entry >> GENERATION == self.generation.load(Ordering::Relaxed);
        is_live.then_some(entry & ((1 << GENERATION) - 1))
    }

    /// The entries in which a word with this hash may be, in order.
    fn entries(&self, hash: u64) -> impl Iterator<Item = &AtomicU64> {
        let mask = self.entries.len().wrapping_sub(1);
        let first = spread(hash) as usize;
        let places = (0..self.entries.len().min(MOST_PROBES))
            .map(move |step| first.wrapping_add(step) & mask);
        places.map(|place| &self.entries[place])
    }

    /// Looks for a word. If there is none, adds one, unless its places are taken. Returns what was found.
    fn enter(&self, hash: u64, word: u64, mut is_same: impl FnMut(u64) -> bool) -> Option<u64> {
        let generation = self.generation.load(Ordering::Relaxed);
        let new = generation << GENERATION | word;
        for entry in self.entries(hash) {
            let mut seen = entry.load(Ordering::Relaxed);
            while seen >> GENERATION != generation {
                match entry.compare_exchange(seen, new, Ordering::Relaxed, Ordering::Relaxed) {
                    Ok(_) => return None,
                    // Another scanner has filled it: look what with.
                    Err(now) => seen = now,
                }
            }
            let found = seen & ((1 << GENERATION) - 1);
            if is_same(found) {
                return Some(found);
            }
        }
        None
    }

    /// Exchanges a word that is there.
    fn exchange(&self, hash: u64, is_same: impl Fn(u64) -> bool, to: u64) -> bool {
        let generation = self.generation.load(Ordering::Relaxed) << GENERATION;
        let mut words = self.entries(hash).map(|entry| (entry, self.live(entry)));
        let words = iter::from_fn(|| words.next().and_then(|(entry, word)| Some((entry, word?))));
        let mut same = words.filter(|(_, word)| is_same(*word));
        same.next()
            .is_some_and(|(entry, word)| exchange(entry, generation | word, generation | to))
    }

    /// Removes all entries. No scanner uses the table meanwhile.
    fn clear(&self) {
        let mut next = self.generation.load(Ordering::Relaxed) + 1;
        if next == GENERATIONS {
            next = 1;
            for entry in &self.entries {
                entry.store(0, Ordering::Relaxed);
            }
        }
        self.generation.store(next, Ordering::Relaxed);
    }
}

fn exchange(entry: &AtomicU64, from: u64, to: u64) -> bool {
    entry
        .compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed)
        .is_ok()
}

/// One page for each checksum.
#[derive(Debug, Default)]
pub(super) struct Candidates(Table);

/// A page as a word of the table: a part of its checksum, and its number.
fn candidate(checksum: u32, page: u32) -> u64 {
    u64::from(checksum) << u32::BITS & ((1 << GENERATION) - 1) | u64::from(page)
}

/// The number of a candidate's page.
fn page_of(candidate: u64) -> u32 {
    (candidate & (MET - 1)) as u32
}

impl Candidates {
    /// Allocates memory for `pages` pages; `None` without heap.
    pub(super) fn reserve(&mut self, pages: usize) -> Option<()> {
        self.0.reserve(pages, |candidate| candidate >> u32::BITS)
    }

    /// The earlier candidate with this checksum that `is_trusted`; if there is none, this page becomes one.
    pub(super) fn enter(
        &self,
        checksum: u32,
        page: u32,
        mut is_trusted: impl FnMut(u32) -> bool,
    ) -> Option<u32> {
        let new = candidate(checksum, page);
        let is_same =
            |word: u64| word >> u32::BITS == new >> u32::BITS && is_trusted(page_of(word));
        let met = self.0.enter(new >> u32::BITS, new, is_same);
        met.map(page_of)
    }

    /// Notes that a candidate was paired. Returns whether for the first time.
    pub(super) fn pair(&self, checksum: u32, page: u32) -> bool {
        let alone = candidate(checksum, page);
        let is_same = |word| word == alone;
        self.0.exchange(alone >> u32::BITS, is_same, alone | MET)
    }

    /// Replaces a candidate without an equal by another page with the same checksum.
    pub(super) fn replace(&self, checksum: u32, page: u32, by: u32) {
        let old = candidate(checksum, page);
        let is_same = |word: u64| word & !MET == old;
        (self.0).exchange(old >> u32::BITS, is_same, candidate(checksum, by));
    }

    /// Removes all candidates.
    pub(super) fn clear(&self) {
        self.0.clear();
    }
}

/// Frames that several pages share.
#[derive(Debug, Default)]
pub(super) struct MetFrames(Table);

impl MetFrames {
    /// Allocates memory for the frames of `pages` pages; `None` without heap.
    pub(super) fn reserve(&mut self, pages: usize) -> Option<()> {
        self.0.reserve(pages, |number| number)
    }

    /// Notes a frame. Returns whether for the first time.
    pub(super) fn enter(&self, frame: Pa) -> bool {
        let number = frame.get() >> PAGE_SHIFT;
        let met = self.0.enter(number, number, |word| word == number);
        met.is_none()
    }

    /// Removes all frames.
    pub(super) fn clear(&self) {
        self.0.clear();
    }
}

/// Spreads a number over all the bits that choose a table's entry.
fn spread(number: u64) -> u64 {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> u32::BITS
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn the_first_page_of_a_checksum_is_met_by_the_others_until_it_is_replaced() {
        let mut candidates = Candidates::default();
        candidates.reserve(4).unwrap();
        assert_eq!(candidates.enter(7, 1, |_| true), None);
        assert_eq!(candidates.enter(8, 2, |_| true), None);
        assert_eq!(candidates.enter(7, 3, |_| true), Some(1));
        assert!(candidates.pair(7, 1));
        assert!(!candidates.pair(7, 1), "it was met before");
        assert_eq!(candidates.enter(7, 3, |_| true), Some(1));
        candidates.replace(7, 1, 3);
        assert_eq!(candidates.enter(7, 1, |_| true), Some(3));
        assert!(candidates.pair(7, 3), "it wasn't met before");
        candidates.clear();
        assert_eq!(candidates.enter(7, 1, |_| true), None);
    }

    #[test]
    fn a_page_of_others_is_passed_by_and_stays() {
        let mut candidates = Candidates::default();
        candidates.reserve(4).unwrap();
        let is_odd = |page| page % 2 == 1;
        assert_eq!(candidates.enter(7, 2, |_| true), None);
        assert_eq!(candidates.enter(7, 1, is_odd), None);
        assert_eq!(candidates.enter(7, 3, is_odd), Some(1));
        assert_eq!(candidates.enter(7, 4, |page| !is_odd(page)), Some(2));
    }

    /// The run of looks that a guest can provoke has an end.
    #[test]
    fn words_that_begin_at_one_place_are_looked_for_in_a_bounded_run() {
        let mut candidates = Candidates::default();
        candidates.reserve(1000).unwrap();
        let mut looks = 0;
        for page in 0..1000 {
            let others = |_| {
                looks += 1;
                false
            };
            assert_eq!(candidates.enter(7, page, others), None);
        }
        assert!(looks <= 1000 * MOST_PROBES, "{looks}");
        let entered = (candidates.0.entries.iter())
            .filter(|entry| candidates.0.live(entry).is_some())
            .count();
        assert_eq!(entered, MOST_PROBES);
    }

    #[test]
    fn a_frame_is_met_once_for_the_first_time() {
        let mut frames = MetFrames::default();
        frames.reserve(3).unwrap();
        let [first, other] = [0x1234_5000, 7 << 44].map(Pa::new);
        let met = [first, other, first, other].map(|frame| frames.enter(frame));
        assert_eq!(met, [true, true, false, false]);
        frames.clear();
        assert!(frames.enter(other));
    }

    #[test]
    fn nothing_is_allocated_once_the_memory_is_taken() {
        let mut candidates = Candidates::default();
        candidates.reserve(1000).unwrap();
        let places = candidates.0.entries.len();
        for page in 0..10_000 {
            assert_eq!(candidates.enter(page, page, |_| true), None);
        }
        assert_eq!(candidates.0.entries.len(), places);
        assert_eq!(candidates.enter(0, 5, |_| true), Some(0));
    }

    #[test]
    fn candidates_stay_when_there_is_room_for_more() {
        let mut candidates = Candidates::default();
        for pages in 1..200 {
            candidates.reserve(pages as usize).unwrap();
            assert_eq!(candidates.enter(pages << 8, pages, |_| true), None);
            for page in 1..=pages {
                assert_eq!(candidates.enter(page << 8, 0, |_| true), Some(page));
            }
        }
    }

    /// A scan meets nothing of an earlier one, however many there were.
    #[test]
    fn a_table_that_is_cleared_is_empty() {
        let mut frames = MetFrames::default();
        frames.reserve(8).unwrap();
        for scan in 0..3 * GENERATIONS {
            let frame = Pa::new((1 + scan % 3) << PAGE_SHIFT);
            assert!(frames.enter(frame) && !frames.enter(frame), "scan {scan}");
            frames.clear();
        }
    }

    #[test]
    fn of_equal_pages_that_come_at_once_all_but_one_meet_the_same() {
        const CPUS: u32 = 4;
        const CHECKSUMS: u32 = if cfg!(miri) { 10 } else { 1000 };
        let mut candidates = Candidates::default();
        candidates.reserve((CPUS * CHECKSUMS) as usize).unwrap();
        let candidates = &candidates;
        let met: Vec<Vec<_>> = thread::scope(|scope| {
            let enter = |cpu| {
                let page = move |checksum| cpu * CHECKSUMS + checksum;
                let enter = move |checksum| candidates.enter(checksum, page(checksum), |_| true);
                scope.spawn(move || (0..CHECKSUMS).map(enter).collect())
            };
            let scanners: Vec<_> = (0..CPUS).map(enter).collect();
            let met = scanners.into_iter();
            met.map(|scanner| scanner.join().unwrap()).collect()
        });
        for checksum in 0..CHECKSUMS {
            let met = (0..CPUS).map(|cpu| met[cpu as usize][checksum as usize]);
            let first = candidates.enter(checksum, u32::MAX >> 1, |_| true);
            let first = first.map(|page| (page / CHECKSUMS) as usize);
            for (cpu, met) in met.enumerate() {
                let met = met.map(|page| (page / CHECKSUMS) as usize);
                assert_eq!(met, first.filter(|first| *first != cpu));
            }
        }
    }
}
