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
    /// Whose slot.
    pub(crate) space: Arc<Space>,
    /// What changes of its tables hold.
    pub(crate) lock: Arc<dyn Exclusion>,
    /// The slot.
    pub(crate) slot: Arc<Slot>,
}

impl Mapping {
    /// The slots that map an object at this moment.
    #[inline]
    pub(crate) fn all_of<'g>(
        object: &'g Object,
        guard: &'g Guard,
    ) -> impl Iterator<Item = &'g Self> {
        let all = object.mappings().all(guard);
        all.filter_map(|mapping| mapping.downcast_ref())
    }

    /// Has its slot's object name this mapping. False without heap.
    pub(crate) fn enter(self) -> bool {
        let object = self.slot.object().clone();
        let mapping = try_box(self);
        mapping.is_some_and(|mapping| object.mappings().add(mapping))
    }

    /// Has a slot's object name its mapping no more. The caller waits for the epoch: until then it holds on to the slot and
    /// the space.
    pub(crate) fn leave(slot: &Arc<Slot>, guard: &Guard) {
        let is_of_slot = |mapping: &Self| Arc::ptr_eq(&mapping.slot, slot);
        let mappings = slot.object().mappings();
        mappings.remove(
            |mapping| mapping.downcast_ref().is_some_and(is_of_slot),
            guard,
        );
    }

    /// Where it maps pages of the object; an empty range where it doesn't.
    pub(crate) fn range_of(&self, pages: &Range<u64>) -> IpaRange {
        let (first, slot) = (self.slot.first_page(), self.slot.range());
        let ipa_of = |page: u64| {
            let within = page.saturating_sub(first).min(self.slot.pages());
            slot.start.offset(within * PAGE_SIZE)
        };
        ipa_of(pages.start)..ipa_of(pages.end)
    }
}
