//! Restores blocks that dirty logging has split: step by step, at once or in the background, with vCPUs running.

use crate::dirty::bitmap::DirtyLog;
use crate::dirty::slot_id::SlotId;
use crate::frames::GRANULE;
use crate::logging::switch::LogError;
use crate::space::mapping::Mapping;
use crate::space::mmu_lock::MmuLock;
use crate::space::slot::Slot;
use crate::space::{AddressSpace, IN_SPACE, UNLINKED_AT_ONCE};
use crate::system::cpu::{Caches, CpuMemory};
use alloc::sync::Arc;
use core::ops::Range;
use crossbeam_epoch::Guard;
use stage2::{Attributes, Collapsed, Ipa, IpaRange, Level, Pa, Permissions, Tlb};

/// The result of one step of restoring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Restored {
    /// Tables that became blocks, and those that couldn't.
    pub collapsed: Collapsed,
    /// Where the next step begins; none after the last.
    pub next: Option<Ipa>,
}

impl<L: MmuLock> AddressSpace<L> {
    /// Restores the blocks of a bounded part of a slot, from `from` on. Pages that copies, merging or reclaim have scattered
    /// are moved together again if they are the slot's own; missing pages are mapped; and tables over one run of frames become
    /// blocks. A slot that is logged by write protection may be restored too; the blocks are then read-only until they are
    /// written. vCPUs may be running.
    ///
    /// # Errors
    /// There is no such slot, or hardware tracks its writes.
    pub fn restore_blocks<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        id: SlotId,
        from: Ipa,
    ) -> Result<Restored, LogError> {
        let _control = self.control().share();
        let slot = self.restorable(cpu, id)?;
        let range = slot.range();
        let start = from.clamp(range.start, range.end);
        let step = GRANULE.span(Level::L2) * UNLINKED_AT_ONCE;
        let end = start.align_down(step).checked_add(step);
        let end = end.map_or(range.end, |end| end.min(range.end));
        let collapsed = self.restore_range(cpu, &slot, start..end);
        let next = (end < range.end).then_some(end);
        Ok(Restored { collapsed, next })
    }

    /// As [`Self::restore_blocks`], for some pages of the slot. Several CPUs may do this at the same time, each for its own
    /// pages; of the blocks across an end of the pages, some may be left. A block of 1 GiB is restored by whoever has its last
    /// page, if its other pages have been restored before.
    ///
    /// # Errors
    /// As for [`Self::restore_blocks`].
    pub fn restore_part<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        id: SlotId,
        pages: Range<u64>,
    ) -> Result<Collapsed, LogError> {
        let _control = self.control().share();
        let slot = self.restorable(cpu, id)?;
        Ok(self.restore_range(cpu, &slot, slot.range_of(&pages)))
    }

    /// Restores the blocks of a part of a slot, with `control` shared.
    fn restore_range<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        slot: &Arc<Slot>,
        part: IpaRange,
    ) -> Collapsed {
        slot.compact(cpu, part.clone());
        let mapping = self.mapping(slot);
        let mut collapsed = mapping.restore(cpu, part.clone(), Level::L2);
        // The gigabytes that end here.
        let (range, gigabyte) = (slot.range(), GRANULE.span(Level::L1));
        let start = part.start.align_down(gigabyte).max(range.start);
        let end = match part.end {
            end if end == range.end => end,
            end => end.align_down(gigabyte),
        };
        if start < end {
            collapsed += mapping.restore(cpu, start..end, Level::L1);
        }
        collapsed
    }

    /// A slot whose blocks may be restored.
    pub(crate) fn restorable<T>(
        &self,
        cpu: &CpuMemory<T>,
        id: SlotId,
    ) -> Result<Arc<Slot>, LogError> {
        let guard = self.pin(cpu);
        let slot = self.held_slot(id, &guard)?;
        let log = slot.log(&guard);
        if log.is_some_and(|log| log.policy().by_hardware()) {
            return Err(LogError::NotPossible(id));
        }
        Ok(slot)
    }
}

impl Mapping {
    /// Restores blocks of level `to` in a range, after mending what prevents it. With the VM's `control` held or shared.
    pub(crate) fn restore<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        range: IpaRange,
        to: Level,
    ) -> Collapsed {
        let span = GRANULE.span(to);
        let mut collapsed = Collapsed::default();
        let mut start = range.start.align_down(span);
        while start < range.end {
            let block = start..start.checked_add(span).unwrap_or(range.end);
            if let Some(pa) = self.slot.run_at(start, to) {
                cpu.settle();
                collapsed += self.restore_block(cpu, &block, pa, to);
            }
            start = block.end;
        }
        collapsed
    }

    /// Makes one block of level `to`, backed by the run of frames at `pa`, if a table maps it.
    fn restore_block<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        block: &IpaRange,
        pa: Pa,
        to: Level,
    ) -> Collapsed {
        let guard = cpu.pin();
        let first = self.collapse(cpu, &guard, block.clone(), to);
        if first.left == 0 {
            return first;
        }
        (self.lock).exclusively(&mut || self.mend(cpu, &guard, block.clone(), pa, to));
        self.collapse(cpu, &guard, block.clone(), to)
    }

    /// Makes the leaves of a table alike and maps missing ones, so that the table can become a block. Leaves that can't be
    /// mended (no frame, shared pages) stay as they are.
    fn mend<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        guard: &Guard,
        table: IpaRange,
        pa: Pa,
        to: Level,
    ) {
        let (slot, vm) = (&self.slot, self.space.vm());
        let (tables, epoch) = (cpu.tables(vm), cpu.retirement(vm, guard));
        let worker = cpu.worker(&tables, &epoch);
        let permissions = permissions(slot.log(guard), slot);
        if to == Level::L2 && slot.log(guard).is_none() {
            // Nobody may withdraw a page's right to be written while all of them are given it.
            let Some(_claims) = slot.object().claim_region(slot.object_page(table.start)) else {
                return;
            };
            (self.space.stage2())
                .protect(&worker, table.clone(), permissions, |_, _, _| {})
                .expect(IN_SPACE);
        }
        let pages = stage2::Mapping {
            pa,
            attributes: Attributes::memory(permissions),
            largest: to.below().unwrap_or(Level::L3),
        };
        // The slots and the log can't change while `control` is held or shared; what backs them can, after it was taken apart.
        let start = table.start;
        let _ =
            (self.space.stage2()).map(&worker, table, pages, || slot.run_at(start, to) == Some(pa));
    }

    /// Collapses tables into blocks in a part of the slot.
    fn collapse<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        guard: &Guard,
        block: IpaRange,
        to: Level,
    ) -> Collapsed {
        let (slot, vm) = (&self.slot, self.space.vm());
        let (tables, epoch) = (cpu.tables(vm), cpu.retirement(vm, guard));
        let worker = cpu.worker(&tables, &epoch);
        let start = block.start;
        let mut collapsed = Ok(Collapsed::default());
        (self.lock).exclusively(&mut || {
            collapsed = self.space.stage2().collapse(
                &worker,
                block.clone(),
                to,
                // Whoever takes a page apart says so first, and then looks for the entry (rule 8).
                |_| match slot.run_at(start, to) {
                    Some(_) => permissions(slot.log(guard), slot),
                    None => Permissions::READ_ONLY,
                },
                // The slot holds its frames, mapped or not.
                |_, _, _| {},
            );
        });
        collapsed.expect(IN_SPACE)
    }
}

/// The permissions of a block of the slot.
fn permissions(log: Option<&DirtyLog>, slot: &Slot) -> Permissions {
    match log {
        _ if slot.read_only() => Permissions::READ_ONLY,
        None => Permissions::RAM,
        Some(_) => Permissions::LOGGED,
    }
}
