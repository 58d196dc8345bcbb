//! Writes that stage 2 forbids: of a logged page by the shortest way, and of whatever else a single exchange of the entry
//! makes writable.

use super::{Fault, FaultKind, FaultOutcome, same_log};
use crate::dirty::bitmap::DirtyLog;
use crate::space::AddressSpace;
use crate::space::mmu_lock::MmuLock;
use crate::space::slot::Slot;
use crate::system::cpu::{Caches, CpuMemory};
use core::ptr;
use crossbeam_epoch::Guard;
use stage2::sync::full_barrier;
use stage2::{Access, Ipa, Level, Tlb};

impl<L: MmuLock> AddressSpace<L> {
    /// As [`Self::fault`], for the commonest fault: a write of vCPU `vcpu` to `va`, translated to `ipa`, that stage 2 forbids.
    /// Then does any [upkeep](CpuMemory::upkeep) that is due once frames were taken.
    #[inline(always)]
    pub fn write<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        vcpu: usize,
        va: u64,
        ipa: Ipa,
    ) -> FaultOutcome {
        debug_assert!(ptr::eq(self.system(), cpu.system()));
        let guard = cpu.pin();
        match self.relax_logged(cpu, vcpu, ipa, Some(va), &guard) {
            Some(outcome) => outcome,
            None => self.write_slowly(cpu, vcpu, va, ipa, guard),
        }
    }

    #[cold]
    #[inline(never)]
    fn write_slowly<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        vcpu: usize,
        va: u64,
        ipa: Ipa,
        guard: Guard,
    ) -> FaultOutcome {
        let fault = forbidden_write(vcpu, ipa, Some(va));
        if let Some(outcome) = self.relax_any(cpu, &fault, &guard) {
            return outcome;
        }
        let outcome = self.fault_of_any_kind(cpu, &fault, guard);
        if cpu.needs_upkeep() {
            cpu.upkeep();
        }
        outcome
    }

    /// Serves the commonest fault: the first write to a page since its harvest, for a page of a plain tree, in a slot that is
    /// logged in a bitmap. Leaves the rest to [`relax_any`](Self::relax_any) and
    /// [`fault_in_epoch`](Self::fault_in_epoch), which give the same result.
    ///
    /// Doesn't check whether the slot is writable: entries of a read-only slot may not be made writable (rule 3).
    #[inline(always)]
    pub(super) fn relax_logged<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        vcpu: usize,
        ipa: Ipa,
        va: Option<u64>,
        guard: &Guard,
    ) -> Option<FaultOutcome> {
        let published = self.space().published_slots(guard)?;
        let slot = published.find_at(ipa, cpu.last_slot())?;
        let log = slot.log(guard)?;
        if log.by_ring() {
            return None;
        }
        let (tables, epoch) = (cpu.tables(self.vm()), cpu.retirement(self.vm(), guard));
        let worker = cpu.worker(&tables, &epoch);
        let lock = self.lock().shared();
        if !self.stage2().relax_page(&worker, ipa, va) {
            return None;
        }
        drop(lock);
        full_barrier();
        // The entry came first, the bit is second (rule 9), and logging that was switched on in between is seen here or sees
        // the entry (rule 8).
        if !same_log(slot.log(guard), Some(log)) {
            return Some(self.mark_elsewhere(slot, &forbidden_write(vcpu, ipa, va), guard));
        }
        log.mark_page(slot.page_of(ipa));
        Some(FaultOutcome::Resolved)
    }

    /// Serves a write that stage 2 forbids, if a single exchange is enough, whatever the tree and the log.
    #[inline(never)]
    pub(super) fn relax_any<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        fault: &Fault,
        guard: &Guard,
    ) -> Option<FaultOutcome> {
        let slot = self.slots(guard).find_again(fault.ipa, cpu.last_slot())?;
        let log = slot.log(guard);
        if let Some(refusal) = self.refusal(slot, log, fault.vcpu) {
            return Some(refusal);
        }
        let level = self.relax(cpu, fault, log, guard)?;
        Some(self.mark_after_write(slot, fault, level, guard))
    }

    /// Why a vCPU may not write to a slot at this moment, if it may not.
    #[inline(always)]
    pub(super) fn refusal(
        &self,
        slot: &Slot,
        log: Option<&DirtyLog>,
        vcpu: usize,
    ) -> Option<FaultOutcome> {
        if slot.read_only() {
            Some(FaultOutcome::NotPermitted)
        } else if log.is_some_and(DirtyLog::by_ring) && self.ring_is_full(vcpu) {
            Some(FaultOutcome::RingFull)
        } else {
            None
        }
    }

    /// Marks a page that has just become writable in the log that is the slot's by now, if there is one.
    #[cold]
    #[inline(never)]
    fn mark_elsewhere(&self, slot: &Slot, fault: &Fault, guard: &Guard) -> FaultOutcome {
        match slot.log(guard) {
            Some(log) => self.mark(slot, log, fault, Level::L3),
            None => FaultOutcome::Resolved,
        }
    }

    /// Makes a logged page writable, if a single exchange is enough.
    #[inline(always)]
    fn relax<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        fault: &Fault,
        log: Option<&DirtyLog>,
        guard: &Guard,
    ) -> Option<Level> {
        let (tables, epoch) = (cpu.tables(self.vm()), cpu.retirement(self.vm(), guard));
        let worker = cpu.worker(&tables, &epoch);
        let _lock = self.lock().shared();
        let largest_written = log.map_or(Level::L0, DirtyLog::largest_written);
        let relaxed = self
            .stage2()
            .relax(&worker, fault.ipa, fault.va, largest_written)?;
        Some(relaxed)
    }
}

/// The fault of a write that stage 2 forbids.
fn forbidden_write(vcpu: usize, ipa: Ipa, va: Option<u64>) -> Fault {
    Fault {
        vcpu,
        ipa,
        va,
        access: Access::Write,
        kind: FaultKind::Permission,
    }
}
