//! Selects the leaves of a range that an operation changes.

use crate::address::{Ipa, Level};

/// Names leaves. May be asked more than once for each.
pub trait Wanted {
    /// Whether the leaf of `level` whose first address is `ipa` is meant.
    fn leaf(&self, ipa: Ipa, level: Level) -> bool;

    /// Which of the next `count` pages (at most 64, of `page_size` bytes) from `first` on are meant: a bit each, the others
    /// may be anything. For whoever can tell faster than one by one.
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
