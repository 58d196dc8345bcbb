//! Changes of leaves in place: permissions and access flags (dirty state is in `hardware_dirty`). None of them needs a break
//! (rule 3).
//!
//! All may run at any time beside every other operation and each other. They complete the TLB invalidations they need at the
//! end of the range, before they return.

use crate::address::{Ipa, IpaRange, Level, Pa};
use crate::bounds::BadAddress;
use crate::contiguous::dissolve;
use crate::descriptor::{Descriptor, Leaf, Permissions};
use crate::entry::{Entry, Observed};
use crate::features::Format;
use crate::layout::Layout;
use crate::leaf_filter::{All, Wanted};
use crate::memory::{Epoch, TableMemory, Worker};
use crate::stage2::Stage2;
use crate::tlb::Tlb;
use crate::walk::{Step, VisitContext, lost};

/// Pages that one turn of the innermost loop changes.
const UNROLLED: usize = 8;

/// For how many pages at once it is asked which are wanted.
const PAGES_ASKED_FOR: usize = u64::BITS as usize;

/// The decision about a leaf.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// The leaf stays, and TLB entries for it are right.
    Keep,
    /// The leaf stays, but TLBs may hold its former value (another CPU has changed it, and may not have invalidated yet).
    Stale,
    /// The leaf becomes this; TLBs must drop its former value.
    Tighten(Leaf),
    /// The leaf becomes this; its former value in TLBs does no harm.
    Loosen(Leaf),
}

/// The addresses that must still be invalidated.
struct Owed {
    start: Ipa,
    end: Ipa,
}

impl Owed {
    const NOTHING: Self = Self {
        start: Ipa::new(u64::MAX),
        end: Ipa::new(0),
    };

    /// Leaves come in address order.
    #[inline(always)]
    fn add(&mut self, ipa: Ipa, end: Ipa) {
        self.start = self.start.min(ipa);
        self.end = end;
    }
}

impl Stage2 {
    /// Makes the leaves in `range` that `wanted` selects read-only until a fault relaxes them. Leaves that the range covers in
    /// part are included. `was_dirty` gets the leaves with hardware dirty state; their writes are tracked no more.
    ///
    /// When this returns, no TLB holds a writable entry for any of them, even if another CPU made the change and has not
    /// finished its invalidation (rule 3). It never waits for more than one entry, and maps or unmaps nothing.
    ///
    /// # Errors
    /// The range isn't one of whole pages of the IPA space.
    pub fn write_protect<'w, M: TableMemory, T: Tlb, E: Epoch>(
        &'w self,
        worker: &Worker<'w, M, T, E>,
        range: IpaRange,
        wanted: impl Wanted,
        mut was_dirty: impl FnMut(Ipa, Level),
    ) -> Result<(), BadAddress> {
        self.layout().check(&range)?;
        let protected = self.change_leaves(
            worker,
            range,
            &wanted,
            Observed::plain_page_protected,
            |_: &Found, leaf| {
                if leaf.writable() || leaf.hardware_dirty() {
                    Verdict::Tighten(leaf.write_protected())
                } else {
                    Verdict::Stale
                }
            },
            |context, leaf| {
                if leaf.dirty() {
                    was_dirty(context.ipa, context.level);
                }
            },
        );
        worker.counters.write_protected.add(protected);
        Ok(())
    }

    /// Sets the permissions of the leaves in `range`: tightens, relaxes, or both. A leaf that the range covers in part is left
    /// alone if the change would give a right to the rest of it, and tightened as a whole otherwise. `changed` gets the old
    /// value of each changed leaf: its dirty state is the caller's now.
    ///
    /// When this returns, no TLB holds an entry with a right beyond these permissions, for any leaf that was in the range, even
    /// if another CPU has changed it and not finished its invalidation (rule 3). TLBs may hold entries with fewer rights: a CPU
    /// that hits one faults, which drops it. It maps or unmaps nothing.
    ///
    /// # Errors
    /// The range isn't one of whole pages of the IPA space.
    pub fn protect<'w, M: TableMemory, T: Tlb, E: Epoch>(
        &'w self,
        worker: &Worker<'w, M, T, E>,
        range: IpaRange,
        permissions: Permissions,
        changed: impl FnMut(Ipa, Level, Leaf),
    ) -> Result<(), BadAddress> {
        self.protect_meant(worker, range, permissions, |_| true, changed)
    }

    /// As [`protect`](Self::protect), only for leaves whose output address is `pa`: leaves that have replaced them meanwhile
    /// keep their rights.
    ///
    /// # Errors
    /// As `protect`.
    pub fn protect_mapped<'w, M: TableMemory, T: Tlb, E: Epoch>(
        &'w self,
        worker: &Worker<'w, M, T, E>,
        range: IpaRange,
        pa: Pa,
        permissions: Permissions,
        changed: impl FnMut(Ipa, Level, Leaf),
    ) -> Result<(), BadAddress> {
        self.protect_meant(worker, range, permissions, |leaf| leaf.pa() == pa, changed)
    }

    fn protect_meant<'w, M: TableMemory, T: Tlb, E: Epoch>(
        &'w self,
        worker: &Worker<'w, M, T, E>,
        range: IpaRange,
        permissions: Permissions,
        is_meant: impl Fn(Leaf) -> bool,
        mut changed: impl FnMut(Ipa, Level, Leaf),
    ) -> Result<(), BadAddress> {
        let layout = self.layout();
        layout.check(&range)?;
        self.change_leaves(
            worker,
            range,
            &All,
            |_| None,
            |context: &Found, leaf| {
                let new = leaf.with_permissions(layout, permissions);
                if !is_meant(leaf) || (!context.whole && gives_rights(leaf, new)) {
                    return Verdict::Keep;
                }
                // What the range is to lose, another CPU may have just taken from it, and not told the TLBs.
                let owed = takes_rights(leaf, new) || withholds_rights(new);
                match (new == leaf, owed) {
                    (true, _) => Verdict::Stale,
                    (false, true) => Verdict::Tighten(new),
                    (false, false) => Verdict::Loosen(new),
                }
            },
            |context, leaf| changed(context.ipa, context.level, leaf),
        );
        Ok(())
    }

    /// Clears the access flags in `range` and calls `accessed` with each leaf that had it, by its first IPA and level.
    ///
    /// Invalidates nothing: an access through what a TLB holds goes unnoticed until that is gone, which makes a page look
    /// older than it is. For certainty, follow with [`Self::invalidate`]. Never takes a right away; where hardware doesn't
    /// set the flag, the next access that misses the TLB faults.
    ///
    /// # Errors
    /// The range isn't one of whole pages of the IPA space.
    pub fn age<'w, M: TableMemory, T: Tlb, E: Epoch>(
        &'w self,
        worker: &Worker<'w, M, T, E>,
        range: IpaRange,
        mut accessed: impl FnMut(Ipa, Level),
    ) -> Result<(), BadAddress> {
        self.layout().check(&range)?;
        self.change_leaves(
            worker,
            range,
            &All,
            |_| None,
            |_: &Found, leaf| {
                if leaf.accessed() {
                    Verdict::Loosen(leaf.without_accessed())
                } else {
                    Verdict::Keep
                }
            },
            |context, _| accessed(context.ipa, context.level),
        );
        Ok(())
    }

    /// Whether anything in `range` was accessed since [`Self::age`]. Changes nothing.
    ///
    /// # Errors
    /// The range isn't one of whole pages of the IPA space.
    pub fn test_age<'w, M: TableMemory, T: Tlb, E: Epoch>(
        &'w self,
        worker: &Worker<'w, M, T, E>,
        range: IpaRange,
    ) -> Result<bool, BadAddress> {
        let end = range.end;
        let stopped = self.walk(worker, range, |context| match context.descriptor {
            Descriptor::Table(_) => Step::Descend,
            Descriptor::Leaf(leaf) if leaf.accessed() => Step::Stop,
            Descriptor::Leaf(_) | Descriptor::Invalid => Step::Continue,
            Descriptor::Locked => Step::Wait,
            Descriptor::Frozen => Step::Restart,
        })?;
        Ok(stopped < end)
    }

    /// Changes the leaves in `range` that `wanted` names as `decide` says and tells `changed` of each one, as it was.
    /// Invalidates what is owed. Returns how many were changed. `range` has been [checked](Layout::check).
    ///
    /// `plain` is the short cut for pages that come in numbers: what they become, TLBs having to forget what they were, and
    /// `changed` not wanting to know.
    #[inline(always)]
    pub(crate) fn change_leaves<'w, M: TableMemory, T: Tlb, E: Epoch>(
        &'w self,
        worker: &Worker<'w, M, T, E>,
        range: IpaRange,
        wanted: &impl Wanted,
        plain: impl Fn(Observed) -> Option<Leaf>,
        mut decide: impl FnMut(&Found, Leaf) -> Verdict,
        mut changed: impl FnMut(&Found, Leaf),
    ) -> u64 {
        let mut pass = Pass {
            owed: Owed::NOTHING,
            changed: 0,
            decide: &mut decide,
            tell: &mut changed,
        };
        self.root()
            .walk(worker, range, |context| match context.descriptor {
                Descriptor::Table(pa) if context.level == Level::L2 => {
                    let pages = worker.table(self.layout(), pa);
                    match pass.change_pages(self, context, pages, wanted, &plain) {
                        Some(done) if done > context.start => Step::DoneTo(done),
                        _ => Step::Descend,
                    }
                }
                Descriptor::Table(_) => Step::Descend,
                Descriptor::Leaf(leaf) if wanted.leaf(context.ipa, context.level) => {
                    pass.change_one(worker, self, context, leaf)
                }
                Descriptor::Leaf(_) | Descriptor::Invalid => Step::Continue,
                Descriptor::Locked => Step::Wait,
                Descriptor::Frozen => Step::Restart,
            });
        if pass.owed.start < pass.owed.end {
            worker.counters.tlbi_broadcast.add(1);
            let range = pass.owed.start..pass.owed.end;
            worker.tlb.invalidate_range(self.regime(), range, false);
        }
        pass.changed
    }
}

/// A leaf that a pass has come to.
pub(crate) struct Found {
    pub(crate) ipa: Ipa,
    pub(crate) level: Level,
    /// Whether the range covers all of it.
    whole: bool,
}

/// One walk that changes leaves.
struct Pass<'p, D, C> {
    owed: Owed,
    changed: u64,
    decide: &'p mut D,
    tell: &'p mut C,
}

impl<D: FnMut(&Found, Leaf) -> Verdict, C: FnMut(&Found, Leaf)> Pass<'_, D, C> {
    /// Changes the pages of a table that are wanted, one after the other, as far as nothing unusual is in the way. Where
    /// that is; `None` at once.
    #[inline(always)]
    fn change_pages(
        &mut self,
        stage2: &Stage2,
        context: &VisitContext<'_>,
        pages: &[Entry],
        wanted: &impl Wanted,
        plain: &impl Fn(Observed) -> Option<Leaf>,
    ) -> Option<Ipa> {
        let layout = stage2.layout();
        let shift = layout.shift(Level::L3);
        let first = layout.index(context.start, shift);
        let count = ((context.end.get() - context.start.get()) >> shift) as usize;
        let pages = pages.get(first..first + count)?;
        let ipa_of = |index: usize| context.start.offset((index as u64) << shift);
        let asked = |index: usize| {
            let count = PAGES_ASKED_FOR.min(pages.len() - index);
            let bits = wanted.pages(ipa_of(index), count, layout.page_size());
            (bits, count)
        };
        let mut index = 0;
        while index < pages.len() {
            let run = index + next_run(pages.len() - index, |offset| asked(index + offset));
            let end = run + length_of_run(pages.len() - run, |offset| asked(run + offset));
            let done = self.change_run(stage2, ipa_of(run), &pages[run..end], plain);
            if done < end - run {
                return Some(ipa_of(run + done));
            }
            index = end;
        }
        Some(context.end)
    }

    /// Changes pages that lie side by side from `first` on. How many were done before one that takes a visit of its own.
    #[inline(always)]
    fn change_run(
        &mut self,
        stage2: &Stage2,
        first: Ipa,
        pages: &[Entry],
        plain: &impl Fn(Observed) -> Option<Leaf>,
    ) -> usize {
        let layout = stage2.layout();
        let (format, shift) = (layout.format(), layout.shift(Level::L3));
        let ipa_of = |index: usize| first.offset((index as u64) << shift);
        let mut index = 0;
        loop {
            let done = exchange_pages(&pages[index..], layout, plain);
            if done > 0 {
                self.owed.add(ipa_of(index), ipa_of(index + done));
                self.changed += done as u64;
                index += done;
            }
            let Some(entry) = pages.get(index) else {
                return index;
            };
            let observed = entry.observe(Level::L3, format);
            let found = Found {
                ipa: ipa_of(index),
                level: Level::L3,
                whole: true,
            };
            match observed.descriptor() {
                Descriptor::Leaf(leaf)
                    if self.change(entry, observed, &found, ipa_of(index + 1), leaf)
                        == Change::Done => {}
                Descriptor::Invalid => {}
                _ => return index,
            }
            index += 1;
        }
    }

    fn change_one<'w, M: TableMemory, T: Tlb, E: Epoch>(
        &mut self,
        worker: &Worker<'w, M, T, E>,
        stage2: &Stage2,
        context: &VisitContext<'w>,
        leaf: Leaf,
    ) -> Step {
        let found = Found {
            ipa: context.ipa,
            level: context.level,
            whole: context.is_whole(),
        };
        match self.change(
            context.entry,
            context.observed,
            &found,
            context.ipa_end,
            leaf,
        ) {
            Change::Done => Step::Continue,
            Change::Lost => lost(worker),
            Change::Grouped => dissolve(worker, stage2, context),
        }
    }

    /// Changes one leaf, which reaches to `end`.
    fn change(
        &mut self,
        entry: &Entry,
        observed: Observed,
        found: &Found,
        end: Ipa,
        leaf: Leaf,
    ) -> Change {
        let (new, owed) = match (self.decide)(found, leaf) {
            Verdict::Keep => return Change::Done,
            Verdict::Stale => {
                self.owed.add(found.ipa, end);
                return Change::Done;
            }
            Verdict::Tighten(new) => (new, true),
            Verdict::Loosen(new) => (new, false),
        };
        // Leaves of a group may differ in their access flags only.
        if leaf.contiguous() && leaf.with_accessed() != new.with_accessed() {
            return Change::Grouped;
        }
        if entry.exchange(observed, Descriptor::Leaf(new)).is_err() {
            return Change::Lost;
        }
        if owed {
            self.owed.add(found.ipa, end);
        }
        self.changed += 1;
        (self.tell)(found, leaf);
        Change::Done
    }
}

/// How many of the next `left` pages aren't wanted. `asked` gives the bits of up to 64 pages from one on, and how many count.
#[inline(always)]
fn next_run(left: usize, asked: impl Fn(usize) -> (u64, usize)) -> usize {
    let mut at = 0;
    while at < left {
        let (bits, count) = asked(at);
        let unwanted = (bits.trailing_zeros() as usize).min(count);
        at += unwanted;
        if unwanted < count {
            break;
        }
    }
    at
}

/// How many of the next `left` pages are wanted in a row.
#[inline(always)]
fn length_of_run(left: usize, asked: impl Fn(usize) -> (u64, usize)) -> usize {
    next_run(left, |at| {
        let (bits, count) = asked(at);
        (!bits, count)
    })
}

/// Changes pages as `plain` says, up to the first that it says nothing of, or that has changed meanwhile. How many.
#[inline(always)]
fn exchange_pages(
    pages: &[Entry],
    layout: &Layout,
    plain: &impl Fn(Observed) -> Option<Leaf>,
) -> usize {
    #[cfg(target_arch = "aarch64")]
    if layout.features().atomics.are_everywhere() {
        // SAFETY: the CPUs have FEAT_LSE (`Atomics::everywhere`).
        return unsafe { exchange_pages_by_atomics(pages, layout.format(), plain) };
    }
    exchange_each_page(pages, layout.format(), |entry, observed| {
        plain(observed).is_some_and(|new| entry.exchange(observed, Descriptor::Leaf(new)).is_ok())
    })
}

/// [`exchange_pages`] where an exchange is one instruction: fewer than a loop of exclusives.
#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "lse")]
fn exchange_pages_by_atomics(
    pages: &[Entry],
    format: Format,
    plain: &impl Fn(Observed) -> Option<Leaf>,
) -> usize {
    exchange_each_page(pages, format, |entry, observed| {
        plain(observed)
            .is_some_and(|new| entry.exchange_by_instruction(observed, Descriptor::Leaf(new)))
    })
}

#[inline(always)]
fn exchange_each_page(
    pages: &[Entry],
    format: Format,
    change: impl Fn(&Entry, Observed) -> bool,
) -> usize {
    let change = |entry: &Entry| change(entry, entry.observe(Level::L3, format));
    let mut done = 0;
    // Several in a row, as the loop's own instructions count.
    let turns = pages.chunks_exact(UNROLLED);
    let rest = turns.remainder();
    for several in turns {
        for entry in several {
            if !change(entry) {
                return done;
            }
            done += 1;
        }
    }
    for entry in rest {
        if !change(entry) {
            return done;
        }
        done += 1;
    }
    done
}

/// How the change of a leaf went.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    /// It is as it was to be.
    Done,
    /// It has changed meanwhile.
    Lost,
    /// Its group has to be taken apart first.
    Grouped,
}

/// Whether `new` allows what `old` doesn't, now or after a fault.
fn gives_rights(old: Leaf, new: Leaf) -> bool {
    takes_rights(new, old)
}

/// Whether `new` doesn't allow what `old` does, now or after a fault.
fn takes_rights(old: Leaf, new: Leaf) -> bool {
    use crate::Access::{Execute, ExecuteAtEl0, Write};
    let lost = |access: crate::Access| access.allowed_by(old) && !access.allowed_by(new);
    lost(Write)
        || lost(Execute)
        || lost(ExecuteAtEl0)
        || old.may_write() && !new.may_write()
        || old.hardware_dirty() && !new.hardware_dirty()
}

/// Whether there is an access that `leaf` doesn't allow.
fn withholds_rights(leaf: Leaf) -> bool {
    use crate::Access::{Execute, ExecuteAtEl0, Write};
    let accesses = [Write, Execute, ExecuteAtEl0];
    accesses.iter().any(|access| !access.allowed_by(leaf))
}
