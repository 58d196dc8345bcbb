//! Which slots of which VMs map an object.
//!
//! Read without a lock by whoever changes what backs a page; published before the slot is, and taken back after the
//! slot's range was unmapped, so that no entry leads to an object that its mappings don't name.

use crate::locks::Exclusion;
use crate::published::Published;
use crate::slots::Slot;
use crate::space::Space;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;
use crossbeam_epoch::Guard;
use spin::Mutex;
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

/// All slots that map an object.
pub(crate) struct Mappings {
    list: Published<Vec<Mapping>>,
    /// Held by whoever changes them.
    changes: Mutex<()>,
}

impl Mappings {
    /// None yet.
    pub(crate) fn new() -> Self {
        Self {
            list: Published::new(None),
            changes: Mutex::new(()),
        }
    }

    /// The mappings at this moment.
    #[inline]
    pub(crate) fn all<'g>(&self, guard: &'g Guard) -> &'g [Mapping] {
        self.list.load(guard).map_or(&[], Vec::as_slice)
    }

    /// One more. False without heap.
    pub(crate) fn add(&self, mapping: Mapping, guard: &Guard) -> bool {
        let _changes = self.changes.lock();
        let now = self.all(guard);
        let mut with = Vec::new();
        if with.try_reserve_exact(now.len() + 1).is_err() {
            return false;
        }
        with.extend_from_slice(now);
        with.push(mapping);
        self.list.replace(Some(with), guard);
        true
    }

    /// One fewer. Needs no memory that could be missing: the last one leaves none, and else there were more before.
    pub(crate) fn remove(&self, slot: &Arc<Slot>, guard: &Guard) -> bool {
        let _changes = self.changes.lock();
        let now = self.all(guard);
        let mut without = Vec::new();
        if without.try_reserve_exact(now.len()).is_err() {
            return false;
        }
        let others = now.iter().filter(|other| !Arc::ptr_eq(&other.slot, slot));
        without.extend(others.cloned());
        let rest = (!without.is_empty()).then_some(without);
        self.list.replace(rest, guard);
        true
    }
}

impl fmt::Debug for Mappings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mappings").finish_non_exhaustive()
    }
}
