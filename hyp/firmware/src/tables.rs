//! Tables from the hypervisor's heap, for the trees of self-tests and measurements. One CPU works on them, so that a table is
//! free as soon as it is unlinked.

use alloc::alloc::{Layout as Allocation, alloc_zeroed, dealloc, handle_alloc_error};
use core::cell::Cell;
use core::ptr::{NonNull, with_exposed_provenance_mut};
use stage2::{Entry, Epoch, Layout, Pa, TableFrame, TableMemory, Unlinked};

/// The most bytes of one tree's tables: enough for splitting the largest block level by level, and little enough for the heap.
const MOST_BYTES: usize = 3 << 20;

/// The frames of one tree.
#[derive(Debug)]
pub struct HeapTables {
    table: Allocation,
    frames: Cell<usize>,
}

impl HeapTables {
    /// For trees laid out like this.
    ///
    /// # Safety
    /// A table is free as soon as it is unlinked. So one operation at a time works on the trees, and its results are dropped
    /// before the next.
    pub unsafe fn new(layout: &Layout) -> Self {
        let bytes = layout.table_size() as usize;
        Self {
            table: Allocation::from_size_align(bytes, bytes)
                .expect("a table's size is a small power of two"),
            frames: Cell::new(0),
        }
    }

    /// The frames that are in use.
    pub fn frames(&self) -> usize {
        self.frames.get()
    }

    /// Frames for the root of such a tree.
    pub fn root(&self, layout: &Layout) -> TableFrame {
        let tables = layout.root_tables();
        let root = self.take(tables);
        root.unwrap_or_else(|| handle_alloc_error(self.run(tables)))
    }

    /// The memory of a run of tables, which is aligned to its size: `tables` is a power of two.
    fn run(&self, tables: usize) -> Allocation {
        let bytes = self.table.size() * tables;
        Allocation::from_size_align(bytes, bytes).expect("a root's size is a small power of two")
    }

    fn take(&self, tables: usize) -> Option<TableFrame> {
        let frames = self.frames.get() + tables;
        if frames * self.table.size() > MOST_BYTES {
            return None;
        }
        // SAFETY: a table's size isn't 0.
        let memory = unsafe { alloc_zeroed(self.run(tables)) };
        if memory.is_null() {
            return None;
        }
        self.frames.set(frames);
        let pa = Pa::new(memory.expose_provenance() as u64);
        // SAFETY: the heap gives it to nobody else, zeroed and aligned as asked; EL2 maps it at its own address.
        Some(unsafe { TableFrame::new(pa, self.run(tables).size() as u64) })
    }
}

// SAFETY: the heap gives each frame to nobody else, zeroed and aligned as asked; EL2 maps it at its own address.
unsafe impl TableMemory for HeapTables {
    fn allocate(&self) -> Option<TableFrame> {
        self.take(1)
    }

    unsafe fn free(&self, frame: TableFrame) {
        let memory = with_exposed_provenance_mut(frame.pa().get() as usize);
        let tables = frame.bytes() as usize / self.table.size();
        self.frames.set(self.frames.get() - tables);
        // SAFETY: the frame came from `take` with as many tables, and is the caller's alone.
        unsafe { dealloc(memory, self.run(tables)) };
    }

    fn entries(&self, pa: Pa) -> NonNull<Entry> {
        NonNull::new(with_exposed_provenance_mut(pa.get() as usize))
            .expect("the heap has no memory at address 0")
    }
}

// SAFETY: nobody else is inside, and no result of an operation is used after the next begins (`new`); the engine's own
// operations don't look at tables that they have retired.
unsafe impl Epoch for HeapTables {
    fn retire(&self, unlinked: Unlinked) {
        // SAFETY: all tables of the tree came from here.
        unsafe { self.free(unlinked.into_frame()) };
    }
}
