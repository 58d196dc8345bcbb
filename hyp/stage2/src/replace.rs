//! Replaces the memory behind mapped pages: a change of backing, written straight into the tables.
//!
//! The alternative is an unmap, and a fault for each guest that uses the page. May run at any time beside faults and every
//! other operation, itself included.

use crate::address::{Ipa, IpaRange, Level, Pa};
use crate::bounds::BadAddress;
use crate::break_batch::Batch;
use crate::contiguous::dissolve;
use crate::descriptor::{Attributes, Descriptor, Leaf};
use crate::entry::Broken;
use crate::memory::{Epoch, TableMemory, Worker};
use crate::stage2::Stage2;
use crate::tlb::Tlb;
use crate::walk::{Step, VisitContext, lost};
use core::ops::AddAssign;

/// The result of a replacement.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Replaced {
    /// Pages that were mapped to other memory.
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
    /// Replaces the memory behind pages in `range`. `choose` gets each page's current leaf, and returns the new memory and
    /// attributes; if it returns nothing, the page stays as it is. Blocks are left alone, and counted. Unmapped pages stay
    /// unmapped.
    ///
    /// `replaced` gets each removed leaf once, in its last state. At that time its TLB invalidation is complete, so no guest
    /// reaches the memory through it any more; and the page isn't mapped again, so no guest reaches the new memory through it
    /// yet. The leaf's access and dirty state and its hold on the memory are the caller's. The new leaf is accessed if the old
    /// one was. The contents of the new memory are written, and visible, before `replaced` returns (rule 11).
    ///
    /// A leaf that changes before it is taken is shown to `choose` again: hardware's access and dirty state, and a fault that
    /// made it writable, are never lost. If a table is unlinked while one of its pages is taken, nothing is put in the page's
    /// place, and `replaced` gets the old leaf, not the unlinking CPU (rule 5).
    ///
    /// When this returns, no TLB holds anything of the replaced leaves. Concurrent faults on unmapped pages map the memory that
    /// they have decided on; a caller that wants them to see the new memory publishes it first (rule 8). It needs no memory, so
    /// it can't fail. It waits for entries that others hold, but never while it holds one itself (rule 4). It takes time in
    /// proportion to the range, all in one epoch.
    ///
    /// # Errors
    /// The range isn't one of whole pages of the IPA space. Or memory that `choose` returns [can't
    /// back](crate::Layout::check_backing) a page: that page stays as it is, and so do all for which `choose` returned nothing
    /// before.
    pub fn replace<'w, M: TableMemory, T: Tlb, E: Epoch>(
        &'w self,
        worker: &Worker<'w, M, T, E>,
        range: IpaRange,
        mut choose: impl FnMut(Ipa, Leaf) -> Option<(Pa, Attributes)>,
        mut replaced: impl FnMut(Ipa, Leaf),
    ) -> Result<Replaced, BadAddress> {
        self.layout().check(&range)?;
        let mut found = Replaced::default();
        let page_size = self.layout().page_size();
        let mut checked = Ok(());
        let mut choose = |ipa, leaf| {
            checked.ok()?;
            let (pa, attributes) = choose(ipa, leaf)?;
            checked = self.layout().check_backing(pa, page_size);
            checked.is_ok().then_some((pa, attributes))
        };
        if range.end.get().saturating_sub(range.start.get()) <= page_size {
            self.replace_page(worker, range, &mut choose, &mut replaced, &mut found);
        } else {
            self.replace_pages(worker, range, &mut choose, &mut replaced, &mut found);
        }
        worker.counters.replaced.add(found.pages);
        checked.map(|()| found)
    }

    /// [`Self::replace`] for many pages: one invalidation for a batch of them.
    fn replace_pages<'w, M: TableMemory, T: Tlb, E: Epoch>(
        &'w self,
        worker: &Worker<'w, M, T, E>,
        range: IpaRange,
        choose: &mut impl FnMut(Ipa, Leaf) -> Option<(Pa, Attributes)>,
        replaced: &mut impl FnMut(Ipa, Leaf),
        found: &mut Replaced,
    ) {
        let mut at = range.start;
        while at < range.end {
            let mut batch = Batch::default();
            at = self.root().walk(worker, at..range.end, |context| {
                if batch.is_full() {
                    return Step::Stop;
                }
                match self.chosen(worker, context, !batch.is_empty(), choose, found) {
                    Ok(new) => batch.take(worker, context, new),
                    Err(step) => step,
                }
            });
            batch.flush(worker, self, false, |broken, new| {
                found.pages += u64::from(make(broken, new, replaced));
            });
        }
    }

    /// [`Self::replace`] for one page, in the fault of a guest that writes it: nothing is set up for others.
    fn replace_page<'w, M: TableMemory, T: Tlb, E: Epoch>(
        &'w self,
        worker: &Worker<'w, M, T, E>,
        page: IpaRange,
        choose: &mut impl FnMut(Ipa, Leaf) -> Option<(Pa, Attributes)>,
        replaced: &mut impl FnMut(Ipa, Leaf),
        found: &mut Replaced,
    ) {
        self.root().walk(worker, page, |context| {
            let new = match self.chosen(worker, context, false, choose, found) {
                Ok(new) => new,
                Err(step) => return step,
            };
            let Ok(unflushed) = context.entry.lock(context.observed, context.ipa) else {
                return lost(worker);
            };
            worker.counters.tlbi_broadcast.add(1);
            let broken = unflushed.flush(worker.tlb, self.regime(), self.layout());
            found.pages += u64::from(make(broken, new, replaced));
            Step::Continue
        });
    }

    /// What an entry is to become, or what is to be done instead of taking it. `holds`: the caller holds other entries.
    fn chosen<'w, M: TableMemory, T: Tlb, E: Epoch>(
        &self,
        worker: &Worker<'w, M, T, E>,
        context: &VisitContext<'w>,
        holds: bool,
        choose: &mut impl FnMut(Ipa, Leaf) -> Option<(Pa, Attributes)>,
        found: &mut Replaced,
    ) -> Result<Leaf, Step> {
        let leaf = match context.descriptor {
            Descriptor::Leaf(leaf) if context.level == Level::L3 => leaf,
            Descriptor::Leaf(_) => {
                found.blocks += 1;
                return Err(Step::Continue);
            }
            Descriptor::Table(_) => return Err(Step::Descend),
            Descriptor::Invalid => return Err(Step::Continue),
            // It may become valid again, so it can't be passed over; nor waited for while others wait for this.
            Descriptor::Locked if !holds => return Err(Step::Wait),
            Descriptor::Locked => return Err(Step::Stop),
            Descriptor::Frozen => return Err(Step::Restart),
        };
        let (pa, attributes) = choose(context.ipa, leaf).ok_or(Step::Continue)?;
        match (leaf.contiguous(), holds) {
            (true, false) => Err(dissolve(worker, self, context)),
            (true, true) => Err(Step::Stop),
            (false, _) => Ok(self.layout().leaf(Level::L3, pa, attributes)),
        }
    }
}

/// Ends a broken page's old leaf and maps the new one, if the table is still in the tree.
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
