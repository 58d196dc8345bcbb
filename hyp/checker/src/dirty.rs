//! Writes that no harvest has collected yet (rule 9).

use alloc::collections::BTreeMap;
use core::ops::Range;

/// The last writer of each page, by root and first address, since the page was last harvested.
#[derive(Debug)]
pub(crate) struct Ledger(BTreeMap<(u64, u64), usize>);

impl Ledger {
    pub(crate) const fn new() -> Self {
        Self(BTreeMap::new())
    }

    pub(crate) fn wrote(&mut self, root: u64, page: u64, cpu: usize) {
        self.0.insert((root, page), cpu);
    }

    pub(crate) fn harvested(&mut self, root: u64, range: Range<u64>) {
        self.0
            .retain(|(tree, page), _| *tree != root || !range.contains(page));
    }

    /// A written page of the tree that isn't known to be dirty, and its writer.
    pub(crate) fn lost(&self, root: u64, is_dirty: &dyn Fn(u64) -> bool) -> Option<(u64, usize)> {
        (self.0.range((root, 0)..=(root, u64::MAX)))
            .find(|((_, page), _)| !is_dirty(*page))
            .map(|((_, page), cpu)| (*page, *cpu))
    }
}
