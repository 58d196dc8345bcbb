//! The invalidations of some regions of a VM's address space: how many there are, how many there have been, and what each
//! covers.
//!
//! A fault reads the head, twice. Only while that counts an active range are the others read: the word of what is held, and
//! the records that it names. Every word is read and changed at any time by any CPU; the orderings are
//!
//! - a record is written, then held, then counted in the head (release): who reads the head (acquire) finds it;
//! - it is counted as retired, then emptied, then let go (release): who doesn't find it any more (acquire) finds an event
//!   more in the head when it looks there again;
//! - whoever holds a record anew acquires it from whoever let it go.

use super::wide::{WIDE_RECORDS, Wide};
use super::{Pages, ones};
use stage2::sync::{AtomicU64, Ordering};

/// Buckets of a VM whose ranges are told apart: a power of two, at most 128.
pub(super) const BUCKETS: usize = if cfg!(loom) { 2 } else { 128 };
/// Ranges within a region that a bucket tells apart, beside the wide ones.
pub(super) const RECORDS: usize = if cfg!(loom) { 2 } else { 24 };

const _: () = assert!(BUCKETS.is_power_of_two() && BUCKETS <= 128);

/// The head counts events from this bit on, and what is active below.
const EVENT: u64 = 1 << 16;

/// What is held: a bit for each record, a bit for each wide one that touches this bucket, and how many ranges had neither.
const RECORD_BITS: u64 = (1 << RECORDS) - 1;
const WIDE_SHIFT: usize = RECORDS;
const WIDE_BITS: u64 = ((1 << WIDE_RECORDS) - 1) << WIDE_SHIFT;
const COARSE: u64 = 1 << (RECORDS + WIDE_RECORDS);

/// A record: the first page from this bit on, and how many pages below. Zero when it is empty.
const FIRST_SHIFT: u32 = 10;
const COUNT_BITS: u64 = (1 << FIRST_SHIFT) - 1;

/// On lines of its own.
#[derive(Debug, Default)]
#[repr(C, align(128))]
pub(super) struct Bucket {
    head: HeadLine,
    held: AtomicU64,
    records: [AtomicU64; RECORDS],
}

/// What every fault reads and an invalidation writes twice, apart from what only that one writes, four times.
#[derive(Debug, Default)]
#[repr(align(128))]
struct HeadLine(AtomicU64);

/// How many ranges have been published and retired in a bucket, and how many are active.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Head(u64);

impl Head {
    /// Whether nothing is being invalidated.
    #[inline]
    pub(super) fn is_quiet(self) -> bool {
        self.0 & (EVENT - 1) == 0
    }
}

/// Where a range stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// In this record of its bucket.
    Own(usize),
    /// In this one of the wide records.
    Wide(usize),
    /// In none: it covers all of its buckets.
    Coarse,
}

impl Bucket {
    /// What has happened. Acquire: pairs with the releases of [`Self::publish`] and [`Self::retire`].
    #[inline]
    pub(super) fn look(&self) -> Head {
        Head(self.head.0.load(Ordering::Acquire))
    }

    /// Notes a range that lies in one region, to be published next.
    pub(super) fn record(&self, pages: Pages) -> Place {
        let mut held = self.held.load(Ordering::Relaxed);
        loop {
            let record = (!held & RECORD_BITS).trailing_zeros() as usize;
            let (next, place) = if record < RECORDS {
                (held | 1 << record, Place::Own(record))
            } else {
                (held + COARSE, Place::Coarse)
            };
            // Acquire: pairs with the release of the record's last holder, who emptied it.
            match self
                .held
                .compare_exchange_weak(held, next, Ordering::Acquire, Ordering::Relaxed)
            {
                Ok(_) => {
                    if let Place::Own(record) = place {
                        self.records[record].store(pack(pages), Ordering::Release);
                    }
                    return place;
                }
                Err(now) => held = now,
            }
        }
    }

    /// Notes a range that touches other buckets too, to be published next.
    pub(super) fn refer_to(&self, place: Place) {
        // Release: the wide record is written.
        match place {
            Place::Wide(record) => {
                self.held
                    .fetch_or(1 << (WIDE_SHIFT + record), Ordering::Release);
            }
            Place::Own(_) | Place::Coarse => {
                self.held.fetch_add(COARSE, Ordering::Release);
            }
        }
    }

    /// Counts a range that was noted. Release: the record comes before it.
    pub(super) fn publish(&self) {
        self.head.0.fetch_add(EVENT + 1, Ordering::AcqRel);
    }

    /// Counts a range as retired. Release: what backs it now comes before it.
    pub(super) fn retire(&self) {
        self.head.0.fetch_add(EVENT - 1, Ordering::AcqRel);
    }

    /// Lets go of a record that was counted as retired.
    pub(super) fn release(&self, place: Place) {
        match place {
            Place::Own(record) => {
                self.records[record].store(0, Ordering::Release);
                self.held.fetch_and(!(1 << record), Ordering::Release);
            }
            Place::Wide(record) => {
                let bit = 1 << (WIDE_SHIFT + record);
                self.held.fetch_and(!bit, Ordering::Release);
            }
            Place::Coarse => {
                self.held.fetch_sub(COARSE, Ordering::Release);
            }
        }
    }

    /// Whether a range that is active covers any of these pages. One that is retired meanwhile may not be found: the head
    /// counts it then.
    pub(super) fn is_invalidating(&self, pages: Pages, wide: &Wide) -> bool {
        if self.look().is_quiet() {
            return false;
        }
        let held = self.held.load(Ordering::Acquire);
        held >= COARSE
            || ones((held & RECORD_BITS).into()).any(|record| {
                unpack(self.records[record].load(Ordering::Acquire))
                    .is_some_and(|range| range.overlap(pages))
            })
            || ones(((held & WIDE_BITS) >> WIDE_SHIFT).into())
                .any(|record| wide.get(record).is_some_and(|range| range.overlap(pages)))
    }
}

/// Pages of one region as a word.
fn pack(pages: Pages) -> u64 {
    pages.first << FIRST_SHIFT | (pages.last - pages.first + 1)
}

fn unpack(word: u64) -> Option<Pages> {
    let (first, count) = (word >> FIRST_SHIFT, word & COUNT_BITS);
    (count != 0).then(|| Pages {
        first,
        last: first + count - 1,
    })
}
