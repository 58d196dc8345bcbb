//! A guest's stage-2 fault, decided: which slot, which frame, which permissions, what the dirty log is told.
//!
//! Runs on every vCPU's CPU at once. In [`Parallel`](crate::Parallel) mode it takes no lock, writes no cache line that a
//! fault on other pages writes, and allocates only from this CPU's own cache of frames.

use crate::cpu::{Caches, CpuMemory};
use crate::dirty_log::DirtyLog;
use crate::frames::GRANULE;
use crate::locks::MmuLock;
use crate::slots::Slot;
use crate::space::AddressSpace;
use core::ptr;
use crossbeam_epoch::Guard;
use stage2::sync::full_barrier;
use stage2::{
    Access, Attributes, Broken, Descriptor, Ipa, Level, PAGE_SIZE, Permissions, Request,
    Resolution, Tlb,
};

/// Why stage 2 refused an access (Arm ARM, ESR_EL2.ISS.DFSC).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultKind {
    /// No valid entry was found.
    Translation,
    /// The entry's access flag is clear.
    AccessFlag,
    /// The entry forbids the access.
    Permission,
}

/// A stage-2 fault as the CPU reported it. All of it is the guest's to choose: an allegation until [`AddressSpace::fault`]
/// has found a slot for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// The address that was to be translated.
    pub ipa: Ipa,
    /// The guest's virtual address, where the fault was on the guest's own access and not on a walk of its tables.
    pub va: Option<u64>,
    /// What it tried.
    pub access: Access,
    /// What was in the way.
    pub kind: FaultKind,
}

/// What becomes of the access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultOutcome {
    /// The guest can go on.
    Resolved,
    /// Another CPU was in the way: the guest tries again.
    Retry,
    /// No slot covers the address.
    NoSlot,
    /// The slot doesn't allow the access.
    NotPermitted,
    /// There is no frame left for a table.
    OutOfFrames,
}

impl<L: MmuLock> AddressSpace<L> {
    /// Serves a fault of one of this VM's vCPUs on the CPU that `cpu` belongs to.
    #[inline]
    pub fn fault<T: Tlb + Caches>(&self, cpu: &CpuMemory<T>, fault: &Fault) -> FaultOutcome {
        let guard = cpu.pin();
        let outcome = self.fault_in_epoch(cpu, fault, &guard);
        drop(guard);
        if outcome == FaultOutcome::OutOfFrames && cpu.refill() {
            FaultOutcome::Retry
        } else {
            outcome
        }
    }

    #[inline]
    fn fault_in_epoch<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        fault: &Fault,
        guard: &Guard,
    ) -> FaultOutcome {
        let published = self.slots(guard);
        let Some(slot) = published.find(fault.ipa) else {
            return FaultOutcome::NoSlot;
        };
        if slot.read_only() && fault.access == Access::Write {
            return FaultOutcome::NotPermitted;
        }
        let log = slot.log(guard);
        let request = request_for(slot, log, fault);
        let counters = cpu.fault_counters();
        let (tables, epoch) = (cpu.tables(self.vm()), cpu.retirement(self.vm(), guard));
        let worker = cpu.worker(&tables, &epoch);
        let _lock = self.lock().shared();
        let writable = match self.stage2().fault(&worker, &request) {
            Resolution::Vacant(broken) => {
                full_barrier();
                let unchanged =
                    ptr::eq(self.slots(guard), published) && same_log(slot.log(guard), log);
                let leaf = self.stage2().leaf_for(&request, broken.level());
                if !fill(broken, leaf, unchanged) {
                    counters.retried.add(1);
                    return FaultOutcome::Retry;
                }
                counters.mapped.add(1);
                // Whoever switches logging on from here on finds the entry and protects it.
                if let (Some(log), Access::Write) = (log, fault.access) {
                    log.mark(slot.page_of(fault.ipa), 1);
                }
                return FaultOutcome::Resolved;
            }
            Resolution::Relaxed(level) => {
                counters.relaxed.add(1);
                Some(level)
            }
            Resolution::Split => {
                counters.split.add(1);
                Some(Level::L3)
            }
            Resolution::Spurious | Resolution::Accessed => {
                counters.spurious.add(1);
                None
            }
            Resolution::Busy => {
                counters.busy.add(1);
                return FaultOutcome::Retry;
            }
            Resolution::NotPermitted => return FaultOutcome::NotPermitted,
            Resolution::OutOfFrames => return FaultOutcome::OutOfFrames,
        };
        if let Some(level) = writable {
            mark_after_write(slot, fault.ipa, level, guard);
        }
        FaultOutcome::Resolved
    }
}

#[inline]
fn request_for(slot: &Slot, log: Option<&DirtyLog>, fault: &Fault) -> Request {
    let permissions = match (slot.read_only(), log) {
        (true, _) => Permissions::READ_ONLY,
        (false, Some(_)) if fault.access != Access::Write => Permissions::LOGGED,
        (false, _) => Permissions::RAM,
    };
    Request {
        ipa: fault.ipa,
        va: fault.va,
        access: fault.access,
        pa: slot.frame_of(fault.ipa),
        largest: if log.is_some() {
            Level::L3
        } else {
            slot.largest()
        },
        attributes: Attributes::memory(permissions),
        split: log.is_some(),
    }
}

/// Maps what backs the fault, or leaves the entry as it was if the grounds for it have gone (rule 8). Whether it is mapped
/// now.
#[inline]
fn fill(broken: Broken<'_>, leaf: Descriptor, unchanged: bool) -> bool {
    if unchanged {
        broken.make(leaf).is_ok()
    } else {
        // Lost only to an unmap of the whole table, which leaves nothing to restore.
        let _ = broken.restore();
        false
    }
}

/// Whether logging is as it was: off, or into the same log.
#[inline]
fn same_log(now: Option<&DirtyLog>, before: Option<&DirtyLog>) -> bool {
    now.map(ptr::from_ref) == before.map(ptr::from_ref)
}

/// Marks what has just become writable, if writes are logged by now: the entry came first, the bit is second (rule 9), and
/// logging that was switched on in between is seen here or sees the entry (rule 8).
#[inline]
fn mark_after_write(slot: &Slot, ipa: Ipa, level: Level, guard: &Guard) {
    full_barrier();
    if let Some(log) = slot.log(guard) {
        let span = GRANULE.span(level);
        log.mark(slot.page_of(ipa.align_down(span)), span / PAGE_SIZE);
    }
}
