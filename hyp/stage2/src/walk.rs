//! The walker: one loop that visits entries in address order, for every operation.
//!
//! A visitor never rereads the entry: it exchanges the value that its context has observed, and tells the walker how to
//! continue. Any number of walkers and operations may run on one tree at once. A walker that meets a frozen table restarts at
//! the root (rule 5), so a walk always works on the current tree.

use crate::address::{Ipa, IpaRange, Level, PAGE_SHIFT, Pa};
use crate::descriptor::{Descriptor, Leaf};
use crate::entry::{Entry, Lost, Observed, Unflushed};
use crate::features::Format;
use crate::layout::Layout;
use crate::memory::{Epoch, TableMemory, Worker, table_of};
use crate::tlb::Tlb;
use core::slice;

/// All that a visit needs to know.
///
/// There is no copy of one, which could be made to speak of another entry than the one that was observed.
pub struct VisitContext<'t> {
    /// The slot in the table.
    pub(crate) entry: &'t Entry,
    /// What it held when the walker came by.
    pub(crate) observed: Observed,
    /// What it held when the walker came by, decoded.
    pub descriptor: Descriptor,
    /// The level of the table that holds it.
    pub level: Level,
    /// The first IPA that it covers, which may lie below the walk's range.
    pub ipa: Ipa,
    /// The first IPA behind what it covers, which may lie beyond the walk's range.
    pub ipa_end: Ipa,
    /// The first IPA of interest within it.
    pub start: Ipa,
    /// The end of what it covers, or of the walk's range if that comes first.
    pub end: Ipa,
    /// The table that holds it.
    pub(crate) table: &'t [Entry],
    /// Its place in the table.
    pub(crate) index: usize,
}

impl<'t> VisitContext<'t> {
    /// Changes the entry from what it held to a leaf, or to nothing. For changes that need no break; debug builds check
    /// that.
    ///
    /// # Errors
    /// It holds something else by now: look again (rule 1).
    ///
    /// # Panics
    /// The leaf isn't one of the entry's level.
    pub fn exchange(&self, new: Option<Leaf>) -> Result<(), Lost> {
        let new = match new.map(|leaf| leaf.at(self.level)) {
            None => Descriptor::Invalid,
            Some(Ok(leaf)) => leaf,
            Some(Err(other)) => panic!("{other:?} is no leaf of {:?}", self.level),
        };
        self.entry.exchange(self.observed, new).map(|_| ())
    }

    /// Takes the entry for a break, from what it held (rule 2), to remove what it stood for: that is the caller's now,
    /// even if the table is unlinked before it makes the entry (rule 5).
    ///
    /// # Errors
    /// It holds something else by now: look again (rule 1).
    pub fn lock(&self) -> Result<Unflushed<'t>, Lost> {
        self.entry.lock(self.observed, self.ipa)
    }

    /// Whether the walk's range covers all of the entry.
    pub fn is_whole(&self) -> bool {
        self.start == self.ipa && self.end == self.ipa_end
    }
}

/// What a visit says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Done here; on to the next entry.
    Continue,
    /// Into the table that the entry leads to.
    Descend,
    /// All below this address is done, which lies within what the entry covers or at its end: on from there.
    DoneTo(Ipa),
    /// Look at the same entry again: an exchange was lost, or something was installed.
    Again,
    /// As `Again`, after giving another CPU a moment: the entry is locked.
    Wait,
    /// From the root again: the table is no longer part of the tree. If that was the root, the walk ends here.
    Restart,
    /// End the walk here.
    Stop,
}

/// Where the translation of an address ends.
#[derive(Clone, Copy)]
pub(crate) struct Place<'t> {
    table: &'t [Entry],
    index: usize,
    pub(crate) observed: Observed,
}

impl<'t> Place<'t> {
    #[inline(always)]
    pub(crate) fn entry(&self) -> &'t Entry {
        &self.table[self.index]
    }

    /// The visit of a walk over the page of `ipa`, which led here.
    pub(crate) fn context(&self, layout: &Layout, ipa: Ipa) -> VisitContext<'t> {
        let level = self.observed.level();
        let first = ipa.align_down(layout.span(level));
        let page = ipa.align_down(layout.page_size());
        VisitContext {
            entry: self.entry(),
            observed: self.observed,
            descriptor: self.observed.descriptor(),
            level,
            ipa: first,
            ipa_end: first.offset(layout.span(level)),
            start: page,
            end: page.offset(layout.page_size()),
            table: self.table,
            index: self.index,
        }
    }
}

/// The root of a tree, with its layout.
#[derive(Clone, Copy)]
pub(crate) struct Root<'s> {
    pub(crate) pa: Pa,
    pub(crate) layout: &'s Layout,
}

impl Root<'_> {
    #[inline]
    fn entries<'w, M: TableMemory, T: Tlb, E: Epoch>(
        &self,
        worker: &Worker<'w, M, T, E>,
    ) -> &'w [Entry] {
        // SAFETY: the root's frames are one run of `layout.root_tables()` tables (`Stage2::new`) of the source that everybody
        // works with (`TableFrame::new`), owned by the `Stage2` that lends this `Root`, and freed only through an epoch after
        // that is gone.
        unsafe {
            slice::from_raw_parts(
                worker.memory.entries(self.pa).as_ptr(),
                self.layout.root_entries(),
            )
        }
    }

    /// The entry that ends the translation of `ipa`: no table. `None` beyond the IPA space.
    #[inline(always)]
    pub(crate) fn seek<'w, M: TableMemory, T: Tlb, E: Epoch>(
        &self,
        worker: &Worker<'w, M, T, E>,
        ipa: Ipa,
    ) -> Option<Place<'w>> {
        let mut level = self.layout.start();
        let mut shift = self.layout.shift(level);
        let mut table = self.entries(worker);
        let mut index = (ipa.get() >> shift) as usize;
        loop {
            let observed = table.get(index)?.observe(level, self.layout.format());
            let (Some(pa), Some(below)) = (observed.link(), level.below()) else {
                return Some(Place {
                    table,
                    index,
                    observed,
                });
            };
            level = below;
            shift -= self.layout.stride();
            table = worker.table(self.layout, pa);
            index = self.layout.index(ipa, shift);
        }
    }

    /// The entry of the page at `ipa` in a plain tree whose tables have `N` entries ([`Layout::plain_stride`]), if tables lead
    /// down to it. As [`seek`](Self::seek), with all shifts known; what it holds the caller observes.
    #[inline(always)]
    pub(crate) fn seek_page<'w, const N: usize, M: TableMemory, T: Tlb, E: Epoch>(
        &self,
        worker: &Worker<'w, M, T, E>,
        ipa: Ipa,
    ) -> Option<&'w Entry> {
        let stride = N.trailing_zeros();
        let entry = |pa: Pa, level: Level| -> &'w Entry {
            let shift = PAGE_SHIFT + stride * (Level::L3 as u32 - level as u32);
            let table: &[Entry; N] = table_of(worker.memory, self.layout, pa);
            &table[(ipa.get() >> shift) as usize % N]
        };
        let below = |entry: &Entry, level| entry.observe(level, Format::Narrow).link();
        let start = self.layout.start();
        let index = (ipa.get() >> self.layout.root_shift()) as usize;
        let mut at = self.entries(worker).get(index)?;
        if start != Level::L1 {
            // Rare: an IPA space of more than 43 bits, or of fewer than 35.
            if start == Level::L0 {
                at = entry(below(at, Level::L0)?, Level::L1);
            } else {
                return Some(match start {
                    Level::L2 => entry(below(at, Level::L2)?, Level::L3),
                    _ => at,
                });
            }
        }
        at = entry(below(at, Level::L1)?, Level::L2);
        Some(entry(below(at, Level::L2)?, Level::L3))
    }

    /// Visits the entries that cover `range`, which has been [checked](Layout::check), in address order, from the root down as
    /// the visitor says. Returns where it was stopped, or the range's end.
    #[inline(always)]
    pub(crate) fn walk<'w, M: TableMemory, T: Tlb, E: Epoch>(
        &self,
        worker: &Worker<'w, M, T, E>,
        range: IpaRange,
        mut visit: impl FnMut(&VisitContext<'w>) -> Step,
    ) -> Ipa {
        let format = self.layout.format();
        let mut at = range.start;
        'root: while at < range.end {
            let mut level = self.layout.start();
            let mut table = self.entries(worker);
            let mut index = (at.get() >> self.layout.shift(level)) as usize;
            loop {
                let span = self.layout.span(level);
                let entry = &table[index];
                let observed = entry.observe(level, format);
                let descriptor = observed.descriptor();
                let ipa = at.align_down(span);
                let ipa_end = ipa.offset(span);
                let end = ipa_end.min(range.end);
                match visit(&VisitContext {
                    entry,
                    observed,
                    descriptor,
                    level,
                    ipa,
                    ipa_end,
                    start: at,
                    end,
                    table,
                    index,
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
                        table = worker.table(self.layout, pa);
                        index = self.layout.index(at, self.layout.shift(level));
                    }
                    Step::DoneTo(done) => {
                        debug_assert!(at < done && done <= ipa_end);
                        at = done;
                        continue 'root;
                    }
                    // The whole tree is dead: a walker of the last moment would restart for ever.
                    Step::Restart
                        if level == self.layout.start() && descriptor == Descriptor::Frozen =>
                    {
                        return at;
                    }
                    Step::Restart => {
                        worker.before(Step::Restart);
                        continue 'root;
                    }
                    again @ (Step::Again | Step::Wait) => worker.before(again),
                    Step::Stop => return at,
                }
            }
        }
        range.end
    }
}

/// An exchange was lost: counted, and looked at again (rule 1).
#[cold]
pub(crate) fn lost<M: TableMemory, T: Tlb, E: Epoch>(worker: &Worker<'_, M, T, E>) -> Step {
    worker.counters.lost_exchanges.add(1);
    Step::Again
}
