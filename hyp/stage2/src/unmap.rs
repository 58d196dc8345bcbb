//! Unmaps ranges, and gives up a whole tree.
//!
//! An unmap may run at any time beside faults and every other operation.

use crate::address::{Ipa, IpaRange, Level};
use crate::bounds::BadAddress;
use crate::break_batch::Batch;
use crate::contiguous::dissolve;
use crate::descriptor::{Descriptor, Leaf};
use crate::entry::Broken;
use crate::layout::Layout;
use crate::memory::{Epoch, TableMemory, Worker};
use crate::stage2::Stage2;
use crate::tlb::Tlb;
use crate::walk::Step;
use core::mem;

impl Stage2 {
    /// Removes every mapping in `range` and every table whose whole span lies in it. A block that the range covers in part is
    /// removed as a whole: the caller splits it before, or lets the part outside fault in again.
    ///
    /// `removed` gets each leaf after its TLB invalidation: no guest reaches that memory through it any more, and its access
    /// and dirty state are the caller's. When this returns, no TLB holds anything of the old mappings. Concurrent faults may
    /// map pages again; a caller that wants the range to stay empty first withdraws their grounds (rule 10). It needs no
    /// memory, so it can't fail. It takes time in proportion to the range, all in one epoch: large ranges are better unmapped
    /// piece by piece.
    ///
    /// # Errors
    /// The range isn't one of whole pages of the IPA space.
    pub fn unmap<'w, M: TableMemory, T: Tlb, E: Epoch>(
        &'w self,
        worker: &Worker<'w, M, T, E>,
        range: IpaRange,
        mut removed: impl FnMut(Level, Ipa, Leaf),
    ) -> Result<(), BadAddress> {
        self.layout().check(&range)?;
        // Lower tables first, so that a fault waits for no more than one table's contents; those above are empty by
        // then, but for what came back.
        let bytes = range.end.get().saturating_sub(range.start.get());
        self.unmap_pass(worker, &range, Level::L2, &mut removed);
        for unlinked in [Level::L1, Level::L0] {
            if unlinked >= self.layout().start() && bytes >= self.layout().span(unlinked) {
                self.unmap_pass(worker, &range, unlinked, &mut removed);
            }
        }
        Ok(())
    }

    /// Removes the leaves in `ranges`, which come in ascending order and may lie far apart, with one invalidation for
    /// as many of them as are held at a time. Tables stay, also empty ones: for single pages that are likely to come
    /// back. In all else as [`Self::unmap`].
    ///
    /// # Errors
    /// A range isn't one of whole pages of the IPA space. Those before it are unmapped.
    pub fn unmap_leaves<'w, M: TableMemory, T: Tlb, E: Epoch>(
        &'w self,
        worker: &Worker<'w, M, T, E>,
        ranges: impl IntoIterator<Item = IpaRange>,
        mut removed: impl FnMut(Level, Ipa, Leaf),
    ) -> Result<(), BadAddress> {
        let mut batch = Batch::default();
        let mut flush = |batch: Batch<'w, ()>| {
            batch.flush(worker, self, false, |broken, ()| {
                remove(worker, self.layout(), broken, &mut removed);
            });
        };
        let mut checked = Ok(());
        for range in ranges {
            checked = self.layout().check(&range);
            if checked.is_err() {
                break;
            }
            let mut at = range.start;
            while at < range.end {
                at = self.root().walk(worker, at..range.end, |context| {
                    match (context.descriptor, batch.is_empty()) {
                        (Descriptor::Invalid, _) => Step::Continue,
                        (Descriptor::Table(_), _) => Step::Descend,
                        (Descriptor::Frozen, _) => Step::Restart,
                        // As for any unmap: not passed over, nor waited for while others wait for this.
                        (Descriptor::Locked, true) => Step::Wait,
                        (Descriptor::Leaf(leaf), true) if leaf.contiguous() => {
                            dissolve(worker, self, context)
                        }
                        (Descriptor::Locked, false) => Step::Stop,
                        (Descriptor::Leaf(leaf), false) if leaf.contiguous() => Step::Stop,
                        (Descriptor::Leaf(_), _) => batch.take(worker, context, ()),
                    }
                });
                if at < range.end {
                    flush(mem::take(&mut batch));
                }
            }
        }
        flush(batch);
        checked
    }

    /// Removes the tables under entries of level `unlinked`; and the leaves, if that is the lowest.
    fn unmap_pass<'w, M: TableMemory, T: Tlb, E: Epoch>(
        &'w self,
        worker: &Worker<'w, M, T, E>,
        range: &IpaRange,
        unlinked: Level,
        removed: &mut impl FnMut(Level, Ipa, Leaf),
    ) {
        let mut at = range.start;
        while at < range.end {
            let mut batch = Batch::default();
            at = self.root().walk(worker, at..range.end, |context| {
                let is_whole = context.is_whole();
                match context.descriptor {
                    Descriptor::Invalid => return Step::Continue,
                    Descriptor::Table(_) if context.level < unlinked => return Step::Descend,
                    Descriptor::Table(_) if !is_whole && unlinked == Level::L2 => {
                        return Step::Descend;
                    }
                    Descriptor::Table(_) if !is_whole => return Step::Continue,
                    // Faults put it there after the first pass.
                    Descriptor::Leaf(_) if unlinked != Level::L2 => return Step::Continue,
                    // A locked entry may become valid again, so it can't be passed over; but this walk must not wait
                    // while it holds entries itself (rule 4). Nor does the locking of a group begin while it does.
                    Descriptor::Locked if batch.is_empty() => return Step::Wait,
                    Descriptor::Leaf(leaf) if leaf.contiguous() && batch.is_empty() => {
                        return dissolve(worker, self, context);
                    }
                    Descriptor::Locked => return Step::Stop,
                    Descriptor::Leaf(leaf) if leaf.contiguous() => return Step::Stop,
                    Descriptor::Frozen => return Step::Restart,
                    Descriptor::Leaf(_) | Descriptor::Table(_) => {}
                }
                batch.take(worker, context, ())
            });
            batch.flush(worker, self, true, |broken, ()| {
                remove(worker, self.layout(), broken, removed);
            });
        }
    }
}

/// Ends a broken entry's old mapping and leaves it vacant.
fn remove<M: TableMemory, T: Tlb, E: Epoch>(
    worker: &Worker<'_, M, T, E>,
    layout: &Layout,
    broken: Broken<'_>,
    removed: &mut impl FnMut(Level, Ipa, Leaf),
) {
    if let Descriptor::Leaf(leaf) = broken.old() {
        removed(broken.level(), broken.ipa(), leaf);
    }
    broken.freeze_subtree(worker.memory, layout, &mut *removed, |unlinked| {
        worker.counters.tables_unlinked.add(1);
        worker.epoch.retire(unlinked);
    });
    // Lost only if the table above was unlinked meanwhile: then the entry is gone as well.
    let _ = broken.make(Descriptor::Invalid);
}
