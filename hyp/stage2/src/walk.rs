//! The walker: one loop that visits entries in address order, for every operation.
//!
//! A visitor never rereads the entry: it acts on what the context says was observed, by exchange, and tells the walker
//! how to go on. Any number of walkers and operations may run on one tree at once; whoever meets a frozen table starts
//! again at the root (rule 5), so a walk always works on the tree as it is.

use crate::address::{Ipa, IpaRange, Level, Pa};
use crate::descriptor::Descriptor;
use crate::entry::{Entry, Observed};
use crate::memory::{Epoch, TableMemory, Worker, index_at};
use crate::root::RootShape;
use crate::sync;
use crate::tlb::Tlb;
use core::slice;

/// All that a visit needs to know.
#[derive(Clone, Copy)]
pub struct VisitContext<'t> {
    /// The slot in the table.
    pub entry: &'t Entry,
    /// What it held when the walker came by.
    pub observed: Observed,
    /// `observed`, decoded.
    pub descriptor: Descriptor,
    /// The level of the table that holds it.
    pub level: Level,
    /// The first IPA that it covers, which may lie below the walk's range.
    pub ipa: Ipa,
    /// The end of what it covers, or of the walk's range if that comes first.
    pub end: Ipa,
    /// The first IPA of interest within it.
    pub start: Ipa,
}

impl VisitContext<'_> {
    /// Whether the walk's range covers all of the entry.
    pub fn is_whole(&self) -> bool {
        self.start == self.ipa && self.end == self.ipa.offset(self.level.span())
    }
}

/// What a visit says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Done here; on to the next entry.
    Continue,
    /// Into the table that the entry leads to.
    Descend,
    /// Look at the same entry again: an exchange was lost, or something was installed.
    Again,
    /// As `Again`, after giving another CPU a moment: the entry is locked.
    Wait,
    /// From the root again: the table is no longer part of the tree.
    Restart,
    /// End the walk here.
    Stop,
}

/// The root of a tree, with its shape.
#[derive(Clone, Copy)]
pub(crate) struct Root {
    pub(crate) pa: Pa,
    pub(crate) shape: RootShape,
}

impl Root {
    fn entries<'w, M: TableMemory, T: Tlb, E: Epoch>(
        &self,
        worker: &Worker<'w, M, T, E>,
    ) -> &'w [Entry] {
        // SAFETY: the root's frames are one run of `shape.frames()` tables, owned by the `Stage2` that lends this `Root`,
        // and freed only through an epoch after that is gone.
        unsafe {
            slice::from_raw_parts(
                worker.memory.entries(self.pa).as_ptr(),
                self.shape.entries(),
            )
        }
    }

    /// Visits the entries that cover `range`, in address order, from the root down as the visitor says.
    /// Returns where it was stopped, or the range's end.
    #[inline(always)]
    pub(crate) fn walk<'w, M: TableMemory, T: Tlb, E: Epoch>(
        &self,
        worker: &Worker<'w, M, T, E>,
        range: IpaRange,
        mut visit: impl FnMut(&VisitContext<'w>) -> Step,
    ) -> Ipa {
        let mut at = range.start;
        'root: while at < range.end {
            let mut level = self.shape.level();
            let mut table = self.entries(worker);
            let mut index = (at.get() >> level.shift()) as usize;
            loop {
                let entry = &table[index];
                let observed = entry.observe(level);
                let descriptor = observed.descriptor();
                let ipa = at.align_down(level.span());
                let end = ipa.offset(level.span()).min(range.end);
                match visit(&VisitContext {
                    entry,
                    observed,
                    descriptor,
                    level,
                    ipa,
                    end,
                    start: at,
                }) {
                    Step::Continue => {
                        at = end;
                        index += 1;
                        if at >= range.end {
                            return range.end;
                        }
                        if index == table.len() {
                            continue 'root;
                        }
                    }
                    Step::Descend => {
                        let (Descriptor::Table(pa), Some(below)) = (descriptor, level.below())
                        else {
                            continue;
                        };
                        level = below;
                        table = worker.table(pa);
                        index = index_at(at.get(), level);
                    }
                    Step::Again => {}
                    Step::Wait => {
                        worker.counters.met_locked.add(1);
                        sync::relax();
                    }
                    Step::Restart => {
                        worker.counters.restarts.add(1);
                        sync::relax();
                        continue 'root;
                    }
                    Step::Stop => return at,
                }
            }
        }
        range.end
    }
}
