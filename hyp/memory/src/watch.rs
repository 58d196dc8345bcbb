//! Hooks for an external protocol checker in debug firmware: report every frame that becomes a table or ceases to be one, and
//! every promise made to a harvester of a dirty log. With [`stage2::watch`] the checker sees whether a table is freed while it
//! is reachable, and whether a page is copied while a CPU can write it unnoticed.
//!
//! Only with the feature `watch`. There is one watcher per process, installed once.

use alloc::vec::Vec;
use spin::Once;
use stage2::{IpaRange, Level, PAGE_SIZE, Pa, Vttbr, Wanted};

/// Receives reports about tables' frames and about promises. Called by all CPUs at once, in the fault path too.
pub trait MemoryWatcher: Sync {
    /// The calling CPU has taken a frame for a table.
    fn allocated(&self, frame: Pa);

    /// A table's frame (of a root: its first) is about to be freed.
    fn freed(&self, frame: Pa);

    /// Runs `work`. When that returns, no CPU can write to the pages of `ranges` through the tables in this CPU's VTTBR_EL2
    /// without a fault, except pages that a fault has made writable meanwhile.
    fn write_protects(&self, vttbr: Vttbr, ranges: &[IpaRange], work: &mut dyn FnMut());
}

static WATCHER: Once<&'static dyn MemoryWatcher> = Once::new();

/// Reports every table's frame to `watcher` from now on. Only the first call counts.
pub fn install(watcher: &'static dyn MemoryWatcher) {
    WATCHER.call_once(|| watcher);
}

pub(crate) fn allocated(frame: Pa) {
    if let Some(watcher) = WATCHER.get() {
        watcher.allocated(frame);
    }
}

pub(crate) fn freed(frame: Pa) {
    if let Some(watcher) = WATCHER.get() {
        watcher.freed(frame);
    }
}

/// Runs `work`, which write-protects the pages in `range` that are `wanted`.
pub(crate) fn write_protects(
    vttbr: Vttbr,
    range: &IpaRange,
    wanted: &impl Wanted,
    work: &mut dyn FnMut(),
) {
    let Some(watcher) = WATCHER.get() else {
        return work();
    };
    let mut ranges: Vec<IpaRange> = Vec::new();
    let mut page = range.start;
    while page < range.end {
        let next = page.offset(PAGE_SIZE);
        if wanted.leaf(page, Level::L3) {
            match ranges.last_mut() {
                Some(last) if last.end == page => last.end = next,
                _ => ranges.push(page..next),
            }
        }
        page = next;
    }
    watcher.write_protects(vttbr, &ranges, work);
}
