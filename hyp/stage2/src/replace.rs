//! Other memory behind pages that are mapped: a change of what backs a guest's memory, written straight into its tables.
//!
//! Without it such a change takes an unmap and a fault of each guest that comes by. May run at any time beside faults and
//! every other operation, itself included.

use crate::address::{Ipa, IpaRange, Level, Pa};
use crate::batch::Batch;
use crate::descriptor::{Attributes, Descriptor, Leaf};
use crate::entry::Broken;
use crate::group::dissolve;
use crate::memory::{Epoch, TableMemory, Worker};
use crate::stage2::Stage2;
use crate::tlb::Tlb;
use crate::walk::Step;
use core::ops::AddAssign;

/// What a replacement met.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Replaced {
    /// Pages that are mapped to something else now.
    pub pages: u64,
    /// Blocks, which were left alone: they have to be split first.
    pub blocks: u64,
}

impl AddAssign for Replaced {
    fn add_assign(&mut self, other: Self) {
        self.pages += other.pages;
        self.blocks += other.blocks;
    }
}

impl Stage2 {
    /// Puts other memory behind pages in `range`. `choose` is shown each page's leaf as it is, and says what the page is to
    /// be mapped to (aligned to the page size) and how; without an answer it stays as it is. Blocks are left alone, and
    /// counted. What isn't mapped isn't created.
    ///
    /// `replaced` gets each leaf that was taken, once, as it was last: after its TLB invalidation, when no guest reaches the
    /// memory through it any more, and before the page is mapped again, when no guest reaches the new one through it yet. Its
    /// access and dirty state and its hold on the memory are the caller's. The new leaf is accessed if the old one was.
    /// Contents of the new memory are written, and visible, before `replaced` returns (rule 11).
    ///
    /// A leaf that changes before it is taken is shown to `choose` again: what hardware noted of it, and whether a fault made
    /// it writable, is never lost. A table that is unlinked while one of its pages is taken gets nothing in its place, and
    /// its unlinker doesn't see the old leaf: `replaced` does (rule 5).
    ///
    /// When this returns, no TLB holds anything of what was replaced. Faults that run beside it on pages that aren't mapped
    /// map what they have decided to; whoever wants them to see the new memory publishes it first (rule 8). It needs no
    /// memory, so it can't fail. It waits for entries that others hold, but never while it holds one itself (rule 4).
    /// It takes time in proportion to the range, all in one epoch.
    pub fn replace<'w, M: TableMemory, T: Tlb, E: Epoch>(
        &'w self,
        worker: &Worker<'w, M, T, E>,
        range: IpaRange,
        mut choose: impl FnMut(Ipa, Leaf) -> Option<(Pa, Attributes)>,
        mut replaced: impl FnMut(Ipa, Leaf),
    ) -> Replaced {
        debug_assert!(self.layout().contains(&range));
        let mut found = Replaced::default();
        let mut at = range.start;
        while at < range.end {
            let mut batch = Batch::default();
            at = self.root().walk(worker, at..range.end, |context| {
                let leaf = match context.descriptor {
                    Descriptor::Leaf(leaf) if context.level == Level::L3 => leaf,
                    Descriptor::Leaf(_) => {
                        found.blocks += 1;
                        return Step::Continue;
                    }
                    Descriptor::Table(_) => return Step::Descend,
                    Descriptor::Invalid => return Step::Continue,
                    // It may become valid again, so it can't be passed over; nor waited for while others wait for this.
                    Descriptor::Locked if batch.is_empty() => return Step::Wait,
                    Descriptor::Locked => return Step::Stop,
                    Descriptor::Frozen => return Step::Restart,
                };
                if batch.is_full() {
                    return Step::Stop;
                }
                let Some((pa, attributes)) = choose(context.ipa, leaf) else {
                    return Step::Continue;
                };
                match (leaf.contiguous(), batch.is_empty()) {
                    (true, true) => dissolve(worker, self, context),
                    (true, false) => Step::Stop,
                    (false, _) => {
                        let new = self.layout().leaf(Level::L3, pa, attributes);
                        batch.take(worker, context, new)
                    }
                }
            });
            batch.flush(worker, self, false, |broken, new| {
                found.pages += u64::from(make(broken, new, &mut replaced));
            });
        }
        worker.counters.replaced.add(found.pages);
        found
    }
}

/// Ends what a broken page stood for and puts the new leaf in its place, if there is a place still.
fn make(broken: Broken<'_>, new: Leaf, replaced: &mut impl FnMut(Ipa, Leaf)) -> bool {
    let Descriptor::Leaf(old) = broken.old() else {
        debug_assert!(false, "only leaves are taken to be replaced");
        return broken.restore().is_ok();
    };
    replaced(broken.ipa(), old);
    let new = if old.accessed() {
        new
    } else {
        new.without_accessed()
    };
    // Lost only if the table was unlinked meanwhile: then there is nothing to map here.
    broken.make(Descriptor::Leaf(new)).is_ok()
}
