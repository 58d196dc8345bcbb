//! One entry of a table, and the verbs that carry the protocol: observe, exchange, break, make, freeze.
//!
//! Entries are shared by every CPU and by the hardware walkers; each change is a compare-exchange against the value that
//! the change was decided on (rule 1). Orderings: an observation acquires, an exchange releases, so whoever sees a link
//! sees the table behind it (rule 11). The unconditional swap exists only for freezing (rule 5).

use crate::address::{Ipa, IpaRange, Level, Pa, Vttbr};
use crate::descriptor::{Descriptor, Leaf};
use crate::memory::{TableFrame, TableMemory, table_entries};
use crate::sync::{AtomicU64, Ordering};
use crate::tlb::Tlb;
use core::mem;

/// A slot of a translation table.
#[repr(transparent)]
#[derive(Debug)]
pub struct Entry(AtomicU64);

/// What an entry held when it was looked at, and where.
#[derive(Clone, Copy, Debug)]
pub struct Observed {
    word: u64,
    level: Level,
}

impl Observed {
    /// The decoded value.
    pub const fn descriptor(self) -> Descriptor {
        Descriptor::decode(self.word, self.level)
    }
}

/// The entry changed since it was observed; look again (rule 1). Not an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lost;

impl Entry {
    /// An entry that holds `descriptor`, for building tables off-line.
    pub fn new(descriptor: Descriptor) -> Self {
        Self(AtomicU64::new(descriptor.encode()))
    }

    /// Reads the entry once. Acquire: pairs with the release of the exchange that linked a table or leaf here.
    pub fn observe(&self, level: Level) -> Observed {
        Observed {
            word: self.0.load(Ordering::Acquire),
            level,
        }
    }

    /// Changes the entry from what was observed. For changes that need no break; debug builds check that.
    /// Release on success: pairs with [`Self::observe`].
    pub fn exchange(&self, from: Observed, to: Descriptor) -> Result<(), Lost> {
        debug_assert!(
            !from.descriptor().change_needs_break(to),
            "{from:?} to {to:?} needs a break"
        );
        self.compare_exchange(from.word, to.encode())
    }

    fn compare_exchange(&self, from: u64, to: u64) -> Result<(), Lost> {
        match self
            .0
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
        {
            Ok(_) => Ok(()),
            Err(_) => Err(Lost),
        }
    }

    /// Takes the entry for a break, from what was observed (rule 2).
    ///
    /// Nothing is invalidated yet: the [`Unflushed`] has to go through one of its invalidations.
    pub fn lock(&self, from: Observed, ipa: Ipa) -> Result<Unflushed<'_>, Lost> {
        self.compare_exchange(from.word, Descriptor::Locked.encode())?;
        Ok(Unflushed {
            entry: self,
            observed: from,
            ipa,
        })
    }

    /// Takes an invalid entry so that only its holder may fill it (rule 8). There is nothing to invalidate.
    pub fn lock_vacant(&self, from: Observed, ipa: Ipa) -> Result<Broken<'_>, Lost> {
        debug_assert!(matches!(from.descriptor(), Descriptor::Invalid));
        self.compare_exchange(from.word, Descriptor::Locked.encode())?;
        Ok(Broken {
            entry: self,
            observed: from,
            ipa,
        })
    }

    /// Ends this entry for ever and returns what it stood for, which the caller now owns (rule 5).
    /// AcqRel: the returned value is the last one that anybody else wrote, and no later exchange can succeed.
    fn freeze(&self, level: Level) -> Observed {
        Observed {
            word: self.0.swap(Descriptor::Frozen.encode(), Ordering::AcqRel),
            level,
        }
    }

    /// Writes an entry of a table that nobody else can reach.
    pub(crate) fn store_unshared(&self, descriptor: Descriptor) {
        self.0.store(descriptor.encode(), Ordering::Relaxed);
    }
}

/// An entry that was locked and whose old value may still be in TLBs.
#[must_use = "a locked entry blocks every fault on it until it is made or restored"]
#[derive(Debug)]
pub struct Unflushed<'t> {
    entry: &'t Entry,
    observed: Observed,
    ipa: Ipa,
}

impl<'t> Unflushed<'t> {
    /// The IPAs that the entry covers.
    pub fn range(&self) -> IpaRange {
        self.ipa..self.ipa.offset(self.observed.level.span())
    }

    /// Invalidates what the old value left in TLBs: the leaf, or everything under the table.
    pub fn flush(self, tlb: &impl Tlb, vm: Vttbr) -> Broken<'t> {
        match self.observed.descriptor() {
            Descriptor::Table(_) => tlb.invalidate_range(vm, self.range(), true),
            _ => tlb.invalidate_leaf(vm, self.ipa, self.observed.level),
        }
        self.into_broken()
    }

    /// Flushes many entries at once, which together lie in `range`. Calls `each` with every one of them.
    pub fn flush_all(
        batch: impl IntoIterator<Item = Self>,
        range: IpaRange,
        tlb: &impl Tlb,
        vm: Vttbr,
        mut each: impl FnMut(Broken<'t>),
    ) {
        tlb.invalidate_range(vm, range.clone(), true);
        for unflushed in batch {
            debug_assert!(range.start <= unflushed.ipa && unflushed.range().end <= range.end);
            each(unflushed.into_broken());
        }
    }

    fn into_broken(self) -> Broken<'t> {
        let this = mem::ManuallyDrop::new(self);
        Broken {
            entry: this.entry,
            observed: this.observed,
            ipa: this.ipa,
        }
    }
}

impl Drop for Unflushed<'_> {
    /// Forgetting one is a bug that debug builds report. In a release build the entry gets its old value back, which
    /// is right whether or not anything was invalidated.
    fn drop(&mut self) {
        forgotten(self.entry, self.observed);
    }
}

/// A broken entry: locked, and its old value in no TLB. It is made or restored, never forgotten.
#[must_use = "a broken entry blocks every fault on it until it is made or restored"]
#[derive(Debug)]
pub struct Broken<'t> {
    entry: &'t Entry,
    observed: Observed,
    ipa: Ipa,
}

impl<'t> Broken<'t> {
    /// The first IPA that the entry covers.
    pub fn ipa(&self) -> Ipa {
        self.ipa
    }

    /// The entry's level.
    pub fn level(&self) -> Level {
        self.observed.level
    }

    /// What the entry stood for before it was broken.
    pub fn old(&self) -> Descriptor {
        self.observed.descriptor()
    }

    /// Publishes the new value. Fails if the table was unlinked meanwhile (the entry is frozen): restart from the root.
    /// Release: pairs with [`Entry::observe`].
    pub fn make(self, new: Descriptor) -> Result<(), Lost> {
        let this = mem::ManuallyDrop::new(self);
        this.entry
            .compare_exchange(Descriptor::Locked.encode(), new.encode())
    }

    /// Gives the entry its old value back. Fails as [`Self::make`] does.
    pub fn restore(self) -> Result<(), Lost> {
        let old = self.old();
        self.make(old)
    }

    /// Freezes the subtree that the broken entry led to, depth first (rule 5): from here on nothing in it can change.
    /// `leaf` gets each leaf that it held, whose access state and hold on memory the caller now owns; `retire` gets each
    /// of its tables, once all in it is frozen. Does nothing if the entry was no table.
    pub(crate) fn freeze_subtree(
        &self,
        memory: &impl TableMemory,
        mut leaf: impl FnMut(Level, Ipa, Leaf),
        mut retire: impl FnMut(Unlinked),
    ) {
        if let (Descriptor::Table(pa), Some(level)) = (self.old(), self.observed.level.below()) {
            freeze_table(pa, level, self.ipa, memory, &mut leaf, &mut retire);
        }
    }
}

impl Drop for Broken<'_> {
    /// As for [`Unflushed`].
    fn drop(&mut self) {
        forgotten(self.entry, self.observed);
    }
}

#[cold]
fn forgotten(entry: &Entry, observed: Observed) {
    // The exchange fails only if the table was unlinked, and then the entry is nobody's.
    let _ = entry.compare_exchange(Descriptor::Locked.encode(), observed.word);
    debug_assert!(false, "a locked entry was forgotten; it was {observed:?}");
}

fn freeze_table(
    pa: Pa,
    level: Level,
    first: Ipa,
    memory: &impl TableMemory,
    leaf: &mut dyn FnMut(Level, Ipa, Leaf),
    retire: &mut dyn FnMut(Unlinked),
) {
    let entries = table_entries(memory, pa);
    for (index, entry) in entries.iter().enumerate() {
        let ipa = first.offset(index as u64 * level.span());
        match (entry.freeze(level).descriptor(), level.below()) {
            (Descriptor::Leaf(found), _) => leaf(level, ipa, found),
            (Descriptor::Table(child), Some(below)) => {
                freeze_table(child, below, ipa, memory, leaf, retire)
            }
            _ => {}
        }
    }
    retire(Unlinked(TableFrame::from_linked(pa)));
}

/// A table that no entry leads to any more and that no TLB holds, all of its entries frozen.
///
/// Only a [`Broken`] entry can yield one, so its TLB invalidation has completed: free-before-flush doesn't type-check.
/// Walkers that were already in the table may still look at it, so it goes to the epoch.
#[must_use = "an unlinked table has to be handed to the epoch, or its frame leaks"]
#[derive(Debug)]
pub struct Unlinked(TableFrame);

impl Unlinked {
    /// The frame, for the epoch to free when every walker of today has left.
    pub fn into_frame(self) -> TableFrame {
        self.0
    }

    /// A root that its owner gives up after invalidating the whole VMID.
    pub(crate) fn root(frame: TableFrame) -> Self {
        Self(frame)
    }
}
