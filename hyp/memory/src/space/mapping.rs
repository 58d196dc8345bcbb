//! A slot's entry in the list of an object's mappings ([`Mappings`](crate::object::mappings::Mappings)).

use crate::epoch::published::try_box;
use crate::object::Object;
use crate::space::Space;
use crate::space::mmu_lock::Exclusion;
use crate::space::slot::Slot;
use alloc::sync::Arc;
use core::ops::Range;
use crossbeam_epoch::Guard;
use stage2::{IpaRange, PAGE_SIZE};

/// One slot that maps an object.
#[derive(Clone)]
pub(crate) struct Mapping {
    /// The slot's address space.
    pub(crate) space: Arc<Space>,
    /// The lock for changes of its tables.
    pub(crate) lock: Arc<dyn Exclusion>,
    /// The slot.
    pub(crate) slot: Arc<Slot>,
}

impl Mapping {
    /// The slots that currently map an object.
    #[inline]
    pub(crate) fn all_of<'g>(
        object: &'g Object,
        guard: &'g Guard,
    ) -> impl Iterator<Item = &'g Self> {
        let all = object.mappings().all(guard);
        all.filter_map(|mapping| mapping.downcast_ref())
    }

    /// Adds this mapping to its slot's object. False without heap.
    pub(crate) fn enter(self) -> bool {
        let object = self.slot.object().clone();
        let mapping = try_box(self);
        mapping.is_some_and(|mapping| object.mappings().add(mapping))
    }

    /// Removes a slot's mapping from its object. The caller waits for the epoch: until then the mapping keeps slot and space.
    pub(crate) fn leave(slot: &Arc<Slot>, guard: &Guard) {
        let is_of_slot = |mapping: &Self| Arc::ptr_eq(&mapping.slot, slot);
        let mappings = slot.object().mappings();
        mappings.remove(
            |mapping| mapping.downcast_ref().is_some_and(is_of_slot),
            guard,
        );
    }

    /// The addresses of pages of the object; an empty range if the slot doesn't map them.
    pub(crate) fn range_of(&self, pages: &Range<u64>) -> IpaRange {
        let (first, slot) = (self.slot.first_page(), self.slot.range());
        let ipa_of = |page: u64| {
            let within = page.saturating_sub(first).min(self.slot.pages());
            slot.start.offset(within * PAGE_SIZE)
        };
        ipa_of(pages.start)..ipa_of(pages.end)
    }
}
