//! The sources of a GICv2's SGIs: which vCPUs have sent each, to one target.
//!
//! An SGI of each source is an interrupt of its own, of which a list register holds one at a time. So the sources are what is
//! pending, and LATCH of the SGI's word says to look at them. Nobody but the target changes that word: its registers are banked.

use crate::sync::{AtomicU64, Ordering};
use core::array;

/// SGIs of a word, with eight sources each.
const SGIS_PER_WORD: u32 = 8;
/// Under the model checker there are no SGIs above 7.
const WORDS: usize = if cfg!(loom) { 1 } else { 2 };

/// The sources of all SGIs to a vCPU.
#[derive(Debug)]
pub(crate) struct Sources([AtomicU64; WORDS]);

impl Sources {
    pub(crate) fn new() -> Self {
        Self(array::from_fn(|_| AtomicU64::new(0)))
    }

    /// As they are, for a vCPU that isn't loaded.
    pub(crate) fn copied(&self) -> Self {
        Self(array::from_fn(|index| {
            AtomicU64::new(self.0[index].load(Ordering::Acquire))
        }))
    }

    /// Without any, for a vCPU that isn't loaded.
    pub(crate) fn reset(&self) {
        for word in &self.0 {
            word.store(0, Ordering::Relaxed);
        }
    }

    fn place(&self, sgi: u32) -> Option<(&AtomicU64, u32)> {
        let word = self.0.get((sgi / SGIS_PER_WORD) as usize)?;
        Some((word, sgi % SGIS_PER_WORD * 8))
    }

    /// Those of an SGI. Only its target, which asks, removes any.
    pub(crate) fn of(&self, sgi: u32) -> u8 {
        // One that isn't seen yet comes with a bit of the door, which is taken later.
        self.place(sgi).map_or(0, |(word, shift)| {
            (word.load(Ordering::Relaxed) >> shift) as u8
        })
    }

    /// Adds sources to an SGI. The door is rung afterwards (rule V8).
    pub(crate) fn add(&self, sgi: u32, sources: u8) {
        if let Some((word, shift)) = self.place(sgi) {
            // Pairs with `remove`: whoever takes a source sees what its sender wrote before.
            word.fetch_or(u64::from(sources) << shift, Ordering::Release);
        }
    }

    /// Removes sources of an SGI, by its target. Returns those that there were.
    pub(crate) fn remove(&self, sgi: u32, sources: u8) -> u8 {
        self.place(sgi).map_or(0, |(word, shift)| {
            // Pairs with `add`.
            (word.fetch_and(!(u64::from(sources) << shift), Ordering::AcqRel) >> shift) as u8
        })
    }
}
