//! The hypervisor's own work on frames while the guest uses them: merges equal pages, compresses cold ones, and compacts
//! fragmented regions into blocks.
//!
//! CPU 0 does all of it in steps, at random. A guest must notice nothing but the time it takes.

use super::Stress;
use super::act::populate;
use super::target::Target;
use crate::harness::error::WorkloadError;
use control::Machine;
use control::RunError;
use control::guest::{RunningGuest, UNSEEN_SLOT};
use memory::{Access, MergeError, MergePolicy, MmuLock, PageMerging, Watermarks};

/// The most steps of merging, or of reclaim, in one action.
const MOST_STEPS: u32 = 16;
/// How many pages are made the VM's own before some are compressed.
const UNSHARED_PAGES: u64 = 64;
/// More free frames than exist: reclaim begins whenever it is called.
const ALWAYS: Watermarks = Watermarks {
    low: 1 << 40,
    high: 1 << 40,
};

/// Merging of the test memory and its copies, which have many equal pages.
pub(super) fn merging<M: Machine, L: MmuLock>(
    guest: &RunningGuest<'_, M, L>,
    targets: &[Target],
) -> Result<PageMerging, WorkloadError> {
    // Blocks that have some equal pages are taken apart at once.
    let merging = PageMerging::new(MergePolicy {
        pages_of_block: 16,
        ..MergePolicy::default()
    });
    let slots = targets.iter().map(|target| target.slot.id);
    for slot in slots.chain([UNSEEN_SLOT]) {
        let object = guest.vm.space.object_of(&guest.own.memory, slot)?;
        match merging.add(&object) {
            Err(MergeError::OutOfMemory) => return Err(RunError::Heap.into()),
            Err(MergeError::NotMergeable) | Ok(()) => {}
        }
    }
    Ok(merging)
}

impl<M: Machine, L: MmuLock> Stress<'_, M, L> {
    /// Merges some pages.
    pub(super) fn merge(&mut self) {
        for _ in 0..self.random.u32(1..=MOST_STEPS) {
            let scanned = self.merging.step(&self.guest.own.memory);
            self.count("scanned_for_merging", scanned);
        }
    }

    /// Compresses some pages. vCPUs that need them have them decompressed. The run's first compression goes on until it has
    /// found a page, or all have been looked at: on a slow machine there are few more.
    pub(super) fn compress(&mut self) -> Result<(), WorkloadError> {
        self.unshare()?;
        let own = &self.guest.own.memory;
        let compressed = || own.system().reclaim_counters().compressed.get();
        own.system().set_watermarks(Some(ALWAYS));
        let mut steps = self.random.u32(1..=MOST_STEPS);
        while (steps != 0 || compressed() == 0) && own.relieve() {
            steps = steps.saturating_sub(1);
        }
        own.system().set_watermarks(None);
        Ok(())
    }

    /// Makes some pages the VM's own: a fork shares all of them, and shared pages aren't compressed.
    fn unshare(&mut self) -> Result<(), WorkloadError> {
        let index = self.random.usize(..self.targets.len());
        let target = &self.targets[index];
        let first = self.random.u64(..target.slot.pages);
        let end = target.slot.pages.min(first + UNSHARED_PAGES);
        let range = target.page(first)..target.page(end);
        populate(self.guest, range, Access::Write)
    }

    /// Compacts fragmented memory into blocks, as an idle CPU would.
    pub(super) fn gather(&mut self) {
        for _ in 0..self.random.u32(1..=MOST_STEPS) {
            self.guest.own.memory.gather();
        }
    }

    /// Adds the final counts of merging and reclaim.
    pub(super) fn count_frames(&mut self) {
        let mut counts = alloc::vec::Vec::new();
        let merged = self.merging.statistics();
        merged.for_each(|name, count| counts.push((name, count)));
        let system = self.guest.own.memory.system();
        let reclaimed = system.reclaim_counters();
        reclaimed.for_each(|name, count| counts.push((name, count)));
        counts.push(("gathered", system.gathered().get()));
        for (name, count) in counts {
            self.count(name, count);
        }
    }
}
