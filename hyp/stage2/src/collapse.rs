//! Merging tables back into blocks.
//!
//! May run at any time beside faults, write protection, unmaps and splits.

use crate::address::{IpaRange, Level};
use crate::descriptor::{Descriptor, Leaf, Permissions};
use crate::memory::{Epoch, TableMemory, Worker};
use crate::stage2::Stage2;
use crate::sync;
use crate::tlb::Tlb;
use crate::walk::{Step, VisitContext};
use core::ops::AddAssign;

/// What a collapse found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Collapsed {
    /// Tables that became a block.
    pub blocks: u64,
    /// Tables left as they are: something in them is missing, not contiguous, or a table itself.
    pub left: u64,
}

impl AddAssign for Collapsed {
    fn add_assign(&mut self, other: Self) {
        self.blocks += other.blocks;
        self.left += other.left;
    }
}

impl Stage2 {
    /// Turns each table under an entry of level `to` in `range` into a block, where all its entries map one aligned,
    /// contiguous piece of memory.
    ///
    /// `permissions` says what the block allows. It is asked while the entry is locked and after a full barrier, so that it
    /// decides on what is published then (rule 8). If a racing unmap took something out of the table after it was looked
    /// at, all of its span is unmapped and faults in again. Needs no memory, so it can't fail.
    pub fn collapse<'w, M: TableMemory, T: Tlb, E: Epoch>(
        &'w self,
        worker: &Worker<'w, M, T, E>,
        range: IpaRange,
        to: Level,
        mut permissions: impl FnMut() -> Permissions,
    ) -> Collapsed {
        debug_assert!(self.contains(&range) && to.may_be_leaf());
        let mut collapsed = Collapsed::default();
        self.root()
            .walk(worker, range, |context| match context.descriptor {
                Descriptor::Table(_) if context.level < to => Step::Descend,
                Descriptor::Table(_) if !context.is_whole() => Step::Continue,
                Descriptor::Table(pa) => {
                    let Some(first) = block_under(
                        worker.table(pa).iter().map(|e| (e, context.level.below())),
                        to,
                    ) else {
                        collapsed.left += 1;
                        return Step::Continue;
                    };
                    match self.collapse_table(worker, context, first, &mut permissions) {
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
        collapsed
    }

    fn collapse_table<'w, M: TableMemory, T: Tlb, E: Epoch>(
        &self,
        worker: &Worker<'w, M, T, E>,
        context: &VisitContext<'w>,
        first: Leaf,
        permissions: &mut impl FnMut() -> Permissions,
    ) -> Result<Collapsed, Step> {
        let Ok(unflushed) = context.entry.lock(context.observed, context.ipa) else {
            worker.counters.lost_exchanges.add(1);
            return Err(Step::Again);
        };
        worker.counters.tlbi_broadcast.add(1);
        let broken = unflushed.flush(worker.tlb, self.vttbr());
        let mut contiguous = 0;
        broken.freeze_subtree(
            worker.memory,
            |level, ipa, leaf| {
                let offset = ipa.get() - context.ipa.get();
                let in_place =
                    Some(level) == context.level.below() && leaf.pa() == first.pa().offset(offset);
                contiguous += if in_place { level.span() } else { 0 };
            },
            |unlinked| {
                worker.counters.tables_unlinked.add(1);
                worker.epoch.retire(unlinked);
            },
        );
        sync::full_barrier();
        let complete = contiguous == context.level.span();
        let new = if complete {
            Descriptor::Leaf(Leaf::new(context.level, first.pa(), permissions()))
        } else {
            Descriptor::Invalid
        };
        // Lost: an unmap has unlinked the table that holds this entry; there is nothing left to map.
        if broken.make(new).is_ok() && complete {
            worker.counters.collapses.add(1);
            return Ok(Collapsed { blocks: 1, left: 0 });
        }
        Err(Step::Again)
    }
}

/// The first leaf of a table, if all of its entries, taken together, could be one block of level `to`.
fn block_under<'t>(
    entries: impl Iterator<Item = (&'t crate::entry::Entry, Option<Level>)>,
    to: Level,
) -> Option<Leaf> {
    let mut first: Option<Leaf> = None;
    for (index, (entry, level)) in entries.enumerate() {
        let level = level?;
        let Descriptor::Leaf(leaf) = entry.observe(level).descriptor() else {
            return None;
        };
        let first = *first.get_or_insert(leaf);
        let expected = first.pa().offset(index as u64 * level.span());
        if leaf.pa() != expected || !first.pa().is_aligned(to.span()) {
            return None;
        }
    }
    first
}
