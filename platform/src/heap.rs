//! EL2's heap: a buddy allocator behind a spin lock, first on memory within the image, then on what the memory plan gives it.
//!
//! Any CPU may use it at any time, except in a fault's path, which takes no lock. When it is exhausted the Rust runtime's
//! allocation error becomes a panic, and so a clear end.

use crate::range::PhysicalRange;
use buddy_system_allocator::LockedHeap;
use core::cell::UnsafeCell;

/// Blocks of up to 2 to the power of this less one.
const ORDERS: usize = 33;
/// Enough for discovery and the tables of [`crate::address_space`].
const EARLY_BYTES: usize = 512 << 10;

#[global_allocator]
static HEAP: LockedHeap<ORDERS> = LockedHeap::empty();

#[repr(C, align(4096))]
struct EarlyMemory(UnsafeCell<[u8; EARLY_BYTES]>);

// SAFETY: the memory is handed to the heap once and accessed through it only.
unsafe impl Sync for EarlyMemory {}

static EARLY_MEMORY: EarlyMemory = EarlyMemory(UnsafeCell::new([0; EARLY_BYTES]));

/// How full the heap is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HeapUse {
    /// Bytes that were asked for.
    pub requested: usize,
    /// Bytes that are taken, with what rounding up costs.
    pub allocated: usize,
    /// Bytes there are.
    pub total: usize,
}

/// The heap's exact use at this moment.
pub fn usage() -> HeapUse {
    let heap = HEAP.lock();
    HeapUse {
        requested: heap.stats_alloc_user(),
        allocated: heap.stats_alloc_actual(),
        total: heap.stats_total_bytes(),
    }
}

/// Gives the heap the memory within the image. Called once, first.
pub(crate) fn init_early() {
    let start = EARLY_MEMORY.0.get() as usize;
    // SAFETY: the memory belongs to nobody else, and this is called once.
    unsafe { HEAP.lock().init(start, EARLY_BYTES) }
}

/// Gives the heap more memory.
///
/// # Safety
/// The memory is mapped, and nobody else's for ever.
pub(crate) unsafe fn extend(memory: PhysicalRange) {
    // SAFETY: as promised by the caller.
    unsafe {
        HEAP.lock()
            .init(memory.start() as usize, memory.size() as usize)
    }
}
