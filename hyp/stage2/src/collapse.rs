//! Collapses tables back into blocks.
//!
//! May run at any time beside faults, write protection, unmaps and splits.

use crate::address::{Ipa, IpaRange, Level};
use crate::bounds::BadAddress;
use crate::descriptor::{Attributes, Descriptor, Leaf, Permissions};
use crate::entry::Entry;
use crate::layout::Layout;
use crate::memory::{Epoch, TableMemory, Worker};
use crate::stage2::Stage2;
use crate::sync;
use crate::tlb::Tlb;
use crate::walk::{Step, VisitContext, lost};
use core::ops::AddAssign;

/// The result of a collapse.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Collapsed {
    /// Tables that became a block.
    pub blocks: u64,
    /// Tables left as they are: an entry is missing, not contiguous, or itself a table.
    pub left: u64,
}

impl AddAssign for Collapsed {
    fn add_assign(&mut self, other: Self) {
        self.blocks += other.blocks;
        self.left += other.left;
    }
}

impl Stage2 {
    /// Turns each table under an entry of level `to` in `range` into a block, if all its entries map one aligned, contiguous
    /// piece of memory with the same attributes. If the granule has no block so large, the next smaller level is used. The
    /// block is accessed if any entry was, and dirty if any entry was and hardware still tracks writes.
    ///
    /// `permissions` returns the block's permissions; its argument says whether hardware has noted a write that nobody has
    /// collected. It is called while the entry is locked and after a full barrier, so that it decides on the state published
    /// then (rule 8).
    ///
    /// If another CPU removed an entry of the table after it was read, or the table above, the table's whole span is unmapped
    /// and faults in again. `removed` gets each leaf that was still there, as from [`unmap`](Self::unmap); each may count as
    /// accessed or dirty if another one was.
    ///
    /// When this returns, no TLB holds an entry for any page or table that it replaced. Needs no memory, so it can't fail. The
    /// break is needed even where FEAT_BBM would spare it: the entries below are frozen before the block may exist, as a fault
    /// could otherwise change them unnoticed, and frozen entries translate nothing.
    ///
    /// # Errors
    /// The range isn't one of whole pages of the IPA space.
    pub fn collapse<'w, M: TableMemory, T: Tlb, E: Epoch>(
        &'w self,
        worker: &Worker<'w, M, T, E>,
        range: IpaRange,
        to: Level,
        mut permissions: impl FnMut(bool) -> Permissions,
        mut removed: impl FnMut(Level, Ipa, Leaf),
    ) -> Result<Collapsed, BadAddress> {
        self.layout().check(&range)?;
        let to = to.max(self.layout().largest_leaf());
        let mut collapsed = Collapsed::default();
        self.root()
            .walk(worker, range, |context| match context.descriptor {
                Descriptor::Table(_) if context.level < to => Step::Descend,
                Descriptor::Table(_) if !context.is_whole() => Step::Continue,
                Descriptor::Table(pa) => {
                    let entries = worker.table(self.layout(), pa);
                    let Some(first) = block_under(self.layout(), entries, context.level) else {
                        collapsed.left += 1;
                        return Step::Continue;
                    };
                    match self.collapse_table(
                        worker,
                        context,
                        first,
                        &mut permissions,
                        &mut removed,
                    ) {
                        Ok(merged) => {
                            collapsed += merged;
                            Step::Continue
                        }
                        Err(step) => step,
                    }
                }
                Descriptor::Locked => Step::Wait,
                Descriptor::Frozen => Step::Restart,
                Descriptor::Leaf(_) | Descriptor::Invalid => Step::Continue,
            });
        Ok(collapsed)
    }

    fn collapse_table<'w, M: TableMemory, T: Tlb, E: Epoch>(
        &self,
        worker: &Worker<'w, M, T, E>,
        context: &VisitContext<'w>,
        first: Leaf,
        permissions: &mut impl FnMut(bool) -> Permissions,
        removed: &mut impl FnMut(Level, Ipa, Leaf),
    ) -> Result<Collapsed, Step> {
        let layout = self.layout();
        let (Some(level), Ok(unflushed)) = (
            context.level.below(),
            context.entry.lock(context.observed, context.ipa),
        ) else {
            return Err(lost(worker));
        };
        worker.counters.tlbi_broadcast.add(1);
        let broken = unflushed.flush(worker.tlb, self.regime(), layout);
        let mut pieces = Pieces::new(context.ipa, level, layout.span(level), first);
        broken.freeze_subtree(
            worker.memory,
            layout,
            |level, ipa, leaf| {
                if !pieces.take(level, ipa, leaf) {
                    removed(level, ipa, leaf);
                }
            },
            |unlinked| {
                worker.counters.tables_unlinked.add(1);
                worker.epoch.retire(unlinked);
            },
        );
        sync::full_barrier();
        let complete = pieces.bytes == layout.span(context.level);
        let new = if complete {
            let mut permissions = permissions(pieces.dirty);
            permissions.write |=
                permissions.may_write && permissions.hardware_dirty && pieces.dirty;
            let attributes = Attributes {
                memory: first.memory(),
                permissions,
            };
            let block = layout.leaf(context.level, first.pa(), attributes);
            Descriptor::Leaf(if pieces.accessed {
                block
            } else {
                block.without_accessed()
            })
        } else {
            Descriptor::Invalid
        };
        // Lost: an unmap has unlinked the table that holds this entry; there is nothing left to map.
        if broken.make(new).is_ok() && complete {
            worker.counters.collapses.add(1);
            return Ok(Collapsed { blocks: 1, left: 0 });
        }
        pieces.give_up(removed);
        Err(Step::Again)
    }
}

/// The leaves of a table that is to become a block, as far as they are contiguous from the start.
struct Pieces {
    start: Ipa,
    level: Level,
    span: u64,
    first: Leaf,
    bytes: u64,
    accessed: bool,
    dirty: bool,
}

impl Pieces {
    fn new(start: Ipa, level: Level, span: u64, first: Leaf) -> Self {
        Self {
            start,
            level,
            span,
            first,
            bytes: 0,
            accessed: false,
            dirty: false,
        }
    }

    /// Whether the leaf is the next piece.
    fn take(&mut self, level: Level, ipa: Ipa, leaf: Leaf) -> bool {
        let fits = level == self.level
            && ipa == self.start.offset(self.bytes)
            && leaf.pa() == self.first.pa().offset(self.bytes)
            && leaf.is_like(self.first);
        if fits {
            self.bytes += self.span;
            self.accessed |= leaf.accessed();
            self.dirty |= leaf.dirty();
        }
        fits
    }

    /// Reports the leaves that couldn't become a block.
    fn give_up(self, removed: &mut impl FnMut(Level, Ipa, Leaf)) {
        let mut piece = self.first.without_accessed();
        if self.accessed {
            piece = piece.with_accessed();
        }
        if piece.hardware_dirty() {
            piece = piece.without_write();
        }
        if self.dirty {
            piece = piece.with_write();
        }
        for offset in (0..self.bytes).step_by(self.span as usize) {
            removed(
                self.level,
                self.start.offset(offset),
                piece.advanced(offset),
            );
        }
    }
}

/// The first leaf of a table under an entry of level `to`, if all of its entries, taken together, could be one block.
fn block_under(layout: &Layout, entries: &[Entry], to: Level) -> Option<Leaf> {
    let level = to.below()?;
    let mut first: Option<Leaf> = None;
    for (index, entry) in entries.iter().enumerate() {
        let observed = entry.observe(level, layout.format());
        let Descriptor::Leaf(leaf) = observed.descriptor() else {
            return None;
        };
        let first = *first.get_or_insert(leaf);
        let expected = first.pa().offset((index as u64) << layout.shift(level));
        if leaf.pa() != expected || !first.pa().is_aligned(layout.span(to)) || !leaf.is_like(first)
        {
            return None;
        }
    }
    first
}
