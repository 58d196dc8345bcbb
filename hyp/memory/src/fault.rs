//! Handles a guest's stage-2 fault: finds the slot and the frame, decides the permissions, and reports to the dirty log.
//!
//! Runs on the CPUs of all vCPUs at once. In [`Parallel`](crate::Parallel) mode it takes no lock, writes no cache line that a
//! fault on other pages writes, and allocates only from this CPU's own cache of frames.

mod forbidden_write;
mod guest_bytes;
pub(crate) mod prefault;

use crate::change::copy_on_write::{Populated, Unshared};
use crate::change::propagate::Changer;
use crate::dirty::bitmap::DirtyLog;
use crate::dirty::policy::LogPolicy;
use crate::dirty::ring::{DirtyPages, DirtyRing, Pushed};
use crate::frames::GRANULE;
use crate::frames::tables::{Retirement, Tables};
use crate::object::{Backing, Look};
use crate::reclaim::steps::Shortage;
use crate::space::mmu_lock::MmuLock;
use crate::space::slot::{Slot, SlotArray};
use crate::space::{AddressSpace, Change, IN_SPACE};
use crate::system::cpu::{Caches, CpuMemory};
use crate::tracker::Verdict;
use alloc::sync::Arc;
use core::ptr;
use crossbeam_epoch::Guard;
use stage2::sync::full_barrier;
use stage2::{
    Access, All, Attributes, Broken, Counter, Execute, Ipa, Level, MemoryType, OnBlock, PAGE_SIZE,
    Pa, Permissions, Request, Resolution, Stage2, Tlb, Worker,
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

/// A stage-2 fault as the CPU reported it. A guest can choose all of it: an allegation until [`AddressSpace::fault`] has found
/// a slot for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// The vCPU that faulted, by its number within the VM: its writes are reported in its dirty ring.
    pub vcpu: usize,
    /// The address whose translation failed.
    pub ipa: Ipa,
    /// The guest's virtual address, if the guest's own access faulted and not a walk of its tables.
    pub va: Option<u64>,
    /// The kind of access.
    pub access: Access,
    /// The cause of the fault.
    pub kind: FaultKind,
}

/// The result of a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultOutcome {
    /// The guest can continue.
    Resolved,
    /// The guest can continue, and its vCPU's dirty ring has just become nearly full: its harvester should be told.
    RingLow,
    /// The vCPU's dirty ring is full: it waits for its harvester, then tries again.
    RingFull,
    /// Another CPU interfered: the guest tries again.
    Retry,
    /// No slot covers the address.
    NoSlot,
    /// The slot doesn't allow the access.
    NotPermitted,
    /// There is no frame left for a table.
    OutOfFrames,
}

/// How often a fault changes its page's backing or looks it up again before it lets the guest fault again.
const LOOKS: u32 = 4;

/// The result of one attempt to serve a fault.
enum Served {
    /// The fault is served, or can't be.
    Ended(FaultOutcome),
    /// The backing was prepared for the access, or has changed: look it up again.
    Prepared,
}

impl<L: MmuLock> AddressSpace<L> {
    /// Serves a fault of one of this VM's vCPUs on the CPU of `cpu`, which has [activated](Self::activate) the VM. That both
    /// belong to one memory system is checked only there, and in debug builds.
    ///
    /// Inlined, so that a caller that knows the kind of fault gets a short path for the commonest one.
    #[inline(always)]
    pub fn fault<T: Tlb + Caches>(&self, cpu: &CpuMemory<T>, fault: &Fault) -> FaultOutcome {
        debug_assert!(ptr::eq(self.system(), cpu.system()));
        let guard = cpu.pin();
        if fault.access == Access::Write
            && fault.kind == FaultKind::Permission
            && let Some(outcome) = self
                .relax_logged(cpu, fault.vcpu, fault.ipa, fault.va, &guard)
                .or_else(|| self.relax_any(cpu, fault, &guard))
        {
            return outcome;
        }
        self.fault_of_any_kind(cpu, fault, guard)
    }

    /// Serves any fault, entering and leaving the epoch.
    #[inline(never)]
    fn fault_of_any_kind<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        fault: &Fault,
        guard: Guard,
    ) -> FaultOutcome {
        let outcome = self.fault_in_epoch(cpu, fault, &guard);
        drop(guard);
        if outcome == FaultOutcome::OutOfFrames {
            self.fault_for_want_of_frames(cpu, fault)
        } else {
            outcome
        }
    }

    /// Looks for free frames for a fault that found none, and serves it if there are some. If memory has to be reclaimed first,
    /// this exit does nothing else.
    #[cold]
    fn fault_for_want_of_frames<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        fault: &Fault,
    ) -> FaultOutcome {
        match cpu.relieve_shortage() {
            Shortage::Over => {}
            Shortage::Reduced => return FaultOutcome::Retry,
            Shortage::Lasts => return FaultOutcome::OutOfFrames,
        }
        match self.fault_in_epoch(cpu, fault, &cpu.pin()) {
            FaultOutcome::OutOfFrames => FaultOutcome::Retry,
            outcome => outcome,
        }
    }

    /// Inlined in both places: a call would be a fiftieth of a fault.
    #[inline(always)]
    fn fault_in_epoch<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        fault: &Fault,
        guard: &Guard,
    ) -> FaultOutcome {
        let published = self.slots(guard);
        let Some(slot) = published.find_again(fault.ipa, cpu.last_slot()) else {
            return FaultOutcome::NoSlot;
        };
        let log = slot.log(guard);
        if fault.access == Access::Write
            && let Some(refusal) = self.refusal(slot, log, fault.vcpu)
        {
            return refusal;
        }
        self.resolve_in_turns(cpu, fault, guard, (published, slot, log))
    }

    /// Serves any fault, with a few attempts to look up its backing.
    fn resolve_in_turns<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        fault: &Fault,
        guard: &Guard,
        grounds: (&SlotArray, &Arc<Slot>, Option<&DirtyLog>),
    ) -> FaultOutcome {
        for _ in 0..LOOKS {
            match self.resolve(cpu, fault, guard, grounds) {
                Served::Ended(outcome) => return outcome,
                Served::Prepared => {}
            }
        }
        // What backs the page changes all the time.
        FaultOutcome::Retry
    }

    /// Serves any fault, given its grounds: the slots, the one that covers it, its log. Looks up the backing first (rule 8:
    /// after the ticket), and changes it where the access requires that.
    fn resolve<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        fault: &Fault,
        guard: &Guard,
        (published, slot, log): (&SlotArray, &Arc<Slot>, Option<&DirtyLog>),
    ) -> Served {
        let counters = cpu.fault_counters();
        let ticket = self.space().tracker().ticket(fault.ipa);
        let page = slot.object_page(fault.ipa);
        let look = slot.object().look(page);
        let Some(pa) = self.frame_for(look, slot, fault) else {
            return self.prepare(cpu, fault, guard, slot, look);
        };
        let request = request_for(slot, log, fault, look, pa);
        let (tables, epoch) = (cpu.tables(self.vm()), cpu.retirement(self.vm(), guard));
        let worker = cpu.worker(&tables, &epoch);
        let lock = self.lock().shared();
        let writable = match self.stage2().fault(&worker, &request) {
            Resolution::Vacant(broken) => {
                full_barrier();
                let level = broken.level();
                let start = broken.ipa();
                let span = start..start.offset(GRANULE.span(level));
                let unchanged = self.is_still(slot, published, guard)
                    && same_log(slot.log(guard), log)
                    && match self.space().tracker().check(ticket, &span) {
                        Verdict::Unchanged => true,
                        Verdict::LookAgain => is_as_found(slot, page, look, level, &request),
                        Verdict::Invalidated => false,
                    };
                if !fill(self.stage2(), broken, &request, unchanged) {
                    counters.retried.add(1);
                    return Served::Ended(FaultOutcome::Retry);
                }
                counters.mapped.add(1);
                // Whoever switches logging on from here on finds the entry and protects it.
                return Served::Ended(match (log, fault.access) {
                    (Some(log), Access::Write) => self.mark(slot, log, fault, level),
                    _ => FaultOutcome::Resolved,
                });
            }
            Resolution::Relaxed(level) => Some(level),
            Resolution::Split => {
                counters.split.add(1);
                if request.attributes.permissions.hardware_dirty {
                    self.untrack_for_next_log(&worker, slot, log, &request, guard);
                }
                Some(request.largest_written)
            }
            Resolution::Spurious | Resolution::Accessed => {
                counters.spurious.add(1);
                None
            }
            Resolution::Busy => {
                counters.busy.add(1);
                return Served::Ended(FaultOutcome::Retry);
            }
            Resolution::NotPermitted if fault.access == Access::Write => {
                // Its entry was left without the right to be made writable.
                drop(lock);
                return self.unshare(cpu, guard, slot, fault);
            }
            Resolution::NotPermitted => return Served::Ended(FaultOutcome::NotPermitted),
            Resolution::OutOfFrames => return Served::Ended(FaultOutcome::OutOfFrames),
            Resolution::NotInSpace => return Served::Ended(FaultOutcome::NoSlot),
        };
        Served::Ended(match writable {
            Some(level) => self.mark_after_write(slot, fault, level, guard),
            None => FaultOutcome::Resolved,
        })
    }

    /// Whether a slot still belongs to the VM: compares the slot arrays, and searches only if they differ.
    #[inline]
    fn is_still(&self, slot: &Arc<Slot>, published: &SlotArray, guard: &Guard) -> bool {
        let now = self.slots(guard);
        ptr::eq(now, published)
            || now
                .find(slot.range().start)
                .is_some_and(|found| Arc::ptr_eq(found, slot))
    }

    /// The frame that can serve an access at once.
    #[inline]
    fn frame_for(&self, look: Look, slot: &Slot, fault: &Fault) -> Option<Pa> {
        let writes = fault.access == Access::Write;
        match look.backing() {
            _ if look.is_claimed() => None,
            Backing::Owned(pa) | Backing::Device(pa) => Some(pa),
            Backing::Shared(pa) if !writes => Some(pa),
            Backing::Zero if !writes && !slot.config().write_faults => {
                Some(slot.object().system().zeros())
            }
            Backing::Vacant | Backing::Zero | Backing::Shared(_) | Backing::Compressed(_) => None,
        }
    }

    /// Changes the backing so that an access can be served.
    #[cold]
    fn prepare<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        fault: &Fault,
        guard: &Guard,
        slot: &Slot,
        look: Look,
    ) -> Served {
        let counters = cpu.fault_counters();
        let (object, page) = (slot.object(), slot.object_page(fault.ipa));
        if look.is_claimed() {
            counters.claimed.add(1);
            return Served::Ended(FaultOutcome::Retry);
        }
        match look.backing() {
            Backing::Vacant if slot.reads_zeros(fault.access, look) => {
                counters.zeros.add(u64::from(object.note_read(page)));
                Served::Prepared
            }
            Backing::Vacant => {
                let populated = object.populate(cpu, page, self.space().change_mode());
                served(populated, &counters.populated)
            }
            Backing::Compressed(_) => {
                let brought_back = object.bring_back(cpu, page, self.space().change_mode());
                served(brought_back, &counters.brought_back)
            }
            _ => self.unshare(cpu, guard, slot, fault),
        }
    }

    /// Gives a written page a frame of its own, or lets its entries be made writable.
    #[cold]
    fn unshare<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        guard: &Guard,
        slot: &Slot,
        fault: &Fault,
    ) -> Served {
        let changer = Changer { cpu, guard };
        let (object, page) = (slot.object(), slot.object_page(fault.ipa));
        let mode = self.space().change_mode();
        match changer.unshare(object, page, mode) {
            Unshared::Copied => {
                cpu.fault_counters().unshared.add(1);
                match self.space().change() {
                    Change::Direct => Served::Prepared,
                    Change::Unmap => Served::Ended(FaultOutcome::Retry),
                }
            }
            Unshared::Reused => {
                cpu.fault_counters().reused.add(1);
                Served::Prepared
            }
            Unshared::Busy => Served::Ended(FaultOutcome::Retry),
            Unshared::OutOfFrames => Served::Ended(FaultOutcome::OutOfFrames),
        }
    }

    #[cold]
    fn ring_is_full(&self, vcpu: usize) -> bool {
        self.rings().of(vcpu).is_some_and(DirtyRing::is_full)
    }

    /// Corrects a split after which hardware tracks the pieces: if a log with write protection has meanwhile replaced the one
    /// that the split was for, hardware tracking is switched off again. That log began before the split, or has seen it (rule
    /// 8).
    #[cold]
    fn untrack_for_next_log<T: Tlb>(
        &self,
        worker: &Worker<'_, Tables<'_>, T, Retirement<'_>>,
        slot: &Slot,
        log: Option<&DirtyLog>,
        request: &Request,
        guard: &Guard,
    ) {
        full_barrier();
        let now = slot.log(guard);
        let (Some(next), false) = (now, same_log(now, log)) else {
            return;
        };
        if next.policy().by_hardware() {
            return;
        }
        let above = match request.largest_written {
            Level::L3 => Level::L2,
            _ => Level::L1,
        };
        let start = request.ipa.align_down(GRANULE.span(above));
        self.stage2()
            .write_protect(
                worker,
                start..start.offset(GRANULE.span(above)),
                All,
                |ipa, level| next.mark(slot.pages_of(ipa, level)),
            )
            .expect(IN_SPACE);
    }

    /// Marks pages that have just become writable, if writes are logged by now. The entry comes first, the bit second (rule 9);
    /// logging that was enabled in between is seen here or sees the entry (rule 8).
    #[inline(always)]
    fn mark_after_write(
        &self,
        slot: &Slot,
        fault: &Fault,
        level: Level,
        guard: &Guard,
    ) -> FaultOutcome {
        full_barrier();
        match slot.log(guard) {
            Some(log) => self.mark(slot, log, fault, level),
            None => FaultOutcome::Resolved,
        }
    }

    /// Reports a write through a leaf of this level to the log.
    #[inline(always)]
    fn mark(&self, slot: &Slot, log: &DirtyLog, fault: &Fault, level: Level) -> FaultOutcome {
        if level == Level::L3 && !log.by_ring() {
            log.mark_page(slot.page_of(fault.ipa));
            return FaultOutcome::Resolved;
        }
        self.mark_span(slot, log, fault, level)
    }

    /// Reports a write to a block to the log, or any write to a ring.
    #[inline(never)]
    fn mark_span(&self, slot: &Slot, log: &DirtyLog, fault: &Fault, level: Level) -> FaultOutcome {
        let span = GRANULE.span(level);
        let first = slot.page_of(fault.ipa.align_down(span));
        let count = span / PAGE_SIZE;
        if log.by_ring() {
            return self.report(slot, log, fault.vcpu, first, count);
        }
        log.mark(first..first + count);
        FaultOutcome::Resolved
    }

    /// Reports a write in the vCPU's ring; or in the bitmap if the ring has no room, as logging was enabled after the ring was
    /// checked.
    fn report(
        &self,
        slot: &Slot,
        log: &DirtyLog,
        vcpu: usize,
        first: u64,
        count: u64,
    ) -> FaultOutcome {
        let pages = DirtyPages {
            slot: slot.id(),
            first,
            count,
        };
        match self.rings().of(vcpu).map(|ring| ring.push(pages)) {
            Some(Pushed::Done) => FaultOutcome::Resolved,
            Some(Pushed::SoonFull) => FaultOutcome::RingLow,
            Some(Pushed::NotFitting) | None => {
                log.mark(first..first + count);
                FaultOutcome::Resolved
            }
        }
    }
}

/// The next step of a fault whose page was populated; `counter` counts those that were given a frame.
fn served(populated: Populated, counter: &Counter) -> Served {
    match populated {
        Populated::Done => {
            counter.add(1);
            Served::Prepared
        }
        Populated::Changed => Served::Prepared,
        Populated::Busy => Served::Ended(FaultOutcome::Retry),
        Populated::OutOfFrames => Served::Ended(FaultOutcome::OutOfFrames),
    }
}

#[inline]
fn request_for(slot: &Slot, log: Option<&DirtyLog>, fault: &Fault, look: Look, pa: Pa) -> Request {
    let policy = log.map(DirtyLog::policy);
    let extent = look.extent();
    let (owned, level) = match look.backing() {
        Backing::Owned(_) if extent.read_only && fault.access == Access::Write => (true, Level::L3),
        Backing::Owned(_) => (!extent.read_only || extent.level == Level::L3, extent.level),
        Backing::Shared(_) => (false, extent.level),
        Backing::Device(_) => (true, Level::L3),
        Backing::Vacant | Backing::Zero | Backing::Compressed(_) => (false, Level::L3),
    };
    let writes = owned && !slot.read_only();
    let largest = match level {
        Level::L3 => Level::L3,
        _ => slot.largest_block(fault.ipa, look, writes),
    };
    let permissions = match (writes, policy) {
        (false, _) => Permissions::READ_ONLY,
        (true, None) => Permissions::RAM,
        (true, Some(policy)) => Permissions {
            write: fault.access == Access::Write,
            hardware_dirty: policy.by_hardware(),
            ..Permissions::LOGGED
        },
    };
    Request {
        ipa: fault.ipa,
        va: fault.va,
        access: fault.access,
        pa,
        largest: policy.map_or(largest, |policy| largest.max(policy.largest_written())),
        attributes: match look.backing() {
            Backing::Device(_) => Attributes {
                memory: MemoryType::DeviceNgnre,
                permissions: Permissions {
                    execute: Execute::Nowhere,
                    ..permissions
                },
            },
            _ => Attributes::memory(permissions),
        },
        largest_written: policy.map_or(Level::L0, LogPolicy::largest_written),
        on_block: policy.map_or(OnBlock::Split, LogPolicy::on_block),
    }
}

/// Whether a page, and the largest block that may map it, are still as found: for a leaf of `level` whose entry is locked.
fn is_as_found(slot: &Slot, page: u64, look: Look, level: Level, request: &Request) -> bool {
    let object = slot.object();
    let writes = request.attributes.permissions.may_write;
    object.look(page) == look && (level > Level::L1 || object.allows_gigabyte(page, writes))
}

/// Maps the fault's page, or restores the entry if the grounds have changed (rule 8). Returns whether it is mapped now.
#[inline]
fn fill(stage2: &Stage2, broken: Broken<'_>, request: &Request, unchanged: bool) -> bool {
    if unchanged {
        // SAFETY: what backs guests are frames of the pool, which this CPU reaches at their own addresses, and devices, which
        // were checked with their slot.
        unsafe { stage2.fill(broken, request) }.is_ok()
    } else {
        // Lost only to an unmap of the whole table, which leaves nothing to restore.
        let _ = broken.restore();
        false
    }
}

/// Whether logging is unchanged: still off, or into the same log.
#[inline]
fn same_log(now: Option<&DirtyLog>, before: Option<&DirtyLog>) -> bool {
    now.map(ptr::from_ref) == before.map(ptr::from_ref)
}
