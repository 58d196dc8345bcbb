//! The frames that tables are made of, and when they may be used again: a fixed array, and one CPU.

use core::cell::RefCell;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};
use stage2::{Entry, Epoch, Layout, Pa, TableFrame, TableMemory, Unlinked};

const FRAMES: usize = 32;

#[repr(C, align(65536))]
struct Memory([[u64; 512]; FRAMES]);

static mut MEMORY: Memory = Memory([[0; 512]; FRAMES]);

/// All frames. EL2 maps memory at its own address, so a frame is reached at its physical address.
pub struct Frames {
    used: AtomicU32,
}

impl Frames {
    /// All of them free. To be made once.
    pub const fn new() -> Self {
        Self {
            used: AtomicU32::new(0),
        }
    }

    /// How many are in use.
    pub fn used(&self) -> u32 {
        self.used.load(Ordering::Relaxed).count_ones()
    }

    fn take(&self, count: usize) -> Option<TableFrame> {
        let run = (1 << count) - 1;
        let fits = |first: &usize| self.used.load(Ordering::Relaxed) & run << first == 0;
        let first = (0..FRAMES).step_by(count).find(fits)?;
        self.used.fetch_or(run << first, Ordering::Relaxed);
        let frame = (&raw mut MEMORY).cast::<[u64; 512]>().wrapping_add(first);
        // SAFETY: nobody had these frames until now; they are zeroed, as they were at first or were given back, and aligned to
        // their size, as the array is.
        unsafe {
            core::ptr::write_bytes(frame, 0, count);
            Some(TableFrame::new(Pa::new(frame as u64), count as u64 * 4096))
        }
    }

    /// A root: as many frames in a row as the layout wants.
    pub fn root(&self, layout: &Layout) -> Option<TableFrame> {
        self.take(layout.root_tables())
    }
}

// SAFETY: a frame is given out once before it comes back, zeroed, and is part of memory that lasts and that EL2 maps write-back.
unsafe impl TableMemory for Frames {
    fn allocate(&self) -> Option<TableFrame> {
        self.take(1)
    }

    unsafe fn free(&self, frame: TableFrame) {
        let start = &raw const MEMORY as u64;
        let first = (frame.pa().get() - start) / 4096;
        let run = (1 << (frame.bytes() / 4096)) - 1;
        self.used.fetch_and(!(run << first), Ordering::Relaxed);
    }

    fn entries(&self, pa: Pa) -> NonNull<Entry> {
        NonNull::new(pa.get() as *mut Entry).expect("no frame is at 0")
    }
}

/// The CPU's stay in the epoch: here, of the only CPU. What is unlinked waits until it leaves.
pub struct Stay<'f> {
    frames: &'f Frames,
    unlinked: RefCell<[Option<TableFrame>; FRAMES]>,
}

impl<'f> Stay<'f> {
    /// Enters.
    pub fn new(frames: &'f Frames) -> Self {
        Self {
            frames,
            unlinked: RefCell::new([const { None }; FRAMES]),
        }
    }

    /// Leaves: what was unlinked is free.
    pub fn leave(self) {
        for frame in self.unlinked.into_inner().into_iter().flatten() {
            // SAFETY: it came from there, and nobody walks any more.
            unsafe { self.frames.free(frame) };
        }
    }
}

// SAFETY: there is one CPU, and it frees nothing before it leaves.
unsafe impl Epoch for Stay<'_> {
    fn retire(&self, unlinked: Unlinked) {
        let mut waiting = self.unlinked.borrow_mut();
        let place = waiting.iter_mut().find(|place| place.is_none());
        *place.expect("there are no more frames") = Some(unlinked.into_frame());
    }
}
