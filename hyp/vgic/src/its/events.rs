//! The table of events: which LPI an event of a device is mapped to. A hash table of words, each of which is an event as a whole.
//!
//! One vCPU at a time changes it, any number look. An event stays in its place while it is mapped.

use super::{COLLECTION_BITS, DEVICE_BITS, EVENT_BITS, LPIS, words};
use crate::config::VgicError;
use crate::sync::{AtomicU64, Ordering};
use crate::word::FIRST_LPI;
use alloc::vec::Vec;

/// Twice as many places as there are LPIs.
const PLACE_BITS: u32 = if cfg!(loom) {
    2
} else {
    LPIS.trailing_zeros() + 1
};
/// How far an event is from the place that its hash names, at most.
const REACH: usize = if cfg!(loom) { 4 } else { 64 };

/// A mapped event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Event(u64);

impl Event {
    /// A place that nothing was ever in: whoever looks for an event looks no further.
    const NEVER: u64 = 0;
    /// A place whose event was discarded.
    const GONE: u64 = 1 << 62;
    const MAPPED: u64 = 1 << 63;

    const EVENT_SHIFT: u32 = EVENT_BITS;
    const DEVICE_SHIFT: u32 = Self::EVENT_SHIFT + EVENT_BITS;
    const COLLECTION_SHIFT: u32 = Self::DEVICE_SHIFT + DEVICE_BITS;
    const GENERATION_SHIFT: u32 = Self::COLLECTION_SHIFT + COLLECTION_BITS;

    /// All of these are in range.
    pub(crate) const fn new(device: u32, event: u32, lpi: u32, collection: u32) -> Self {
        Self(
            Self::MAPPED
                | (lpi - FIRST_LPI) as u64
                | (event as u64) << Self::EVENT_SHIFT
                | (device as u64) << Self::DEVICE_SHIFT
                | (collection as u64) << Self::COLLECTION_SHIFT,
        )
    }

    pub(crate) const fn with_generation(self, generation: u32) -> Self {
        Self(
            self.0 & !(0x3fff << Self::GENERATION_SHIFT)
                | (generation as u64) << Self::GENERATION_SHIFT,
        )
    }

    pub(crate) const fn with_collection(self, collection: u32) -> Self {
        let mask = ((1 << COLLECTION_BITS) - 1) << Self::COLLECTION_SHIFT;
        Self(self.0 & !mask | (collection as u64) << Self::COLLECTION_SHIFT)
    }

    const fn field(self, shift: u32, bits: u32) -> u32 {
        (self.0 >> shift) as u32 & ((1 << bits) - 1)
    }

    /// The INTID.
    pub(crate) const fn lpi(self) -> u32 {
        FIRST_LPI + self.field(0, EVENT_BITS)
    }

    pub(crate) const fn event(self) -> u32 {
        self.field(Self::EVENT_SHIFT, EVENT_BITS)
    }

    pub(crate) const fn device(self) -> u32 {
        self.field(Self::DEVICE_SHIFT, DEVICE_BITS)
    }

    pub(crate) const fn collection(self) -> u32 {
        self.field(Self::COLLECTION_SHIFT, COLLECTION_BITS)
    }

    /// That of the LPI's word when it was mapped.
    pub(crate) const fn generation(self) -> u32 {
        self.field(Self::GENERATION_SHIFT, 14)
    }

    /// Device and event.
    const fn key(self) -> u64 {
        self.0 >> Self::EVENT_SHIFT & ((1 << (EVENT_BITS + DEVICE_BITS)) - 1)
    }

    const fn is_mapped(self) -> bool {
        self.0 & Self::MAPPED != 0
    }
}

/// The table.
#[derive(Debug)]
pub(crate) struct Events {
    places: Vec<AtomicU64>,
    /// How many are mapped.
    count: AtomicU64,
}

impl Events {
    pub(crate) fn new() -> Result<Self, VgicError> {
        Ok(Self {
            places: words(1 << PLACE_BITS, Event::NEVER)?,
            count: AtomicU64::new(0),
        })
    }

    pub(crate) fn reset(&self) {
        self.count.store(0, Ordering::Relaxed);
        for place in &self.places {
            place.store(Event::NEVER, Ordering::Relaxed);
        }
    }

    pub(crate) fn copied(&self) -> Result<Self, VgicError> {
        Ok(Self {
            places: super::copied(&self.places)?,
            count: super::copy_of(&self.count),
        })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count.load(Ordering::Relaxed) == 0
    }

    /// How many places there are.
    pub(crate) fn places(&self) -> usize {
        self.places.len()
    }

    /// The places in which an event may be, the likeliest first.
    fn reach(&self, key: u64) -> impl Iterator<Item = usize> {
        let first = (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - PLACE_BITS)) as usize;
        let mask = self.places.len().wrapping_sub(1);
        (0..REACH).map(move |step| (first + step) & mask)
    }

    /// An event, and its place.
    pub(crate) fn find(&self, device: u32, event: u32) -> Option<(usize, Event)> {
        if device >> DEVICE_BITS != 0 || event >> EVENT_BITS != 0 {
            return None;
        }
        let key = u64::from(device) << EVENT_BITS | u64::from(event);
        for index in self.reach(key) {
            // Pairs with the store in `set`: the LPI's word is seen as it was mapped.
            let found = Event(self.places.get(index)?.load(Ordering::Acquire));
            if found.is_mapped() && found.key() == key {
                return Some((index, found));
            }
            if found.0 == Event::NEVER {
                return None;
            }
        }
        None
    }

    /// What is in a place. For whoever has BUSY.
    pub(crate) fn get(&self, place: usize) -> Option<Event> {
        let found = Event(self.places.get(place)?.load(Ordering::Relaxed));
        found.is_mapped().then_some(found)
    }

    /// The place for an event that there isn't. `None` where it would be too far away.
    pub(crate) fn free_place(&self, event: Event) -> Option<usize> {
        let mut reach = self.reach(event.key());
        reach.find(|index| self.get(*index).is_none())
    }

    /// Adds an event, whose LPI was mapped before.
    pub(crate) fn add(&self, place: usize, event: Event) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.set(place, event);
    }

    /// Changes what is kept of an event.
    pub(crate) fn set(&self, place: usize, event: Event) {
        if let Some(place) = self.places.get(place) {
            place.store(event.0, Ordering::Release);
        }
    }

    pub(crate) fn remove(&self, place: usize) {
        self.set(place, Event(Event::GONE));
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}
