//! One entry of a table, and the verbs that carry the protocol: observe, exchange, break, make, freeze.
//!
//! Entries are shared by every CPU and by the hardware walkers; each change is a compare-exchange against the value that
//! the change was decided on (rule 1). Orderings: an observation acquires, an exchange releases, so whoever sees a link
//! sees the table behind it (rule 11). The unconditional swap exists only for freezing (rule 5).

use crate::address::{Ipa, Level, Pa};
use crate::descriptor::{Descriptor, Leaf};
use crate::features::{Bbm, Format};
use crate::layout::Layout;
use crate::memory::{TableFrame, TableMemory, table_entries};
#[cfg(not(feature = "watch"))]
use crate::sync::set_bits_where;
use crate::sync::{AtomicU64, Ordering, exchange};
use crate::tlb::{Regime, Tlb};
use crate::transition::Transition;
use core::mem;

/// The pattern with which owners of frames fill freed ones in debug builds: hardware finds no valid descriptor in it, and a
/// walker that meets it panics, as its epoch has not kept the table for it (rule 7).
#[doc(hidden)]
pub const POISON: u64 = 0xdead_f4ee_dead_f4ee;

/// A slot of a translation table.
#[repr(transparent)]
#[derive(Debug)]
pub struct Entry(AtomicU64);

/// An observation of an entry: its value, and its place.
#[derive(Clone, Copy, Debug)]
pub struct Observed {
    word: u64,
    level: Level,
    format: Format,
}

impl Observed {
    /// The decoded value.
    #[inline]
    pub const fn descriptor(self) -> Descriptor {
        Descriptor::decode(self.word, self.level, self.format)
    }

    /// The table that the entry links to, if it does.
    #[inline(always)]
    pub(crate) const fn link(self) -> Option<Pa> {
        Descriptor::link(self.word, self.level, self.format)
    }

    /// The write-protected form of a lowest table's entry, if it maps a writable page, in no group and untracked.
    #[inline(always)]
    pub(crate) const fn plain_page_protected(self) -> Option<Leaf> {
        Descriptor::plain_page_protected(self.word, self.format)
    }

    /// The entry of a lowest table, clean, if it maps a page that hardware has noted as written, in no group.
    #[inline(always)]
    pub(crate) const fn dirty_page_cleaned(self) -> Option<Leaf> {
        Descriptor::dirty_page_cleaned(self.word, self.format)
    }

    /// The level of the table that holds the entry.
    pub const fn level(self) -> Level {
        self.level
    }

    /// The leaf that the holder of a locked entry keeps mapped ([`Entry::lock_to_change`], [`Entry::mark`]).
    const fn kept(self) -> Option<Leaf> {
        Descriptor::kept(self.word, self.level, self.format)
    }

    /// The block marked with nT ([`Entry::mark`]), without the mark, if the entry is one.
    pub(crate) const fn marked(self) -> Option<Leaf> {
        Descriptor::marked(self.word, self.level, self.format)
    }
}

/// The entry changed since it was observed; look again (rule 1). Not an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lost;

impl Entry {
    /// A vacant entry, for building tables.
    pub fn vacant() -> Self {
        Self(AtomicU64::new(Descriptor::Invalid.encode(Format::Narrow)))
    }

    /// Reads the entry once. Acquire: pairs with the release of the exchange that linked a table or leaf here.
    #[inline]
    pub fn observe(&self, level: Level, format: Format) -> Observed {
        pause();
        let word = self.0.load(Ordering::Acquire);
        debug_assert!(word != POISON, "rule 7: a walker is in a freed table");
        Observed {
            word,
            level,
            format,
        }
    }

    /// Whether the entry, one of a lowest table, maps a page that hardware has noted as written. Relaxed: nothing is decided on
    /// it; whoever clears the dirty state ([`Stage2::track_writes`](crate::Stage2::track_writes)) observes again.
    #[inline(always)]
    pub(crate) fn is_dirty_page(&self) -> bool {
        Descriptor::is_dirty_page(self.0.load(Ordering::Relaxed))
    }

    /// Changes the entry from the observed value and returns its new value. For changes that need no break; debug builds check
    /// that. Release on success: pairs with [`Self::observe`].
    ///
    /// Private to this crate, like all that writes an entry: storing a link to any address, or a page in a block's place (which
    /// is a link there), would make walkers read any memory as a table.
    #[inline]
    pub(crate) fn exchange(&self, from: Observed, to: Descriptor) -> Result<Observed, Lost> {
        self.exchange_sparing_break(from, to, Bbm::Level0)
    }

    /// As [`Self::exchange`], for changes that need no break because of `bbm`.
    #[inline]
    pub(crate) fn exchange_sparing_break(
        &self,
        from: Observed,
        to: Descriptor,
        bbm: Bbm,
    ) -> Result<Observed, Lost> {
        debug_assert!(
            Transition::of(from.descriptor(), to, true, bbm) == Transition::InPlace,
            "{from:?} to {to:?} needs a break"
        );
        let word = to.encode(from.format);
        self.compare_exchange(from, from.word, word)?;
        Ok(Observed { word, ..from })
    }

    /// As [`Self::exchange`], by the compiler's compare-and-exchange: one instruction in a function that may use FEAT_LSE, and
    /// a call in any other. Returns whether it did.
    #[cfg(target_arch = "aarch64")]
    #[inline(always)]
    pub(crate) fn exchange_by_instruction(&self, from: Observed, to: Descriptor) -> bool {
        debug_assert!(
            Transition::of(from.descriptor(), to, true, Bbm::Level0) == Transition::InPlace,
            "{from:?} to {to:?} needs a break"
        );
        self.exchange_by(from, from.word, to.encode(from.format), |word, old, new| {
            word.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire)
                .is_ok()
        })
    }

    /// Makes a lowest table's entry writable, if it maps a page that a single exchange makes writable; returns whether it did.
    /// Acquire and release as [`Self::observe`] and [`Self::exchange`], which it combines.
    #[inline(always)]
    pub(crate) fn relax_page(&self) -> bool {
        pause();
        let (mask, wanted, bits) = Descriptor::RELAXED_PAGE;
        #[cfg(not(feature = "watch"))]
        return set_bits_where(&self.0, mask, wanted, bits);
        #[cfg(feature = "watch")]
        {
            let found = self.0.load(Ordering::Acquire);
            found & mask == wanted
                && watched(self, Level::L3, || {
                    let exchanged = exchange(&self.0, found, found | bits);
                    (exchanged, exchanged.then_some((found, found | bits)))
                })
        }
    }

    /// Exchanges `word` at the place that `at` was observed at.
    #[inline]
    fn compare_exchange(&self, at: Observed, word: u64, new: u64) -> Result<(), Lost> {
        let succeeded = self.exchange_by(at, word, new, exchange);
        if succeeded { Ok(()) } else { Err(Lost) }
    }

    #[inline(always)]
    fn exchange_by(
        &self,
        at: Observed,
        word: u64,
        new: u64,
        exchange: impl Fn(&AtomicU64, u64, u64) -> bool,
    ) -> bool {
        watched(self, at.level, || {
            let exchanged = exchange(&self.0, word, new);
            (exchanged, exchanged.then_some((word, new)))
        })
    }

    /// Locks the entry for a break, from the observed value (rule 2), to remove its mapping: the mapping belongs to the caller
    /// from now on, even if the table is unlinked before the caller makes the entry (rule 5).
    ///
    /// Nothing is invalidated yet: the [`Unflushed`] has to go through one of its invalidations.
    pub(crate) fn lock(&self, from: Observed, ipa: Ipa) -> Result<Unflushed<'_>, Lost> {
        self.lock_with(Descriptor::Locked.encode(from.format), from, ipa)
    }

    /// As [`Self::lock`], to replace the entry by something that maps the same. If the table is unlinked meanwhile, so that
    /// nothing can be put there, a leaf in the entry belongs to the unlinking CPU.
    pub(crate) fn lock_to_change(&self, from: Observed, ipa: Ipa) -> Result<Unflushed<'_>, Lost> {
        match from.descriptor() {
            Descriptor::Leaf(leaf) => self.lock_with(Descriptor::locked_keeping(leaf), from, ipa),
            _ => self.lock(from, ipa),
        }
    }

    fn lock_with(&self, locked: u64, from: Observed, ipa: Ipa) -> Result<Unflushed<'_>, Lost> {
        self.compare_exchange(from, from.word, locked)?;
        Ok(Unflushed {
            entry: self,
            observed: from,
            locked,
            ipa,
        })
    }

    /// Marks a block's entry by its nT bit (FEAT_BBM level 1), from the observed value, to replace it by a table that maps the
    /// same. All others wait as for a locked entry. With two CPUs replacing it, one could clear the mark, a third could set it
    /// anew, and the other would link its table while TLBs hold the block without the mark.
    pub(crate) fn mark(&self, from: Observed) -> Result<Marked<'_>, Lost> {
        let Descriptor::Leaf(block) = from.descriptor() else {
            return Err(Lost);
        };
        let marked = Descriptor::Leaf(block.with_no_translation());
        let observed = self.exchange_sparing_break(from, marked, Bbm::Level1)?;
        Ok(Marked {
            entry: self,
            observed,
        })
    }

    /// Locks an invalid entry so that only its holder may fill it (rule 8). There is nothing to invalidate.
    #[inline]
    pub(crate) fn lock_vacant(&self, from: Observed, ipa: Ipa) -> Result<Broken<'_>, Lost> {
        debug_assert!(matches!(from.descriptor(), Descriptor::Invalid));
        let locked = Descriptor::Locked.encode(from.format);
        self.compare_exchange(from, from.word, locked)?;
        Ok(Broken {
            entry: self,
            observed: from,
            locked,
            ipa,
        })
    }

    /// Ends this entry for ever and returns its last value, which the caller now owns (rule 5). AcqRel: no other CPU wrote a
    /// later value, and no later exchange can succeed.
    pub(crate) fn freeze(&self, level: Level, format: Format) -> Observed {
        let new = Descriptor::Frozen.encode(format);
        pause();
        let word = watched(self, level, || {
            let old = self.0.swap(new, Ordering::AcqRel);
            (old, Some((old, new)))
        });
        Observed {
            word,
            level,
            format,
        }
    }

    /// Writes an entry of a table that nobody else can reach.
    #[inline]
    pub(crate) fn store_unshared(&self, descriptor: Descriptor, format: Format) {
        self.0.store(descriptor.encode(format), Ordering::Relaxed);
    }

    /// The raw word, which the hardware walker updates and a watcher reads.
    ///
    /// # Safety
    /// The caller stores nothing that walkers would take for a link, except a link to the same table as before, and only while
    /// that is a table.
    #[cfg(feature = "watch")]
    pub unsafe fn word(&self) -> &AtomicU64 {
        &self.0
    }
}

/// Lets a watcher choose who runs next.
#[inline(always)]
fn pause() {
    #[cfg(feature = "watch")]
    if let Some(watcher) = crate::watch::watcher() {
        watcher.pause();
    }
}

/// Runs `access`, which says what it changed beside its result, and reports it to the watcher.
#[cfg(not(feature = "watch"))]
#[inline(always)]
fn watched<R>(_: &Entry, _: Level, access: impl FnOnce() -> (R, Option<(u64, u64)>)) -> R {
    access().0
}

/// Runs `access`, which says what it changed beside its result, and reports it to the watcher.
#[cfg(feature = "watch")]
fn watched<R>(entry: &Entry, level: Level, access: impl Fn() -> (R, Option<(u64, u64)>)) -> R {
    let Some(watcher) = crate::watch::watcher() else {
        return access().0;
    };
    let mut result = None;
    watcher.pause();
    watcher.change(entry, level, &mut || {
        // Once, whatever the watcher does: what the first access did would be forgotten by the result of a second.
        if result.is_some() {
            return None;
        }
        let (value, change) = access();
        result = Some(value);
        change
    });
    // A watcher that doesn't run the access is broken; the entry isn't to suffer for it.
    result.unwrap_or_else(|| access().0)
}

/// A locked entry whose old value may still be in TLBs.
#[must_use = "a locked entry blocks every fault on it until it is made or restored"]
#[derive(Debug)]
pub struct Unflushed<'t> {
    entry: &'t Entry,
    observed: Observed,
    /// The locked word.
    locked: u64,
    ipa: Ipa,
}

impl<'t> Unflushed<'t> {
    /// Invalidates TLB entries of the old value: the leaf, or everything under the table.
    pub fn flush(self, tlb: &impl Tlb, vm: Regime<'_>, layout: &Layout) -> Broken<'t> {
        let level = self.observed.level;
        match self.observed.descriptor() {
            Descriptor::Table(_) => {
                let end = self.ipa.offset(layout.span(level));
                tlb.invalidate_range(vm, self.ipa..end, true);
            }
            _ => tlb.invalidate_leaf(vm, self.ipa, vm.hint(level)),
        }
        self.flushed()
    }

    /// For batches, which invalidate many entries at once.
    pub(crate) fn flushed(self) -> Broken<'t> {
        let this = mem::ManuallyDrop::new(self);
        Broken {
            entry: this.entry,
            observed: this.observed,
            locked: this.locked,
            ipa: this.ipa,
        }
    }

    /// Restores the old value, which needs no invalidation. Fails as [`Broken::make`] does.
    pub(crate) fn restore(self) -> Result<(), Lost> {
        self.flushed().restore()
    }
}

impl Drop for Unflushed<'_> {
    /// Dropping one is a bug that debug builds report. In a release build the entry gets its old value back, which is right
    /// whether or not anything was invalidated.
    fn drop(&mut self) {
        forgotten(self.entry, self.observed, self.locked);
    }
}

/// A block's entry marked with nT. CPUs may fault on it meanwhile, so its holder links a table in its place or clears the mark.
#[must_use = "a marked entry blocks faults on it until a table is linked or the mark is taken away"]
#[derive(Debug)]
pub(crate) struct Marked<'t> {
    entry: &'t Entry,
    observed: Observed,
}

impl Marked<'_> {
    /// Replaces the block by a table, once no TLB holds the block without the mark. Fails if hardware has noted an access or a
    /// write meanwhile, which the table lacks: then the mark is cleared. Also fails if the table that holds the entry was
    /// unlinked; the block then belongs to the unlinking CPU. Release: pairs with [`Entry::observe`].
    pub(crate) fn link(self, table: Descriptor) -> Result<(), Lost> {
        let this = mem::ManuallyDrop::new(self);
        let Observed { word, format, .. } = this.observed;
        let linked = this
            .entry
            .compare_exchange(this.observed, word, table.encode(format));
        if linked.is_err() {
            unmark(this.entry, this.observed);
        }
        linked
    }
}

impl Drop for Marked<'_> {
    /// As for [`Unflushed`].
    fn drop(&mut self) {
        unmark(self.entry, self.observed);
        debug_assert!(
            false,
            "a marked entry was forgotten; it was {:?}",
            self.observed
        );
    }
}

/// Clears the mark. Only hardware and the unlinking CPU change a marked entry, so this ends soon.
#[cold]
fn unmark(entry: &Entry, marked: Observed) {
    loop {
        let found = entry.observe(marked.level, marked.format);
        let Some(block) = found.marked() else {
            return;
        };
        let bare = Descriptor::Leaf(block).encode(marked.format);
        if entry.compare_exchange(found, found.word, bare).is_ok() {
            return;
        }
    }
}

/// A broken entry: locked, and its old value in no TLB. It must be made or restored.
#[must_use = "a broken entry blocks every fault on it until it is made or restored"]
#[derive(Debug)]
pub struct Broken<'t> {
    entry: &'t Entry,
    observed: Observed,
    /// The word that it is locked with.
    locked: u64,
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

    /// The old value of the entry.
    pub fn old(&self) -> Descriptor {
        self.observed.descriptor()
    }

    /// Publishes a leaf, or that nothing is mapped. Fails if the table was unlinked meanwhile (the entry is frozen): restart
    /// from the root.
    ///
    /// # Panics
    /// The leaf doesn't belong to the entry's level: the entry has its old value back then.
    pub fn make_leaf(self, new: Option<Leaf>) -> Result<(), Lost> {
        let level = self.level();
        match new.map(|leaf| leaf.at(level)) {
            None => self.make(Descriptor::Invalid),
            Some(Ok(leaf)) => self.make(leaf),
            Some(Err(of_other_level)) => {
                // Lost only if the entry is frozen, which leaves nothing to restore.
                let _ = self.restore();
                panic!("{of_other_level:?} is no leaf of {level:?}");
            }
        }
    }

    /// Publishes the new value. Fails if the table was unlinked meanwhile (the entry is frozen): restart from the root.
    /// Release: pairs with [`Entry::observe`].
    #[inline]
    pub(crate) fn make(self, new: Descriptor) -> Result<(), Lost> {
        let this = mem::ManuallyDrop::new(self);
        let new = new.encode(this.observed.format);
        this.entry.compare_exchange(this.observed, this.locked, new)
    }

    /// Restores the old value. Fails as [`Self::make_leaf`] does.
    pub fn restore(self) -> Result<(), Lost> {
        let old = self.old();
        self.make(old)
    }

    /// Freezes the subtree of the broken entry, depth first (rule 5): from here on nothing in it can change. `leaf` gets each
    /// leaf in it, whose access state and hold on memory the caller now owns; `retire` gets each of its tables, once all in it
    /// is frozen. Does nothing if the entry was no table.
    pub(crate) fn freeze_subtree(
        &self,
        memory: &impl TableMemory,
        layout: &Layout,
        mut leaf: impl FnMut(Level, Ipa, Leaf),
        mut retire: impl FnMut(Unlinked),
    ) {
        if let (Descriptor::Table(pa), Some(level)) = (self.old(), self.observed.level.below()) {
            freeze_table(pa, level, self.ipa, memory, layout, &mut leaf, &mut retire);
        }
    }
}

impl Drop for Broken<'_> {
    /// As for [`Unflushed`].
    fn drop(&mut self) {
        forgotten(self.entry, self.observed, self.locked);
    }
}

#[cold]
fn forgotten(entry: &Entry, observed: Observed, locked: u64) {
    // The exchange fails only if the table was unlinked, and then the entry is nobody's.
    let _ = entry.compare_exchange(observed, locked, observed.word);
    debug_assert!(false, "a locked entry was forgotten; it was {observed:?}");
}

fn freeze_table(
    pa: Pa,
    level: Level,
    first: Ipa,
    memory: &impl TableMemory,
    layout: &Layout,
    leaf: &mut dyn FnMut(Level, Ipa, Leaf),
    retire: &mut dyn FnMut(Unlinked),
) {
    let entries = table_entries(memory, layout, pa);
    for (index, entry) in entries.iter().enumerate() {
        let ipa = first.offset((index as u64) << layout.shift(level));
        let was = entry.freeze(level, layout.format());
        match (was.descriptor(), level.below()) {
            (Descriptor::Leaf(found), _) => leaf(level, ipa, found),
            (Descriptor::Table(child), Some(below)) => {
                freeze_table(child, below, ipa, memory, layout, leaf, retire)
            }
            (Descriptor::Locked, _) => {
                if let Some(kept) = was.kept() {
                    leaf(level, ipa, kept);
                }
            }
            _ => {}
        }
    }
    retire(Unlinked(TableFrame::from_linked(pa, layout)));
}

/// An unlinked table: no entry leads to it, no TLB holds it, and all of its entries are frozen.
///
/// Only a [`Broken`] entry can yield one, so its TLB invalidation has completed: free-before-flush doesn't type-check. Walkers
/// that were already in the table may still read it, so it goes to the epoch.
#[must_use = "an unlinked table has to be handed to the epoch, or its frame leaks"]
#[derive(Debug)]
pub struct Unlinked(TableFrame);

impl Unlinked {
    /// The frame, for the epoch to free when all current walkers have left ([`Epoch`](crate::Epoch)): not zeroed, and not to be
    /// used until then.
    pub fn into_frame(self) -> TableFrame {
        self.0
    }

    /// A table of a tree whose VMID was invalidated as a whole, and which nobody walks any more.
    pub(crate) fn of_dead_tree(frame: TableFrame) -> Self {
        Self(frame)
    }
}
