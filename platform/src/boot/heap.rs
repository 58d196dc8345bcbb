//! EL2's heap: a buddy allocator behind a spin lock, first on memory within the image, then on the memory that the plan
//! assigns.
//!
//! Any CPU may use it at any time, except in a fault's path, which takes no lock but for every 64th item that a CPU retires.
//! When the heap is exhausted, the hypervisor's own requests are refused, and the epoch has a [reserve](Reserving). Beyond that
//! the Rust runtime's allocation error becomes a panic, and so a clear end.

use crate::discovery::plan::PlanError;
use crate::range::PhysicalRange;
use buddy_system_allocator::LockedHeap;
use core::cell::UnsafeCell;
use memory::heap_reserve::{BAG, BAGS_PER_CPU, Reserving};

/// The number of block orders: the largest block is 2 to the power of this less one.
const ORDERS: usize = 33;
/// Enough for discovery and the tables of [`crate::boot::address_space`].
const EARLY_BYTES: usize = 512 << 10;

#[global_allocator]
static HEAP: Reserving<LockedHeap<ORDERS>> = Reserving::new(LockedHeap::empty());

#[repr(C, align(4096))]
struct EarlyMemory(UnsafeCell<[u8; EARLY_BYTES]>);

// SAFETY: the memory is handed to the heap once and accessed through it only.
unsafe impl Sync for EarlyMemory {}

static EARLY_MEMORY: EarlyMemory = EarlyMemory(UnsafeCell::new([0; EARLY_BYTES]));

/// The heap's use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HeapUse {
    /// Bytes that were requested.
    pub requested: usize,
    /// Bytes that are allocated, including rounding.
    pub allocated: usize,
    /// Bytes in all.
    pub total: usize,
}

/// The heap's exact use at this moment.
pub fn usage() -> HeapUse {
    let heap = HEAP.heap().lock();
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
    unsafe { HEAP.heap().lock().init(start, EARLY_BYTES) }
}

/// Gives the heap more memory.
///
/// # Safety
/// The memory is mapped, and nobody else's for ever.
pub(crate) unsafe fn extend(memory: PhysicalRange) {
    // SAFETY: as promised by the caller.
    unsafe {
        HEAP.heap()
            .lock()
            .init(memory.start() as usize, memory.size() as usize)
    }
}

/// Fills the epoch's reserve for `cpus` CPUs.
///
/// # Errors
/// The heap is too small.
pub(crate) fn reserve_for_epoch(cpus: usize) -> Result<(), PlanError> {
    let bags = cpus * BAGS_PER_CPU;
    if HEAP.put_by(bags) < bags {
        let size = (bags * BAG.size()) as u64;
        let what = "epoch's bags";
        return Err(PlanError::NoRoom { what, size });
    }
    Ok(())
}
