//! The door of a vCPU: one word by which it is told that there is something to look at, and its hints about SPIs, in a line of
//! memory of its own.

use crate::sync::{AtomicU64, Ordering};
use crate::word::FIRST_SPI;
use core::array;

/// How many SPIs a word of hints has.
const SPIS_PER_HINT: u32 = 64;
/// Words of hints, so that door and hints fill two lines.
pub(crate) const HINTS: usize = if cfg!(loom) { 1 } else { 15 };

/// SGIs that were sent.
pub(crate) const SGIS: u64 = 0xffff;
/// SGIs and PPIs, by INTID.
pub(crate) const PRIVATE: u64 = 0xffff_ffff;
const SUMMARY_SHIFT: u32 = 32;
/// A bit for each word of hints; beyond the eighth word, bits are shared.
const SUMMARY: u64 = 0xff << SUMMARY_SHIFT;
/// LPIs have hints.
pub(crate) const LPIS: u64 = 1 << 40;
/// Everything has to be looked at again.
pub(crate) const CALL: u64 = 1 << 41;
/// The vCPU has commands of the ITS to execute before it enters its guest. No other vCPU sets it.
pub(crate) const COMMANDS: u64 = 1 << 42;
/// What there is to look at: all bits below, so that one instruction tests for them.
pub(crate) const LOOK: u64 = (COMMANDS << 1) - 1;
/// The vCPU is loaded: it can be kicked on its CPU.
pub(crate) const ON: u64 = 1 << 43;
/// The vCPU sleeps and isn't loaded: its CPU wakes it.
pub(crate) const BLOCKED: u64 = 1 << 44;
/// From here on, the physical CPU.
pub(crate) const CPU_SHIFT: u32 = 48;

/// A door with its hints.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Door {
    pub(crate) word: AtomicU64,
    hints: [AtomicU64; HINTS],
}

impl Door {
    pub(crate) fn new(word: u64) -> Self {
        Self {
            word: AtomicU64::new(word),
            hints: array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    /// As it was when it was made, with no bits. Nobody rings or looks.
    pub(crate) fn reset(&self) {
        self.word.store(0, Ordering::Relaxed);
        for hint in &self.hints {
            hint.store(0, Ordering::Relaxed);
        }
    }

    /// Sets bits of what there is to look at, and kicks the vCPU if nobody has since it looked last (rule V1). What the bits are
    /// about was written before.
    #[inline(always)]
    pub(crate) fn ring(&self, bits: u64, kick: &mut impl FnMut(usize)) {
        // Pairs with the exchange in `take`: who drains sees what was written.
        let old = self.word.fetch_or(bits, Ordering::Release);
        if old & LOOK == 0 && old & (ON | BLOCKED) != 0 {
            kick((old >> CPU_SHIFT) as usize);
        }
    }

    /// As [`ring`](Self::ring), for an SPI: its hint first, the door only if the hint's word was empty, as otherwise another is
    /// about to.
    pub(crate) fn ring_spi(&self, intid: u32, kick: &mut impl FnMut(usize)) {
        let spi = intid.wrapping_sub(FIRST_SPI);
        let index = (spi / SPIS_PER_HINT) as usize;
        let Some(hint) = self.hints.get(index) else {
            return;
        };
        // Pairs with the swap in `take_hints`.
        if hint.fetch_or(1 << (spi % SPIS_PER_HINT), Ordering::Release) == 0 {
            self.ring(1 << (SUMMARY_SHIFT + index as u32 % 8), kick);
        }
    }

    /// Takes a word of hints, of those that the bits of a door speak of: the number of its first SPI, and the hints.
    pub(crate) fn take_hints(&self, taken: u64, mut each: impl FnMut(u32, u64)) {
        let mut left = (taken & SUMMARY) >> SUMMARY_SHIFT;
        while left != 0 {
            let first = left.trailing_zeros() as usize;
            left &= left - 1;
            for (index, hint) in self.hints.iter().enumerate().skip(first).step_by(8) {
                // Pairs with the `fetch_or` in `ring_spi`: the words that the hints are about are seen as they were then.
                let hints = hint.swap(0, Ordering::Acquire);
                if hints != 0 {
                    each(FIRST_SPI + index as u32 * SPIS_PER_HINT, hints);
                }
            }
        }
    }
}
