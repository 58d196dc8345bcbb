//! Blocks come back where logging has split them: step by step, at once or in the background, vCPUs running.

use crate::cpu::{Caches, CpuMemory};
use crate::dirty_log::DirtyLog;
use crate::frames::GRANULE;
use crate::locks::MmuLock;
use crate::logging::LogError;
use crate::slots::{Slot, SlotId};
use crate::space::{AddressSpace, UNLINKED_AT_ONCE};
use core::cell::Cell;
use crossbeam_epoch::Guard;
use stage2::{
    Attributes, Collapsed, Descriptor, Ipa, IpaRange, Level, Mapping, Permissions, Step, Tlb,
};

/// What one step of restoring did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Restored {
    /// Tables that became blocks, and those that couldn't.
    pub collapsed: Collapsed,
    /// Where the next step begins; none after the last.
    pub next: Option<Ipa>,
}

impl<L: MmuLock> AddressSpace<L> {
    /// Makes blocks again of a bounded part of a slot, from `from` on: pages that are missing are mapped, and tables whose
    /// memory is one piece become blocks. A slot that is logged by write protection may be restored too; the blocks are then
    /// read-only, until they are written. vCPUs may be running.
    ///
    /// # Errors
    /// There is no such slot, or hardware tracks its writes.
    pub fn restore_blocks<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        id: SlotId,
        from: Ipa,
    ) -> Result<Restored, LogError> {
        let _control = self.control.lock();
        let slot = {
            let guard = cpu.pin();
            let slot = self.held_slot(id, &guard)?;
            if slot
                .log(&guard)
                .is_some_and(|log| log.policy().by_hardware())
            {
                return Err(LogError::NotPossible(id));
            }
            slot
        };
        let range = slot.range();
        let start = from.clamp(range.start, range.end);
        let step = GRANULE.span(Level::L2) * UNLINKED_AT_ONCE;
        let end = start.align_down(step).checked_add(step);
        let end = end.map_or(range.end, |end| end.min(range.end));
        let mut collapsed = Collapsed::default();
        if slot.largest() <= Level::L2 {
            collapsed += self.restore(cpu, &slot, start..end, Level::L2);
        }
        let block = end.offset_in(GRANULE.span(Level::L1)) == 0 || end == range.end;
        if slot.largest() <= Level::L1 && block && start < end {
            let first = Ipa::new(end.get() - 1).align_down(GRANULE.span(Level::L1));
            collapsed += self.restore(cpu, &slot, first.max(range.start)..end, Level::L1);
        }
        let next = (end < range.end).then_some(end);
        Ok(Restored { collapsed, next })
    }

    /// Makes blocks of level `to` in a range, after mending what keeps tables from becoming one.
    fn restore<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        slot: &Slot,
        range: IpaRange,
        to: Level,
    ) -> Collapsed {
        cpu.settle();
        let first = self.collapse(cpu, slot, range.clone(), to);
        if first.left == 0 {
            return first;
        }
        let guard = cpu.pin();
        let mut at = range.start;
        while let Some(table) = self.next_table(cpu, &guard, at..range.end, to) {
            self.mend(cpu, &guard, slot, table.clone(), to);
            at = table.end;
        }
        drop(guard);
        let second = self.collapse(cpu, slot, range, to);
        Collapsed {
            blocks: first.blocks + second.blocks,
            left: second.left,
        }
    }

    /// What the next table under an entry of level `to` spans.
    fn next_table<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        guard: &Guard,
        range: IpaRange,
        to: Level,
    ) -> Option<IpaRange> {
        let (tables, epoch) = (cpu.tables(self.vm()), cpu.retirement(self.vm(), guard));
        let worker = cpu.worker(&tables, &epoch);
        let found = Cell::new(None);
        self.stage2()
            .walk(&worker, range, |context| match context.descriptor {
                Descriptor::Table(_) if context.level < to => Step::Descend,
                Descriptor::Table(_) => {
                    found.set(Some(context.ipa..context.ipa_end));
                    Step::Stop
                }
                Descriptor::Locked => Step::Wait,
                Descriptor::Frozen => Step::Restart,
                Descriptor::Leaf(_) | Descriptor::Invalid => Step::Continue,
            });
        found.take()
    }

    /// Makes the leaves of a table alike and maps what is missing among them, so that it can become a block. What can't be
    /// mended (no frame, other memory) stays as it is.
    fn mend<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        guard: &Guard,
        slot: &Slot,
        table: IpaRange,
        to: Level,
    ) {
        if table.start < slot.range().start || slot.range().end < table.end {
            return;
        }
        let (tables, epoch) = (cpu.tables(self.vm()), cpu.retirement(self.vm(), guard));
        let worker = cpu.worker(&tables, &epoch);
        let _lock = self.lock().exclusive();
        let permissions = permissions(slot.log(guard), slot);
        if slot.log(guard).is_none() {
            self.stage2()
                .protect(&worker, table.clone(), permissions, |_, _, _| {});
        }
        let mapping = Mapping {
            pa: slot.frame_of(table.start),
            attributes: Attributes::memory(permissions),
            largest: to.below().unwrap_or(Level::L3),
        };
        // The slots and the log can't change while `control` is held.
        let _ = self.stage2().map(&worker, table, mapping, || true);
    }

    /// Turns tables into blocks of a level in a part of a slot.
    fn collapse<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        slot: &Slot,
        range: IpaRange,
        to: Level,
    ) -> Collapsed {
        let guard = cpu.pin();
        let (tables, epoch) = (cpu.tables(self.vm()), cpu.retirement(self.vm(), &guard));
        let worker = cpu.worker(&tables, &epoch);
        let _lock = self.lock().exclusive();
        self.stage2().collapse(
            &worker,
            range,
            to,
            |_| permissions(slot.log(&guard), slot),
            // The slot holds its frames, mapped or not.
            |_, _, _| {},
        )
    }
}

/// What a block of the slot allows.
fn permissions(log: Option<&DirtyLog>, slot: &Slot) -> Permissions {
    match log {
        _ if slot.read_only() => Permissions::READ_ONLY,
        None => Permissions::RAM,
        Some(_) => Permissions::LOGGED,
    }
}
