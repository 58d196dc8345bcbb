//! One CPU's cache of zeroed frames, for tables and for single pages of guest memory.
//!
//! Owned by one CPU. Its faults allocate, free, and charge a page to another owner here: without a lock, and without a cache
//! line that another CPU writes. [`FrameCache::refill`] and [`FrameCache::drain`] take the pool's lock and run outside of
//! faults.

use crate::frames::{FramePool, MAX_VMS, OWNERS, Owner, VmId, zero};
use alloc::sync::Arc;
use core::cell::Cell;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};
use stage2::{PAGE_SIZE, Pa};

/// Frames in a full cache.
const CAPACITY: usize = 64;
/// Frames below which a cache asks to be refilled. One fault takes at most three.
const LOW: usize = 16;

/// A cache's counters. Written by its CPU only, read by whoever adds up; the counts wrap.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct CacheCounters {
    /// Frames from the pool, less those given back to it.
    filled: Tally,
    /// By VM: frames that became tables, less tables that were given back.
    tables: [Tally; MAX_VMS],
    /// By owner: frames that became guest memory or were charged to it, less those given back or charged to others.
    guests: [Tally; OWNERS],
    /// By VM: frames that it may take here before its limit is looked at again.
    allowed: [AtomicU64; MAX_VMS],
}

/// A number with one writer, which may be negative here as long as the sum over all CPUs isn't.
#[derive(Debug, Default)]
struct Tally(AtomicU64);

impl Tally {
    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn add(&self, n: u64) {
        self.0.store(self.get().wrapping_add(n), Ordering::Relaxed);
    }

    fn subtract(&self, n: u64) {
        self.0.store(self.get().wrapping_sub(n), Ordering::Relaxed);
    }
}

impl CacheCounters {
    pub(super) fn tables(&self, vm: usize) -> u64 {
        self.tables[vm].get()
    }

    pub(super) fn guests(&self, owner: Owner) -> u64 {
        self.guests[owner.index()].get()
    }

    /// Acquire: pairs with the release of [`Self::spend`]. A reader that sees a smaller allowance sees the frame as taken.
    pub(super) fn allowed(&self, vm: VmId) -> u64 {
        self.allowed[vm.number()].load(Ordering::Acquire)
    }

    /// Only for the CPU whose counters these are.
    pub(super) fn allow(&self, vm: VmId, frames: u64) {
        let allowed = self.allowed(vm) + frames;
        self.allowed[vm.number()].store(allowed, Ordering::Relaxed);
    }

    /// Only for the CPU whose counters these are, which has already counted the frame as taken.
    fn spend(&self, vm: VmId) {
        let allowed = self.allowed(vm).saturating_sub(1);
        self.allowed[vm.number()].store(allowed, Ordering::Release);
    }

    /// Frames in the cache.
    pub(super) fn cached(&self) -> u64 {
        let taken = self.tables.iter().chain(&self.guests);
        taken.fold(self.filled.get(), |rest, tally| {
            rest.wrapping_sub(tally.get())
        })
    }
}

/// Zeroed frames for one CPU's use.
#[repr(align(128))]
pub struct FrameCache {
    count: Cell<usize>,
    counters: Arc<CacheCounters>,
    pool: &'static FramePool,
    /// The VM whose limit refused a frame last.
    denied: Cell<Option<VmId>>,
    /// Frames that the pool had left after the last refill.
    left: Cell<u64>,
    frames: [Cell<Pa>; CAPACITY],
}

impl FrameCache {
    /// An empty cache of frames from `pool`.
    pub fn new(pool: &'static FramePool) -> Self {
        let counters = Arc::new(CacheCounters::default());
        pool.register_cache(counters.clone());
        Self {
            count: Cell::new(0),
            counters,
            pool,
            denied: Cell::new(None),
            left: Cell::new(u64::MAX),
            frames: [const { Cell::new(Pa::new(0)) }; CAPACITY],
        }
    }

    /// A zeroed frame for a table of `vm`, or `None` if the cache is empty.
    #[inline]
    pub fn take_table(&self, vm: VmId) -> Option<Pa> {
        let frame = self.take()?;
        self.counters.tables[vm.number()].add(1);
        Some(frame)
    }

    /// A zeroed frame for guest memory, charged to `owner`, or `None` if the cache is empty or the owner is a VM that has used
    /// up its allowance here.
    #[inline]
    pub fn take_guest(&self, owner: Owner) -> Option<Pa> {
        let limited = match owner {
            Owner::Vm(vm) if self.pool.is_limited(vm) => Some(vm),
            _ => None,
        };
        if let Some(vm) = limited
            && self.counters.allowed(vm) == 0
        {
            self.denied.set(limited);
            return None;
        }
        let frame = self.take()?;
        self.counters.guests[owner.index()].add(1);
        if let Some(vm) = limited {
            self.counters.spend(vm);
        }
        self.pool.prepare_record(frame);
        Some(frame)
    }

    /// The VM whose limit refused [`Self::take_guest`] a frame since the last call.
    pub fn take_denied(&self) -> Option<VmId> {
        self.denied.take()
    }

    /// Renews a VM's allowance here, as far as its limit permits. Takes the pool's lock. Returns how many more frames the VM
    /// could have had in all; unless that is none, it has an allowance here afterwards.
    pub fn renew_allowance(&self, vm: VmId) -> u64 {
        self.pool.renew_allowance(vm, &self.counters)
    }

    #[inline]
    fn take(&self) -> Option<Pa> {
        let rest = self.count.get().checked_sub(1)?;
        let frame = self.frames.get(rest)?.get();
        self.count.set(rest);
        Some(frame)
    }

    /// Takes back a table of `vm`.
    ///
    /// # Safety
    /// The frame came from [`Self::take_table`] for the same VM, perhaps on another CPU, and no CPU and no table walker has
    /// ever been able to reach it.
    pub unsafe fn give_back_table(&self, frame: Pa, vm: VmId) {
        self.counters.tables[vm.number()].subtract(1);
        // SAFETY: as the caller promised; the counters have just let go of it.
        unsafe { self.put(frame) };
    }

    /// Takes back a frame of guest memory that is charged to `owner`.
    ///
    /// # Safety
    /// The frame came from the same pool, as a single one or as part of a larger piece, backs no page, and no CPU can reach it:
    /// it was never mapped, or an epoch has passed since it was.
    pub unsafe fn give_back_guest(&self, frame: Pa, owner: Owner) {
        self.pool.expect_no_page(frame, 1);
        self.counters.guests[owner.index()].subtract(1);
        // SAFETY: as the caller promised; the counters have just let go of it.
        unsafe { self.put(frame) };
    }

    /// Charges frames of guest memory to another owner. As [`FramePool::recharge`], for faults.
    #[inline]
    pub fn recharge(&self, from: Owner, to: Owner, frames: u64) {
        self.counters.guests[from.index()].subtract(frames);
        self.counters.guests[to.index()].add(frames);
    }

    /// # Safety
    /// The frame is the pool's, isn't counted as anybody's, and nobody can reach it.
    unsafe fn put(&self, frame: Pa) {
        let count = self.count.get();
        match self.frames.get(count) {
            Some(slot) => {
                // SAFETY: as the caller promised, and the pool's memory is mapped.
                unsafe { zero(frame, PAGE_SIZE) };
                slot.set(frame);
                self.count.set(count + 1);
            }
            None => {
                self.counters.filled.subtract(1);
                // SAFETY: as the caller promised, and this cache doesn't count it any more.
                unsafe { self.pool.release(frame) };
            }
        }
    }

    /// Whether it is time to [`Self::refill`].
    #[inline]
    pub fn is_low(&self) -> bool {
        self.count.get() < LOW
    }

    /// Fills the cache from the pool, as far as that has frames. Returns whether the cache has a frame afterwards.
    pub fn refill(&self) -> bool {
        self.pool.reclaim_released();
        let count = self.count.get();
        let mut fresh = [Pa::new(0); CAPACITY];
        let (taken, left) = self.pool.take_for_cache(&mut fresh[..CAPACITY - count]);
        self.left.set(left);
        for (slot, frame) in self.frames[count..].iter().zip(&fresh[..taken]) {
            // SAFETY: the frame has just come from the pool, whose memory is mapped.
            unsafe { zero(*frame, PAGE_SIZE) };
            slot.set(*frame);
        }
        self.counters.filled.add(taken as u64);
        self.count.set(count + taken);
        self.count.get() > 0
    }

    /// The free frames that the last [`Self::refill`] left in the pool.
    pub(crate) fn left_free(&self) -> u64 {
        self.left.get()
    }

    /// As [`Self::refill`], if the pool has more than `reserve` free frames.
    pub fn refill_sparing(&self, reserve: u64) -> bool {
        self.pool.reclaim_released();
        self.pool.free_frames() > reserve && self.refill()
    }

    /// Gives all frames back to the pool.
    pub fn drain(&self) {
        for slot in &self.frames[..self.count.take()] {
            self.counters.filled.subtract(1);
            self.pool.return_from_cache(slot.get());
        }
    }

    /// Frames in it.
    pub fn len(&self) -> usize {
        self.count.get()
    }

    /// Whether no frame is in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Drop for FrameCache {
    fn drop(&mut self) {
        self.drain();
    }
}

impl fmt::Debug for FrameCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrameCache")
            .field("frames", &self.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::{Counts, FrameSize, Purpose, VmCounts, arena, write_bytes};
    use std::boxed::Box;
    use std::thread;

    const VM: VmId = VmId::new(5).unwrap();

    fn pool_of(frames: usize) -> &'static FramePool {
        let pool = Box::leak(Box::new(FramePool::new()));
        // SAFETY: the arena is this pool's alone.
        unsafe { pool.add(arena::leak(frames)) };
        pool
    }

    fn is_zeroed(frame: Pa) -> bool {
        let mut bytes = [1; PAGE_SIZE as usize];
        // SAFETY: the caller has the frame from a cache.
        unsafe { crate::frames::read_bytes(frame, &mut bytes) };
        bytes.iter().all(|byte| *byte == 0)
    }

    #[test]
    fn frames_are_zeroed_again_when_they_come_back() {
        let pool = pool_of(4);
        let cache = FrameCache::new(pool);
        assert!(cache.is_low() && cache.take_table(VM).is_none());
        assert!(cache.refill());
        let frame = cache.take_table(VM).unwrap();
        assert!(is_zeroed(frame));
        assert_eq!(
            pool.counts(),
            Counts {
                table: 1,
                cached: 3,
                total: 4,
                ..Counts::default()
            }
        );
        // SAFETY: the frame is this test's.
        unsafe {
            write_bytes(frame, &[7; 64]);
            cache.give_back_table(frame, VM);
        }
        assert_eq!(
            pool.counts(),
            Counts {
                cached: 4,
                total: 4,
                ..Counts::default()
            }
        );
        assert!(is_zeroed(cache.take_table(VM).unwrap()));
    }

    #[test]
    fn an_empty_pool_leaves_the_cache_as_it_is() {
        let pool = pool_of(1);
        let (first, second) = (FrameCache::new(pool), FrameCache::new(pool));
        assert!(first.refill());
        assert!(!second.refill());
        assert!(first.refill());
        first.drain();
        assert!(second.refill());
        drop(second);
        assert_eq!(
            pool.counts(),
            Counts {
                free: 1,
                total: 1,
                ..Counts::default()
            }
        );
    }

    #[test]
    fn a_full_cache_passes_frames_on() {
        let pool = pool_of(2 * CAPACITY);
        let (giver, taker) = (FrameCache::new(pool), FrameCache::new(pool));
        giver.refill();
        taker.refill();
        let frame = giver.take_table(VM).unwrap();
        assert_eq!(
            pool.counts_of(VM),
            VmCounts {
                table: 1,
                ..VmCounts::default()
            }
        );
        // SAFETY: the frame is this test's.
        unsafe { taker.give_back_table(frame, VM) };
        assert!(pool.counts_of(VM).is_zero());
        assert_eq!(pool.counts().check(), Ok(()));
        assert_eq!(pool.reclaim_released(), 1);
        assert_eq!(pool.counts().free, 1);
    }

    #[test]
    fn guest_memory_is_counted_for_whom_it_is_charged_to_wherever_it_was_taken_and_given_back() {
        let pool = pool_of(8);
        let (first, second) = (FrameCache::new(pool), FrameCache::new(pool));
        first.refill();
        let frames: Vec<Pa> = (0..3)
            .map(|_| first.take_guest(Owner::Vm(VM)).unwrap())
            .collect();
        let of = |vm| pool.counts_of(vm).guest;
        let other = VmId::new(0).unwrap();
        assert_eq!((of(VM), pool.shared_frames()), (3, 0));

        second.recharge(Owner::Vm(VM), Owner::Shared, 2);
        pool.recharge(Owner::Shared, Owner::Vm(other), 1);
        assert_eq!((of(VM), of(other), pool.shared_frames()), (1, 1, 1));
        let counts = pool.counts();
        assert_eq!((counts.guest, counts.cached), (3, 5));
        assert_eq!(counts.check(), Ok(()));

        // SAFETY: the frames are this test's, and each is given back once.
        unsafe { second.give_back_guest(frames[0], Owner::Shared) };
        pool.free(frames[1], FrameSize::Page4K, Owner::Vm(VM), Purpose::Guest);
        pool.guest_leaving(Owner::Vm(other), 1);
        let counts = pool.counts();
        assert_eq!((counts.guest, counts.cached, counts.free), (0, 7, 1));
        assert_eq!(counts.check(), Ok(()));
        // SAFETY: as above.
        unsafe { pool.release_guest(frames[2]) };
        assert_eq!(pool.counts(), counts, "on its way all the time");
        drop((first, second));
        pool.reclaim_released();
        assert_eq!(pool.counts().free, 8);
        assert_eq!((of(VM), of(other), pool.shared_frames()), (0, 0, 0));
    }

    #[test]
    fn what_a_vm_is_allowed_on_one_cpu_is_none_of_another_s() {
        let pool = pool_of(256);
        let caches = [0; 3].map(|_| FrameCache::new(pool));
        caches.iter().for_each(|cache| assert!(cache.refill()));
        pool.set_limit(VM, Some(2));
        let taken = |cache: &FrameCache| cache.take_guest(Owner::Vm(VM)).is_some();
        assert_eq!(caches.each_ref().map(taken), [false; 3]);
        // One frame each, while there are any.
        let could = caches.each_ref().map(|cache| cache.renew_allowance(VM));
        assert_eq!(could, [2, 1, 0]);
        assert_eq!(caches.each_ref().map(taken), [true, true, false]);
        assert_eq!(caches.each_ref().map(taken), [false; 3]);
        assert_eq!(caches[0].renew_allowance(VM), 0);
        assert_eq!(pool.counts_of(VM).guest, 2);
    }

    #[test]
    fn a_vm_never_has_more_than_its_limit_on_however_many_cpus() {
        const CPUS: u64 = 4;
        const LIMIT: u64 = 100;
        let pool = pool_of(512);
        pool.set_limit(VM, Some(LIMIT));
        assert_eq!(pool.limit(VM), Some(LIMIT));
        pool.charge_compressed(Owner::Vm(VM), PAGE_SIZE + 1);
        let taken: u64 = thread::scope(|scope| {
            let takers: Vec<_> = (0..CPUS)
                .map(|_| {
                    scope.spawn(|| {
                        let cache = FrameCache::new(pool);
                        let mut taken = 0;
                        loop {
                            cache.refill();
                            match cache.take_guest(Owner::Vm(VM)) {
                                Some(_) => taken += 1,
                                None if cache.take_denied() != Some(VM) => {
                                    unreachable!("there are frames")
                                }
                                None if cache.renew_allowance(VM) > 0 => {}
                                None => return taken,
                            }
                            assert!(pool.counts_of(VM).guest <= LIMIT - 2);
                            assert!(cache.take_guest(Owner::Shared).is_some(), "nobody's limit");
                        }
                    })
                })
                .collect();
            takers.into_iter().map(|taker| taker.join().unwrap()).sum()
        });
        assert_eq!(taken, LIMIT - 2, "two frames are compressed");
        assert_eq!(pool.over_limit(VM), 0);

        let cache = FrameCache::new(pool);
        cache.refill();
        let large = |pool: &FramePool| pool.allocate_run(2, Owner::Vm(VM), Purpose::Guest);
        assert!(cache.renew_allowance(VM) == 0 && large(pool).is_none());
        pool.discharge_compressed(Owner::Vm(VM), PAGE_SIZE + 1);
        assert!(large(pool).is_some() && cache.renew_allowance(VM) == 0);
        pool.set_limit(VM, Some(LIMIT - 7));
        assert_eq!(pool.over_limit(VM), 7);
        pool.set_limit(VM, None);
        assert!(cache.take_guest(Owner::Vm(VM)).is_some());
    }

    #[test]
    fn a_full_cache_passes_guest_memory_on() {
        let pool = pool_of(2 * CAPACITY);
        let (giver, taker) = (FrameCache::new(pool), FrameCache::new(pool));
        giver.refill();
        taker.refill();
        let frame = giver.take_guest(Owner::Shared).unwrap();
        assert!(is_zeroed(frame));
        // SAFETY: the frame is this test's.
        unsafe { taker.give_back_guest(frame, Owner::Shared) };
        assert_eq!(pool.shared_frames(), 0);
        assert_eq!(pool.counts().check(), Ok(()));
        assert_eq!(pool.reclaim_released(), 1);
    }

    /// CPUs take tables and pages, give some back at once, and pass the others to the epoch, which releases them on another
    /// CPU.
    #[test]
    fn every_frame_comes_back_from_many_cpus() {
        const CPUS: usize = 4;
        const ROUNDS: usize = if cfg!(miri) { 3 } else { 500 };
        const FRAMES: usize = 512;
        let pool = pool_of(FRAMES);
        thread::scope(|scope| {
            for cpu in 0..CPUS {
                scope.spawn(move || {
                    let cache = FrameCache::new(pool);
                    let vm = VmId::new(cpu % 2).unwrap();
                    for round in 0..ROUNDS {
                        if cache.is_low() {
                            cache.refill();
                        }
                        let frame = cache.take_table(vm).expect("there is enough for all");
                        let page = cache
                            .take_guest(Owner::Vm(vm))
                            .expect("there is enough for all");
                        assert!(is_zeroed(frame) && is_zeroed(page));
                        cache.recharge(Owner::Vm(vm), Owner::Shared, 1);
                        // SAFETY: the frames are this thread's, and dirtied as a table and a page would be.
                        unsafe {
                            write_bytes(frame, &[0xaa; 4096]);
                            write_bytes(page, &[0xbb; 4096]);
                            if round % 3 == 0 {
                                cache.give_back_table(frame, vm);
                                cache.give_back_guest(page, Owner::Shared);
                            } else {
                                pool.note_pending(vm, 1);
                                pool.release_deferred(frame, 1, vm);
                                pool.guest_leaving(Owner::Shared, 1);
                                pool.release_guest(page);
                            }
                        }
                    }
                });
            }
        });
        pool.reclaim_released();
        assert_eq!(
            pool.counts(),
            Counts {
                free: FRAMES as u64,
                total: FRAMES as u64,
                ..Counts::default()
            }
        );
        for vm in 0..2 {
            assert!(pool.counts_of(VmId::new(vm).unwrap()).is_zero());
        }
        assert_eq!(pool.shared_frames(), 0);
    }
}
