//! A frame's record: a few words about each frame that may back guest memory, saying which pages it backs.
//!
//! The records of a range of frames lie together, and are found by the frame's number without a lock and without a division. At
//! EL2 they take up the beginning or the end of their range, one frame in 257; on a host they lie in the heap, so that all of
//! an arena's frames can be allocated. They are never freed.
//!
//! A record belongs to whoever uses its frame. It is zero while the frame backs no page.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::mem::ManuallyDrop;
use core::ops::Range;
use core::ptr::{self, NonNull, with_exposed_provenance_mut};
use core::sync::atomic::AtomicPtr;
#[cfg(loom)]
use stage2::sync::is_first;
use stage2::sync::{AtomicU64, Ordering};
use stage2::{PAGE_SHIFT, PAGE_SIZE, Pa};

/// The record of one frame. Any CPU may read and change it at any time.
#[derive(Debug)]
#[repr(C)]
pub struct FrameRecord {
    /// The number of pages that refer to the frame, 0 if there are none, and a lock for changes of their list.
    pub(crate) state: AtomicU64,
    /// The first of the pages that refer to the frame; 0 where there are none.
    pub(crate) first: AtomicU64,
}

/// A record's size in memory as the hardware sees it.
const BYTES: usize = 16;
#[cfg(not(loom))]
const _: () = assert!(size_of::<FrameRecord>() == BYTES);

impl FrameRecord {
    fn empty() -> Self {
        Self {
            state: AtomicU64::new(0),
            first: AtomicU64::new(0),
        }
    }

    fn is_empty(&self) -> bool {
        self.state.load(Ordering::Relaxed) == 0 && self.first.load(Ordering::Relaxed) == 0
    }
}

/// The records of all ranges, the newest first.
pub(super) struct Records {
    newest: AtomicPtr<Described>,
}

/// A range of frames and its records. Never changed, never freed.
struct Described {
    first: usize,
    frames: usize,
    records: NonNull<FrameRecord>,
    older: *const Described,
}

impl Records {
    pub(super) const fn new() -> Self {
        Self {
            newest: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// Makes the records of a range of frames, and returns the rest of the range. Calls exclude each other.
    ///
    /// # Safety
    /// The memory is mapped at its own address for ever, and nobody's. At EL2 it is RAM.
    pub(super) unsafe fn describe(&self, frames: Range<usize>) -> Range<usize> {
        let (records, rest) = if cfg!(target_os = "none") {
            // SAFETY: as the caller promised.
            unsafe { carve(frames) }
        } else {
            (in_heap(frames.len()), frames)
        };
        let described = Box::into_raw(Box::new(Described {
            first: rest.start,
            frames: rest.len(),
            records,
            older: self.newest.load(Ordering::Relaxed),
        }));
        // Release: pairs with the acquire in `of`. What is published is complete.
        self.newest.store(described, Ordering::Release);
        rest
    }

    /// The record of the frame at `pa`; `None` if it belongs to no range.
    #[inline]
    pub(super) fn of(&self, pa: Pa) -> Option<&'static FrameRecord> {
        // SAFETY: what was published lives for ever, and `address` lies within its records.
        self.address(pa).map(|address| unsafe { address.as_ref() })
    }

    #[inline]
    fn address(&self, pa: Pa) -> Option<NonNull<FrameRecord>> {
        let number = (pa.get() >> PAGE_SHIFT) as usize;
        // Acquire: pairs with the release in `describe`.
        let mut next = self.newest.load(Ordering::Acquire).cast_const();
        // SAFETY: what was published is complete, and lives for ever.
        while let Some(described) = unsafe { next.as_ref() } {
            let index = number.wrapping_sub(described.first);
            if index < described.frames {
                // SAFETY: there are `frames` records.
                return Some(unsafe { described.records.add(index) });
            }
            next = described.older;
        }
        None
    }

    /// The first run of `frames` frames, a power of two, that lies in one of the ranges and begins at a multiple of its length
    /// at or after the frame `from`.
    pub(super) fn next_run(&self, from: usize, frames: usize) -> Option<usize> {
        let mut first = None;
        // Acquire: as in `address`.
        let mut next = self.newest.load(Ordering::Acquire).cast_const();
        // SAFETY: what was published is complete, and lives for ever.
        while let Some(described) = unsafe { next.as_ref() } {
            let run = from.max(described.first).next_multiple_of(frames);
            if run + frames <= described.first + described.frames {
                first = Some(first.map_or(run, |other: usize| other.min(run)));
            }
            next = described.older;
        }
        first
    }

    /// Prepares a run of frames that is about to back guest memory.
    #[cfg(not(loom))]
    #[inline]
    pub(super) fn prepare(&self, pa: Pa, frames: usize) {
        self.expect_empty(pa, frames);
    }

    /// The model checker's atomics have to be made one by one, in the execution that uses them.
    #[cfg(loom)]
    pub(super) fn prepare(&self, pa: Pa, frames: usize) {
        for frame in 0..frames as u64 {
            let pa = pa.offset(frame * PAGE_SIZE);
            if let Some(address) = self.address(pa).filter(|_| is_first(pa.get())) {
                // SAFETY: the frame is handed out for the first time, so nobody knows of its record yet.
                unsafe { address.write(FrameRecord::empty()) };
            }
        }
    }

    /// Checks that a frame which is given back backs no page.
    pub(super) fn expect_empty(&self, pa: Pa, frames: usize) {
        if cfg!(debug_assertions) {
            for frame in 0..frames as u64 {
                let pa = pa.offset(frame * PAGE_SIZE);
                assert!(
                    self.of(pa).is_none_or(FrameRecord::is_empty),
                    "the frame at {pa} is given back while pages refer to it"
                );
            }
        }
    }
}

// SAFETY: what the pointer leads to is never changed but through atomics.
unsafe impl Send for Records {}
// SAFETY: as above.
unsafe impl Sync for Records {}

impl fmt::Debug for Records {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Records").finish_non_exhaustive()
    }
}

/// Allocates records in the heap. The model checker's are created when their frames are handed out.
fn in_heap(count: usize) -> NonNull<FrameRecord> {
    let mut records = ManuallyDrop::new(Vec::with_capacity(count));
    if cfg!(not(loom)) {
        records.resize_with(count, FrameRecord::empty);
    }
    // SAFETY: a vector's buffer is never null.
    unsafe { NonNull::new_unchecked(records.as_mut_ptr()) }
}

/// Takes the records of a range from the range itself: from the end at which this breaks the smaller blocks.
///
/// # Safety
/// The memory is RAM, mapped at its own address for ever, and nobody's.
unsafe fn carve(frames: Range<usize>) -> (NonNull<FrameRecord>, Range<usize>) {
    const PER_FRAME: usize = PAGE_SIZE as usize / BYTES;
    let taken = frames.len().div_ceil(PER_FRAME + 1);
    let (at, rest) = if frames.start.trailing_zeros() <= frames.end.trailing_zeros() {
        (frames.start, frames.start + taken..frames.end)
    } else {
        (frames.end - taken, frames.start..frames.end - taken)
    };
    let records = with_exposed_provenance_mut::<FrameRecord>(at << PAGE_SHIFT);
    for index in 0..rest.len() {
        // SAFETY: the taken frames are the records' from now on, and hold as many as there are frames left.
        unsafe { records.add(index).write(FrameRecord::empty()) };
    }
    // SAFETY: frame 0 is in no range.
    (unsafe { NonNull::new_unchecked(records) }, rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::arena;

    fn numbers(range: &Range<Pa>) -> Range<usize> {
        let number = |pa: Pa| (pa.get() >> PAGE_SHIFT) as usize;
        number(range.start)..number(range.end)
    }

    #[test]
    fn every_frame_of_every_range_has_a_record_of_its_own_and_no_other_has_one() {
        const FRAMES: usize = 5;
        let all = numbers(&arena::leak(8));
        let records = Records::new();
        let (low, high) = (all.start..all.start + 2, all.start + 3..all.end);
        // SAFETY: the arena is this test's; its records lie in the heap.
        unsafe {
            assert_eq!(records.describe(high.clone()), high);
            assert_eq!(records.describe(low.clone()), low);
        }
        assert_eq!(high.len(), FRAMES);
        let at = |number: usize| records.of(Pa::new((number << PAGE_SHIFT) as u64 + 8));
        for number in low.clone().chain(high.clone()) {
            let record = at(number).unwrap();
            assert!(record.is_empty());
            record.first.store(number as u64, Ordering::Relaxed);
        }
        for number in low.clone().chain(high) {
            assert_eq!(
                at(number).unwrap().first.load(Ordering::Relaxed),
                number as u64
            );
        }
        for number in [all.start - 1, low.end, all.end, 0, usize::MAX >> PAGE_SHIFT] {
            assert!(at(number).is_none(), "{number:#x}");
        }
    }

    #[test]
    fn records_are_carved_where_they_break_the_smaller_blocks_and_fit() {
        const PER_FRAME: usize = 257;
        for count in [1, 2, PER_FRAME, PER_FRAME + 1, 2 * PER_FRAME + 3] {
            let arena = numbers(&arena::leak(1024));
            for frames in [
                arena.start + 1..arena.start + 1 + count,
                arena.end - count - 1..arena.end - 1,
            ] {
                // SAFETY: the arena is this test's.
                let (records, rest) = unsafe { carve(frames.clone()) };
                assert_eq!(rest.len(), frames.len() - count.div_ceil(PER_FRAME));
                let start = records.as_ptr().expose_provenance();
                let taken =
                    start >> PAGE_SHIFT..(start + rest.len() * BYTES).div_ceil(PAGE_SIZE as usize);
                assert!(taken.start >= frames.start && taken.end <= frames.end);
                assert!(taken.end <= rest.start || rest.end <= taken.start);
                for index in 0..rest.len() {
                    // SAFETY: `carve` has made as many records.
                    assert!(unsafe { records.add(index).as_ref() }.is_empty());
                }
            }
        }
        let block = numbers(&arena::leak(1024));
        // SAFETY: the arena is this test's.
        let (_, rest) = unsafe { carve(block.start..block.start + 700) };
        assert_eq!(rest.start, block.start, "the aligned end is spared");
        // SAFETY: as above.
        let (_, rest) = unsafe { carve(block.start + 100..block.end) };
        assert_eq!(rest.end, block.end, "the aligned end is spared");
    }

    #[test]
    #[should_panic(expected = "while pages refer to it")]
    fn a_frame_that_still_backs_a_page_is_not_given_back() {
        let arena = arena::leak(1);
        let records = Records::new();
        // SAFETY: the arena is this test's.
        unsafe { records.describe(numbers(&arena)) };
        let record = records.of(arena.start).unwrap();
        record.state.store(1, Ordering::Relaxed);
        records.expect_empty(arena.start, 1);
    }
}
