//! Hardware dirty state (FEAT_HAFDBS, Arm ARM D8.5.2): a write turns a writable-clean leaf into a writable-dirty one without an
//! exit.
//!
//! All operations may run at any time beside every other. They complete the TLB invalidations they need before they return.

use crate::address::{Ipa, IpaRange, Level};
use crate::bounds::BadAddress;
use crate::descriptor::Descriptor;
use crate::entry::{Entry, Observed};
use crate::leaf_filter::{All, Wanted};
use crate::memory::{Epoch, TableMemory, Worker};
use crate::permissions::{Found, Verdict};
use crate::stage2::Stage2;
use crate::tlb::Tlb;
use crate::walk::{Step, VisitContext};

/// Leaves that [`Stage2::find_dirty`] reports at once: a bit each.
const REPORTED_AT_ONCE: usize = u64::BITS as usize;

impl Stage2 {
    /// Makes hardware note the next write through each leaf in `range` that `wanted` selects, and clears dirty state noted
    /// before. Leaves larger than `largest` become read-only instead, for a fault to split them. Leaves that may not be written
    /// stay as they are; leaves that the range covers in part are included. `forgotten` gets the blocks whose dirty state was
    /// cleared, as the caller may have selected only a part of them.
    ///
    /// When this returns, no TLB holds an entry that lets a write to any of them go unnoticed, even if another CPU made the
    /// change and has not finished its invalidation (rule 3). It maps or unmaps nothing.
    ///
    /// # Errors
    /// The range isn't one of whole pages of the IPA space.
    pub fn track_writes<'w, M: TableMemory, T: Tlb, E: Epoch>(
        &'w self,
        worker: &Worker<'w, M, T, E>,
        range: IpaRange,
        largest: Level,
        wanted: impl Wanted,
        mut forgotten: impl FnMut(Ipa, Level),
    ) -> Result<(), BadAddress> {
        let layout = self.layout();
        layout.check(&range)?;
        let protected = self.change_leaves(
            worker,
            range,
            &wanted,
            Observed::dirty_page_cleaned,
            |context: &Found, leaf| {
                // Another CPU may have just made it so, and not told the TLBs.
                if !leaf.may_write() {
                    return Verdict::Stale;
                }
                let logged = if context.level >= largest {
                    leaf.with_permissions(layout, leaf.without_write().permissions().tracked())
                } else {
                    leaf.write_protected()
                };
                // Also what isn't writable now may be in TLBs as it was before another CPU's change.
                if logged == leaf {
                    Verdict::Stale
                } else {
                    Verdict::Tighten(logged)
                }
            },
            |context, leaf| {
                if leaf.dirty() && context.level != Level::L3 {
                    forgotten(context.ipa, context.level);
                }
            },
        );
        worker.counters.write_protected.add(protected);
        Ok(())
    }

    /// Collects hardware dirty state in `range` (FEAT_HAFDBS): calls `dirty` for each dirty leaf, with its first IPA and level,
    /// and makes it clean.
    ///
    /// When this returns, no TLB holds a writable entry for a reported leaf: every later write is noted again. If two CPUs
    /// harvest one range at once, each reports a part, and can rely only on that part being clean; so those that harvest at
    /// once have ranges of their own (rule 9).
    ///
    /// # Errors
    /// The range isn't one of whole pages of the IPA space.
    pub fn harvest_dirty<'w, M: TableMemory, T: Tlb, E: Epoch>(
        &'w self,
        worker: &Worker<'w, M, T, E>,
        range: IpaRange,
        mut dirty: impl FnMut(Ipa, Level),
    ) -> Result<(), BadAddress> {
        self.layout().check(&range)?;
        self.change_leaves(
            worker,
            range,
            &All,
            |_| None,
            |_: &Found, leaf| {
                if leaf.dirty() {
                    Verdict::Tighten(leaf.without_write())
                } else {
                    Verdict::Keep
                }
            },
            |context, _| dirty(context.ipa, context.level),
        );
        Ok(())
    }

    /// Reports hardware dirty state in `range`, and changes nothing. `wanted` is called for each lowest table, with the part of
    /// it that the range covers, and returns whether it can contain anything new; if not, nothing is read. `dirty` gets the
    /// first IPA of up to 64 leaves, their level, and a bit for each dirty one, if there is one.
    ///
    /// A concurrent write is found now or the next time. Dirty state that another CPU has taken out of a page's entry, or has
    /// frozen with its table, isn't found: that CPU reports it. A caller that needs all of it waits, after this has returned,
    /// until that CPU has passed it on (rule 14).
    ///
    /// # Errors
    /// The range isn't one of whole pages of the IPA space.
    pub fn find_dirty<'w, M: TableMemory, T: Tlb, E: Epoch>(
        &'w self,
        worker: &Worker<'w, M, T, E>,
        range: IpaRange,
        wanted: impl Fn(IpaRange) -> bool,
        mut dirty: impl FnMut(Ipa, Level, u64),
    ) -> Result<(), BadAddress> {
        self.layout().check(&range)?;
        self.root()
            .walk(worker, range, |context| match context.descriptor {
                Descriptor::Table(pa) if context.level == Level::L2 => {
                    if wanted(context.start..context.end) {
                        let pages = worker.table(self.layout(), pa);
                        self.find_dirty_pages(context, pages, &mut dirty);
                    }
                    Step::Continue
                }
                Descriptor::Table(_) => Step::Descend,
                Descriptor::Leaf(leaf) => {
                    if leaf.dirty() {
                        dirty(context.ipa, context.level, 1);
                    }
                    Step::Continue
                }
                Descriptor::Invalid => Step::Continue,
                Descriptor::Locked => Step::Wait,
                Descriptor::Frozen => Step::Restart,
            });
        Ok(())
    }

    /// Reads the pages of a lowest table. The CPU that froze or locked an entry has its dirty state.
    #[inline(always)]
    fn find_dirty_pages(
        &self,
        context: &VisitContext<'_>,
        pages: &[Entry],
        dirty: &mut impl FnMut(Ipa, Level, u64),
    ) {
        let shift = self.layout().shift(Level::L3);
        let first = self.layout().index(context.start, shift);
        let count = ((context.end.get() - context.start.get()) >> shift) as usize;
        let pages = pages.get(first..first + count).unwrap_or(&[]);
        for (number, group) in pages.chunks(REPORTED_AT_ONCE).enumerate() {
            let found = dirty_pages(group);
            if found != 0 {
                let pages_before = (number * REPORTED_AT_ONCE) as u64;
                dirty(
                    context.start.offset(pages_before << shift),
                    Level::L3,
                    found,
                );
            }
        }
    }
}

/// A bit for each of up to 64 entries of a lowest table: whether it maps a page that hardware has noted as written. Eight at
/// once, as this is most of what a harvest costs.
#[inline(always)]
fn dirty_pages(entries: &[Entry]) -> u64 {
    let join = |later: u64, entry: &Entry| later << 1 | u64::from(entry.is_dirty_page());
    let (eights, rest) = entries.as_chunks::<8>();
    let last = rest.iter().rev().fold(0, join);
    eights
        .iter()
        .rev()
        .fold(last, |later, eight| eight.iter().rev().fold(later, join))
}
