//! One CPU's own state for working on VMs' memory: its frame cache, its epoch participant, its TLB instructions, its counters.
//! Nothing here is shared, so a fault that uses it touches no other CPU's cache lines.

use crate::epoch::published::{defer, hand_over};
use crate::frames::tables::{Retirement, Tables};
use crate::frames::{FrameCache, FramePool, FrameSize, MOST_PENDING, Owner, Purpose, VmId, zero};
use crate::system::MemorySystem;
use crate::system::counters::{CpuCounters, FaultCounters};
use alloc::sync::Arc;
use core::cell::Cell;
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};
use crossbeam_epoch::{Guard, LocalHandle};
use stage2::{Instructions, Maintenance, NoTlb, PAGE_SIZE, Pa, Tlb, VmidHolder, Worker};

/// The machine's caches, as far as guests with their MMU off can see past them.
pub trait Caches {
    /// Makes what was written at `pa` visible to non-cacheable accesses and to instruction fetches (clean and invalidate
    /// to the point of coherency, then the instruction caches).
    fn clean_for_guest(&self, pa: Pa, bytes: u64);

    /// Makes what was written at `pa` visible to instruction fetches (clean to the point of unification, then the
    /// instruction caches): all there is to do where stage 2 forces write-back (FEAT_S2FWB), as no guest can look past the
    /// data caches then.
    fn clean_for_fetches(&self, pa: Pa, bytes: u64) {
        self.clean_for_guest(pa, bytes);
    }

    /// Makes what was written at `pa` past the data caches visible to the hypervisor, which reads through them (clean
    /// and invalidate to the point of coherency): they may hold lines from before.
    fn clean_for_hypervisor(&self, pa: Pa, bytes: u64) {
        self.clean_for_guest(pa, bytes);
    }
}

impl<I: Instructions + Caches> Caches for Maintenance<I> {
    fn clean_for_guest(&self, pa: Pa, bytes: u64) {
        self.instructions().clean_for_guest(pa, bytes);
    }

    fn clean_for_fetches(&self, pa: Pa, bytes: u64) {
        self.instructions().clean_for_fetches(pa, bytes);
    }

    fn clean_for_hypervisor(&self, pa: Pa, bytes: u64) {
        self.instructions().clean_for_hypervisor(pa, bytes);
    }
}

impl Caches for NoTlb {
    fn clean_for_guest(&self, _: Pa, _: u64) {}
}

/// One CPU's state for working on the memory of VMs. Used only by that CPU; any CPU may read its counters.
pub struct CpuMemory<T> {
    number: usize,
    system: &'static MemorySystem,
    cache: FrameCache,
    epoch: LocalHandle,
    hardware: T,
    counters: &'static CpuCounters,
    /// Whether the epoch that this CPU waits for has passed. Allocated once, so that a wait needs no heap.
    passed: Arc<AtomicBool>,
    /// The position of the slot that the last fault found in its VM's array.
    last_slot: Cell<usize>,
}

impl<T> CpuMemory<T> {
    /// For the calling CPU, `number` among those of `system`, which takes part in the epochs from now on. Fills its frame
    /// cache.
    pub fn new(
        system: &'static MemorySystem,
        number: usize,
        hardware: T,
        counters: &'static CpuCounters,
    ) -> Self {
        let cache = FrameCache::new(system.pool);
        let cpu = Self {
            number,
            system,
            cache,
            epoch: system.register(),
            hardware,
            counters,
            passed: Arc::default(),
            last_slot: Cell::new(0),
        };
        cpu.refill();
        cpu
    }

    /// The global pool of frames.
    pub fn pool(&self) -> &'static FramePool {
        self.system.pool
    }

    /// The TLB and cache instructions.
    pub fn hardware(&self) -> &T {
        &self.hardware
    }

    /// Enters the epoch (rule 7). Not to be held while a guest runs, or while waiting for anybody.
    #[inline]
    pub fn pin(&self) -> Guard {
        let guard = self.epoch.pin();
        // The model checker doesn't see the epoch's own barrier.
        #[cfg(loom)]
        stage2::sync::full_barrier();
        guard
    }

    /// Its number among the CPUs of the system.
    pub(crate) fn number(&self) -> usize {
        self.number
    }

    /// The state that all CPUs share.
    pub fn system(&self) -> &'static MemorySystem {
        self.system
    }

    /// The position at which a fault looks for its slot first. A hint: the array may be another one by now.
    #[inline]
    pub(crate) fn last_slot(&self) -> &Cell<usize> {
        &self.last_slot
    }

    #[inline]
    pub(crate) fn fault_counters(&self) -> &'static FaultCounters {
        &self.counters.faults
    }

    /// A zeroed frame for guest memory, charged to `owner`; `None` where this CPU's cache has none.
    #[inline]
    pub(crate) fn take_guest(&self, owner: Owner) -> Option<Pa> {
        self.cache.take_guest(owner)
    }

    /// The VM whose limit refused [`Self::take_guest`] a frame since the last call.
    pub(crate) fn take_denied(&self) -> Option<VmId> {
        self.cache.take_denied()
    }

    /// Renews the allowance of a VM with a limit here, and has an idle CPU woken if the VM nears its limit. Returns whether it
    /// got any.
    pub(crate) fn renew_allowance(&self, vm: VmId) -> bool {
        let room = self.cache.renew_allowance(vm);
        self.system.reclaim().note_room(self.pool(), vm, room);
        room > 0
    }

    /// Notes that many frames were taken from the pool for `owner`.
    pub(crate) fn note_taken(&self, owner: Owner) {
        let (pressure, pool) = (self.system().reclaim(), self.pool());
        if !pressure.levels.is_on() {
            return;
        }
        pressure.note_free(pool.free_frames());
        if let Owner::Vm(vm) = owner
            && let Some(room) = pool.room(vm)
        {
            pressure.note_room(pool, vm, room);
        }
    }

    /// Charges a frame of guest memory to another owner.
    pub(crate) fn recharge(&self, from: Owner, to: Owner) {
        self.cache.recharge(from, to, 1);
    }

    /// Retires a frame of guest memory, charged to `owner`, that no entry leads to any more: it is free after an epoch.
    pub(crate) fn retire_guest(&self, guard: &Guard, pa: Pa, owner: Owner) {
        let pool = self.pool();
        pool.guest_leaving(owner, 1);
        // SAFETY: no page refers to the frame, its invalidation is complete, and the epoch has passed when this runs.
        defer(guard, move || unsafe { pool.release_guest(pa) });
    }

    /// Frames for the tables of `vm`.
    pub(crate) fn tables(&self, vm: VmId) -> Tables<'_> {
        Tables {
            cache: &self.cache,
            vm,
            reserve: None,
        }
    }

    /// Deferred frees for the tables of `vm`.
    pub(crate) fn retirement<'g>(&self, vm: VmId, guard: &'g Guard) -> Retirement<'g> {
        Retirement {
            guard,
            pool: self.system.pool,
            vm,
        }
    }

    /// Fills the frame cache from the pool, under the pool's lock, and has an idle CPU woken if few frames are left there.
    /// Returns whether the cache has a frame afterwards.
    pub fn refill(&self) -> bool {
        let filled = self.cache.refill();
        self.system.reclaim().note_free(self.cache.left_free());
        filled
    }

    /// Frames in this CPU's cache.
    pub(crate) fn cached_frames(&self) -> usize {
        self.cache.len()
    }

    /// Whether it is time for [`Self::upkeep`]: the cache of frames runs low.
    #[inline]
    pub fn needs_upkeep(&self) -> bool {
        self.cache.is_low()
    }

    /// A bounded step of housekeeping, for an exit that is not a fault or after a fault is served.
    #[cold]
    pub fn upkeep(&self) {
        self.system.gate.step();
        self.refill();
    }

    /// Passes this CPU's retired memory to the epoch: from now on any CPU frees it once the epoch has passed.
    pub fn hand_over_retired(&self) {
        hand_over(&self.pin());
    }

    /// Passes this CPU's retired memory to the epoch, lets the epoch advance by a step, and frees what it has released.
    pub(crate) fn let_epoch_advance(&self) {
        self.system.gate.step();
        hand_over(&self.pin());
    }

    /// For a caller that is about to unlink tables: waits until few enough wait for their epoch ([`MOST_PENDING`]). The caller
    /// holds no guard. CPUs leave the epoch before they run a guest or wait for anybody, so this isn't long.
    pub(crate) fn settle(&self) {
        while self.pool().pending() > MOST_PENDING {
            self.let_epoch_advance();
            stage2::sync::relax();
        }
        self.pool().reclaim_released();
    }

    /// Waits until every CPU that is in the epoch now has left it once, and all earlier deferred work is done. The caller holds
    /// no guard.
    pub fn wait_for_epoch(&self) {
        let signal = self.passed.clone();
        defer(&self.pin(), move || signal.store(true, Ordering::Release));
        let mut turns = 0;
        // One wait at a time is this CPU's; the next one begins from false again.
        while !self.passed.swap(false, Ordering::Acquire) {
            self.let_epoch_advance();
            turns += 1;
            wait_for_others(turns);
        }
        self.pool().reclaim_released();
    }
}

/// Gives other CPUs time to leave the epoch, after `looks` checks.
#[cfg(not(loom))]
fn wait_for_others(_: u32) {
    stage2::sync::relax();
}

/// The model checker's CPUs take turns. An epoch without other CPUs passes within a few looks, whose number isn't the checker's
/// business; after that another CPU has to run.
#[cfg(loom)]
fn wait_for_others(looks: u32) {
    const LOOKS_ALONE: u32 = 64;
    if looks > LOOKS_ALONE {
        stage2::sync::relax();
    }
}

impl<T: Caches> CpuMemory<T> {
    /// Drops stale cache lines before the hypervisor reads guest memory or writes a part of it: lines older than guest writes
    /// that bypassed the caches. Concurrent vCPU writes may be missed; where it matters, there can't be any. Does nothing if no
    /// guest can bypass the caches.
    #[inline]
    pub(crate) fn drop_stale_lines(&self, pa: Pa, bytes: u64) {
        if self.system.is_written_past_caches() {
            self.hardware.clean_for_hypervisor(pa, bytes);
        }
    }

    /// Makes sure that the frame of zeros exists, which backs pages that guests have read and nobody has written. `None`
    /// without a frame.
    pub(crate) fn prepare_zeros(&self) -> Option<()> {
        let prepared = self.system.zeros.try_call_once(|| {
            let page = FrameSize::Page4K;
            let pa = self.pool().allocate(page, Owner::Hypervisor, Purpose::Heap);
            let pa = pa.ok_or(())?;
            // SAFETY: the frame has just come from the pool, whose memory is mapped.
            unsafe { zero(pa, PAGE_SIZE) };
            self.hardware.clean_for_guest(pa, PAGE_SIZE);
            Ok::<_, ()>(pa)
        });
        prepared.ok().map(|_| ())
    }
}

impl<T: Tlb> CpuMemory<T> {
    /// Gives the VM a VMID that is valid on this CPU, which is about to run it.
    pub(crate) fn activate(&self, holder: &VmidHolder) {
        self.system
            .vmids
            .activate(self.number, holder, &self.hardware);
    }

    pub(crate) fn worker<'w>(
        &'w self,
        tables: &'w Tables<'w>,
        epoch: &'w Retirement<'w>,
    ) -> Worker<'w, Tables<'w>, T, Retirement<'w>> {
        Worker {
            memory: tables,
            tlb: &self.hardware,
            epoch,
            counters: &self.counters.stage2,
        }
    }
}

impl<T> fmt::Debug for CpuMemory<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CpuMemory")
            .field("cache", &self.cache)
            .finish_non_exhaustive()
    }
}
