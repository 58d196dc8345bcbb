//! Dirty rings: each vCPU reports the pages that it made writable in its own ring of fixed size.
//!
//! The vCPU produces, one harvester at a time consumes. They share only the two positions, each in a cache line with a single
//! writer. A vCPU whose ring is full waits and makes no further page writable, so no report is lost.

use crate::dirty::slot_id::SlotId;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use stage2::sync::{AtomicU64, Ordering};

/// Entries of the smallest ring, and of the largest. The model checker couldn't fill one.
pub const RING_ENTRIES: core::ops::RangeInclusive<usize> = if cfg!(loom) { 2 } else { 64 }..=65536;
/// A ring asks for a harvest once at most this fraction (one in so many) of its entries is free.
const SOFT_SHARE: u64 = 4;

const PAGE_BITS: u32 = 40;
const SLOT_BITS: u32 = 22;
/// A deleted entry, whose slot was removed: encodes no valid report.
const NOTHING: u64 = u64::MAX;

/// Pages of a slot that a vCPU has made writable: a single page, or a block.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct DirtyPages {
    /// Their slot.
    pub slot: SlotId,
    /// The first of them, by its number in the slot.
    pub first: u64,
    /// How many: 1, or those of a block of 2 MiB or 1 GiB.
    pub count: u64,
}

impl DirtyPages {
    /// Encodes the report in one word; `None` if it doesn't fit.
    fn pack(self) -> Option<u64> {
        let kind = match self.count {
            1 => 0,
            512 => 1,
            0x4_0000 => 2,
            _ => return None,
        };
        let slot = u64::from(self.slot.0);
        (slot >> SLOT_BITS == 0 && self.first >> PAGE_BITS == 0)
            .then_some(kind << (SLOT_BITS + PAGE_BITS) | slot << PAGE_BITS | self.first)
    }

    /// Decodes a word; `None` for [`NOTHING`].
    fn unpack(word: u64) -> Option<Self> {
        Some(Self {
            slot: SlotId((word >> PAGE_BITS) as u32 & ((1 << SLOT_BITS) - 1)),
            first: word & ((1 << PAGE_BITS) - 1),
            count: match word >> (SLOT_BITS + PAGE_BITS) {
                0 => 1,
                1 => 512,
                2 => 0x4_0000,
                _ => return None,
            },
        })
    }
}

/// A position in a ring, in a cache line of its own: the number of entries ever written or taken.
#[derive(Debug)]
#[repr(align(128))]
struct Position(AtomicU64);

/// One vCPU's ring.
#[derive(Debug)]
pub(crate) struct DirtyRing {
    /// Written by the vCPU. Release: the entries are written before it.
    produced: Position,
    /// Written by the harvester. Release: the entries were read before it.
    consumed: Position,
    entries: Box<[AtomicU64]>,
}

impl DirtyRing {
    fn new(entries: usize) -> Option<Self> {
        let mut ring = Vec::new();
        ring.try_reserve_exact(entries).ok()?;
        ring.resize_with(entries, || AtomicU64::new(0));
        Some(Self {
            produced: Position(AtomicU64::new(0)),
            consumed: Position(AtomicU64::new(0)),
            entries: ring.into_boxed_slice(),
        })
    }

    /// The entry of a position. The number of entries is a power of two.
    fn entry(&self, position: u64) -> &AtomicU64 {
        &self.entries[position as usize & (self.entries.len() - 1)]
    }

    /// Entries in the ring. For the vCPU.
    fn used(&self) -> u64 {
        self.produced.0.load(Ordering::Relaxed) - self.consumed.0.load(Ordering::Acquire)
    }

    /// Whether the ring is full. For the vCPU, which alone can make it full.
    pub(crate) fn is_full(&self) -> bool {
        self.used() >= self.entries.len() as u64
    }

    /// Reports pages, for the vCPU.
    pub(crate) fn push(&self, pages: DirtyPages) -> Pushed {
        let used = self.used();
        let (false, Some(word)) = (used >= self.entries.len() as u64, pages.pack()) else {
            return Pushed::NotFitting;
        };
        let at = self.produced.0.load(Ordering::Relaxed);
        self.entry(at).store(word, Ordering::Relaxed);
        self.produced.0.store(at + 1, Ordering::Release);
        let soft = self.entries.len() as u64 - self.entries.len() as u64 / SOFT_SHARE;
        if used + 1 == soft {
            Pushed::SoonFull
        } else {
            Pushed::Done
        }
    }

    /// Reads the oldest entries without taking them, as many as there are up to the slice's length. For the harvester.
    pub(crate) fn peek(&self, into: &mut [DirtyPages]) -> Peeked {
        let from = self.consumed.0.load(Ordering::Relaxed);
        let there = self.produced.0.load(Ordering::Acquire) - from;
        let entries = into.len().min(there as usize);
        let mut reports = 0;
        for at in from..from + entries as u64 {
            if let Some(pages) = DirtyPages::unpack(self.entry(at).load(Ordering::Relaxed)) {
                into[reports] = pages;
                reports += 1;
            }
        }
        Peeked { entries, reports }
    }

    /// Takes entries that were read. For the harvester.
    pub(crate) fn advance(&self, entries: usize) {
        let from = self.consumed.0.load(Ordering::Relaxed);
        self.consumed
            .0
            .store(from + entries as u64, Ordering::Release);
    }

    /// Deletes the reports about a slot that was removed: it gets no more reports, and another slot may take its identifier.
    /// For the harvester, who owns the unread entries; the vCPU may be writing others.
    fn forget(&self, slot: SlotId) {
        let from = self.consumed.0.load(Ordering::Relaxed);
        let to = self.produced.0.load(Ordering::Acquire);
        for entry in (from..to).map(|at| self.entry(at)) {
            let pages = DirtyPages::unpack(entry.load(Ordering::Relaxed));
            if pages.is_some_and(|pages| pages.slot == slot) {
                entry.store(NOTHING, Ordering::Relaxed);
            }
        }
    }
}

/// The result of reading a ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Peeked {
    /// Entries that were read, and are to be taken afterwards.
    pub(crate) entries: usize,
    /// Reports among them.
    pub(crate) reports: usize,
}

/// The result of reporting.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Pushed {
    /// The report is in the ring.
    Done,
    /// The report is in the ring, which has just become nearly full: time to harvest.
    SoonFull,
    /// The ring is full, or its entries can't encode the report.
    NotFitting,
}

/// The rings of a VM's vCPUs.
#[derive(Debug, Default)]
pub(crate) struct DirtyRings(Vec<DirtyRing>);

/// Rings can't be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RingError {
    /// The number of entries isn't a power of two within [`RING_ENTRIES`].
    Entries(usize),
    /// No heap for them.
    OutOfMemory,
}

impl fmt::Display for RingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Entries(entries) => write!(
                f,
                "a dirty ring of {entries} entries: must be a power of two from {} to {}",
                RING_ENTRIES.start(),
                RING_ENTRIES.end()
            ),
            Self::OutOfMemory => f.write_str("no memory for dirty rings"),
        }
    }
}

impl core::error::Error for RingError {}

impl DirtyRings {
    /// Rings for no vCPU.
    pub(crate) const fn none() -> Self {
        Self(Vec::new())
    }

    pub(crate) fn new(vcpus: usize, entries: usize) -> Result<Self, RingError> {
        if !entries.is_power_of_two() || !RING_ENTRIES.contains(&entries) {
            return Err(RingError::Entries(entries));
        }
        let mut rings = Vec::new();
        rings
            .try_reserve_exact(vcpus)
            .map_err(|_| RingError::OutOfMemory)?;
        for _ in 0..vcpus {
            rings.push(DirtyRing::new(entries).ok_or(RingError::OutOfMemory)?);
        }
        Ok(Self(rings))
    }

    pub(crate) fn of(&self, vcpu: usize) -> Option<&DirtyRing> {
        self.0.get(vcpu)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Deletes the reports about a slot that was removed. The caller holds the VM's `control`, as the harvester does, and has
    /// waited for an epoch in which no fault could find the slot any more, so no report follows.
    pub(crate) fn forget(&self, slot: SlotId) {
        self.0.iter().for_each(|ring| ring.forget(slot));
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::thread;

    fn page(first: u64) -> DirtyPages {
        DirtyPages {
            slot: SlotId(1),
            first,
            count: 1,
        }
    }

    #[test]
    fn what_a_word_holds_comes_back() {
        for count in [1, 512, 0x4_0000] {
            let pages = DirtyPages {
                slot: SlotId((1 << SLOT_BITS) - 1),
                first: (1 << PAGE_BITS) - 1,
                count,
            };
            assert_eq!(DirtyPages::unpack(pages.pack().unwrap()), Some(pages));
        }
        assert_eq!(
            DirtyPages {
                count: 2,
                ..page(0)
            }
            .pack(),
            None
        );
        assert_eq!(page(1 << PAGE_BITS).pack(), None);
        let beyond = DirtyPages {
            slot: SlotId(1 << SLOT_BITS),
            ..page(0)
        };
        assert_eq!(beyond.pack(), None);
    }

    #[test]
    fn a_ring_says_when_it_is_nearly_full_and_takes_no_more_than_it_holds() {
        let rings = DirtyRings::new(1, 64).unwrap();
        let ring = rings.of(0).unwrap();
        let push = |first| {
            assert!(!ring.is_full(), "{first}");
            ring.push(page(first))
        };
        let pushed: Vec<Pushed> = (0..64).map(push).collect();
        assert_eq!(
            pushed
                .iter()
                .filter(|pushed| **pushed == Pushed::SoonFull)
                .count(),
            1
        );
        assert_eq!(pushed[47], Pushed::SoonFull);
        assert!(ring.is_full());
        assert_eq!(ring.push(page(64)), Pushed::NotFitting);
        let mut taken = [page(0); 10];
        assert_eq!(ring.peek(&mut taken).reports, 10);
        assert_eq!(taken[9], page(9));
        assert!(ring.is_full(), "they aren't taken yet");
        ring.advance(10);
        assert_eq!(ring.push(page(64)), Pushed::Done);
        assert_eq!(ring.peek(&mut taken).reports, 10);
        assert_eq!(taken[0], page(10));
    }

    #[test]
    fn what_was_reported_of_a_slot_that_has_gone_is_passed_over_and_takes_room_until_then() {
        let rings = DirtyRings::new(1, 64).unwrap();
        let ring = rings.of(0).unwrap();
        let of_other = |first| DirtyPages {
            slot: SlotId(2),
            ..page(first)
        };
        for first in 0..32 {
            ring.push(page(first));
            ring.push(of_other(first));
        }
        ring.advance(2);
        rings.forget(SlotId(1));
        let mut taken = [page(0); 20];
        let peeked = ring.peek(&mut taken);
        assert_eq!((peeked.entries, peeked.reports), (20, 10));
        assert_eq!((taken[0], taken[9]), (of_other(1), of_other(10)));
        ring.advance(peeked.entries);
        assert_eq!(ring.push(page(5)), Pushed::Done, "the name is used again");
        assert_eq!(ring.used(), 64 - 2 - 20 + 1);
    }

    #[test]
    fn sizes_that_no_ring_has_are_refused() {
        for entries in [0, 32, 100, 1 << 17] {
            assert_eq!(
                DirtyRings::new(1, entries).unwrap_err(),
                RingError::Entries(entries)
            );
        }
    }

    #[test]
    fn everything_comes_through_in_order_beside_the_vcpu() {
        const COUNT: u64 = if cfg!(miri) { 500 } else { 100_000 };
        let rings = DirtyRings::new(1, 64).unwrap();
        let ring = rings.of(0).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                for first in 0..COUNT {
                    while ring.push(page(first)) == Pushed::NotFitting {
                        thread::yield_now();
                    }
                }
            });
            let mut next = 0;
            let mut taken = [page(0); 16];
            while next < COUNT {
                let peeked = ring.peek(&mut taken);
                for pages in &taken[..peeked.reports] {
                    assert_eq!(*pages, page(next));
                    next += 1;
                }
                ring.advance(peeked.entries);
                thread::yield_now();
            }
        });
    }
}
