//! Splits blocks into tables, at a write fault or ahead of it.
//!
//! The subtree is built off-line, then linked with one break and one make (rule 6), or without a break where the CPUs permit
//! that. May run at any time beside every other operation.

use crate::address::{Ipa, IpaRange, Level};
use crate::bounds::BadAddress;
use crate::contiguous::dissolve;
use crate::descriptor::{Descriptor, Leaf};
use crate::entry::Lost;
use crate::layout::Layout;
use crate::memory::{Epoch, TableFrame, TableMemory, Worker};
use crate::stage2::{OutOfFrames, Stage2};
use crate::tlb::Tlb;
use crate::transition::Transition;
use crate::walk::{Step, VisitContext, lost};
use core::fmt;

/// How far down the pieces of a block are cut.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Cut {
    /// All of them, to leaves of this level.
    AllTo(Level),
    /// One of them, which alone is made writable.
    AroundWritten(Around),
}

impl Cut {
    /// The level of the smallest pieces.
    fn to(self) -> Level {
        match self {
            Self::AllTo(to) => to,
            Self::AroundWritten(around) => around.to,
        }
    }

    /// Whether all of the block stays mapped.
    fn keeps_rest(self) -> bool {
        match self {
            Self::AllTo(_) => true,
            Self::AroundWritten(around) => around.keeps_rest,
        }
    }
}

/// How a block is cut that is being written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Around {
    /// Where.
    pub(crate) written: Ipa,
    /// The level of the leaf that becomes writable.
    pub(crate) to: Level,
    /// Whether what lies beside stays mapped, as large as it can.
    pub(crate) keeps_rest: bool,
    /// Whether hardware tracks writes to leaves of that level.
    pub(crate) tracked: bool,
}

impl Around {
    /// What a piece of the block is in a table of `level`.
    fn piece(&self, level: Level, piece: Leaf, layout: &Layout) -> Leaf {
        if self.tracked && level == self.to {
            piece.with_permissions(layout, piece.permissions().tracked())
        } else {
            piece
        }
    }
}

/// The result of a split.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Split {
    /// All below this address is split; the end of the range if all of it is.
    pub done_to: Ipa,
    /// Blocks that were replaced.
    pub blocks: u64,
}

/// Why a split ended before the end of its range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum SplitStopped {
    /// There was no frame for a table.
    OutOfFrames,
    /// The range isn't one of whole pages of the IPA space.
    BadAddress(BadAddress),
}

/// A split that ended early. Its work until then stays, and all else is unchanged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct SplitFailed {
    /// How far it came.
    pub split: Split,
    /// The obstacle.
    pub reason: SplitStopped,
}

impl fmt::Display for SplitFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "splitting stopped at {}: ", self.split.done_to)?;
        match self.reason {
            SplitStopped::OutOfFrames => OutOfFrames.fmt(f),
            SplitStopped::BadAddress(why) => why.fmt(f),
        }
    }
}

impl core::error::Error for SplitFailed {}

impl Stage2 {
    /// Splits the blocks in `range` into leaves of `to`, with the block's permissions, access and dirty state; blocks that
    /// the range covers in part too. At most `blocks` of them: the caller leaves its epoch, lets others through and
    /// comes back with the rest. Frames come from the worker's memory, and so out of the caller's budget.
    ///
    /// A block is replaced as a whole, a block of 1 GiB by one break for all its pages, or, if there aren't frames for
    /// that, level by level. When this returns, no TLB holds an entry for any block that it replaced. It never makes
    /// anything more or less permissive, and leaves alone what is smaller already.
    ///
    /// # Errors
    /// How far it came, and what was in the way.
    pub fn split<'w, M: TableMemory, T: Tlb, E: Epoch>(
        &'w self,
        worker: &Worker<'w, M, T, E>,
        range: IpaRange,
        to: Level,
        blocks: u64,
    ) -> Result<Split, SplitFailed> {
        if let Err(bad) = self.layout().check(&range) {
            let split = Split {
                done_to: range.start,
                blocks: 0,
            };
            let reason = SplitStopped::BadAddress(bad);
            return Err(SplitFailed { split, reason });
        }
        let mut done = 0;
        let mut failed = false;
        let done_to = self
            .root()
            .walk(worker, range, |context| match context.descriptor {
                Descriptor::Table(_) if context.level.below() < Some(to) => Step::Descend,
                Descriptor::Leaf(_) if context.level < to && done == blocks => Step::Stop,
                Descriptor::Leaf(block) if context.level < to => {
                    match self.split_as_far_as_possible(worker, context, block, to) {
                        Ok(()) => {
                            done += 1;
                            // Level by level, the pieces come next.
                            Step::Again
                        }
                        Err(Some(step)) => step,
                        Err(None) => {
                            failed = true;
                            Step::Stop
                        }
                    }
                }
                Descriptor::Table(_) | Descriptor::Leaf(_) | Descriptor::Invalid => Step::Continue,
                Descriptor::Locked => Step::Wait,
                Descriptor::Frozen => Step::Restart,
            });
        let split = Split {
            done_to,
            blocks: done,
        };
        if failed {
            let reason = SplitStopped::OutOfFrames;
            return Err(SplitFailed { split, reason });
        }
        Ok(split)
    }

    fn split_as_far_as_possible<'w, M: TableMemory, T: Tlb, E: Epoch>(
        &self,
        worker: &Worker<'w, M, T, E>,
        context: &VisitContext<'w>,
        block: Leaf,
        to: Level,
    ) -> Result<(), Option<Step>> {
        let all = self.split_block(worker, context, block, Cut::AllTo(to));
        match (all, context.level.below()) {
            (Err(None), Some(below)) if below < to => {
                self.split_block(worker, context, block, Cut::AllTo(below))
            }
            _ => all,
        }
    }

    /// Replaces the context's leaf by tables whose leaves are pieces of `pieces_of`, which maps the same. `None`: no frame.
    ///
    /// A fault that finds an unmapped piece may map something else there. So if not all pieces stay mapped, no TLB may hold the
    /// block by then, and the break isn't spared.
    pub(crate) fn split_block<'w, M: TableMemory, T: Tlb, E: Epoch>(
        &self,
        worker: &Worker<'w, M, T, E>,
        context: &VisitContext<'w>,
        pieces_of: Leaf,
        cut: Cut,
    ) -> Result<(), Option<Step>> {
        if pieces_of.contiguous() {
            return Err(Some(dissolve(worker, self, context)));
        }
        let layout = self.layout();
        let mut tables = 0;
        let subtree = build(worker, layout, context, pieces_of, cut, &mut tables)
            .map_err(|OutOfFrames| None)?;
        worker.tlb.publish_tables();
        let link = Descriptor::Table(subtree.pa());
        let (old, bbm) = (context.observed.descriptor(), layout.features().bbm);
        let linked = match Transition::of(old, link, cut.keeps_rest(), bbm) {
            Transition::Break => self.link_by_break(worker, context, link),
            Transition::Marked => self.link_by_mark(worker, context, link),
            Transition::InPlace => self.link_in_place(worker, context, link),
        };
        match linked {
            Ok(()) => {
                worker.counters.splits.add(1);
                worker.counters.tables_linked.add(tables);
                Ok(())
            }
            Err(step) => {
                if let Some(below) = context.level.below() {
                    free(worker, layout, below, subtree);
                }
                Err(Some(step))
            }
        }
    }

    fn link_by_break<'w, M: TableMemory, T: Tlb, E: Epoch>(
        &self,
        worker: &Worker<'w, M, T, E>,
        context: &VisitContext<'w>,
        link: Descriptor,
    ) -> Result<(), Step> {
        let Ok(unflushed) = context.entry.lock_to_change(context.observed, context.ipa) else {
            return Err(lost(worker));
        };
        worker.counters.tlbi_broadcast.add(1);
        let broken = unflushed.flush(worker.tlb, self.regime(), self.layout());
        broken.make(link).map_err(|Lost| Step::Restart)
    }

    /// By way of the block's nT bit: once no TLB holds it without, it can be replaced (FEAT_BBM level 1). A loss takes
    /// the bit away again, as there may be no frames for another try.
    fn link_by_mark<'w, M: TableMemory, T: Tlb, E: Epoch>(
        &self,
        worker: &Worker<'w, M, T, E>,
        context: &VisitContext<'w>,
        link: Descriptor,
    ) -> Result<(), Step> {
        let Ok(marked) = context.entry.mark(context.observed) else {
            return Err(lost(worker));
        };
        self.invalidate_block(worker, context);
        if marked.link(link).is_err() {
            return Err(lost(worker));
        }
        self.invalidate_block(worker, context);
        Ok(())
    }

    /// By one exchange (FEAT_BBM level 2). Until the invalidation is complete, TLBs may translate by the block, which maps
    /// the same; invalidations of its pieces reach it, as they come without a hint of the level.
    fn link_in_place<'w, M: TableMemory, T: Tlb, E: Epoch>(
        &self,
        worker: &Worker<'w, M, T, E>,
        context: &VisitContext<'w>,
        link: Descriptor,
    ) -> Result<(), Step> {
        let bbm = self.layout().features().bbm;
        if context
            .entry
            .exchange_sparing_break(context.observed, link, bbm)
            .is_err()
        {
            return Err(lost(worker));
        }
        self.invalidate_block(worker, context);
        Ok(())
    }

    fn invalidate_block<M: TableMemory, T: Tlb, E: Epoch>(
        &self,
        worker: &Worker<'_, M, T, E>,
        context: &VisitContext<'_>,
    ) {
        worker.counters.tlbi_broadcast.add(1);
        let vm = self.regime();
        worker
            .tlb
            .invalidate_leaf(vm, context.ipa, vm.hint(context.level));
    }
}

/// Builds the tables that replace the context's entry, and counts them in `tables`.
fn build<M: TableMemory, T: Tlb, E: Epoch>(
    worker: &Worker<'_, M, T, E>,
    layout: &Layout,
    context: &VisitContext<'_>,
    block: Leaf,
    cut: Cut,
    tables: &mut u64,
) -> Result<TableFrame, OutOfFrames> {
    let below = context.level.below().ok_or(OutOfFrames)?;
    build_table(worker, layout, below, block, cut, tables)
}

/// A table of `level` that maps what `block` does. What was built of it before frames ran out is given back.
fn build_table<M: TableMemory, T: Tlb, E: Epoch>(
    worker: &Worker<'_, M, T, E>,
    layout: &Layout,
    level: Level,
    block: Leaf,
    cut: Cut,
    tables: &mut u64,
) -> Result<TableFrame, OutOfFrames> {
    let first = block.moved_to(level, block.pa());
    let first = match cut {
        Cut::AllTo(_) => first,
        Cut::AroundWritten(around) => around.piece(level, first, layout),
    };
    let span = layout.span(level);
    let table = if cut.keeps_rest() {
        let mut next = first;
        worker.build_table(layout, |_| {
            let piece = next;
            next = piece.advanced(span);
            Descriptor::Leaf(piece)
        })
    } else {
        worker.memory.allocate()
    };
    let table = table.ok_or(OutOfFrames)?;
    *tables += 1;
    let entries = worker.table(layout, table.pa());
    let deeper = match cut {
        Cut::AllTo(to) if level >= to => 0..0,
        Cut::AllTo(_) => 0..entries.len(),
        Cut::AroundWritten(around) => {
            let index = layout.index(around.written, layout.shift(level));
            index..index + 1
        }
    };
    for index in deeper {
        let piece = first.advanced(index as u64 * span);
        let descriptor = match level.below().filter(|below| *below <= cut.to()) {
            None => Descriptor::Leaf(piece.with_write().with_accessed()),
            Some(below) => match build_table(worker, layout, below, piece, cut, tables) {
                Ok(child) => Descriptor::Table(child.pa()),
                Err(OutOfFrames) => {
                    free(worker, layout, level, table);
                    return Err(OutOfFrames);
                }
            },
        };
        entries[index].store_unshared(descriptor, layout.format());
    }
    Ok(table)
}

/// Gives back tables that nobody saw, `table` being one of `level`.
fn free<M: TableMemory, T: Tlb, E: Epoch>(
    worker: &Worker<'_, M, T, E>,
    layout: &Layout,
    level: Level,
    table: TableFrame,
) {
    if let Some(below) = level.below() {
        for entry in worker.table(layout, table.pa()) {
            if let Descriptor::Table(child) = entry.observe(level, layout.format()).descriptor() {
                free(
                    worker,
                    layout,
                    below,
                    TableFrame::from_linked(child, layout),
                );
            }
        }
    }
    // SAFETY: the subtree was built of frames of this memory.
    unsafe { worker.memory.free(table) };
}
