//! What one CPU brings to the memory of VMs: its cache of frames, its place in the epoch, its TLB instructions, its
//! counters. Nothing here is shared, so a fault that uses it touches no other CPU's cache lines.

use crate::frames::{FrameCache, FramePool, FrameSize, MOST_PENDING, Owner, Purpose, VmId, zero};
use crate::gate::Gate;
use crate::hand::Hand;
use crate::pressure::{Count, Pressure};
use crate::published::{defer, hand_over};
use crate::reclaim::{Retirement, Tables};
use crate::reverse::Objects;
use crate::trust::TrustDomains;
use alloc::boxed::Box;
use alloc::sync::Arc;
use core::cell::Cell;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use crossbeam_epoch::{Collector, Guard, LocalHandle};
use spin::{Mutex, Once};
use stage2::{
    Counter, Counters, Instructions, Layout, Maintenance, NoTlb, PAGE_SIZE, Pa, Tlb, TooFewVmids,
    VmidAllocator, VmidHolder, Worker,
};

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

/// How one CPU's faults ended, counted.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct FaultCounters {
    /// A page or block was mapped where nothing was.
    pub mapped: Counter,
    /// A block was split.
    pub split: Counter,
    /// Nothing was to be done: another CPU was first.
    pub spurious: Counter,
    /// The entry was locked by another CPU for too long.
    pub busy: Counter,
    /// The grounds for the fault had changed when its entry was locked.
    pub retried: Counter,
    /// Somebody else was changing what backs the page.
    pub claimed: Counter,
    /// What nobody had touched was given a frame.
    pub populated: Counter,
    /// What nobody had written was mapped to the frame of zeros.
    pub zeros: Counter,
    /// What was shared was copied to a frame of its own.
    pub unshared: Counter,
    /// The frame that a page had became its own again.
    pub reused: Counter,
    /// What was put away was brought back.
    pub brought_back: Counter,
}

impl FaultCounters {
    /// Calls `each` with every counter's name and value.
    pub fn for_each(&self, mut each: impl FnMut(&'static str, u64)) {
        each("faults_mapped", self.mapped.get());
        each("faults_split", self.split.get());
        each("faults_spurious", self.spurious.get());
        each("faults_busy", self.busy.get());
        each("faults_retried", self.retried.get());
        each("faults_claimed", self.claimed.get());
        each("faults_populated", self.populated.get());
        each("faults_zeros", self.zeros.get());
        each("faults_unshared", self.unshared.get());
        each("faults_reused", self.reused.get());
        each("faults_brought_back", self.brought_back.get());
    }
}

/// One CPU's means to work on the memory of VMs. Used only by that CPU; its counters may be read by any.
pub struct CpuMemory<T> {
    number: usize,
    system: &'static MemorySystem,
    cache: FrameCache,
    epoch: LocalHandle,
    hardware: T,
    counters: &'static CpuCounters,
    /// Whether the epoch that this CPU waits for has passed. Made once, so that a wait needs no heap.
    passed: Arc<AtomicBool>,
    /// Where in its VM's array the slot is that a fault has found last.
    last_slot: Cell<usize>,
}

/// What all CPUs share to work on the memory of VMs. Read-only in the fault path, but for the epoch's own upkeep.
#[derive(Debug)]
pub struct MemorySystem {
    pool: &'static FramePool,
    collector: Collector,
    gate: Gate,
    objects: Objects,
    pressure: Box<Pressure>,
    trust: TrustDomains,
    /// The frame of zeros, once an object needs it.
    zeros: Once<Pa>,
    /// Where the search for runs of frames goes on that can be cleared.
    next_to_clear: AtomicU64,
    /// Where the search goes on for what can be gathered, and what was.
    gathering: Mutex<Hand>,
    gathered: Count,
    /// CPUs that have yet to register.
    to_come: AtomicUsize,
    vmids: VmidAllocator,
    /// Whether there is, or has been, a VM whose guest can write past the data caches. What it wrote may be anybody's
    /// by now: frames that were shared outlive it.
    past_caches: AtomicBool,
}

impl MemorySystem {
    /// For a machine of `cpus` CPUs with `vmid_bits` bits of VMID (8 or 16): of the CPUs, and of all layouts that they
    /// use ([`stage2::Features::wide_vmids`]).
    ///
    /// # Errors
    /// There are too few VMIDs for so many CPUs.
    pub fn new(pool: &'static FramePool, cpus: usize, vmid_bits: u32) -> Result<Self, TooFewVmids> {
        Ok(Self::with_vmids(
            pool,
            cpus,
            VmidAllocator::new(cpus, vmid_bits)?,
        ))
    }

    /// As [`Self::new`], with the allocator of VMIDs. It is a large value, which this makes where it is to be.
    #[inline(always)]
    pub fn with_vmids(pool: &'static FramePool, cpus: usize, vmids: VmidAllocator) -> Self {
        Self {
            pool,
            collector: Collector::new(),
            gate: Gate::default(),
            objects: Objects::new(pool),
            pressure: Pressure::new(pool),
            trust: TrustDomains::new(),
            zeros: Once::new(),
            next_to_clear: AtomicU64::new(0),
            gathering: Mutex::new(Hand::new()),
            gathered: Count::default(),
            to_come: AtomicUsize::new(cpus),
            vmids,
            past_caches: AtomicBool::new(false),
        }
    }

    /// Has `vm` trust `other` and all VMs that trust it: their equal pages may be merged, by which each can find out what the
    /// others hold (`trust`). A VM that is made trusts nobody, or its parent if it is a fork.
    ///
    /// `vm` leaves those that it trusted before. VMs that had joined it don't come along: they go on trusting each other, and
    /// not `vm`. Pages that were merged by then stay so until they are written.
    pub fn trust(&self, vm: VmId, other: VmId) {
        self.trust.join(vm, other);
    }

    /// Which VMs trust each other.
    pub(crate) fn trust_domains(&self) -> &TrustDomains {
        &self.trust
    }

    /// Notes that a VM is made whose tables don't force write-back (FEAT_S2FWB). Relaxed: whoever reads its memory has
    /// got that from it by what orders more.
    pub(crate) fn note_layout(&self, layout: &Layout) {
        if !layout.features().fwb {
            self.past_caches.store(true, Ordering::Relaxed);
        }
    }

    /// Whether memory may hold what a guest has written past the data caches.
    #[inline]
    pub(crate) fn is_written_past_caches(&self) -> bool {
        self.past_caches.load(Ordering::Relaxed)
    }

    /// Where the search for runs of frames goes on that can be cleared: an address, to begin at.
    pub(crate) fn next_to_clear(&self) -> &AtomicU64 {
        &self.next_to_clear
    }

    /// Where the search goes on for regions that can become blocks again.
    pub(crate) fn gathering(&self) -> &Mutex<Hand> {
        &self.gathering
    }

    /// Regions that have become blocks again by themselves, since the system was made.
    pub fn gathered(&self) -> &Count {
        &self.gathered
    }

    /// All memory objects.
    pub(crate) fn objects(&self) -> &Objects {
        &self.objects
    }

    pub(crate) fn pool(&self) -> &'static FramePool {
        self.pool
    }

    /// What reclaim knows.
    pub(crate) fn pressure(&self) -> &Pressure {
        &self.pressure
    }

    /// The frame of zeros. There is one as soon as there is an object.
    #[inline]
    pub(crate) fn zeros(&self) -> Pa {
        self.zeros.get().copied().unwrap_or(Pa::new(0))
    }

    /// What is used together is of one memory system, whose epoch holds for all of it.
    ///
    /// # Panics
    /// The CPU is of another one.
    pub(crate) fn check<T>(&self, cpu: &CpuMemory<T>) {
        assert!(
            core::ptr::eq(self, cpu.system),
            "a CPU of another memory system"
        );
    }

    /// Makes a CPU take part in the epochs. From the last one on, faults look at no other CPU's place in them.
    fn register(&self) -> LocalHandle {
        let handle = self.collector.register();
        // AcqRel: the gate comes after all of them.
        if self.to_come.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.gate.close(&self.collector);
        }
        handle
    }
}

/// What a CPU counts, for others to read.
#[derive(Debug, Default)]
pub struct CpuCounters {
    /// The engine's.
    pub stage2: Counters,
    /// The faults'.
    pub faults: FaultCounters,
}

impl CpuCounters {
    /// Calls `each` with every counter's name and value.
    pub fn for_each(&self, mut each: impl FnMut(&'static str, u64)) {
        self.faults.for_each(&mut each);
        each("faults_relaxed", self.relaxed());
        self.stage2.for_each(each);
    }

    /// Faults by which a mapping was made writable: entries are made so by nothing else.
    pub fn relaxed(&self) -> u64 {
        self.stage2.relaxed.get()
    }
}

impl<T> CpuMemory<T> {
    /// For the calling CPU, `number` among those of `system`, which takes part in the epochs from now on. Its cache of
    /// frames is filled.
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

    /// What all CPUs share.
    pub fn system(&self) -> &'static MemorySystem {
        self.system
    }

    /// Where faults look for their slot first. A guess: the array may be another one by now.
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

    /// The VM whose limit was in the way of [`Self::take_guest`], since this was asked last.
    pub(crate) fn take_denied(&self) -> Option<VmId> {
        self.cache.take_denied()
    }

    /// Lets a VM with a limit take some more frames here, and has an idle CPU woken if it comes near to its limit. Whether
    /// it may.
    pub(crate) fn renew_allowance(&self, vm: VmId) -> bool {
        let room = self.cache.renew_allowance(vm);
        self.system.pressure().note_room(self.pool(), vm, room);
        room > 0
    }

    /// Charges a frame of guest memory to another owner.
    pub(crate) fn recharge(&self, from: Owner, to: Owner) {
        self.cache.recharge(from, to, 1);
    }

    /// Gives up a frame of guest memory, charged to `owner`, that no entry leads to any more: it is free after an epoch.
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

    /// Fills the cache of frames from the pool, under the pool's lock, and has an idle CPU woken if few are left there.
    /// Whether there is a frame in it afterwards.
    pub fn refill(&self) -> bool {
        let filled = self.cache.refill();
        self.system.pressure().note_free(self.cache.left_free());
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

    /// A bounded share of housekeeping, for an exit that is not a fault or after a fault is served.
    #[cold]
    pub fn upkeep(&self) {
        self.system.gate.step();
        self.refill();
    }

    /// Hands this CPU's garbage to the epoch, lets that advance by a step, and frees what has passed it.
    pub(crate) fn let_epoch_advance(&self) {
        self.system.gate.step();
        hand_over(&self.pin());
    }

    /// For whoever is about to unlink tables: waits until few enough await their epoch ([`MOST_PENDING`]). The caller holds
    /// no guard. CPUs leave the epoch before they run a guest or wait for anybody, so this isn't long.
    pub(crate) fn settle(&self) {
        while self.pool().pending() > MOST_PENDING {
            self.let_epoch_advance();
            stage2::sync::relax();
        }
        self.pool().reclaim_released();
    }

    /// Waits until every CPU that is in the epoch now has left it once, and what was deferred before has been done.
    /// The caller holds no guard.
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

/// Lets CPUs leave the epoch that others wait for, after so many looks whether they have.
#[cfg(not(loom))]
fn wait_for_others(_: u32) {
    stage2::sync::relax();
}

/// The model checker's CPUs take turns. An epoch in which there is nobody else passes within a few looks, and how many isn't
/// the checker's business; after that another CPU has to run.
#[cfg(loom)]
fn wait_for_others(looks: u32) {
    const LOOKS_ALONE: u32 = 64;
    if looks > LOOKS_ALONE {
        stage2::sync::relax();
    }
}

impl<T: Caches> CpuMemory<T> {
    /// Before guest memory is read or written in part by the hypervisor: drops cache lines that are older than what
    /// guests have written past the caches. What vCPUs may write meanwhile may be missed; where it matters, they can't
    /// any more. Nothing to do where no guest can look past the caches.
    #[inline]
    pub(crate) fn drop_stale_lines(&self, pa: Pa, bytes: u64) {
        if self.system.is_written_past_caches() {
            self.hardware.clean_for_hypervisor(pa, bytes);
        }
    }

    /// Sees to it that there is a frame that backs what guests have read and nobody has written. `None` where there is none
    /// to be had.
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
    /// Gives the VM a VMID that is good on this CPU, which is about to run it.
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
