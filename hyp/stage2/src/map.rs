//! Maps a range before any fault.
//!
//! May run at any time beside every other operation. Fills only vacant entries: an entry that a fault has made stays.

use crate::address::{Ipa, IpaRange, Level, Pa};
use crate::bounds::BadAddress;
use crate::contiguous::MOST_MEMBERS;
use crate::descriptor::{Attributes, Descriptor, Leaf};
use crate::entry::Broken;
use crate::memory::{Epoch, TableMemory, Worker};
use crate::stage2::{OutOfFrames, Stage2};
use crate::sync;
use crate::tlb::Tlb;
use crate::walk::{Step, VisitContext};
use core::fmt;

/// The target of a mapped range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapping {
    /// The backing of the range's first page; the rest follows contiguously.
    pub pa: Pa,
    /// What the guest gets.
    pub attributes: Attributes,
    /// The largest block to use. Where the granule has none so large, the next smaller.
    pub largest: Level,
}

/// The result of a map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Mapped {
    /// All below this address is mapped; the end of the range if all of it is.
    pub done_to: Ipa,
    /// Leaves that were made, not counting mappings that existed and were left alone.
    pub leaves: u64,
}

/// Why a map ended before the end of its range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum MapStopped {
    /// There was no frame for a table.
    OutOfFrames,
    /// The caller's grounds no longer hold (rule 8).
    GroundsGone,
    /// The range, or what was to back it, can't be mapped. Nothing was.
    BadAddress(BadAddress),
}

/// A map that ended early. Its work until then stays, and all else is unchanged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct MapFailed {
    /// How far it came.
    pub mapped: Mapped,
    /// What was in the way.
    pub reason: MapStopped,
}

impl fmt::Display for MapFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.mapped.done_to;
        match self.reason {
            MapStopped::OutOfFrames => write!(f, "mapping stopped at {at}: {OutOfFrames}"),
            MapStopped::GroundsGone => {
                write!(
                    f,
                    "mapping stopped at {at}: what backs the range has changed"
                )
            }
            MapStopped::BadAddress(why) => write!(f, "nothing was mapped: {why}"),
        }
    }
}

impl core::error::Error for MapFailed {}

/// One call of [`Stage2::map`].
struct Map<'s, G> {
    stage2: &'s Stage2,
    range: IpaRange,
    mapping: Mapping,
    grounds: G,
    leaves: u64,
    stopped: Option<MapStopped>,
}

impl Stage2 {
    /// Maps `range` (whole pages) by as few leaves as alignment, existing mappings, and `mapping.largest` allow. Aligned groups
    /// of leaves get the contiguous bit, if the layout uses it and hardware doesn't track writes to them.
    ///
    /// `grounds` is called while an entry is locked and after a full barrier, and returns whether the mapping's grounds still
    /// hold (rule 8); if not, this ends. The caller has already made the memory's contents visible to the guest (rule 11), as
    /// only it knows who wrote them; on CPUs without FEAT_S2FWB also past the caches.
    ///
    /// No TLB entry becomes stale, so nothing is invalidated. It never replaces or changes a mapping.
    ///
    /// # Errors
    /// How far it came, and the obstacle.
    pub fn map<'w, M: TableMemory, T: Tlb, E: Epoch>(
        &'w self,
        worker: &Worker<'w, M, T, E>,
        range: IpaRange,
        mapping: Mapping,
        grounds: impl FnMut() -> bool,
    ) -> Result<Mapped, MapFailed> {
        if let Err(bad) = self.check_mapping(&range, mapping.pa) {
            let mapped = Mapped {
                done_to: range.start,
                leaves: 0,
            };
            let reason = MapStopped::BadAddress(bad);
            return Err(MapFailed { mapped, reason });
        }
        let mut map = Map {
            stage2: self,
            mapping: Mapping {
                largest: mapping.largest.max(self.layout().largest_leaf()),
                ..mapping
            },
            range: range.clone(),
            grounds,
            leaves: 0,
            stopped: None,
        };
        let done_to = self
            .root()
            .walk(worker, range, |context| map.visit(worker, context));
        let mapped = Mapped {
            done_to,
            leaves: map.leaves,
        };
        worker.counters.mapped.add(mapped.leaves);
        match map.stopped {
            None => Ok(mapped),
            Some(reason) => Err(MapFailed { mapped, reason }),
        }
    }

    /// Whether memory from `pa` on can be mapped at `range`.
    fn check_mapping(&self, range: &IpaRange, pa: Pa) -> Result<(), BadAddress> {
        self.layout().check(range)?;
        let bytes = range.end.get() - range.start.get();
        self.layout().check_backing(pa, bytes)
    }
}

impl<G: FnMut() -> bool> Map<'_, G> {
    fn visit<'w, M: TableMemory, T: Tlb, E: Epoch>(
        &mut self,
        worker: &Worker<'w, M, T, E>,
        context: &VisitContext<'w>,
    ) -> Step {
        match context.descriptor {
            Descriptor::Table(_) => Step::Descend,
            Descriptor::Leaf(_) => Step::Continue,
            Descriptor::Locked => Step::Wait,
            Descriptor::Frozen => Step::Restart,
            Descriptor::Invalid if self.fits(context.level, context.ipa) => {
                match self.group_at(context.level, context.ipa) {
                    Some(size) => self.fill_group(context, size),
                    None => self.fill(context),
                }
            }
            Descriptor::Invalid if context.level.below() == Some(Level::L3) => {
                self.link_pages(worker, context)
            }
            Descriptor::Invalid => match self.stage2.link_empty_table(worker, context) {
                Ok(()) => Step::Again,
                Err(Some(step)) => step,
                Err(None) => self.stop(MapStopped::OutOfFrames),
            },
        }
    }

    fn stop(&mut self, why: MapStopped) -> Step {
        self.stopped = Some(why);
        Step::Stop
    }

    /// What backs `ipa`, an address in the range.
    fn pa_of(&self, ipa: Ipa) -> Pa {
        let offset = ipa.get().wrapping_sub(self.range.start.get());
        self.mapping.pa.offset(offset)
    }

    /// Whether the range covers `bytes` from `ipa` on, and what backs them is aligned to their number.
    fn covers(&self, ipa: Ipa, bytes: u64) -> bool {
        ipa >= self.range.start
            && self.range.end.get().saturating_sub(ipa.get()) >= bytes
            && self.pa_of(ipa).is_aligned(bytes)
    }

    /// Whether a leaf of `level` is allowed at `ipa`.
    fn fits(&self, level: Level, ipa: Ipa) -> bool {
        level >= self.mapping.largest && self.covers(ipa, self.stage2.layout().span(level))
    }

    /// The size of the group that begins with the leaf of `level` at `ipa`, if all of it may be mapped.
    fn group_at(&self, level: Level, ipa: Ipa) -> Option<usize> {
        let size = self.stage2.layout().group(level)?;
        let bytes = (size as u64) << self.stage2.layout().shift(level);
        // A CPU notes a write through any of a group's leaves in one of them only.
        let tracked = self.mapping.attributes.permissions.hardware_dirty;
        (!tracked && ipa.is_aligned(bytes) && self.covers(ipa, bytes)).then_some(size)
    }

    fn leaf(&self, level: Level, ipa: Ipa) -> Leaf {
        let pa = self.pa_of(ipa);
        let layout = self.stage2.layout();
        layout.leaf(level, pa, self.mapping.attributes)
    }

    /// Makes one entry.
    fn fill(&mut self, context: &VisitContext<'_>) -> Step {
        let Ok(broken) = context.entry.lock_vacant(context.observed, context.ipa) else {
            return Step::Again;
        };
        let leaf = self.leaf(context.level, context.ipa);
        self.make(broken, Descriptor::Leaf(leaf), 1)
    }

    /// Makes the `size` entries from the context's on, if all of them are vacant; else only the first.
    fn fill_group(&mut self, context: &VisitContext<'_>, size: usize) -> Step {
        let span = self.stage2.layout().span(context.level);
        let ipa_of = |index: usize| context.ipa.offset(index as u64 * span);
        let mut held: [Option<Broken<'_>>; MOST_MEMBERS] = [const { None }; MOST_MEMBERS];
        let Some(entries) = context.table.get(context.index..context.index + size) else {
            return self.fill(context);
        };
        for (index, entry) in entries.iter().enumerate() {
            let observed = entry.observe(context.level, self.stage2.layout().format());
            if observed.descriptor() == Descriptor::Invalid {
                held[index] = entry.lock_vacant(observed, ipa_of(index)).ok();
            }
            if held[index].is_none() {
                restore(&mut held);
                return self.fill(context);
            }
        }
        sync::full_barrier();
        if !(self.grounds)() {
            restore(&mut held);
            return self.stop(MapStopped::GroundsGone);
        }
        for (index, broken) in held.iter_mut().filter_map(Option::take).enumerate() {
            let leaf = self.leaf(context.level, ipa_of(index)).with_contiguous();
            if broken.make(Descriptor::Leaf(leaf)).is_ok() {
                self.leaves += 1;
            }
        }
        // Where a table was unlinked meanwhile, who did so owns what was made.
        Step::Continue
    }

    /// Links a table of pages where nothing was, with all of the range that is in it.
    fn link_pages<'w, M: TableMemory, T: Tlb, E: Epoch>(
        &mut self,
        worker: &Worker<'w, M, T, E>,
        context: &VisitContext<'w>,
    ) -> Step {
        let layout = self.stage2.layout();
        let page_size = layout.page_size();
        let mut grouped_to = context.ipa;
        let mut leaves = 0;
        let table = worker.build_table(layout, |index| {
            let ipa = context.ipa.offset(index as u64 * page_size);
            if !self.covers(ipa, page_size) {
                return Descriptor::Invalid;
            }
            if let Some(size) = self.group_at(Level::L3, ipa) {
                grouped_to = ipa.offset(size as u64 * page_size);
            }
            leaves += 1;
            let leaf = self.leaf(Level::L3, ipa);
            Descriptor::Leaf(if ipa < grouped_to {
                leaf.with_contiguous()
            } else {
                leaf
            })
        });
        let Some(table) = table else {
            return self.stop(MapStopped::OutOfFrames);
        };
        worker.tlb.publish_tables();
        let step = match context.entry.lock_vacant(context.observed, context.ipa) {
            Ok(broken) => self.make(broken, Descriptor::Table(table.pa()), leaves),
            Err(_) => Step::Again,
        };
        if step == Step::Continue {
            worker.counters.tables_linked.add(1);
        } else {
            // SAFETY: it was just built of a frame of this memory.
            unsafe { worker.memory.free(table) };
        }
        step
    }

    /// Publishes what was decided on, if the grounds still hold (rule 8).
    fn make(&mut self, broken: Broken<'_>, new: Descriptor, leaves: u64) -> Step {
        sync::full_barrier();
        if !(self.grounds)() {
            // Lost only to an unmap of the whole table, which leaves nothing to restore.
            let _ = broken.restore();
            return self.stop(MapStopped::GroundsGone);
        }
        match broken.make(new) {
            Ok(()) => {
                self.leaves += leaves;
                Step::Continue
            }
            Err(_) => Step::Restart,
        }
    }
}

/// Gives up entries that were vacant.
fn restore(held: &mut [Option<Broken<'_>>]) {
    for broken in held.iter_mut().filter_map(Option::take) {
        // Lost only to an unmap of the whole table, which leaves nothing to restore.
        let _ = broken.restore();
    }
}
