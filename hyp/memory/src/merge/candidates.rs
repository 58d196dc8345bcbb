//! The candidates of a scan, by checksum, and the shared frames. Filled anew by each scan. All memory is allocated in advance,
//! so a scan neither allocates nor moves entries.

use hashbrown::HashTable;
use stage2::{PAGE_SHIFT, Pa};

/// Set in a candidate once another page was found for it.
const MET: u32 = 1 << 31;
/// Pages of all objects are numbered consecutively, below this.
pub(super) const MOST_PAGES: u64 = MET as u64;

#[derive(Clone, Copy, Debug)]
struct Candidate {
    checksum: u32,
    page: u32,
}

impl Candidate {
    fn is(&self, checksum: u32, page: u32) -> bool {
        self.checksum == checksum && self.page & !MET == page
    }
}

/// One page for each checksum.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    table: HashTable<Candidate>,
}

impl Candidates {
    /// Allocates memory for `pages` pages; `None` without heap.
    pub(super) fn reserve(&mut self, pages: usize) -> Option<()> {
        let more = pages.saturating_sub(self.table.len());
        self.table
            .try_reserve(more, |candidate| hash(candidate.checksum))
            .ok()
    }

    /// The earlier candidate with this checksum; if there is none, this page becomes one.
    pub(super) fn enter(&mut self, checksum: u32, page: u32) -> Option<u32> {
        let same = |candidate: &Candidate| candidate.checksum == checksum;
        if let Some(met) = self.table.find(hash(checksum), same) {
            return Some(met.page & !MET);
        }
        if self.table.len() < self.table.capacity() {
            let candidate = Candidate { checksum, page };
            self.table
                .insert_unique(hash(checksum), candidate, |candidate| {
                    hash(candidate.checksum)
                });
        }
        None
    }

    /// Notes that a candidate was paired. Returns whether for the first time.
    pub(super) fn pair(&mut self, checksum: u32, page: u32) -> bool {
        let candidate = self.get(checksum, page);
        candidate.is_some_and(|candidate| {
            let first = candidate.page & MET == 0;
            candidate.page |= MET;
            first
        })
    }

    /// Replaces a candidate without an equal by another page with the same checksum.
    pub(super) fn replace(&mut self, checksum: u32, page: u32, by: u32) {
        if let Some(candidate) = self.get(checksum, page) {
            candidate.page = by;
        }
    }

    /// Removes all candidates.
    pub(super) fn clear(&mut self) {
        self.table.clear();
    }

    fn get(&mut self, checksum: u32, page: u32) -> Option<&mut Candidate> {
        let is = |candidate: &Candidate| candidate.is(checksum, page);
        self.table.find_mut(hash(checksum), is)
    }
}

/// Frames that several pages share.
#[derive(Debug, Default)]
pub(super) struct MetFrames {
    /// Frame numbers, truncated: frames 16 TiB apart are confused.
    table: HashTable<u32>,
}

impl MetFrames {
    /// Allocates memory for the frames of `pages` pages; `None` without heap.
    pub(super) fn reserve(&mut self, pages: usize) -> Option<()> {
        let more = pages.saturating_sub(self.table.len());
        self.table.try_reserve(more, |number| hash(*number)).ok()
    }

    /// Notes a frame. Returns whether for the first time.
    pub(super) fn enter(&mut self, frame: Pa) -> bool {
        let number = (frame.get() >> PAGE_SHIFT) as u32;
        let is_new = self
            .table
            .find(hash(number), |met| *met == number)
            .is_none();
        if is_new && self.table.len() < self.table.capacity() {
            self.table
                .insert_unique(hash(number), number, |number| hash(*number));
        }
        is_new
    }

    /// Removes all frames.
    pub(super) fn clear(&mut self) {
        self.table.clear();
    }
}

/// Spreads a checksum, or a number, over all the bits that the table uses.
fn hash(checksum: u32) -> u64 {
    u64::from(checksum).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_first_page_of_a_checksum_is_met_by_the_others_until_it_is_replaced() {
        let mut candidates = Candidates::default();
        candidates.reserve(4).unwrap();
        assert_eq!(candidates.enter(7, 1), None);
        assert_eq!(candidates.enter(8, 2), None);
        assert_eq!(candidates.enter(7, 3), Some(1));
        assert!(candidates.pair(7, 1));
        assert!(!candidates.pair(7, 1), "it was met before");
        assert_eq!(candidates.enter(7, 3), Some(1));
        candidates.replace(7, 1, 3);
        assert_eq!(candidates.enter(7, 1), Some(3));
        candidates.clear();
        assert_eq!(candidates.enter(7, 1), None);
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
        let capacity = candidates.table.capacity();
        for page in 0..10_000 {
            assert_eq!(candidates.enter(page, page), None);
        }
        assert_eq!(candidates.table.capacity(), capacity);
        assert_eq!(candidates.enter(0, 5), Some(0));
    }
}
