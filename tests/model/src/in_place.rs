//! What a test brings beside real address spaces: TLB instructions that do one thing at each broadcast, and a view of tables that
//! are there already.

use memory::Caches;
use stage2::{
    Entry, Epoch, Ipa, IpaRange, Level, Pa, Regime, TableFrame, TableMemory, Tlb, Unlinked,
};
use std::ptr::{NonNull, with_exposed_provenance_mut};

/// TLB instructions that call this at each invalidation that is broadcast, and do nothing at local ones.
#[derive(Clone, Copy, Debug)]
pub struct AtBroadcasts<F>(pub F);

impl<F: Fn()> Tlb for AtBroadcasts<F> {
    fn invalidate_leaf(&self, _: Regime, _: Ipa, _: Option<Level>) {
        self.0();
    }

    fn invalidate_range(&self, _: Regime, _: IpaRange, _: bool) {
        self.0();
    }

    fn invalidate_vmid(&self, _: Regime) {
        self.0();
    }

    fn invalidate_all_vmids(&self) {
        self.0();
    }

    fn invalidate_local(&self, _: Regime, _: Ipa, _: Option<Level>, _: Option<u64>) {}

    fn publish_tables(&self) {}
}

impl<F> Caches for AtBroadcasts<F> {
    fn clean_for_guest(&self, _: Pa, _: u64) {}
}

/// Tables at their own addresses, for whoever looks at single entries or drops them.
#[derive(Clone, Copy, Debug)]
pub struct InPlace;

// SAFETY: it allocates nothing, and the frames of a pool's arena are at their own addresses for ever.
unsafe impl TableMemory for InPlace {
    fn allocate(&self) -> Option<TableFrame> {
        None
    }

    unsafe fn free(&self, frame: TableFrame) {
        panic!("{frame:?} came from nowhere");
    }

    fn entries(&self, pa: Pa) -> NonNull<Entry> {
        NonNull::new(with_exposed_provenance_mut(pa.get() as usize)).expect("no table is at zero")
    }
}

// SAFETY: nothing is retired.
unsafe impl Epoch for InPlace {
    fn retire(&self, unlinked: Unlinked) {
        panic!("{unlinked:?}: a page's range holds no table");
    }
}
