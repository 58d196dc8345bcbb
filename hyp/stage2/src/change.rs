//! Changes of whole ranges: write protection and unmapping.
//!
//! Both may run at any time beside faults, splits, collapses and each other.

use crate::address::{Ipa, IpaRange, Level};
use crate::descriptor::{Descriptor, Leaf};
use crate::entry::{Broken, Unflushed};
use crate::memory::{Epoch, TableMemory, Worker};
use crate::stage2::Stage2;
use crate::tlb::Tlb;
use crate::walk::Step;

/// Entries that an unmap holds locked at a time: one TLB invalidation serves them all.
const UNMAP_BATCH: usize = if cfg!(loom) { 2 } else { 32 };

impl Stage2 {
    /// Makes the leaves in `range` that `wanted` names (by their first IPA and level) read-only until a fault relaxes
    /// them. Leaves that the range covers in part count as in it.
    ///
    /// When this returns, no TLB holds a writable entry for any of them, also where another CPU made the change and has
    /// not finished its invalidation (rule 3). It never waits for more than one entry, and maps or unmaps nothing.
    pub fn write_protect<'w, M: TableMemory, T: Tlb, E: Epoch>(
        &'w self,
        worker: &Worker<'w, M, T, E>,
        range: IpaRange,
        mut wanted: impl FnMut(Ipa, Level) -> bool,
    ) {
        debug_assert!(self.contains(&range));
        let mut owed: Option<IpaRange> = None;
        let mut protected = 0;
        self.root().walk(worker, range, |context| {
            let leaf = match context.descriptor {
                Descriptor::Table(_) => return Step::Descend,
                Descriptor::Leaf(leaf) if wanted(context.ipa, context.level) => leaf,
                Descriptor::Leaf(_) | Descriptor::Invalid => return Step::Continue,
                Descriptor::Locked => return Step::Wait,
                Descriptor::Frozen => return Step::Restart,
            };
            if leaf.writable() {
                if context
                    .entry
                    .exchange(context.observed, Descriptor::Leaf(leaf.without_write()))
                    .is_err()
                {
                    worker.counters.lost_exchanges.add(1);
                    return Step::Again;
                }
                protected += 1;
            }
            let end = context.ipa.offset(context.level.span());
            let start = owed.as_ref().map_or(context.ipa, |range| range.start);
            owed = Some(start..end);
            Step::Continue
        });
        worker.counters.write_protected.add(protected);
        if let Some(range) = owed {
            worker.counters.tlbi_broadcast.add(1);
            worker.tlb.invalidate_range(self.vttbr(), range, false);
        }
    }

    /// Removes every mapping in `range` and every table whose whole span lies in it. Blocks must not straddle its ends.
    ///
    /// `removed` gets each leaf after its TLB invalidation: no guest reaches that memory through it any more. Faults that run
    /// beside it may map anew; whoever wants the range to stay empty takes away their grounds first (rule 10).
    pub fn unmap<'w, M: TableMemory, T: Tlb, E: Epoch>(
        &'w self,
        worker: &Worker<'w, M, T, E>,
        range: IpaRange,
        mut removed: impl FnMut(Level, Ipa, Leaf),
    ) {
        debug_assert!(self.contains(&range));
        let mut at = range.start;
        while at < range.end {
            let mut batch = [const { None }; UNMAP_BATCH];
            let mut locked = 0;
            let mut covered: Option<IpaRange> = None;
            at = self.root().walk(worker, at..range.end, |context| {
                match context.descriptor {
                    Descriptor::Invalid => return Step::Continue,
                    Descriptor::Table(_) if !context.is_whole() => return Step::Descend,
                    // A locked entry may become valid again, so it can't be passed over; but this walk must not wait while it
                    // holds entries itself (rule 4).
                    Descriptor::Locked if locked > 0 => return Step::Stop,
                    Descriptor::Locked => return Step::Wait,
                    Descriptor::Frozen => return Step::Restart,
                    Descriptor::Leaf(_) | Descriptor::Table(_) => {}
                }
                debug_assert!(
                    context.is_whole(),
                    "unmap cuts a block at {:?}",
                    context.ipa
                );
                if locked == UNMAP_BATCH {
                    return Step::Stop;
                }
                let Ok(unflushed) = context.entry.lock(context.observed, context.ipa) else {
                    worker.counters.lost_exchanges.add(1);
                    return Step::Again;
                };
                let taken = unflushed.range();
                covered =
                    Some(covered.as_ref().map_or(taken.start, |c: &IpaRange| c.start)..taken.end);
                batch[locked] = Some(unflushed);
                locked += 1;
                Step::Continue
            });
            if let Some(covered) = covered {
                worker.counters.tlbi_broadcast.add(1);
                Unflushed::flush_all(
                    batch.into_iter().flatten(),
                    covered,
                    worker.tlb,
                    self.vttbr(),
                    |broken| {
                        remove(worker, broken, &mut removed);
                    },
                );
            }
        }
    }
}

/// Ends what a broken entry stood for and leaves nothing in its place.
fn remove<M: TableMemory, T: Tlb, E: Epoch>(
    worker: &Worker<'_, M, T, E>,
    broken: Broken<'_>,
    removed: &mut impl FnMut(Level, Ipa, Leaf),
) {
    if let Descriptor::Leaf(leaf) = broken.old() {
        removed(broken.level(), broken.ipa(), leaf);
    }
    broken.freeze_subtree(worker.memory, &mut *removed, |unlinked| {
        worker.counters.tables_unlinked.add(1);
        worker.epoch.retire(unlinked);
    });
    // Lost only if the table above was unlinked meanwhile: then the entry is gone as well.
    let _ = broken.make(Descriptor::Invalid);
}
