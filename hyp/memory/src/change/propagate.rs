//! Carries a change of a page's backing to every table that maps the page.
//!
//! The caller has claimed the page ([`Object::claim`](crate::object::Object::claim)). For each of the object's mappings:
//! publish the range in the VM's tracker, full barrier, change the entry, retire the range (rule 8). A fault that read the page
//! as unclaimed either locks its entry before this walk reaches it, and the walk finds that entry; or it locks later, and finds
//! the published range or the claim.
//!
//! Nothing here waits, except for single locked entries. Dirty state that hardware left in a removed entry is passed to the
//! slot's dirty log.

use crate::frames::tables::{Retirement, Tables};
use crate::object::claim_batch::{Batch, MOST};
use crate::object::{Claim, Object};
use crate::space::IN_SPACE;
use crate::space::mapping::Mapping;
use crate::space::slot::Slot;
use crate::system::cpu::{Caches, CpuMemory};
use crate::tracker::Invalidation;
use core::array;
use core::ops::Range;
use crossbeam_epoch::Guard;
use stage2::{
    Attributes, Ipa, IpaRange, Leaf, Level, Pa, Permissions, Split, SplitFailed, Tlb, Worker,
};

/// The CPU that makes a change, within the epoch.
pub(crate) struct Changer<'c, T> {
    pub(crate) cpu: &'c CpuMemory<T>,
    pub(crate) guard: &'c Guard,
}

/// A mapping whose range is published and whose lock is held.
struct Changed<'c, T> {
    mapping: &'c Mapping,
    range: IpaRange,
    guard: &'c Guard,
    worker: &'c Worker<'c, Tables<'c>, T, Retirement<'c>>,
}

impl<'c, T: Tlb + Caches> Changer<'c, T> {
    /// Makes a claimed page read-only in every mapping, and keeps faults from making it writable. When this returns, no vCPU
    /// can write it.
    pub(crate) fn withdraw(&self, claim: &Claim<'_>) {
        self.for_each(claim, |changed| {
            changed.separate();
            changed.protect(Permissions::READ_ONLY);
        });
    }

    /// Replaces frame `from` by `to` in every entry for a claimed page, with the permissions from `allowed`. When this returns,
    /// no TLB holds the old frame.
    pub(crate) fn replace(
        &self,
        claim: &Claim<'_>,
        from: Pa,
        to: Pa,
        allowed: impl Fn(&Slot) -> Permissions,
    ) {
        self.for_each(claim, |changed| {
            let attributes = Attributes::memory(allowed(&changed.mapping.slot));
            changed.replace(from, to, attributes);
        });
    }

    /// Sets the permissions of all entries that map a claimed page to `frame`. Where a slot is being removed or moved, another
    /// page's entry may have taken the place: it stays unchanged.
    pub(crate) fn permit(
        &self,
        claim: &Claim<'_>,
        frame: Pa,
        allowed: impl Fn(&Slot) -> Permissions,
    ) {
        self.for_each(claim, |changed| {
            changed.separate();
            changed.permit(frame, allowed(&changed.mapping.slot));
        });
    }

    /// Unmaps a claimed page everywhere. When this returns, no vCPU reaches it.
    pub(crate) fn unmap(&self, claim: &Claim<'_>) {
        self.for_each(claim, |changed| {
            changed.separate();
            changed.unmap();
        });
    }

    /// Unmaps claimed pages everywhere, with one invalidation for each mapping. When this returns, no vCPU reaches any of them,
    /// and their contents are final; not before.
    pub(crate) fn unmap_batch(&self, batch: &Batch<'_>) {
        for claim in batch.claims() {
            batch.object().lower(claim.page());
        }
        for mapping in Mapping::all_of(batch.object(), self.guard) {
            let ranges = || {
                let ranges = batch.runs().map(|pages| mapping.range_of(&pages));
                ranges.filter(|range| !range.is_empty())
            };
            let (Some(first), Some(last)) = (ranges().next(), ranges().last()) else {
                continue;
            };
            let mut unpublished = ranges();
            let tracker = mapping.space.tracker();
            // Each for itself: faults between them are none of their business.
            let published: [Option<Invalidation<'_>>; MOST] =
                array::from_fn(|_| Some(tracker.begin(unpublished.next()?)));
            self.apply(mapping, first.start..last.end, &mut |changed| {
                changed.unmap_ranges(ranges());
            });
            published.into_iter().flatten().for_each(Invalidation::end);
        }
    }

    /// Makes claimed pages read-only in every mapping, and keeps faults from making them writable. When this returns, no vCPU
    /// can write them.
    pub(crate) fn withdraw_all(&self, object: &Object, pages: Range<u64>) {
        for mapping in Mapping::all_of(object, self.guard) {
            let range = mapping.range_of(&pages);
            self.change(mapping, range, &mut |changed| {
                changed.protect(Permissions::READ_ONLY);
            });
        }
    }

    fn for_each(&self, claim: &Claim<'_>, mut change: impl FnMut(&Changed<'_, T>)) {
        let page = claim.page()..claim.page() + 1;
        for mapping in Mapping::all_of(claim.object(), self.guard) {
            self.change(mapping, mapping.range_of(&page), &mut change);
        }
    }

    /// Changes entries of one mapping.
    fn change(&self, mapping: &Mapping, range: IpaRange, change: &mut impl FnMut(&Changed<'_, T>)) {
        if range.is_empty() {
            return;
        }
        let published = mapping.space.tracker().begin(range.clone());
        self.apply(mapping, range, change);
        published.end();
    }

    /// Changes entries of one mapping whose ranges are published.
    fn apply(&self, mapping: &Mapping, range: IpaRange, change: &mut impl FnMut(&Changed<'_, T>)) {
        let space = &mapping.space;
        let tables = self.cpu.tables(space.vm());
        let epoch = self.cpu.retirement(space.vm(), self.guard);
        let changed = Changed {
            mapping,
            range,
            guard: self.guard,
            worker: &self.cpu.worker(&tables, &epoch),
        };
        mapping.lock.exclusively(&mut || change(&changed));
    }
}

impl<T: Tlb + Caches> Changed<'_, T> {
    /// Makes sure that no block maps the page: splits the block or, without frames for a table, unmaps it.
    fn separate(&self) {
        let stage2 = self.mapping.space.stage2();
        let found = stage2.lookup(self.worker, self.range.start);
        if found.is_some_and(|(_, level)| level == Level::L3) {
            return;
        }
        if self.split(self.range.clone()).is_err() {
            self.unmap();
        }
    }

    /// Splits the blocks that map a range into pages. The rest of a 1 GiB block becomes 2 MiB blocks.
    fn split(&self, range: IpaRange) -> Result<Split, SplitFailed> {
        let stage2 = self.mapping.space.stage2();
        let to = |level| stage2.split(self.worker, range.clone(), level, u64::MAX);
        to(Level::L2).and_then(|_| to(Level::L3))
    }

    fn protect(&self, permissions: Permissions) {
        let stage2 = self.mapping.space.stage2();
        let page = self.range.clone();
        stage2
            .protect(self.worker, page, permissions, |ipa, level, leaf| {
                self.note(ipa, level, leaf)
            })
            .expect(IN_SPACE);
    }

    fn permit(&self, frame: Pa, permissions: Permissions) {
        let stage2 = self.mapping.space.stage2();
        let page = self.range.clone();
        let note = |ipa, level, leaf| self.note(ipa, level, leaf);
        stage2
            .protect_mapped(self.worker, page, frame, permissions, note)
            .expect(IN_SPACE);
    }

    fn replace(&self, from: Pa, to: Pa, attributes: Attributes) {
        let stage2 = self.mapping.space.stage2();
        let choose = |_, leaf: Leaf| (leaf.pa() == from).then_some((to, attributes));
        let note = |ipa, leaf| self.note(ipa, Level::L3, leaf);
        while stage2
            .replace(self.worker, self.range.clone(), choose, note)
            .expect(IN_SPACE)
            .blocks
            != 0
        {
            self.separate();
        }
    }

    fn unmap(&self) {
        let stage2 = self.mapping.space.stage2();
        stage2
            .unmap(self.worker, self.range.clone(), |level, ipa, leaf| {
                self.note(ipa, level, leaf)
            })
            .expect(IN_SPACE);
    }

    /// Unmaps ranges of pages. A block that a range only partly covers is split first or, without frames for a table, unmapped.
    fn unmap_ranges(&self, ranges: impl Iterator<Item = IpaRange> + Clone) {
        let stage2 = self.mapping.space.stage2();
        for range in ranges.clone() {
            let _ = self.split(range);
        }
        stage2
            .unmap_leaves(self.worker, ranges, |level, ipa, leaf| {
                self.note(ipa, level, leaf)
            })
            .expect(IN_SPACE);
    }

    /// Passes a write that hardware noted in a removed entry to the log.
    fn note(&self, ipa: Ipa, level: Level, leaf: Leaf) {
        let slot = &self.mapping.slot;
        if let (true, Some(log)) = (leaf.dirty(), slot.log(self.guard)) {
            log.mark(slot.pages_of(ipa, level));
        }
    }
}
