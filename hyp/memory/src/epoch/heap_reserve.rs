//! A heap reserve for the epoch, used when the heap is exhausted.
//!
//! crossbeam-epoch collects retired memory in bags of 64 items and allocates each bag as it hands it over: wherever memory is
//! retired, even in a fault, and the allocation must not fail. This crate's own allocations may fail, except for `Arc`s, which
//! are made only with VMs, slots and objects. So that an exhausted heap doesn't end EL2 there, a [`Reserving`] heap keeps some
//! blocks of a bag's size and alignment that no other request gets. A bag is freed when its epoch has passed, to the reserve
//! first.
//!
//! While the heap is exhausted, each bag stands for up to 64 frames that wait for an epoch. A reserve of [`BAGS_PER_CPU`] for
//! each CPU suffices as long as epochs pass before a CPU has retired 64 times as many items.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr;
use core::sync::atomic::{AtomicUsize, Ordering};
use spin::Mutex;

/// The layout of a bag in crossbeam-epoch: 64 deferred functions of four words, their number, the epoch, a link.
pub const BAG: Layout = Layout::new::<[usize; 64 * 4 + 3]>();

/// Reserved bags for each CPU.
pub const BAGS_PER_CPU: usize = 8;

/// A heap with a reserve of bags.
#[derive(Debug)]
pub struct Reserving<H> {
    heap: H,
    reserve: Mutex<Reserve>,
    /// Bags that the reserve has handed out. Changed under its lock.
    missing: AtomicUsize,
}

/// A chain of free blocks, each of which begins with the address of the next one.
#[derive(Debug)]
struct Reserve(*mut u8);

// SAFETY: the blocks belong to the reserve, whoever has that.
unsafe impl Send for Reserve {}

impl Reserve {
    /// # Safety
    /// The block is as large as a bag, and nobody else uses it.
    unsafe fn put(&mut self, block: *mut u8) {
        // SAFETY: as the caller promises.
        unsafe { block.cast::<*mut u8>().write(self.0) };
        self.0 = block;
    }

    /// Null where there is none.
    fn take(&mut self) -> *mut u8 {
        let block = self.0;
        if !block.is_null() {
            // SAFETY: `put` left it there, and nobody else has had the block since.
            self.0 = unsafe { block.cast::<*mut u8>().read() };
        }
        block
    }
}

impl<H> Reserving<H> {
    /// A wrapper of this heap, with an empty reserve.
    pub const fn new(heap: H) -> Self {
        Self {
            heap,
            reserve: Mutex::new(Reserve(ptr::null_mut())),
            missing: AtomicUsize::new(0),
        }
    }

    /// The heap itself.
    pub const fn heap(&self) -> &H {
        &self.heap
    }

    /// Bags of the reserve that are in use now, because the heap had none.
    pub fn missing(&self) -> usize {
        self.missing.load(Ordering::Relaxed)
    }

    #[cold]
    fn take(&self) -> *mut u8 {
        let mut reserve = self.reserve.lock();
        let block = reserve.take();
        if !block.is_null() {
            self.missing.fetch_add(1, Ordering::Relaxed);
        }
        block
    }

    /// Returns a freed bag to the reserve, if one is missing there; true if it was returned.
    ///
    /// # Safety
    /// If this returns true, the block is as large as a bag, and nobody else uses it.
    #[cold]
    unsafe fn put_back(&self, block: *mut u8) -> bool {
        let mut reserve = self.reserve.lock();
        if self.missing() == 0 {
            return false;
        }
        // SAFETY: as the caller promises.
        unsafe { reserve.put(block) };
        self.missing.fetch_sub(1, Ordering::Relaxed);
        true
    }
}

impl<H: GlobalAlloc> Reserving<H> {
    /// Adds up to `bags` bags to the reserve. Returns how many the heap had.
    pub fn put_by(&self, bags: usize) -> usize {
        for put in 0..bags {
            // SAFETY: a bag has a size.
            let block = unsafe { self.heap.alloc(BAG) };
            if block.is_null() {
                return put;
            }
            // SAFETY: the heap has just given it out.
            unsafe { self.reserve.lock().put(block) };
        }
        bags
    }
}

// SAFETY: blocks are the heap's. One of a bag's layout may be given out again where it has come back, as it is as large and as
// aligned as another.
unsafe impl<H: GlobalAlloc> GlobalAlloc for Reserving<H> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises.
        let block = unsafe { self.heap.alloc(layout) };
        if block.is_null() && layout == BAG {
            self.take()
        } else {
            block
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller gives the block up.
        if layout == BAG && self.missing() != 0 && unsafe { self.put_back(block) } {
            return;
        }
        // SAFETY: as the caller promises, and the heap had given it out with this layout.
        unsafe { self.heap.dealloc(block, layout) }
    }
}
