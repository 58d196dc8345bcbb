//! Frames of tables: from the pool to the tables, and through the epoch back to the pool.

use crate::epoch::published::defer;
use crate::frames::{FrameCache, FramePool, VmId};
use core::ptr::{NonNull, with_exposed_provenance_mut};
use crossbeam_epoch::Guard;
use stage2::{Entry, Epoch, PAGE_SIZE, Pa, TableFrame, TableMemory, Unlinked};

/// One CPU's frames for the tables of one VM.
#[derive(Debug)]
pub struct Tables<'c> {
    pub(crate) cache: &'c FrameCache,
    pub(crate) vm: VmId,
    /// Outside of faults: the frames to leave free in the pool when an empty cache is refilled.
    pub(crate) reserve: Option<u64>,
}

impl Tables<'_> {
    /// The same, but refills the cache as needed and leaves `reserve` frames to others. Not for a fault: takes the pool's lock.
    pub(crate) fn sparing(self, reserve: u64) -> Self {
        Self {
            reserve: Some(reserve),
            ..self
        }
    }

    #[cold]
    fn take_after_refill(&self) -> Option<Pa> {
        let reserve = self.reserve?;
        (self.cache.refill_sparing(reserve)).then(|| self.cache.take_table(self.vm))?
    }
}

// SAFETY: frames come from the pool through the CPU's cache: nobody else has them, they are zeroed and page-aligned.
// Physical memory is mapped at its own address for as long as the hypervisor runs (on a host: the pool's arena is).
unsafe impl TableMemory for Tables<'_> {
    #[inline]
    fn allocate(&self) -> Option<TableFrame> {
        let pa = match self.cache.take_table(self.vm) {
            Some(pa) => pa,
            None => self.take_after_refill()?,
        };
        prepare_tables(pa, 1);
        #[cfg(feature = "watch")]
        crate::watch::allocated(pa);
        // SAFETY: as above.
        Some(unsafe { TableFrame::new(pa, PAGE_SIZE) })
    }

    unsafe fn free(&self, frame: TableFrame) {
        #[cfg(feature = "watch")]
        crate::watch::freed(frame.pa());
        // SAFETY: the caller owns the frame, which `allocate` took from a CPU's cache of this pool, and no walker has seen it.
        unsafe { self.cache.give_back_table(frame.pa(), self.vm) };
    }

    #[inline]
    fn entries(&self, pa: Pa) -> NonNull<Entry> {
        let address = with_exposed_provenance_mut(pa.get() as usize);
        // SAFETY: tables never lie in frame 0, which the pool doesn't hold.
        unsafe { NonNull::new_unchecked(address) }
    }
}

/// Turns zeroed frames into empty tables, which they are already: an invalid descriptor is zero.
#[cfg(not(loom))]
#[inline]
pub(crate) fn prepare_tables(_: Pa, _: usize) {}

/// The model checker's atomics have to be made one by one, and are larger: a frame holds the few entries of a model's
/// tables.
#[cfg(loom)]
pub(crate) fn prepare_tables(pa: Pa, tables: usize) {
    const ENTRIES: usize = 4;
    for index in 0..tables * ENTRIES {
        let entry = with_exposed_provenance_mut::<Entry>(pa.get() as usize).wrapping_add(index);
        // SAFETY: the frames are the caller's alone, and large enough for the few entries of a model's tables.
        unsafe { entry.write(Entry::vacant()) };
    }
}

/// A CPU's stay in the epoch, through which it retires tables of one VM.
#[derive(Debug)]
pub struct Retirement<'g> {
    pub(crate) guard: &'g Guard,
    pub(crate) pool: &'static FramePool,
    pub(crate) vm: VmId,
}

// SAFETY: a `Retirement` is there only under its CPU's guard, from the collector that all CPUs of the system take part in: what
// is deferred runs when all guards are gone that were there.
unsafe impl Epoch for Retirement<'_> {
    fn retire(&self, unlinked: Unlinked) {
        let (pool, vm, frame) = (self.pool, self.vm, unlinked.into_frame());
        let (pa, frames) = (frame.pa(), (frame.bytes() / PAGE_SIZE) as usize);
        pool.note_pending(vm, frames);
        // Half a word, and the VM's number has room in the other half.
        let few = frames as u32;
        // SAFETY: the table is unlinked, its invalidation is complete, and the epoch has passed when this runs (rule 7).
        defer(self.guard, move || unsafe {
            #[cfg(feature = "watch")]
            crate::watch::freed(pa);
            pool.release_deferred(pa, few as usize, vm)
        });
    }
}
