//! Selects the leaves of a range that an operation changes.

use crate::address::{Ipa, Level};

/// Selects leaves. May be called more than once for each.
pub trait Wanted {
    /// Whether the leaf of `level` at `ipa` is selected.
    fn leaf(&self, ipa: Ipa, level: Level) -> bool;

    /// Which of the next `count` pages (at most 64, of `page_size` bytes) from `first` on are selected: a bit each; further
    /// bits may have any value. For filters that are faster than one page at a time.
    #[inline]
    fn pages(&self, first: Ipa, count: usize, page_size: u64) -> u64 {
        (0..count as u64).fold(0, |bits, page| {
            bits | u64::from(self.leaf(first.offset(page * page_size), Level::L3)) << page
        })
    }
}

impl<F: Fn(Ipa, Level) -> bool> Wanted for F {
    #[inline]
    fn leaf(&self, ipa: Ipa, level: Level) -> bool {
        self(ipa, level)
    }
}

/// All of them.
#[derive(Clone, Copy, Debug)]
pub struct All;

impl Wanted for All {
    #[inline]
    fn leaf(&self, _: Ipa, _: Level) -> bool {
        true
    }

    #[inline]
    fn pages(&self, _: Ipa, _: usize, _: u64) -> u64 {
        u64::MAX
    }
}
