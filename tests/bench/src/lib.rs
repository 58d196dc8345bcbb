//! A machine for measuring the engine alone: frames from an arena, TLBs and epochs that cost nothing.
//!
//! What is left are the engine's own instructions. Used by the criterion benchmarks (`benches/operations.rs`) and by the
//! program whose instructions are counted (`src/bin/instructions.rs`).

use std::cell::RefCell;
use std::ptr::{NonNull, with_exposed_provenance_mut};

use stage2::{
    Access, Attributes, Counters, Entry, Epoch, Features, Ipa, Layout, Level, Mapping, NoTlb,
    OnBlock, PAGE_SIZE, Pa, Permissions, Request, Resolution, Stage2, TableFrame, TableMemory,
    Unlinked, Worker,
};

/// One CPU's table frames: a stack of free ones.
#[derive(Debug, Default)]
pub struct Frames(RefCell<Vec<Pa>>);

/// A page-aligned frame of zeroes.
#[repr(align(4096))]
struct Frame {
    _bytes: [u8; PAGE_SIZE as usize],
}

impl Frames {
    /// `count` frames, which last as long as the process.
    pub fn new(count: usize) -> Self {
        let zeroes = || Frame {
            _bytes: [0; PAGE_SIZE as usize],
        };
        let frames: Vec<Frame> = (0..count).map(|_| zeroes()).collect();
        let start = frames.leak().as_mut_ptr().expose_provenance() as u64;
        let addresses = (0..count as u64).map(|index| Pa::new(start + index * PAGE_SIZE));
        Self(RefCell::new(addresses.collect()))
    }
}

// SAFETY: each frame is handed out once until it is given back, page-aligned, and lasts as long as the process. They are
// zeroed: whoever gives one back has emptied it.
unsafe impl TableMemory for Frames {
    fn allocate(&self) -> Option<TableFrame> {
        let pa = self.0.borrow_mut().pop()?;
        // SAFETY: as above.
        Some(unsafe { TableFrame::new(pa, PAGE_SIZE) })
    }

    unsafe fn free(&self, frame: TableFrame) {
        // SAFETY: the caller owns the frame.
        unsafe {
            with_exposed_provenance_mut::<Frame>(frame.pa().get() as usize).write_bytes(0, 1)
        };
        self.0.borrow_mut().push(frame.pa());
    }

    #[inline]
    fn entries(&self, pa: Pa) -> NonNull<Entry> {
        let address = with_exposed_provenance_mut(pa.get() as usize);
        // SAFETY: no frame lies at address zero.
        unsafe { NonNull::new_unchecked(address) }
    }
}

/// An epoch that keeps everything: nothing of it is measured.
#[derive(Clone, Copy, Debug, Default)]
pub struct Keep;

// SAFETY: nothing is ever freed.
unsafe impl Epoch for Keep {
    fn retire(&self, unlinked: Unlinked) {
        // Its frame is part of the arena, which lasts.
        let _ = unlinked.into_frame();
    }
}

/// What one CPU works with.
#[derive(Debug)]
pub struct Cpu {
    frames: Frames,
    counters: Counters,
}

/// What an operation is done with.
pub type BenchWorker<'w> = Worker<'w, Frames, NoTlb, Keep>;

impl Cpu {
    /// With so many frames.
    pub fn new(frames: usize) -> Self {
        Self {
            frames: Frames::new(frames),
            counters: Counters::default(),
        }
    }

    /// What an operation is done with.
    pub fn worker(&self) -> BenchWorker<'_> {
        Worker {
            memory: &self.frames,
            tlb: &NoTlb,
            epoch: &Keep,
            counters: &self.counters,
        }
    }
}

/// What backs guest memory: never touched.
pub const BACKING: u64 = 0x40_0000_0000;

/// 2 MiB of pages.
pub const BLOCK_PAGES: u64 = 512;

/// The address of a page of guest memory.
pub const fn page(index: u64) -> Ipa {
    Ipa::new(0x4000_0000 + index * PAGE_SIZE)
}

/// An empty tree as a VM of the firmware has it: 4 KiB pages, 40 bits, three levels.
pub fn tree() -> Stage2 {
    tree_of(Features::armv8_0(40, 48))
}

/// As [`tree`], where hardware notes writes.
pub fn tracked_tree() -> Stage2 {
    tree_of(Features {
        hardware_access: true,
        hardware_dirty: true,
        ..Features::armv8_0(40, 48)
    })
}

fn tree_of(features: Features) -> Stage2 {
    let layout = Layout::new(features).expect("CPUs have it");
    let frames = Frames::new(2 * layout.root_tables());
    let start = frames.0.borrow()[0]
        .get()
        .next_multiple_of(layout.root_bytes());
    // SAFETY: these frames are the tree's alone, zeroes, at their own addresses as all of an arena's are, and last.
    let root = unsafe { TableFrame::new(Pa::new(start), layout.root_bytes()) };
    Stage2::new(root, layout)
}

/// Maps `pages` from the first on, by leaves of `largest` at most.
pub fn fill(stage2: &Stage2, cpu: &Cpu, pages: u64, largest: Level, permissions: Permissions) {
    let range = page(0)..page(pages);
    stage2
        .map(&cpu.worker(), range, mapping(largest, permissions), || true)
        .expect("enough frames");
}

/// What a range from the first page on is mapped to.
pub const fn mapping(largest: Level, permissions: Permissions) -> Mapping {
    Mapping {
        pa: Pa::new(BACKING),
        attributes: Attributes::memory(permissions),
        largest,
    }
}

/// A write to a page, as the fault path asks for it.
pub fn write(index: u64) -> Request {
    Request {
        ipa: page(index),
        va: None,
        access: Access::Write,
        pa: Pa::new(BACKING + index * PAGE_SIZE),
        largest: Level::L3,
        attributes: Attributes::memory(Permissions::RAM),
        largest_written: Level::L3,
        on_block: OnBlock::Split,
    }
}

/// Serves a fault as the owner of the memory does.
#[inline]
pub fn serve(stage2: &Stage2, worker: &BenchWorker<'_>, request: &Request) -> bool {
    if request.access == Access::Write
        && (stage2.relax(worker, request.ipa, request.va, request.largest_written)).is_some()
    {
        return true;
    }
    match stage2.fault(worker, request) {
        // SAFETY: the benchmarks' memory lies far below the end of the physical addresses.
        Resolution::Vacant(broken) => unsafe { stage2.fill(broken, request) }.is_ok(),
        Resolution::Relaxed(_) | Resolution::Split => true,
        _ => false,
    }
}
