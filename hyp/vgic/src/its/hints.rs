//! A vCPU's hints about LPIs: a bit for each, and a bit for each 64, of which the door tells.

use crate::door::{Door, LPIS as DOOR_LPIS};
use crate::sync::{AtomicU64, Ordering};
use crate::word::FIRST_LPI;
use core::array;

const WORDS: usize = if cfg!(loom) {
    1
} else {
    super::LPIS as usize / 64
};
const SUMMARY: usize = WORDS.div_ceil(64);

/// The hints.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct LpiHints {
    summary: [AtomicU64; SUMMARY],
    words: [AtomicU64; WORDS],
}

impl LpiHints {
    pub(crate) fn new() -> Self {
        Self {
            summary: array::from_fn(|_| AtomicU64::new(0)),
            words: array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    pub(crate) fn reset(&self) {
        for word in self.summary.iter().chain(&self.words) {
            word.store(0, Ordering::Relaxed);
        }
    }

    /// Notes an LPI, and rings unless another is about to (rule V1). Its word was changed before.
    #[inline]
    pub(crate) fn ring(&self, intid: u32, door: &Door, kick: &mut impl FnMut(usize)) {
        let lpi = intid.wrapping_sub(FIRST_LPI) as usize;
        let (index, bit) = (lpi / 64, lpi % 64);
        let (Some(word), Some(summary)) = (self.words.get(index), self.summary.get(index / 64))
        else {
            return;
        };
        // Each pairs with the swap of the same word in `take`.
        if word.fetch_or(1 << bit, Ordering::Release) == 0
            && summary.fetch_or(1 << (index % 64), Ordering::Release) == 0
        {
            door.ring(DOOR_LPIS, kick);
        }
    }

    /// Takes all: the number of the first LPI of each word, and its hints. The door's bit was taken before.
    pub(crate) fn take(&self, mut each: impl FnMut(u32, u64)) {
        for (number, summary) in self.summary.iter().enumerate() {
            // Whoever set a bit before it rang the door, whose bit was taken, is seen; whoever sets one later rings anew.
            if summary.load(Ordering::Relaxed) == 0 {
                continue;
            }
            // From here on whoever sets a bit rings anew.
            let mut taken = summary.swap(0, Ordering::Acquire);
            while taken != 0 {
                let index = number * 64 + taken.trailing_zeros() as usize;
                taken &= taken - 1;
                let Some(word) = self.words.get(index) else {
                    return;
                };
                // The words that the hints are about are seen as they were then.
                let hints = word.swap(0, Ordering::Acquire);
                if hints != 0 {
                    each(FIRST_LPI + index as u32 * 64, hints);
                }
            }
        }
    }
}
