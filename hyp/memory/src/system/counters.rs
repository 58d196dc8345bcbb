//! Counters for others to read: each CPU's own, and the common ones of reclaim.

use core::sync::atomic::{AtomicU64, Ordering};
use stage2::{Counter, Counters};

/// The counters of a CPU, for others to read.
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

    /// Faults that made a mapping writable: nothing else makes entries writable.
    pub fn relaxed(&self) -> u64 {
        self.stage2.relaxed.get()
    }
}

/// Counts how one CPU's faults ended.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct FaultCounters {
    /// A page or block was mapped where nothing was.
    pub mapped: Counter,
    /// A block was split.
    pub split: Counter,
    /// Nothing was left to do: another CPU was first.
    pub spurious: Counter,
    /// The entry was locked by another CPU for too long.
    pub busy: Counter,
    /// The grounds for the fault had changed when its entry was locked.
    pub retried: Counter,
    /// Another CPU was changing the page's backing.
    pub claimed: Counter,
    /// An untouched page was given a frame.
    pub populated: Counter,
    /// An unwritten page was mapped to the frame of zeros.
    pub zeros: Counter,
    /// A shared page was copied to a frame of its own.
    pub unshared: Counter,
    /// A page became the sole owner of its frame again.
    pub reused: Counter,
    /// A compressed page was decompressed.
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

/// A counter that any CPU adds to, outside of faults except those that have run out of frames.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self, by: u64) {
        self.0.fetch_add(by, Ordering::Relaxed);
    }

    /// The number.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counters of reclaim since the system was made, in pages unless stated otherwise.
#[derive(Debug, Default)]
pub struct ReclaimCounters {
    /// Found by the scan cursor.
    pub found: Count,
    /// Inactive pages that were looked at.
    pub scanned: Count,
    /// Those among them that were accessed, and became active.
    pub activated: Count,
    /// Active pages that became inactive.
    pub deactivated: Count,
    /// Compressed.
    pub compressed: Count,
    /// Dropped, as they held only zeros.
    pub zeros: Count,
    /// Kept, as they are incompressible.
    pub incompressible: Count,
    /// Kept, as there was no room for their compressed form.
    pub no_room: Count,
    /// Blocks that were split.
    pub split: Count,
    /// Batches of pages that were unmapped together.
    pub batches: Count,
    /// Requests to wake an idle CPU.
    pub wakes: Count,
    /// Steps that idle CPUs took.
    pub idle_steps: Count,
    /// Steps that faults took themselves.
    pub direct_steps: Count,
    /// Given back by guests.
    pub ballooned: Count,
}

impl ReclaimCounters {
    /// Calls `each` with every counter's name and value.
    pub fn for_each(&self, mut each: impl FnMut(&'static str, u64)) {
        each("reclaim_found", self.found.get());
        each("reclaim_scanned", self.scanned.get());
        each("reclaim_activated", self.activated.get());
        each("reclaim_deactivated", self.deactivated.get());
        each("reclaim_compressed", self.compressed.get());
        each("reclaim_zeros", self.zeros.get());
        each("reclaim_incompressible", self.incompressible.get());
        each("reclaim_no_room", self.no_room.get());
        each("reclaim_split", self.split.get());
        each("reclaim_batches", self.batches.get());
        each("reclaim_wakes", self.wakes.get());
        each("reclaim_idle_steps", self.idle_steps.get());
        each("reclaim_direct_steps", self.direct_steps.get());
        each("ballooned", self.ballooned.get());
    }
}
