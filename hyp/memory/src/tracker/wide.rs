//! Ranges that touch more than one region: each has a single record, to which all of its buckets refer.
//!
//! A record is two words, and a check may read them while one range replaces another. Both words carry a generation. If they
//! differ, the bucket's range was retired; the bucket's head shows it.

use super::{Pages, Place};
use stage2::sync::{AtomicU64, Ordering};

/// Wide ranges of a VM that are recorded one by one.
pub(super) const WIDE_RECORDS: usize = if cfg!(loom) { 2 } else { 24 };

/// The layout of a word: a page's number below this bit, the generation above.
const USE_SHIFT: u32 = 40;
const PAGE_BITS: u64 = (1 << USE_SHIFT) - 1;

/// The wide records, in cache lines that only faults near a wide range read.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Wide {
    held: AtomicU64,
    records: [Record; WIDE_RECORDS],
}

#[derive(Debug, Default)]
struct Record {
    first: AtomicU64,
    last: AtomicU64,
}

impl Wide {
    /// Records a range, if a record is free.
    pub(super) fn record(&self, pages: Pages) -> Place {
        let mut held = self.held.load(Ordering::Relaxed);
        loop {
            let record = (!held).trailing_zeros() as usize;
            if record >= WIDE_RECORDS {
                return Place::Coarse;
            }
            // Acquire: pairs with the release of the record's last holder.
            match self.held.compare_exchange_weak(
                held,
                held | 1 << record,
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => {
                    self.records[record].write(pages);
                    return Place::Wide(record);
                }
                Err(now) => held = now,
            }
        }
    }

    /// Frees a record to which no bucket refers any more.
    pub(super) fn release(&self, record: usize) {
        self.held.fetch_and(!(1 << record), Ordering::Release);
    }

    /// The range in a record to which the caller's bucket referred; `None` if another range has replaced it.
    pub(super) fn get(&self, record: usize) -> Option<Pages> {
        self.records[record].read()
    }
}

impl Record {
    /// For the record's owner alone. Release: a CPU that finds another range here sees the retirement of the previous one.
    fn write(&self, pages: Pages) {
        let uses = self.first.load(Ordering::Relaxed) >> USE_SHIFT;
        let next = uses.wrapping_add(1) << USE_SHIFT;
        self.first.store(next | pages.first, Ordering::Release);
        self.last.store(next | pages.last, Ordering::Release);
    }

    fn read(&self) -> Option<Pages> {
        let first = self.first.load(Ordering::Acquire);
        let last = self.last.load(Ordering::Acquire);
        (first >> USE_SHIFT == last >> USE_SHIFT).then_some(Pages {
            first: first & PAGE_BITS,
            last: last & PAGE_BITS,
        })
    }
}
