//! A tracker's bucket: the invalidations of some regions of a VM's address space. It counts active and past ones, and records
//! the range of each.
//!
//! A fault reads the head, twice. Only if the head counts an active range does it read the others: the word of records in use,
//! and those records. Every word is read and changed at any time by any CPU. Orderings:
//!
//! - begin: write the record, mark it used, count it in the head (release). Whoever reads the head (acquire) finds the record.
//! - end: count it as retired, empty it, mark it free (release). Whoever doesn't find the record any more (acquire) finds one
//!   more event on reading the head again.
//! - reuse: whoever marks a record used again acquires it from whoever freed it.
//!
//! Active ranges are counted in two halves, so that a wait for them ends whatever begins meanwhile. New ranges are counted in
//! the half of the current *turn*; the other half only falls, and when it is empty a wait may change the turn. After two
//! changes every range has ended that was active before the first.

use super::wide::{WIDE_RECORDS, Wide};
use super::{Pages, Place, ones};
use stage2::sync::{AtomicU64, Ordering};

/// Buckets of a VM that tells ranges apart: a power of two, at most 128.
pub(super) const BUCKETS: usize = if cfg!(loom) { 2 } else { 128 };
/// Ranges within a region that a bucket can record, besides the wide ones.
pub(super) const RECORDS: usize = if cfg!(loom) { 2 } else { 24 };

const _: () = assert!(BUCKETS.is_power_of_two() && BUCKETS <= 128);

/// The layout of the head. Below this bit: the active ranges of the two halves, 16 bits each. From it on: the turn, whose last
/// bit is the half in which new ranges are counted. Above: events. A stale ticket is mistaken for a current one only if exactly
/// as many events come between it and its check as there are numbers for them: 2 to the power of 28.
const TURN_SHIFT: u32 = 32;
const TURN: u64 = 1 << TURN_SHIFT;
const TURNS: u64 = 16;
const EVENT: u64 = TURN * TURNS;
const ACTIVE_BITS: u64 = 16;
/// Changes of turn after which all ranges have ended that were active before the first.
const TURNS_TO_END: u64 = 2;

/// What is in use: a bit for each record, a bit for each wide record that touches this bucket, and the number of ranges with
/// neither.
const RECORD_BITS: u64 = (1 << RECORDS) - 1;
const WIDE_SHIFT: usize = RECORDS;
const WIDE_BITS: u64 = ((1 << WIDE_RECORDS) - 1) << WIDE_SHIFT;
const COARSE: u64 = 1 << (RECORDS + WIDE_RECORDS);

/// A record: the first page from this bit on, and the number of pages below. Zero when it is empty.
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

/// The head, which every fault reads and an invalidation writes twice. Separate from words that only invalidations use, and
/// write four times.
#[derive(Debug, Default)]
#[repr(align(128))]
struct HeadLine(AtomicU64);

/// How many ranges have been published and retired in a bucket, and how many are active, by half.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Head(u64);

impl Head {
    /// Whether nothing is being invalidated.
    #[inline]
    pub(super) fn is_quiet(self) -> bool {
        self.0 & (TURN - 1) == 0
    }

    fn turn(self) -> u64 {
        self.0 >> TURN_SHIFT & (TURNS - 1)
    }

    fn half(self) -> Half {
        Half(self.turn() & 1 == 1)
    }

    fn active(self, half: Half) -> u64 {
        (self.0 / half.one()) & ((1 << ACTIVE_BITS) - 1)
    }

    /// The head after a change of turn.
    fn turned(self) -> Self {
        let turn = (self.turn() + 1) % TURNS;
        Self(self.0 & !(EVENT - TURN) | turn << TURN_SHIFT)
    }
}

/// The half of the active counts in which a range is counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Half(pub(super) bool);

impl Half {
    /// One range more.
    fn one(self) -> u64 {
        1 << (ACTIVE_BITS * u64::from(self.0))
    }

    fn other(self) -> Self {
        Self(!self.0)
    }
}

impl Bucket {
    /// The current head. Acquire: pairs with the releases of [`Self::publish`] and [`Self::retire`].
    #[inline]
    pub(super) fn look(&self) -> Head {
        Head(self.head.0.load(Ordering::Acquire))
    }

    /// Records a range that lies in one region, to be published next.
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

    /// Records a range that touches other buckets too, to be published next.
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

    /// Counts a recorded range as active, in the returned half. Release: its record is written before.
    pub(super) fn publish(&self) -> Half {
        let mut head = Head(self.head.0.load(Ordering::Relaxed));
        loop {
            let counted = head.0.wrapping_add(EVENT + head.half().one());
            match self.exchange(head, Head(counted)) {
                Ok(_) => return head.half(),
                Err(now) => head = Head(now),
            }
        }
    }

    /// Counts a range as retired. Release: its new backing is stored before.
    pub(super) fn retire(&self, half: Half) {
        self.head.0.fetch_add(EVENT - half.one(), Ordering::AcqRel);
    }

    /// Whether all ranges have ended that were active when the head was `began`, judged by the turns; changes the turn if
    /// possible. Called repeatedly, this becomes true within twice the duration of the longest of them, whatever begins
    /// meanwhile.
    pub(super) fn has_outlived(&self, began: Head) -> bool {
        let mut head = self.look();
        if head.active(head.half().other()) == 0 && self.exchange(head, head.turned()).is_ok() {
            head = head.turned();
        }
        head.turn().wrapping_sub(began.turn()) % TURNS >= TURNS_TO_END
    }

    fn exchange(&self, head: Head, next: Head) -> Result<u64, u64> {
        self.head
            .0
            .compare_exchange(head.0, next.0, Ordering::AcqRel, Ordering::Relaxed)
    }

    /// Frees a record whose range was counted as retired.
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

    /// Whether an active range covers any of these pages. A range that is retired meanwhile may be missed: the head counts it
    /// then.
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
