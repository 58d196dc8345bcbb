//! Removes a range from a VM's tables and keeps its backing. The next access faults and looks the backing up again.
//!
//! Order (rule 8): publish the range in the VM's tracker, full barrier, unmap, retire the range. Only a fault inside the range
//! that looked up its backing earlier retries. Any number of CPUs may invalidate at once, with vCPUs running.

use crate::frames::GRANULE;
use crate::space::mmu_lock::MmuLock;
use crate::space::{AddressSpace, IN_SPACE, UNLINKED_AT_ONCE};
use crate::system::cpu::{Caches, CpuMemory};
use crossbeam_epoch::Guard;
use stage2::{Ipa, IpaRange, Leaf, Level, PAGE_SIZE, Tlb};

impl<L: MmuLock> AddressSpace<L> {
    /// Unmaps all pages that a range touches. When this returns, no vCPU reaches the pages through an old mapping; vCPUs that
    /// access them fault. Parts outside of the IPA space are ignored, as nothing is mapped there. Dirty state that hardware
    /// noted is passed to the slots' dirty logs. vCPUs may be running.
    pub fn invalidate<T: Tlb + Caches>(&self, cpu: &CpuMemory<T>, range: IpaRange) {
        let end = range.end.min(self.stage2().layout().all().end);
        let end = Ipa::new(end.get().next_multiple_of(PAGE_SIZE));
        let pages = range.start.align_down(PAGE_SIZE)..end;
        self.vacate(cpu, pages, |guard, level, ipa, leaf| {
            // No leaf maps pages of two slots.
            if leaf.dirty()
                && let Some(slot) = self.slots(guard).find(ipa)
                && let Some(log) = slot.log(guard)
            {
                log.mark(slot.pages_of(ipa, level));
            }
        });
    }

    /// Unmaps a range of whole pages in steps, and calls `removed` for each removed leaf.
    pub(crate) fn vacate<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        range: IpaRange,
        mut removed: impl FnMut(&Guard, Level, Ipa, Leaf),
    ) {
        let published = self.space().tracker().begin(range.clone());
        let mut at = range.start;
        while at < range.end {
            cpu.settle();
            let step = GRANULE.span(Level::L2) * UNLINKED_AT_ONCE;
            let end = at.align_down(step).checked_add(step).unwrap_or(range.end);
            let end = end.min(range.end);
            let guard = self.pin(cpu);
            let (tables, epoch) = (cpu.tables(self.vm()), cpu.retirement(self.vm(), &guard));
            let worker = cpu.worker(&tables, &epoch);
            let _lock = self.lock().exclusive();
            self.stage2()
                .unmap(&worker, at..end, |level, ipa, leaf| {
                    removed(&guard, level, ipa, leaf)
                })
                .expect(IN_SPACE);
            at = end;
        }
        published.end();
    }
}
