//! State for working on the memory of VMs: [`MemorySystem`] is shared by all CPUs, [`cpu`] has each CPU's own. Holds no policy;
//! the modules above decide.

pub(crate) mod counters;
pub(crate) mod cpu;
pub(crate) mod page_lists;
pub(crate) mod reclaim_state;
pub(crate) mod reverse_map;
pub(crate) mod scan_cursor;
pub(crate) mod trust_domains;

use self::counters::{Count, ReclaimCounters};
use self::cpu::CpuMemory;
use self::reclaim_state::ReclaimState;
use self::reverse_map::ReverseMap;
use self::scan_cursor::ScanCursor;
use self::trust_domains::TrustDomains;
use crate::epoch::gate::Gate;
use crate::frames::compressed_store::{Store, StoreCounts};
use crate::frames::watermarks::{IdleCpus, Watermarks};
use crate::frames::{FramePool, VmId};
use alloc::boxed::Box;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use crossbeam_epoch::{Collector, LocalHandle};
use spin::{Mutex, Once};
use stage2::{Layout, Pa, TooFewVmids, VmidAllocator};

/// Free frames reserved for the compressed store, if there are enough.
const KEPT: u64 = 64;

/// The state that all CPUs share to work on the memory of VMs. The fault path only reads it, except for the epoch's upkeep.
#[derive(Debug)]
pub struct MemorySystem {
    pool: &'static FramePool,
    collector: Collector,
    gate: Gate,
    objects: ReverseMap,
    reclaim: Box<ReclaimState>,
    trust: TrustDomains,
    /// The frame of zeros, allocated for the first object.
    zeros: Once<Pa>,
    /// Where the search for runs of frames to clear continues.
    next_to_clear: AtomicU64,
    /// Where the search for fragmented regions continues, and how many were compacted.
    gathering: Mutex<ScanCursor>,
    gathered: Count,
    /// CPUs that haven't registered yet.
    to_come: AtomicUsize,
    vmids: VmidAllocator,
    /// Whether there is, or has been, a VM whose guest can write past the data caches. Its writes may be in anybody's memory by
    /// now: shared frames outlive it.
    past_caches: AtomicBool,
}

impl MemorySystem {
    /// For a machine of `cpus` CPUs with `vmid_bits` bits of VMID (8 or 16), the same for the CPUs and for all layouts that
    /// they use ([`stage2::Features::wide_vmids`]).
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

    /// As [`Self::new`], with the given allocator of VMIDs. It is a large value; this constructs the system in place.
    #[inline(always)]
    pub fn with_vmids(pool: &'static FramePool, cpus: usize, vmids: VmidAllocator) -> Self {
        Self {
            pool,
            collector: Collector::new(),
            gate: Gate::default(),
            objects: ReverseMap::new(pool),
            reclaim: ReclaimState::new(pool),
            trust: TrustDomains::new(),
            zeros: Once::new(),
            next_to_clear: AtomicU64::new(0),
            gathering: Mutex::new(ScanCursor::new()),
            gathered: Count::default(),
            to_come: AtomicUsize::new(cpus),
            vmids,
            past_caches: AtomicBool::new(false),
        }
    }

    /// Makes `vm` trust `other` and all VMs that trust it: their equal pages may be merged, by which each can find out the
    /// others' contents (`trust`). A new VM trusts nobody, except that a fork trusts its parent.
    ///
    /// `vm` leaves the VMs that it trusted before. VMs that had joined it stay there: they continue to trust each other, but
    /// not `vm`. Pages that are merged already stay so until they are written.
    pub fn trust(&self, vm: VmId, other: VmId) {
        self.trust.join(vm, other);
    }

    /// Which VMs trust each other.
    pub(crate) fn trust_domains(&self) -> &TrustDomains {
        &self.trust
    }

    /// Notes that a VM is created whose tables don't force write-back (FEAT_S2FWB). Relaxed: a CPU that reads the VM's memory
    /// has got it from the VM through stronger ordering.
    pub(crate) fn note_layout(&self, layout: &Layout) {
        if !layout.features().fwb {
            self.past_caches.store(true, Ordering::Relaxed);
        }
    }

    /// Whether memory may contain writes that bypassed the data caches.
    #[inline]
    pub(crate) fn is_written_past_caches(&self) -> bool {
        self.past_caches.load(Ordering::Relaxed)
    }

    /// The address at which the search for runs of frames to clear continues.
    pub(crate) fn next_to_clear(&self) -> &AtomicU64 {
        &self.next_to_clear
    }

    /// The position at which the search for fragmented regions continues.
    pub(crate) fn gathering(&self) -> &Mutex<ScanCursor> {
        &self.gathering
    }

    /// Regions that idle CPUs have compacted into blocks since the system was made.
    pub fn gathered(&self) -> &Count {
        &self.gathered
    }

    /// All memory objects.
    pub(crate) fn objects(&self) -> &ReverseMap {
        &self.objects
    }

    /// Enables reclaim ahead of need, by these watermarks; `None`: no page is ever compressed.
    pub fn set_watermarks(&self, watermarks: Option<Watermarks>) {
        self.reclaim.levels.set(watermarks);
        let kept = watermarks.map_or(0, |watermarks| KEPT.min(watermarks.low / 2));
        self.pool().keep_for_compressed(kept);
    }

    /// Registers the CPUs to wake when memory is short: once, for ever.
    pub fn set_idle_cpus(&self, cpus: &'static dyn IdleCpus) {
        self.reclaim.levels.set_idle_cpus(cpus);
    }

    /// The counters of reclaim.
    pub fn reclaim_counters(&self) -> &ReclaimCounters {
        self.reclaim.counters()
    }

    /// How many pages are listed as active and as inactive.
    pub fn listed_pages(&self) -> (u64, u64) {
        self.reclaim.lists.lock().lengths()
    }

    /// The current contents of the compressed store.
    pub fn compressed(&self) -> StoreCounts {
        self.store().counts()
    }

    pub(crate) fn store(&self) -> &Store {
        self.reclaim.store()
    }

    pub(crate) fn pool(&self) -> &'static FramePool {
        self.pool
    }

    /// The state of reclaim.
    pub(crate) fn reclaim(&self) -> &ReclaimState {
        &self.reclaim
    }

    /// The frame of zeros. It exists as soon as there is an object.
    #[inline]
    pub(crate) fn zeros(&self) -> Pa {
        self.zeros.get().copied().unwrap_or(Pa::new(0))
    }

    /// Checks that a CPU belongs to this memory system, whose epoch protects all of it.
    ///
    /// # Panics
    /// The CPU belongs to another one.
    pub(crate) fn check<T>(&self, cpu: &CpuMemory<T>) {
        assert!(
            core::ptr::eq(self, cpu.system()),
            "a CPU of another memory system"
        );
    }

    /// Registers a CPU with the epoch. Once the last one has registered, faults don't scan other CPUs' participants any more.
    fn register(&self) -> LocalHandle {
        let handle = self.collector.register();
        // AcqRel: the gate comes after all of them.
        if self.to_come.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.gate.close(&self.collector);
        }
        handle
    }
}
