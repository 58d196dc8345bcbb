//! The pool of the machine's free frames, and the account of who owns the others.
//!
//! A buddy allocator behind a spin lock. Lock order: pool, then heap (the allocator's sets live in the heap), never the other
//! way round. No fault takes the pool's lock: a fault allocates from a [`FrameCache`], frees tables through
//! [`FramePool::release_deferred`], and guest memory through [`FramePool::release_guest`].
//!
//! [`FrameCache`]: crate::frames::FrameCache

use crate::frames::cache::CacheCounters;
use crate::frames::counts::{Counts, VmCounts};
use crate::frames::limits::{Limits, allowance, in_frames};
use crate::frames::physical::poison;
use crate::frames::record::{FrameRecord, Records};
use crate::frames::released::Released;
use crate::frames::{FrameSize, MAX_VMS, OWNERS, Owner, Purpose, VmId, zero};
use alloc::sync::Arc;
use alloc::vec::Vec;
use buddy_system_allocator::FrameAllocator;
use core::fmt;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};
use spin::Mutex;
use stage2::{PAGE_SHIFT, PAGE_SIZE, Pa};

/// The longest run of frames, in frames: 1 GiB.
pub const MAX_RUN: usize = FrameSize::Block1G.frames();
/// How many orders the buddy allocator keeps: runs of 1 to [`MAX_RUN`] frames.
const ORDERS: usize = MAX_RUN.trailing_zeros() as usize + 1;
/// The number of table frames waiting for an epoch at which unlinking more must wait. Each CPU that unlinks may add
/// [`UNLINKED_AT_ONCE`](crate::UNLINKED_AT_ONCE) to it.
pub const MOST_PENDING: u64 = 1024;
/// Runs of frames that are returned under one hold of the lock.
const RECLAIM_BATCH: usize = 64;

/// All frames that the hypervisor may hand out.
pub struct FramePool {
    state: Mutex<State>,
    released: Released,
    /// Frames in `released`.
    returning: AtomicU64,
    /// By VM.
    deferred: [Deferred; MAX_VMS],
    /// By owner: guest memory charged to it by others, less what was charged to others or given up. Wraps.
    recharged: [AtomicU64; OWNERS],
    records: Records,
    limits: Limits,
    /// Table frames of all VMs that wait for an epoch: now, and the most since the pool was made.
    pending: AtomicU64,
    most_pending: AtomicU64,
}

struct State {
    free: FrameAllocator<ORDERS>,
    free_frames: u64,
    /// Free frames reserved for compressed memory.
    kept: u64,
    total: u64,
    held: [Held; OWNERS],
    caches: Vec<Arc<CacheCounters>>,
}

/// Frames that an owner has taken without a CPU's cache, less those it has given back so, by purpose. Wraps for guest memory,
/// which may be taken in one way and given back in another, or by another owner.
#[derive(Clone, Copy, Default)]
struct Held {
    table: u64,
    guest: u64,
    heap: u64,
    compressed: u64,
}

impl Held {
    const NONE: Self = Self {
        table: 0,
        guest: 0,
        heap: 0,
        compressed: 0,
    };

    fn of(&mut self, purpose: Purpose) -> &mut u64 {
        match purpose {
            Purpose::Table => &mut self.table,
            Purpose::Guest => &mut self.guest,
            Purpose::Heap => &mut self.heap,
            Purpose::Compressed => &mut self.compressed,
        }
    }
}

/// A VM's tables that were passed to the epoch. Written where tables are unlinked and freed, which no page fault does.
struct Deferred {
    /// Ever passed to the epoch.
    unlinked: AtomicU64,
    /// Ever released by it.
    released: AtomicU64,
}

impl FramePool {
    /// An empty pool.
    pub const fn new() -> Self {
        Self {
            state: Mutex::new(State {
                free: FrameAllocator::new(),
                free_frames: 0,
                kept: 0,
                total: 0,
                held: [Held::NONE; OWNERS],
                caches: Vec::new(),
            }),
            released: Released::new(),
            returning: AtomicU64::new(0),
            deferred: [const {
                Deferred {
                    unlinked: AtomicU64::new(0),
                    released: AtomicU64::new(0),
                }
            }; MAX_VMS],
            recharged: [const { AtomicU64::new(0) }; OWNERS],
            records: Records::new(),
            limits: Limits::new(),
            pending: AtomicU64::new(0),
            most_pending: AtomicU64::new(0),
        }
    }

    /// Adds the whole frames of a range, except frame 0 and, at EL2, those for their records, which count as heap.
    ///
    /// # Safety
    /// The memory is RAM, mapped at its own address for ever, nobody's, and not in the pool yet.
    pub unsafe fn add(&self, range: Range<Pa>) {
        let first =
            frame_number(range.start.checked_add(PAGE_SIZE - 1).unwrap_or(range.end)).max(1);
        let end = frame_number(range.end);
        if first < end {
            let mut state = self.state.lock();
            // SAFETY: as the caller promised; the lock excludes other calls.
            let rest = unsafe { self.records.describe(first..end) };
            let frames = rest.len() as u64;
            state.free.add_frame(rest.start, rest.end);
            state.free_frames += frames;
            state.total += (end - first) as u64;
            *state.held(Owner::Hypervisor).of(Purpose::Heap) += (end - first) as u64 - frames;
        }
    }

    /// The record of the frame at `pa`, which backs guest memory; `None` if it isn't the pool's. For any CPU at any time,
    /// without a lock.
    #[inline]
    pub fn record(&self, pa: Pa) -> Option<&'static FrameRecord> {
        self.records.of(pa)
    }

    /// The first run of frames of this size, aligned to it, at or after `from`: free, used, or partly used.
    pub(crate) fn next_run(&self, from: Pa, size: FrameSize) -> Option<Pa> {
        let first = frame_number(from).next_multiple_of(size.frames());
        let run = self.records.next_run(first, size.frames())?;
        Some(Pa::new((run as u64) << PAGE_SHIFT))
    }

    /// Prepares the record of a frame that is about to back a page.
    #[inline]
    pub(super) fn prepare_record(&self, frame: Pa) {
        self.records.prepare(frame, 1);
    }

    /// Checks that guest memory which is given back has empty records.
    pub(super) fn expect_no_page(&self, pa: Pa, frames: usize) {
        self.records.expect_empty(pa, frames);
    }

    /// Reserves the last `frames` free frames for [`Purpose::Compressed`], as reclaim may need a frame before it frees any.
    pub fn keep_for_compressed(&self, frames: u64) {
        self.state.lock().kept = frames;
    }

    /// Limits a VM to so many frames of its own memory, including its compressed pages; `None`: no limit. A copy of a shared
    /// page is charged to the VM when it writes, before it gets the copy. Frames shared with a fork, images and tables don't
    /// count. The VM's pages aren't merged with others, as nobody would be charged for the shared frame. The VM may be over the
    /// limit now ([`Self::over_limit`]), and gets over it when its forks end and leave it the frames that they shared.
    pub fn set_limit(&self, vm: VmId, frames: Option<u64>) {
        self.limits.set(vm, frames);
    }

    /// The limit that was set.
    pub fn limit(&self, vm: VmId) -> Option<u64> {
        self.limits.get(vm)
    }

    #[inline]
    pub(super) fn is_limited(&self, vm: VmId) -> bool {
        self.limits.is_limited(vm)
    }

    /// By how many frames a VM exceeds its limit.
    pub fn over_limit(&self, vm: VmId) -> u64 {
        let Some(limit) = self.limit(vm) else {
            return 0;
        };
        self.used(&self.state.lock(), vm).saturating_sub(limit)
    }

    /// How many frames more a VM may have, if it has a limit.
    pub(crate) fn room(&self, vm: VmId) -> Option<u64> {
        self.limit(vm)?;
        Some(self.limits.room(vm, self.used(&self.state.lock(), vm)))
    }

    /// Frames that count towards a VM's limit, or are about to.
    fn used(&self, state: &State, vm: VmId) -> u64 {
        // First what is allowed: what is found spent is found taken then.
        let allowed: u64 = state.caches.iter().map(|cache| cache.allowed(vm)).sum();
        let owner = Owner::Vm(vm);
        let compressed = in_frames(self.limits.compressed(owner));
        // What is taken on one CPU and given back on another while this adds up may be missing.
        let guest = self.guest_frames(state, owner).cast_signed().max(0);
        guest.cast_unsigned() + allowed + compressed
    }

    /// Renews a VM's allowance on the CPU of `counters`. Returns how many frames the VM could have had: none if it has reached
    /// its limit.
    pub(super) fn renew_allowance(&self, vm: VmId, counters: &CacheCounters) -> u64 {
        let state = self.state.lock();
        let room = self.limits.room(vm, self.used(&state, vm));
        counters.allow(vm, allowance(room));
        room
    }

    /// Charges compressed memory to an owner.
    pub fn charge_compressed(&self, owner: Owner, bytes: u64) {
        self.limits.charge_compressed(owner, bytes);
    }

    /// Reverses [`Self::charge_compressed`].
    pub fn discharge_compressed(&self, owner: Owner, bytes: u64) {
        self.limits.discharge_compressed(owner, bytes);
    }

    /// Bytes of compressed memory that are charged to an owner.
    pub fn compressed_bytes(&self, owner: Owner) -> u64 {
        self.limits.compressed(owner)
    }

    /// Counts frames that were given to the heap without passing through the pool.
    pub fn count_heap(&self, frames: u64) {
        let mut state = self.state.lock();
        state.total += frames;
        *state.held(Owner::Hypervisor).of(Purpose::Heap) += frames;
    }

    /// A frame of the given size, aligned to it, not zeroed. `None` if there is none left.
    pub fn allocate(&self, size: FrameSize, owner: Owner, purpose: Purpose) -> Option<Pa> {
        self.allocate_run(size.frames(), owner, purpose)
    }

    /// A run of frames, aligned to its size, not zeroed. `frames` is a power of two up to [`MAX_RUN`]; `None` otherwise, or if
    /// there is no such run left, or it would be guest memory beyond the owner's limit.
    pub fn allocate_run(&self, frames: usize, owner: Owner, purpose: Purpose) -> Option<Pa> {
        if !frames.is_power_of_two() || frames > MAX_RUN {
            return None;
        }
        let mut state = self.state.lock();
        if let (Owner::Vm(vm), Purpose::Guest) = (owner, purpose)
            && self.is_limited(vm)
            && self.limits.room(vm, self.used(&state, vm)) < frames as u64
        {
            return None;
        }
        let pa = state.take(frames, purpose)?;
        let held = state.held(owner).of(purpose);
        *held = held.wrapping_add(frames as u64);
        drop(state);
        if purpose == Purpose::Guest {
            self.records.prepare(pa, frames);
        }
        Some(pa)
    }

    /// Zeroed frames for a VM's root table: a run aligned to its size, as [`Self::allocate_run`].
    pub fn allocate_root(&self, frames: usize, vm: VmId) -> Option<Pa> {
        let root = self.allocate_run(frames, Owner::Vm(vm), Purpose::Table)?;
        // SAFETY: the frames have just come from the pool, whose memory is mapped.
        unsafe { zero(root, frames as u64 * PAGE_SIZE) };
        Some(root)
    }

    /// Frees what [`Self::allocate`] returned for the same size, owner and purpose. Nobody uses it any more.
    pub fn free(&self, pa: Pa, size: FrameSize, owner: Owner, purpose: Purpose) {
        self.free_run(pa, size.frames(), owner, purpose);
    }

    /// Frees what [`Self::allocate_run`] returned for the same number, owner and purpose. Nobody uses it any more. Guest memory
    /// may have come from a CPU's cache, may be freed in smaller pieces, and is freed for the owner that it is charged to.
    pub fn free_run(&self, pa: Pa, frames: usize, owner: Owner, purpose: Purpose) {
        if purpose == Purpose::Guest {
            self.expect_no_page(pa, frames);
        }
        let mut state = self.state.lock();
        let held = state.held(owner).of(purpose);
        debug_assert!(
            purpose == Purpose::Guest || *held >= frames as u64,
            "{owner:?} gives back frames that it doesn't hold"
        );
        *held = held.wrapping_sub(frames as u64);
        state.put(pa, frames);
    }

    /// Notes that a VM passed `frames` table frames to the epoch.
    pub fn note_pending(&self, vm: VmId, frames: usize) {
        self.deferred[vm.number()]
            .unlinked
            .fetch_add(frames as u64, Ordering::Relaxed);
        let before = self.pending.fetch_add(frames as u64, Ordering::Relaxed);
        self.most_pending
            .fetch_max(before + frames as u64, Ordering::Relaxed);
    }

    /// Table frames of all VMs that wait for an epoch.
    pub fn pending(&self) -> u64 {
        self.pending.load(Ordering::Relaxed)
    }

    /// The most table frames that ever waited for an epoch at the same time.
    pub fn most_pending(&self) -> u64 {
        self.most_pending.load(Ordering::Relaxed)
    }

    /// Takes back a run of a VM's table frames that the epoch has released, as announced by [`Self::note_pending`]. Runs on
    /// whichever CPU collects, perhaps in its fault: takes no lock.
    ///
    /// # Safety
    /// The frames came from this pool, and nobody can reach them any more.
    pub unsafe fn release_deferred(&self, pa: Pa, frames: usize, vm: VmId) {
        self.deferred[vm.number()]
            .released
            .fetch_add(frames as u64, Ordering::Relaxed);
        self.pending.fetch_sub(frames as u64, Ordering::Relaxed);
        for frame in 0..frames as u64 {
            // SAFETY: the pool's memory is mapped, never holds frame 0, and the caller gives up each frame of the run.
            unsafe { self.release(pa.offset(frame * PAGE_SIZE)) };
        }
    }

    /// Charges frames of guest memory to another owner. For any CPU at any time, without a lock; faults use
    /// [`FrameCache::recharge`](crate::frames::FrameCache::recharge), which writes no line that others write.
    pub fn recharge(&self, from: Owner, to: Owner, frames: u64) {
        self.recharged[from.index()].fetch_sub(frames, Ordering::Relaxed);
        self.recharged[to.index()].fetch_add(frames, Ordering::Relaxed);
    }

    /// Notes that frames of guest memory, charged to `owner`, back no page any more and will come back through the epoch, by
    /// [`Self::release_guest`]. From now on they count as on their way. Takes no lock.
    pub fn guest_leaving(&self, owner: Owner, frames: usize) {
        self.returning.fetch_add(frames as u64, Ordering::Relaxed);
        self.recharged[owner.index()].fetch_sub(frames as u64, Ordering::Relaxed);
    }

    /// Takes back a frame of guest memory that [`Self::guest_leaving`] has announced. Runs on whichever CPU collects,
    /// perhaps in its fault: takes no lock.
    ///
    /// # Safety
    /// The frame came from this pool, backs no page, and nobody can reach it any more.
    pub unsafe fn release_guest(&self, pa: Pa) {
        // SAFETY: as the caller promised.
        unsafe { self.release_guest_piece(pa, FrameSize::Page4K) }
    }

    /// As [`Self::release_guest`], for all frames of a piece.
    ///
    /// # Safety
    /// As for [`Self::release_guest`].
    pub unsafe fn release_guest_piece(&self, pa: Pa, size: FrameSize) {
        self.expect_no_page(pa, size.frames());
        // SAFETY: as the caller promised. The first page of a piece is enough to give away who still uses it.
        unsafe {
            poison(pa, PAGE_SIZE);
            self.released.push(pa, size.frames());
        }
    }

    /// Takes back a frame without a lock.
    ///
    /// # Safety
    /// The frame came from this pool, isn't counted for any owner, and nobody can reach it any more.
    pub(super) unsafe fn release(&self, frame: Pa) {
        self.returning.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promised.
        unsafe {
            poison(frame, PAGE_SIZE);
            self.released.push(frame, 1);
        }
    }

    /// Returns released frames to the pool. Holds the lock for a bounded number of them at a time; not for a fault. Returns how
    /// many there were.
    pub fn reclaim_released(&self) -> usize {
        if self.released.is_empty() {
            return 0;
        }
        let mut chain = self.released.take().peekable();
        let mut reclaimed = 0;
        while chain.peek().is_some() {
            let mut state = self.state.lock();
            for (pa, frames) in chain.by_ref().take(RECLAIM_BATCH) {
                state.put(pa, frames);
                reclaimed += frames;
            }
        }
        self.returning
            .fetch_sub(reclaimed as u64, Ordering::Relaxed);
        reclaimed
    }

    /// Takes single frames for a CPU's cache, up to the slice's length, under one hold of the lock. Returns how many it took,
    /// and how many are left. Takes whole runs where possible, as every CPU that touches new memory comes here again and again.
    pub(super) fn take_for_cache(&self, frames: &mut [Pa]) -> (usize, u64) {
        let mut state = self.state.lock();
        let (mut taken, mut longest) = (0, frames.len());
        while taken < frames.len() && longest > 0 {
            let run = 1 << longest.min(frames.len() - taken).ilog2();
            match state.take(run, Purpose::Table) {
                Some(first) => {
                    for (slot, frame) in frames[taken..taken + run].iter_mut().zip(0..) {
                        *slot = first.offset(frame * PAGE_SIZE);
                    }
                    taken += run;
                }
                None => longest = run / 2,
            }
        }
        (taken, state.free_frames)
    }

    pub(super) fn return_from_cache(&self, frame: Pa) {
        self.state.lock().put(frame, 1);
    }

    /// Adds a cache's counters to the sums, for ever: the counts of a cache that is gone remain.
    pub(super) fn register_cache(&self, counters: Arc<CacheCounters>) {
        self.state.lock().caches.push(counters);
    }

    /// Frames that are free.
    pub fn free_frames(&self) -> u64 {
        self.state.lock().free_frames
    }

    /// All frames, by place.
    pub fn counts(&self) -> Counts {
        let state = self.state.lock();
        let mut counts = Counts {
            cached: self.returning.load(Ordering::Relaxed),
            free: state.free_frames,
            total: state.total,
            ..Counts::default()
        };
        for owner in Owner::all() {
            let held = &state.held[owner.index()];
            counts.heap += held.heap;
            counts.compressed += held.compressed;
            counts.guest = counts.guest.wrapping_add(self.guest_frames(&state, owner));
            if let Owner::Vm(vm) = owner {
                let vm = self.vm_counts(&state, vm);
                counts.table = counts.table.wrapping_add(vm.table);
                counts.pending = counts.pending.wrapping_add(vm.pending);
            } else {
                counts.table = counts.table.wrapping_add(held.table);
            }
        }
        for cache in &state.caches {
            counts.cached = counts.cached.wrapping_add(cache.cached());
        }
        counts
    }

    /// One VM's frames.
    pub fn counts_of(&self, vm: VmId) -> VmCounts {
        self.vm_counts(&self.state.lock(), vm)
    }

    /// Frames of guest memory that are charged to no single VM.
    pub fn shared_frames(&self) -> u64 {
        self.guest_frames(&self.state.lock(), Owner::Shared)
    }

    /// Guest memory that is charged to an owner. The parts wrap: a frame that one CPU took may be given back by another.
    fn guest_frames(&self, state: &State, owner: Owner) -> u64 {
        let recharged = self.recharged[owner.index()].load(Ordering::Relaxed);
        let held = state.held[owner.index()].guest.wrapping_add(recharged);
        state
            .caches
            .iter()
            .fold(held, |sum, cache| sum.wrapping_add(cache.guests(owner)))
    }

    /// The counts wrap: a table that one CPU took may be given back by another.
    fn vm_counts(&self, state: &State, vm: VmId) -> VmCounts {
        let number = vm.number();
        let released = self.deferred[number].released.load(Ordering::Relaxed);
        let unlinked = self.deferred[number].unlinked.load(Ordering::Relaxed);
        let held = state.held[Owner::Vm(vm).index()].table;
        let taken = state
            .caches
            .iter()
            .fold(held, |sum, cache| sum.wrapping_add(cache.tables(number)));
        VmCounts {
            table: taken.wrapping_sub(unlinked),
            guest: self.guest_frames(state, Owner::Vm(vm)),
            pending: unlinked.wrapping_sub(released),
        }
    }
}

impl Default for FramePool {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for FramePool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FramePool")
            .field("counts", &self.counts())
            .finish_non_exhaustive()
    }
}

impl State {
    fn take(&mut self, frames: usize, purpose: Purpose) -> Option<Pa> {
        if purpose != Purpose::Compressed && self.free_frames < self.kept + frames as u64 {
            return None;
        }
        let first = self.free.alloc(frames)?;
        self.free_frames -= frames as u64;
        Some(Pa::new((first as u64) << PAGE_SHIFT))
    }

    fn put(&mut self, pa: Pa, frames: usize) {
        self.free.dealloc(frame_number(pa), frames);
        self.free_frames += frames as u64;
    }

    fn held(&mut self, owner: Owner) -> &mut Held {
        &mut self.held[owner.index()]
    }
}

fn frame_number(pa: Pa) -> usize {
    (pa.get() >> PAGE_SHIFT) as usize
}

#[cfg(test)]
mod tests;
