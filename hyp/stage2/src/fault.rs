//! Handles a guest's stage-2 fault: walks to the entry and makes the access possible.
//!
//! Any number of faults run at once, even on the same entry, beside every other operation.

use crate::address::{Ipa, Level, Pa};
use crate::contiguous::dissolve;
use crate::descriptor::{Attributes, Descriptor, Execute, Leaf};
use crate::entry::{Broken, Lost};
use crate::memory::{Epoch, TableMemory, Worker};
use crate::split::{Around, Cut};
use crate::stage2::Stage2;
use crate::tlb::Tlb;
use crate::walk::{Step, VisitContext, lost};

/// How often a fault looks at an entry that another CPU has locked before it lets the guest fault again (rule 4).
const LOOKS_AT_LOCKED: u32 = if cfg!(loom) { 2 } else { 200 };

/// What the guest tried to do.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Access {
    /// A load, or a hardware walk of the guest's own tables.
    Read,
    /// A store, an atomic, or a hardware update of the guest's own tables.
    Write,
    /// An instruction fetch at EL1.
    Execute,
    /// An instruction fetch at EL0.
    ExecuteAtEl0,
}

impl Access {
    /// Whether `leaf`, if accessed already, allows it without a fault.
    pub const fn allowed_by(self, leaf: Leaf) -> bool {
        match self {
            Self::Read => true,
            Self::Write => leaf.writable(),
            Self::Execute => matches!(leaf.execute(), Execute::Everywhere | Execute::AtEl1),
            Self::ExecuteAtEl0 => matches!(leaf.execute(), Execute::Everywhere | Execute::AtEl0),
        }
    }
}

/// A fault, with the decisions of the memory's owner.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// The address that faulted.
    pub ipa: Ipa,
    /// The guest's virtual address, for a narrower TLB invalidation, where it is known.
    pub va: Option<u64>,
    /// The access.
    pub access: Access,
    /// The backing of the page at `ipa`, [within](crate::Layout::check_backing) the physical addresses, as [`Stage2::fill`]
    /// demands.
    pub pa: Pa,
    /// The largest block that alignment and backing allow at `ipa`. If the granule has none so large, the next smaller.
    pub largest: Level,
    /// The attributes of a new mapping. If they let hardware track writes, so do the leaves that replace a split block.
    pub attributes: Attributes,
    /// The largest leaf that a write may make writable: writes to it are logged as one. [`Level::L0`]: any size.
    pub largest_written: Level,
    /// The handling of a larger block on a write.
    pub on_block: OnBlock,
}

/// The handling of a block larger than the unit of logging ([`Request::largest_written`]) at its first write. In both cases a
/// leaf of the right size is writable afterwards.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnBlock {
    /// It is replaced by tables; the rest of it stays mapped, read-only, as large as it can.
    Split,
    /// It is unmapped but for that leaf; the rest faults in again, even for reads. Linux KVM does this unless it splits blocks
    /// ahead of faults. A block with hardware dirty state that nobody has collected is split instead, so that this isn't lost.
    Isolate,
}

/// How a fault ended.
#[must_use]
#[derive(Debug)]
pub enum Resolution<'t> {
    /// Nothing was mapped. The caller holds the entry, checks its grounds again (rule 8), and makes the entry
    /// ([`Stage2::fill`]) or restores it.
    Vacant(Broken<'t>),
    /// The entry was made writable; a caller that logs marks the span of this level dirty (rule 9).
    Relaxed(Level),
    /// The access flag was set; all else allowed the access.
    Accessed,
    /// A block was replaced by smaller leaves, of which the one that was written is writable.
    Split,
    /// The entry already allowed the access: another CPU was first, or this CPU's TLB was behind.
    Spurious,
    /// Another CPU holds the entry; let the guest fault again (rule 4).
    Busy,
    /// The mapping doesn't allow the access, and may not be changed to allow it.
    NotPermitted,
    /// No frame for a table.
    OutOfFrames,
    /// The address lies beyond the IPA space: nothing can be mapped there.
    NotInSpace,
}

impl Stage2 {
    /// Maps a page as `request` says, in the entry that [`fault`](Self::fault) returned for it.
    ///
    /// # Errors
    /// The table was unlinked meanwhile: the guest should fault again.
    ///
    /// # Safety
    /// The page at [`Request::pa`] passes [`check_backing`](crate::Layout::check_backing) of these tables' layout. Descriptors
    /// truncate larger addresses: the guest would get other memory, whosever it is. The owner of memory checks it once, on
    /// acquiring it, so that a fault needn't; debug builds check it here.
    #[inline]
    pub unsafe fn fill(&self, vacant: Broken<'_>, request: &Request) -> Result<(), Lost> {
        // The leaf is of the entry's level whatever the request says, so that it is no link.
        let level = vacant.level();
        let pa = request.pa.align_down(self.layout().span(level));
        let leaf = self.layout().leaf(level, pa, request.attributes);
        vacant.make(Descriptor::Leaf(leaf))
    }

    /// Serves a fault. On return, this CPU's TLB holds no entry that denies what the tables now allow; those of other CPUs
    /// may, until they fault as well. Never waits for another CPU for long (rule 4), never makes anything more permissive
    /// than the entry says it may be (rule 3).
    #[inline(always)]
    pub fn fault<'w, M: TableMemory, T: Tlb, E: Epoch>(
        &'w self,
        worker: &Worker<'w, M, T, E>,
        request: &Request,
    ) -> Resolution<'w> {
        // What comes in numbers is looked at first: a page that nobody has touched.
        if let Some(place) = self.root().seek(worker, request.ipa)
            && place.observed.level() == Level::L3
            && place.observed.descriptor() == Descriptor::Invalid
        {
            let page = request.ipa.align_down(self.layout().page_size());
            if let Ok(broken) = place.entry().lock_vacant(place.observed, page) {
                return Resolution::Vacant(broken);
            }
        }
        self.fault_slowly(worker, request)
    }

    /// Serves the commonest fault, a write to a logged page, as [`Self::fault`] does: makes the leaf at `ipa` writable by a
    /// single exchange, if it may be and is no larger than [`largest_written`](Request::largest_written). The caller marks the
    /// span of the level dirty. `None` if more is needed; nothing was changed then.
    #[inline(always)]
    pub fn relax<'w, M: TableMemory, T: Tlb, E: Epoch>(
        &'w self,
        worker: &Worker<'w, M, T, E>,
        ipa: Ipa,
        va: Option<u64>,
        largest_written: Level,
    ) -> Option<Level> {
        // Nearly all trees are plain, and nearly all that is logged are pages.
        match self.exchange_page(worker, ipa) {
            Some(true) => {
                worker.counters.relaxed.add(1);
                self.invalidate_faulted(worker, ipa, va, Level::L3);
                Some(Level::L3)
            }
            Some(false) => None,
            None => self.relax_leaf(worker, ipa, va, largest_written),
        }
    }

    /// As [`relax`](Self::relax), for a page of a plain tree, and as short as possible. Returns whether it was made writable.
    #[inline(always)]
    pub fn relax_page<'w, M: TableMemory, T: Tlb, E: Epoch>(
        &'w self,
        worker: &Worker<'w, M, T, E>,
        ipa: Ipa,
        va: Option<u64>,
    ) -> bool {
        let relaxed = self.exchange_page(worker, ipa) == Some(true);
        if relaxed {
            worker.counters.relaxed.add(1);
            worker.tlb.invalidate_local_page(self.regime(), ipa, va);
        }
        relaxed
    }

    /// Makes the page at `ipa` writable by a single exchange, in a plain tree; returns whether it did. `None` if the tree isn't
    /// plain, or no table leads to a page.
    #[inline(always)]
    fn exchange_page<'w, M: TableMemory, T: Tlb, E: Epoch>(
        &'w self,
        worker: &Worker<'w, M, T, E>,
        ipa: Ipa,
    ) -> Option<bool> {
        let entry = match self.layout().plain_stride() {
            9 => self.root().seek_page::<512, _, _, _>(worker, ipa)?,
            // The stride of trees for model checking.
            2 if cfg!(any(test, loom, feature = "watch")) => {
                self.root().seek_page::<4, _, _, _>(worker, ipa)?
            }
            _ => return None,
        };
        Some(entry.relax_page())
    }

    /// As [`relax`](Self::relax), in any tree. Apart from it, so that a page of a plain tree pays for none of this.
    #[inline(never)]
    fn relax_leaf<'w, M: TableMemory, T: Tlb, E: Epoch>(
        &'w self,
        worker: &Worker<'w, M, T, E>,
        ipa: Ipa,
        va: Option<u64>,
        largest_written: Level,
    ) -> Option<Level> {
        let level = self.exchange_leaf(worker, ipa, largest_written)?;
        worker.counters.relaxed.add(1);
        self.invalidate_faulted(worker, ipa, va, level);
        Some(level)
    }

    /// Makes the leaf at `ipa` writable, if a single exchange does, and it is no larger than `largest_written`.
    #[inline(always)]
    fn exchange_leaf<'w, M: TableMemory, T: Tlb, E: Epoch>(
        &'w self,
        worker: &Worker<'w, M, T, E>,
        ipa: Ipa,
        largest_written: Level,
    ) -> Option<Level> {
        let place = self.root().seek(worker, ipa)?;
        let level = place.observed.level();
        if level == Level::L3 {
            // What makes a page writable is the same in every format.
            return place.entry().relax_page().then_some(level);
        }
        let Descriptor::Leaf(leaf) = place.observed.descriptor() else {
            return None;
        };
        if !leaf.can_be_relaxed() || level < largest_written {
            return None;
        }
        let writable = Descriptor::Leaf(leaf.with_write().with_accessed());
        place.entry().exchange(place.observed, writable).ok()?;
        Some(level)
    }

    /// Invalidates this CPU's TLB entries for the leaf of `level` that caused the fault.
    #[inline(always)]
    fn invalidate_faulted<M: TableMemory, T: Tlb, E: Epoch>(
        &self,
        worker: &Worker<'_, M, T, E>,
        ipa: Ipa,
        va: Option<u64>,
        level: Level,
    ) {
        let vm = self.regime();
        let page = ipa.align_down(self.layout().page_size());
        let hint = vm.hint(level);
        worker.tlb.invalidate_local(vm, page, hint, va);
    }

    /// Serves any fault, with as many attempts as needed.
    #[inline(never)]
    fn fault_slowly<'w, M: TableMemory, T: Tlb, E: Epoch>(
        &'w self,
        worker: &Worker<'w, M, T, E>,
        request: &Request,
    ) -> Resolution<'w> {
        let mut looks = LOOKS_AT_LOCKED;
        loop {
            let Some(place) = self.root().seek(worker, request.ipa) else {
                return Resolution::NotInSpace;
            };
            let context = place.context(self.layout(), request.ipa);
            let outcome = match context.descriptor {
                Descriptor::Leaf(leaf) => self.fault_on_leaf(worker, request, &context, leaf),
                Descriptor::Invalid => self.fault_on_nothing(worker, request, &context),
                Descriptor::Locked if looks == 0 => Ok(Resolution::Busy),
                Descriptor::Locked => {
                    looks -= 1;
                    Err(Step::Wait)
                }
                // The tree is dead.
                Descriptor::Frozen if context.level == self.layout().start() => {
                    Ok(Resolution::Busy)
                }
                Descriptor::Frozen | Descriptor::Table(_) => Err(Step::Restart),
            };
            match outcome {
                Ok(resolution) => return resolution,
                Err(step) => worker.before(step),
            }
        }
    }

    fn fault_on_nothing<'w, M: TableMemory, T: Tlb, E: Epoch>(
        &self,
        worker: &Worker<'w, M, T, E>,
        request: &Request,
        context: &VisitContext<'w>,
    ) -> Result<Resolution<'w>, Step> {
        if context.level < request.largest.max(self.layout().largest_leaf()) {
            return match self.link_empty_table(worker, context) {
                Ok(()) => Err(Step::Again),
                Err(None) => Ok(Resolution::OutOfFrames),
                Err(Some(step)) => Err(step),
            };
        }
        match context.entry.lock_vacant(context.observed, context.ipa) {
            Ok(broken) => Ok(Resolution::Vacant(broken)),
            Err(_) => Err(lost(worker)),
        }
    }

    fn fault_on_leaf<'w, M: TableMemory, T: Tlb, E: Epoch>(
        &self,
        worker: &Worker<'w, M, T, E>,
        request: &Request,
        context: &VisitContext<'w>,
        leaf: Leaf,
    ) -> Result<Resolution<'w>, Step> {
        let resolution = if request.access.allowed_by(leaf) {
            if !leaf.accessed() {
                return set_accessed(worker, context, leaf);
            }
            worker.counters.spurious.add(1);
            Resolution::Spurious
        } else if request.access != Access::Write || !leaf.may_write() {
            return Ok(Resolution::NotPermitted);
        } else if leaf.contiguous() {
            return Err(dissolve(worker, self, context));
        } else if context.level < request.largest_written {
            return self.split_for_write(worker, request, context, leaf);
        } else if context
            .entry
            .exchange(
                context.observed,
                Descriptor::Leaf(leaf.with_write().with_accessed()),
            )
            .is_ok()
        {
            worker.counters.relaxed.add(1);
            Resolution::Relaxed(context.level)
        } else {
            return Err(lost(worker));
        };
        self.invalidate_faulted(worker, request.ipa, request.va, context.level);
        Ok(resolution)
    }

    /// Replaces a block by tables in which the written leaf is writable and the rest is read-only, or unmapped.
    #[cold]
    fn split_for_write<'w, M: TableMemory, T: Tlb, E: Epoch>(
        &self,
        worker: &Worker<'w, M, T, E>,
        request: &Request,
        context: &VisitContext<'w>,
        block: Leaf,
    ) -> Result<Resolution<'w>, Step> {
        let cut = Cut::AroundWritten(Around {
            written: request.ipa,
            to: request.largest_written,
            keeps_rest: request.on_block == OnBlock::Split || block.dirty(),
            tracked: request.attributes.permissions.hardware_dirty,
        });
        match self.split_block(worker, context, block.write_protected(), cut) {
            Ok(()) => Ok(Resolution::Split),
            Err(Some(step)) => Err(step),
            Err(None) => Ok(Resolution::OutOfFrames),
        }
    }

    /// Links an empty table in a vacant entry (rule 6). `None`: no frame.
    #[cold]
    pub(crate) fn link_empty_table<'w, M: TableMemory, T: Tlb, E: Epoch>(
        &self,
        worker: &Worker<'w, M, T, E>,
        context: &VisitContext<'w>,
    ) -> Result<(), Option<Step>> {
        let frame = worker.memory.allocate().ok_or(None)?;
        worker.tlb.publish_tables();
        let link = Descriptor::Table(frame.pa());
        if context.entry.exchange(context.observed, link).is_err() {
            // SAFETY: it has just come from this memory.
            unsafe { worker.memory.free(frame) };
            return Err(Some(lost(worker)));
        }
        worker.counters.tables_linked.add(1);
        Ok(())
    }
}

/// An entry without the access flag is in no TLB, so there is nothing to invalidate.
#[cold]
fn set_accessed<'w, M: TableMemory, T: Tlb, E: Epoch>(
    worker: &Worker<'w, M, T, E>,
    context: &VisitContext<'w>,
    leaf: Leaf,
) -> Result<Resolution<'w>, Step> {
    let accessed = Descriptor::Leaf(leaf.with_accessed());
    match context.entry.exchange(context.observed, accessed) {
        Ok(_) => {
            worker.counters.accessed.add(1);
            Ok(Resolution::Accessed)
        }
        Err(_) => Err(lost(worker)),
    }
}
