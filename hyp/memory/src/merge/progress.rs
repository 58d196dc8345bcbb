//! How far a scan has come, and what it has counted, in cache lines that a scanner writes once for several pages.

use super::MergeStatistics;
use core::array;
use core::ops::Range;
use core::sync::atomic::AtomicU64 as Count;
use spin::Mutex;
use stage2::sync::{AtomicU64, Ordering};

/// The most parts: more scanners than that share them.
const MOST_PARTS: usize = if cfg!(loom) { 2 } else { 16 };
/// Parts begin at multiples of this, so that scanners' notes on their pages seldom share a cache line.
const ALIGNED: u32 = if cfg!(loom) { 1 } else { 16 };

/// Which pages of the scan nobody has taken yet, and how many are done. Pages are named by their number among those of all
/// objects.
///
/// Each scanner has a part of the pages for its own, the same in each scan, so that what it has of them in its caches is there
/// the next time. Once its part is done it helps with the others'.
#[derive(Debug)]
pub(super) struct Progress {
    parts: [Part; MOST_PARTS],
    /// How many parts are used.
    count: usize,
    done: Done,
}

#[derive(Debug)]
#[repr(align(128))]
struct Part {
    /// The number of the scan, and below it the first page that no scanner has taken.
    next: AtomicU64,
    /// The end of its pages. Written while none of them is for the taking.
    end: AtomicU64,
}

/// How many of the taken pages have been looked at.
#[derive(Debug)]
#[repr(align(128))]
struct Done(AtomicU64);

/// A place in a part: of a scan, and its first page there that is for the taking.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Position {
    /// The number of the scan. It wraps.
    scan: u32,
    page: u32,
}

impl Position {
    /// No page of a scan whose parts are being divided.
    const fn closed(scan: u32) -> Self {
        Self {
            scan,
            page: u32::MAX,
        }
    }

    const fn encode(self) -> u64 {
        (self.scan as u64) << u32::BITS | self.page as u64
    }

    const fn decode(word: u64) -> Self {
        Self {
            scan: (word >> u32::BITS) as u32,
            page: word as u32,
        }
    }
}

/// Pages that nobody has taken yet, of one part.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Rest {
    part: usize,
    scan: u32,
    /// Their numbers. Not empty.
    pub(super) pages: Range<u32>,
}

impl Progress {
    /// For so many scanners, and no pages yet.
    pub(super) fn new(scanners: usize) -> Self {
        let part = || Part {
            next: AtomicU64::new(0),
            end: AtomicU64::new(0),
        };
        Self {
            parts: array::from_fn(|_| part()),
            count: scanners.clamp(1, MOST_PARTS),
            done: Done(AtomicU64::new(0)),
        }
    }

    /// The number of the current scan. It wraps.
    pub(super) fn scan(&self) -> u32 {
        self.position(0).scan
    }

    /// Acquire: pairs with the release of [`Self::begin`]. Whoever sees a scan finds the tables empty for it.
    fn position(&self, part: usize) -> Position {
        Position::decode(self.parts[part].next.load(Ordering::Acquire))
    }

    /// What is left of this scan for a scanner of any number: of its own part, or else of another one.
    pub(super) fn rest(&self, scanner: usize, scan: u32) -> Option<Rest> {
        let mut parts = (0..self.count).map(|step| (scanner + step) % self.count);
        parts.find_map(|part| {
            let next = self.position(part);
            let pages = next.page..self.parts[part].end.load(Ordering::Acquire) as u32;
            let is_left = next.scan == scan && !pages.is_empty();
            is_left.then_some(Rest { part, scan, pages })
        })
    }

    /// Takes the first `count` of these pages, to look at. `None` if another scanner has taken some of them.
    pub(super) fn take(&self, rest: &Rest, count: u32) -> Option<Range<u32>> {
        let Rest { part, scan, pages } = rest;
        let pages = pages.start..pages.end.min(pages.start.saturating_add(count));
        let [from, to] = [pages.start, pages.end].map(|page| Position { scan: *scan, page });
        let taken = self.parts[*part].next.compare_exchange(
            from.encode(),
            to.encode(),
            Ordering::AcqRel,
            Ordering::Relaxed,
        );
        taken.is_ok().then_some(pages)
    }

    /// Notes that taken pages have been looked at. Returns whether these were the last of all `total`: the caller ends the scan.
    ///
    /// Release and acquire: whoever ends it comes after all that the others have done for it.
    pub(super) fn finish(&self, pages: &Range<u32>, total: u32) -> bool {
        let count = pages.len() as u64;
        self.done.0.fetch_add(count, Ordering::AcqRel) + count == total.into()
    }

    /// Begins the next scan, of `total` pages. No scanner has pages of this one.
    pub(super) fn begin(&self, total: u32) {
        self.done.0.store(0, Ordering::Relaxed);
        self.divide(total, self.scan().wrapping_add(1));
    }

    /// Adds pages to this scan: `total` now. No scanner has any.
    pub(super) fn extend(&self, total: u32) {
        if self.is_untouched() {
            return self.divide(total, self.scan());
        }
        let last = &self.parts[self.count - 1];
        last.end.store(total.into(), Ordering::Relaxed);
    }

    /// Whether no page of this scan was taken.
    fn is_untouched(&self) -> bool {
        let mut start = 0;
        self.parts[..self.count].iter().all(|part| {
            let next = Position::decode(part.next.load(Ordering::Relaxed)).page;
            let is_untouched = u64::from(next) == start;
            start = part.end.load(Ordering::Relaxed);
            is_untouched
        })
    }

    /// Gives each part its pages. Scanners may still look for pages of the scan before. One that has read a part's former `next`
    /// and then reads its new `end` takes nothing: the part was closed in between.
    fn divide(&self, total: u32, scan: u32) {
        let share = total.div_ceil(self.count as u32).next_multiple_of(ALIGNED);
        let mut page = 0;
        for part in &self.parts[..self.count] {
            let end = total.min(page + share);
            part.next
                .store(Position::closed(scan).encode(), Ordering::Relaxed);
            // Release: pairs with the acquire of `rest`, whose exchange then finds the part closed.
            part.end.store(end.into(), Ordering::Release);
            // Release: pairs with the acquire of `position`.
            let next = Position { scan, page };
            part.next.store(next.encode(), Ordering::Release);
            page = end;
        }
    }
}

/// What a scanner has counted and not yet added to the others' counts.
#[derive(Default, Debug)]
pub(super) struct Found {
    pub(super) counts: MergeStatistics,
    /// Pages that were counted as unshared, by whichever scanner, before they were joined.
    pub(super) joined: u64,
}

/// What all scanners have counted.
#[derive(Debug)]
pub(super) struct Counted {
    shared: Shared,
    /// The numbers of the last complete scan.
    last: Mutex<MergeStatistics>,
}

/// The counts of the current scan, but those that go on over all scans.
#[derive(Default, Debug)]
#[repr(align(128))]
struct Shared {
    pages_shared: Count,
    pages_sharing: Count,
    pages_unshared: Count,
    pages_volatile: Count,
    zero_pages: Count,
    joined: Count,
    /// In all scans.
    pages_skipped: Count,
    pages_scanned: Count,
}

impl Counted {
    pub(super) fn new() -> Self {
        Self {
            shared: Shared::default(),
            last: Mutex::new(MergeStatistics::default()),
        }
    }

    /// Adds what a scanner has found.
    pub(super) fn add(&self, Found { counts, joined }: Found) {
        let shared = &self.shared;
        let counted = [
            (&shared.pages_shared, counts.pages_shared),
            (&shared.pages_sharing, counts.pages_sharing),
            (&shared.pages_unshared, counts.pages_unshared),
            (&shared.pages_volatile, counts.pages_volatile),
            (&shared.zero_pages, counts.zero_pages),
            (&shared.joined, joined),
            (&shared.pages_skipped, counts.pages_skipped),
            (&shared.pages_scanned, counts.pages_scanned),
        ];
        for (all, found) in counted.into_iter().filter(|(_, found)| *found != 0) {
            all.fetch_add(found, Ordering::Relaxed);
        }
    }

    /// The numbers of the last complete scan, and those over all scans so far.
    pub(super) fn statistics(&self) -> MergeStatistics {
        let over_all = |count: &Count| count.load(Ordering::Relaxed);
        MergeStatistics {
            pages_skipped: over_all(&self.shared.pages_skipped),
            pages_scanned: over_all(&self.shared.pages_scanned),
            ..*self.last.lock()
        }
    }

    /// Begins the counts of the next scan. Publishes those of this one if it is complete.
    pub(super) fn begin(&self, is_complete: bool) {
        let take = |count: &Count| count.swap(0, Ordering::Relaxed);
        let shared = &self.shared;
        let (unshared, joined) = (take(&shared.pages_unshared), take(&shared.joined));
        let counts = MergeStatistics {
            pages_shared: take(&shared.pages_shared),
            pages_sharing: take(&shared.pages_sharing),
            // Guests may have parted some since they were counted.
            pages_unshared: unshared.saturating_sub(joined),
            pages_volatile: take(&shared.pages_volatile),
            zero_pages: take(&shared.zero_pages),
            ..MergeStatistics::default()
        };
        if is_complete {
            let mut last = self.last.lock();
            *last = MergeStatistics {
                full_scans: last.full_scans + 1,
                ..counts
            };
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::thread;
    use std::vec::Vec;

    /// Takes pages as a scanner does, until none are left.
    fn take_all(progress: &Progress, scanner: usize, scan: u32, count: u32) -> Vec<u32> {
        let mut taken = Vec::new();
        while let Some(rest) = progress.rest(scanner, scan) {
            taken.extend(progress.take(&rest, count).into_iter().flatten());
        }
        taken
    }

    #[test]
    fn a_scanner_begins_with_its_own_part_and_goes_on_with_the_others() {
        let progress = Progress::new(3);
        progress.extend(100);
        assert_eq!(progress.rest(1, 0).unwrap().pages, 48..96);
        assert_eq!(progress.rest(4, 0).unwrap().pages, 48..96);
        assert_eq!(progress.rest(1, 1), None, "another scan");
        let all: Vec<_> = (48..100).chain(0..48).collect();
        assert_eq!(take_all(&progress, 1, 0, 10), all);
        assert!(!progress.finish(&(0..99), 100));
        assert!(progress.finish(&(99..100), 100));
        progress.begin(100);
        assert_eq!((progress.scan(), progress.rest(2, 0)), (1, None));
        assert_eq!(progress.rest(2, 1).unwrap().pages, 96..100);
    }

    #[test]
    fn pages_that_are_added_during_a_scan_belong_to_it() {
        for scanners in [1, 2, 16, 17] {
            let progress = Progress::new(scanners);
            progress.extend(10);
            progress.extend(40);
            let first = progress.rest(0, 0).unwrap();
            let mut taken: Vec<_> = progress.take(&first, 3).unwrap().collect();
            progress.extend(1000);
            taken.extend(take_all(&progress, 0, 0, 7));
            taken.sort_unstable();
            assert_eq!(taken, (0..1000).collect::<Vec<_>>(), "{scanners} scanners");
        }
    }

    #[test]
    fn what_another_scanner_has_taken_is_not_taken() {
        let progress = Progress::new(1);
        progress.extend(20);
        let rest = progress.rest(0, 0).unwrap();
        assert_eq!(progress.take(&rest, 4), Some(0..4));
        assert_eq!(progress.take(&rest, 4), None);
        assert_eq!(progress.rest(0, 0).unwrap().pages, 4..20);
    }

    #[test]
    fn every_page_is_taken_once_by_many_scanners() {
        const SCANNERS: usize = 4;
        const PAGES: u32 = if cfg!(miri) { 100 } else { 10_000 };
        let progress = Progress::new(SCANNERS - 1);
        progress.extend(PAGES);
        for scan in 0..3 {
            let mut taken: Vec<u32> = thread::scope(|scope| {
                let take = |scanner| {
                    let progress = &progress;
                    scope.spawn(move || take_all(progress, scanner, scan, 3))
                };
                let scanners: Vec<_> = (0..SCANNERS).map(take).collect();
                let taken = scanners.into_iter();
                taken.flat_map(|scanner| scanner.join().unwrap()).collect()
            });
            taken.sort_unstable();
            assert_eq!(taken, (0..PAGES).collect::<Vec<_>>());
            progress.begin(PAGES);
        }
    }
}
