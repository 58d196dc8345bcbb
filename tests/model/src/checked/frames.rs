//! Frames for tables, which are poisoned when they are freed: whoever still walks one, or changes one, is found.
//!
//! A frame is never used twice in an execution, so that a late look at it can't be mistaken for one at its successor.

use std::ptr::NonNull;
use std::sync::Mutex;

use super::{ENTRIES, locked};
use loom::sync::atomic::{AtomicU64, Ordering};
use stage2::{Entry, Layout, PAGE_SIZE, Pa, TableFrame, TableMemory};

/// Where tables are.
const FIRST: u64 = 0x10_0000_0000;
/// What a freed table holds. To the engine it is a table or a page, at an address where nothing is.
const POISON: u64 = 0x00de_adde_a000 | 0b11;

/// All frames of a machine.
#[derive(Debug)]
pub struct Tables {
    layout: Layout,
    frames: Mutex<Vec<Frame>>,
}

#[derive(Debug)]
struct Frame {
    words: Box<[AtomicU64]>,
    state: State,
    /// Who built the table, until its contents are visible to hardware walkers (rule 11).
    unpublished_by: Option<usize>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Live,
    Retired,
    Freed,
}

impl Tables {
    /// None yet.
    pub fn new(layout: Layout) -> Self {
        let frames = Mutex::default();
        Self { layout, frames }
    }

    /// A root, of one table.
    pub(super) fn allocate_root(&self) -> TableFrame {
        assert_eq!(self.layout.root_tables(), 1);
        self.allocate(None)
    }

    fn allocate(&self, builder: Option<usize>) -> TableFrame {
        let words = (0..ENTRIES).map(|_| AtomicU64::new(0)).collect();
        let mut frames = locked(&self.frames);
        frames.push(Frame {
            words,
            state: State::Live,
            unpublished_by: builder,
        });
        let pa = Pa::new(FIRST + (frames.len() as u64 - 1) * PAGE_SIZE);
        // SAFETY: the words are new, zero, as many as a table has, and last as long as the machine.
        unsafe { TableFrame::new(pa, self.layout.table_size()) }
    }

    fn index(pa: Pa) -> usize {
        assert_ne!(
            pa.get(),
            POISON & !0xfff,
            "rule 7: a freed table was walked"
        );
        ((pa.get() - FIRST) / PAGE_SIZE) as usize
    }

    /// Frames that are in use or wait for the epoch.
    pub fn live(&self) -> usize {
        let frames = locked(&self.frames);
        frames.iter().filter(|f| f.state != State::Freed).count()
    }

    /// The words of a table, for the hardware walker.
    pub(super) fn words(&self, pa: Pa) -> &[AtomicU64] {
        let frames = locked(&self.frames);
        let words: *const [AtomicU64] = &*frames[Self::index(pa)].words;
        // SAFETY: a frame's words stay where they are for as long as `self` lasts.
        unsafe { &*words }
    }

    /// Checks that what is in the table had become visible to hardware before anything led to it.
    pub(super) fn assert_published(&self, pa: Pa) {
        let builder = locked(&self.frames)[Self::index(pa)].unpublished_by;
        assert_eq!(
            builder, None,
            "rule 11: a walker is in a table before its contents"
        );
    }

    pub(super) fn publish(&self, builder: usize) {
        for frame in locked(&self.frames).iter_mut() {
            if frame.unpublished_by == Some(builder) {
                frame.unpublished_by = None;
            }
        }
    }

    fn change_state(&self, frame: &TableFrame, from: State, to: State) {
        let mut frames = locked(&self.frames);
        let state = &mut frames[Self::index(frame.pa())].state;
        assert_eq!(*state, from, "rule 7: {frame:?} was given up twice");
        *state = to;
    }

    pub(super) fn retire(&self, frame: &TableFrame) {
        self.change_state(frame, State::Live, State::Retired);
    }

    /// Frees a table that the epoch has let go.
    pub(super) fn free_retired(&self, frame: &TableFrame) {
        self.change_state(frame, State::Retired, State::Freed);
        self.poison(frame);
    }

    fn poison(&self, frame: &TableFrame) {
        for word in self.words(frame.pa()) {
            word.store(POISON, Ordering::Relaxed);
        }
    }

    /// Whether a word was read from a freed table.
    pub(super) fn is_poison(word: u64) -> bool {
        word == POISON
    }

    pub(super) fn assert_all_freed(&self) {
        assert_eq!(self.live(), 0, "table frames leaked");
        for frame in locked(&self.frames).iter_mut() {
            for word in &mut frame.words {
                let found = word.with_mut(|word| *word);
                assert_eq!(found, POISON, "rule 7: a freed table was changed");
            }
        }
    }
}

/// One CPU's use of the frames.
#[derive(Clone, Copy, Debug)]
pub struct CpuTables<'m> {
    tables: &'m Tables,
    cpu: usize,
}

impl<'m> CpuTables<'m> {
    pub(super) fn new(tables: &'m Tables, cpu: usize) -> Self {
        Self { tables, cpu }
    }
}

// SAFETY: each frame is used once, and its words last as long as the machine. An `Entry` is one such word.
unsafe impl TableMemory for CpuTables<'_> {
    fn allocate(&self) -> Option<TableFrame> {
        Some(self.tables.allocate(Some(self.cpu)))
    }

    /// Nobody has seen the table, so poisoning it takes no step of the model checker's own.
    unsafe fn free(&self, frame: TableFrame) {
        self.tables.change_state(&frame, State::Live, State::Freed);
        self.tables.poison(&frame);
    }

    fn entries(&self, pa: Pa) -> NonNull<Entry> {
        NonNull::from(self.tables.words(pa)).cast()
    }
}
