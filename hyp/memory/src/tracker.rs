//! Tracks which ranges of a VM's memory are being invalidated. A fault asks here before it maps the page that it has looked up
//! (rule 8).
//!
//! A CPU that changes the backing of a range publishes it first ([`Tracker::begin`]), then changes backing and entries, then
//! retires the range ([`Invalidation::end`]). A fault takes a [`Ticket`], looks up its backing, locks its entry, and asks
//! ([`Tracker::check`]) whether the page is being changed, or may have changed since the ticket.
//!
//! Faults and invalidations run on any number of CPUs at once. Nothing waits here, and only [`Tracker::new`] allocates. Why no
//! change is missed:
//!
//! - *begin* publishes, full barrier, and then its caller walks the entries; a fault locks its entry, full barrier, and then
//!   checks. Either the check sees the range, or the invalidation sees the locked entry.
//! - *end* is a release, and a ticket an acquire: a fault whose ticket sees a range retired sees the new backing.
//! - A retired range leaves nothing but a larger count of events. A check that finds a larger count reports it, and the fault
//!   looks its own page up again: that answer is exact, whichever other ranges were counted there.
//!
//! The address space is cut into regions of 256 KiB, which are hashed into [buckets](bucket). So a fault reads only cache lines
//! that are written by invalidations of its own bucket's regions.

mod bucket;
mod wide;

use self::bucket::{BUCKETS, Bucket, Half, Head};
use self::wide::Wide;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::mem;
use stage2::sync::{full_barrier, relax};
use stage2::{Ipa, IpaRange, PAGE_SHIFT};

/// Bytes of a region, as a power of two: 64 pages. Pages of one region share a cache line with their invalidations.
const REGION_SHIFT: u32 = 18;

/// How precisely faults are told apart from unrelated invalidations.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum TrackerMode {
    /// By their ranges.
    #[default]
    Ranges,
    /// Not at all: one count for the whole VM, as in KVM/arm64 (`mmu_invalidate_seq`). A fault beside any invalidation starts
    /// again. A baseline.
    Sequence,
}

/// The ranges of one VM that are being invalidated.
#[derive(Debug)]
pub struct Tracker {
    mode: TrackerMode,
    /// A power of two of them, at most [`BUCKETS`].
    buckets: Box<[Bucket]>,
    wide: Wide,
}

/// The state of a part of the address space when a fault began to look up its backing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ticket(Head);

/// Whether a fault's grounds still hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Nothing has been invalidated here since the ticket, and nothing is being.
    Unchanged,
    /// No active range covers the leaf, but one in this part of the address space has been active since the ticket, or the leaf
    /// is larger than such a part. The fault reads its grounds again (its page's backing, and the allowed block size), and
    /// starts again only if they have changed.
    LookAgain,
    /// The leaf is being invalidated: the fault starts again.
    Invalidated,
}

/// A range that is being invalidated.
#[must_use = "faults in the range fail until it is retired"]
#[derive(Debug)]
pub struct Invalidation<'t> {
    tracker: &'t Tracker,
    /// `None` for an empty range.
    published: Option<Published>,
}

/// Where a range is recorded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    /// In this record of its bucket.
    Own(usize),
    /// In this wide record.
    Wide(usize),
    /// Nowhere: it covers all of its buckets.
    Coarse,
}

/// The published form of a range.
#[derive(Clone, Copy, Debug)]
struct Published {
    pages: Pages,
    place: Place,
    /// The half of each bucket in which it is counted: a bit for each bucket, by its number, or the last bit if there is only
    /// one.
    halves: u128,
}

impl Tracker {
    /// For a VM in which nothing is being invalidated; `None` without heap.
    pub fn new(mode: TrackerMode) -> Option<Self> {
        let count = match mode {
            TrackerMode::Ranges => BUCKETS,
            TrackerMode::Sequence => 1,
        };
        let mut buckets = Vec::new();
        buckets.try_reserve_exact(count).ok()?;
        buckets.resize_with(count, Bucket::default);
        Some(Self {
            mode,
            buckets: buckets.into_boxed_slice(),
            wide: Wide::default(),
        })
    }

    /// For a fault at `ipa`, before it looks up its backing. Acquire: pairs with the release of [`Invalidation::end`].
    #[inline]
    pub fn ticket(&self, ipa: Ipa) -> Ticket {
        Ticket(self.bucket(region(ipa.get())).look())
    }

    /// For a fault that is about to make a leaf which spans `range`, where its ticket's address lies. It has locked the entry,
    /// and a full barrier has followed.
    #[inline]
    pub fn check(&self, ticket: Ticket, range: &IpaRange) -> Verdict {
        let first = region(range.start.get());
        let head = self.bucket(first).look();
        if head == ticket.0 && head.is_quiet() && first == region(range.end.get().wrapping_sub(1)) {
            return Verdict::Unchanged;
        }
        self.check_closely(ticket, range)
    }

    #[cold]
    fn check_closely(&self, ticket: Ticket, range: &IpaRange) -> Verdict {
        let Some(pages) = Pages::of(range) else {
            return Verdict::Unchanged;
        };
        if self.mode == TrackerMode::Sequence {
            let head = self.buckets[0].look();
            return if head == ticket.0 && head.is_quiet() {
                Verdict::Unchanged
            } else {
                Verdict::Invalidated
            };
        }
        if self
            .touched(pages)
            .any(|bucket| bucket.is_invalidating(pages, &self.wide))
        {
            return Verdict::Invalidated;
        }
        // A range that was retired while the records were read isn't among them any more. It counts as an event by now.
        if pages.are_in_one_region() && self.bucket(pages.first_region()).look() == ticket.0 {
            Verdict::Unchanged
        } else {
            Verdict::LookAgain
        }
    }

    /// Publishes that `range` is being invalidated, until [`Invalidation::end`]; a full barrier follows. If the caller then
    /// finds an entry vacant and unlocked, no fault will fill it from a lookup made before.
    ///
    /// Ranges may overlap, also those that several CPUs publish at once, up to 65535 at a time.
    pub fn begin(&self, range: IpaRange) -> Invalidation<'_> {
        let published = Pages::of(&range).map(|pages| self.publish(pages));
        full_barrier();
        Invalidation {
            tracker: self,
            published,
        }
    }

    /// Waits for all current changes in `range`: for each part of it, until no published range covers any of it, or all have
    /// ended that were active when this looked there first. A full barrier comes first. So a caller that has read the entries
    /// before has either seen an entry as it was before a change, or finds here that the change has ended and has reported all
    /// dirty state of the entry (rule 14).
    ///
    /// It ends, however many changes begin meanwhile: a guest can't prolong it by its faults and calls.
    ///
    /// The changing CPUs may wait for the epoch, or for the lock of their tables: the caller holds neither.
    pub fn wait(&self, range: &IpaRange) {
        full_barrier();
        let Some(pages) = Pages::of(range) else {
            return;
        };
        for bucket in self.touched(pages) {
            let began = bucket.look();
            while bucket.is_invalidating(pages, &self.wide) && !bucket.has_outlived(began) {
                relax();
            }
        }
    }

    fn publish(&self, pages: Pages) -> Published {
        // Most are a page or a block.
        if let Some(bucket) = self.only_bucket(pages) {
            let place = bucket.record(pages);
            let Half(half) = bucket.publish();
            return Published {
                pages,
                place,
                halves: half.into(),
            };
        }
        let place = if self.mode == TrackerMode::Sequence {
            Place::Coarse
        } else {
            self.wide.record(pages)
        };
        let mut halves = 0;
        for index in ones(self.indices(pages)) {
            let bucket = &self.buckets[index];
            bucket.refer_to(place);
            let Half(half) = bucket.publish();
            halves |= u128::from(half) << index;
        }
        Published {
            pages,
            place,
            halves,
        }
    }

    fn retire(&self, published: Published) {
        let Published {
            pages,
            place,
            halves,
        } = published;
        let let_go = |bucket: &Bucket, half| {
            // The event comes first: a check that misses the record counts it.
            bucket.retire(Half(half));
            bucket.release(place);
        };
        if let Some(bucket) = self.only_bucket(pages) {
            return let_go(bucket, halves != 0);
        }
        for index in ones(self.indices(pages)) {
            let_go(&self.buckets[index], halves >> index & 1 == 1);
        }
        if let Place::Wide(record) = place {
            self.wide.release(record);
        }
    }

    /// The bucket of pages that lie in one region, if ranges are told apart.
    #[inline]
    fn only_bucket(&self, pages: Pages) -> Option<&Bucket> {
        let is_alone = self.mode == TrackerMode::Ranges && pages.are_in_one_region();
        is_alone.then(|| self.bucket(pages.first_region()))
    }

    #[inline]
    fn bucket(&self, region: u64) -> &Bucket {
        &self.buckets[self.index(region)]
    }

    /// Neighbours have different buckets, and so have regions at the same place in areas whose size is a power of two.
    #[inline]
    fn index(&self, region: u64) -> usize {
        let bits = BUCKETS.trailing_zeros();
        let hash = region ^ (region >> bits) ^ (region >> (2 * bits));
        hash as usize & (self.buckets.len() - 1)
    }

    /// The buckets of pages, each once.
    fn touched(&self, pages: Pages) -> impl Iterator<Item = &Bucket> {
        ones(self.indices(pages)).map(|index| &self.buckets[index])
    }

    /// Their numbers, a bit for each.
    fn indices(&self, pages: Pages) -> u128 {
        let all = self.buckets.len();
        if pages.last_region() - pages.first_region() >= all as u64 - 1 {
            u128::MAX >> (u128::BITS - all as u32)
        } else {
            (pages.first_region()..=pages.last_region())
                .fold(0, |wanted, region| wanted | 1 << self.index(region))
        }
    }
}

impl Invalidation<'_> {
    /// Retires the range: its backing is final, and the caller changes no entry any more. Release: a fault with a later ticket
    /// sees the new backing.
    pub fn end(self) {
        self.retire();
        mem::forget(self);
    }

    fn retire(&self) {
        if let Some(published) = self.published {
            self.tracker.retire(published);
        }
    }
}

impl Drop for Invalidation<'_> {
    fn drop(&mut self) {
        self.retire();
        debug_assert!(false, "an invalidation was forgotten: {:?}", self.published);
    }
}

/// Pages of a VM: the first and the last number, as the number behind the end of the address space needs a bit too many.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Pages {
    first: u64,
    last: u64,
}

impl Pages {
    /// The pages that a range touches; `None` for an empty one.
    fn of(range: &IpaRange) -> Option<Self> {
        (range.start < range.end).then(|| Self {
            first: range.start.get() >> PAGE_SHIFT,
            last: (range.end.get() - 1) >> PAGE_SHIFT,
        })
    }

    fn overlap(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    fn first_region(self) -> u64 {
        self.first >> (REGION_SHIFT - PAGE_SHIFT)
    }

    fn last_region(self) -> u64 {
        self.last >> (REGION_SHIFT - PAGE_SHIFT)
    }

    fn are_in_one_region(self) -> bool {
        self.first_region() == self.last_region()
    }
}

/// The number of the region of an address.
#[inline]
const fn region(address: u64) -> u64 {
    address >> REGION_SHIFT
}

/// The numbers of the bits that are set, in ascending order.
fn ones(mut bits: u128) -> impl Iterator<Item = usize> {
    core::iter::from_fn(move || {
        let next = bits.trailing_zeros();
        bits &= bits.wrapping_sub(1);
        (next < u128::BITS).then_some(next as usize)
    })
}

#[cfg(all(test, not(loom)))]
mod tests;
