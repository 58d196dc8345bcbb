//! A guest's stage-2 fault: the walk that makes an access possible.
//!
//! Any number of faults run at once, on the same entry too, and beside every other operation.

use crate::address::{Ipa, Level, PAGE_SIZE, Pa, TABLE_ENTRIES, Vttbr};
use crate::descriptor::{Descriptor, Leaf, Permissions};
use crate::entry::Broken;
use crate::memory::{Epoch, TableFrame, TableMemory, Worker, index_at};
use crate::stage2::Stage2;
use crate::tlb::Tlb;
use crate::walk::{Step, VisitContext};

/// How often a fault looks at an entry that another CPU has locked before it lets the guest fault again (rule 4).
const LOOKS_AT_LOCKED: u32 = if cfg!(loom) { 2 } else { 200 };

/// What the guest tried to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// A load, or a hardware walk of the guest's own tables.
    Read,
    /// A store, an atomic, or a hardware update of the guest's own tables.
    Write,
    /// An instruction fetch.
    Execute,
}

impl Access {
    const fn allowed_by(self, leaf: Leaf) -> bool {
        match self {
            Self::Read => true,
            Self::Write => leaf.writable(),
            Self::Execute => leaf.executable(),
        }
    }
}

/// A fault, with what its owner of memory decided about it.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// The address that faulted.
    pub ipa: Ipa,
    /// The guest's virtual address, for a narrower TLB invalidation, where it is known.
    pub va: Option<u64>,
    /// The access.
    pub access: Access,
    /// What backs the page of `ipa`.
    pub pa: Pa,
    /// The largest block that alignment and backing allow at `ipa`.
    pub largest: Level,
    /// What a new mapping allows.
    pub permissions: Permissions,
    /// Writes are logged page by page: the first write to a block splits it.
    pub split: bool,
}

impl Request {
    /// The leaf of `level` that serves this fault.
    pub const fn leaf(&self, level: Level) -> Leaf {
        Leaf::new(level, self.pa.align_down(level.span()), self.permissions)
    }
}

/// How a fault ended.
#[must_use]
#[derive(Debug)]
pub enum Resolution<'t> {
    /// Nothing was mapped. The caller holds the entry, looks at its grounds again (rule 8), and makes it
    /// ([`Request::leaf`]) or restores it.
    Vacant(Broken<'t>),
    /// The entry was made writable; the caller marks what this level spans dirty, if it logs (rule 9).
    Relaxed(Level),
    /// A block was split, the page that faulted is writable.
    Split,
    /// The entry already allowed the access: another CPU was first, or this CPU's TLB was behind.
    Spurious,
    /// Another CPU holds the entry; let the guest fault again (rule 4).
    Busy,
    /// The mapping doesn't allow the access and may not be made to.
    NotPermitted,
    /// No frame for a table.
    OutOfFrames,
}

impl Stage2 {
    /// Serves a fault. `request.ipa` lies within the IPA space. On return, this CPU's TLB holds no entry that denies
    /// what the tables now allow.
    pub fn fault<'w, M: TableMemory, T: Tlb, E: Epoch>(
        &'w self,
        worker: &Worker<'w, M, T, E>,
        request: &Request,
    ) -> Resolution<'w> {
        debug_assert!(self.contains(&(request.ipa..request.ipa)));
        let vm = self.vttbr();
        let page = request.ipa.align_down(PAGE_SIZE);
        let mut looks = LOOKS_AT_LOCKED;
        let mut resolution = Resolution::Busy;
        self.root()
            .walk(worker, page..page.offset(PAGE_SIZE), |context| {
                let outcome = match context.descriptor {
                    Descriptor::Table(_) => return Step::Descend,
                    Descriptor::Leaf(leaf) => fault_on_leaf(worker, vm, request, context, leaf),
                    Descriptor::Invalid if context.level < request.largest => {
                        link_empty_table(worker, context)
                    }
                    Descriptor::Invalid => {
                        match context.entry.lock_vacant(context.observed, context.ipa) {
                            Ok(broken) => Ok(Resolution::Vacant(broken)),
                            Err(_) => Err(lost(worker)),
                        }
                    }
                    Descriptor::Frozen => Err(Step::Restart),
                    Descriptor::Locked if looks == 0 => Ok(Resolution::Busy),
                    Descriptor::Locked => {
                        looks -= 1;
                        Err(Step::Wait)
                    }
                };
                match outcome {
                    Ok(done) => {
                        resolution = done;
                        Step::Stop
                    }
                    Err(step) => step,
                }
            });
        resolution
    }
}

#[cold]
fn lost<M: TableMemory, T: Tlb, E: Epoch>(worker: &Worker<'_, M, T, E>) -> Step {
    worker.counters.lost_exchanges.add(1);
    Step::Again
}

/// Puts an empty table where nothing was (rule 6).
#[cold]
fn link_empty_table<'w, M: TableMemory, T: Tlb, E: Epoch>(
    worker: &Worker<'w, M, T, E>,
    context: &VisitContext<'w>,
) -> Result<Resolution<'w>, Step> {
    let Some(frame) = worker.memory.allocate() else {
        return Ok(Resolution::OutOfFrames);
    };
    worker.tlb.publish_tables();
    if context
        .entry
        .exchange(context.observed, Descriptor::Table(frame.pa()))
        .is_err()
    {
        worker.memory.free(frame);
        return Err(lost(worker));
    }
    worker.counters.tables_linked.add(1);
    Err(Step::Again)
}

#[inline(always)]
fn fault_on_leaf<'w, M: TableMemory, T: Tlb, E: Epoch>(
    worker: &Worker<'w, M, T, E>,
    vm: Vttbr,
    request: &Request,
    context: &VisitContext<'w>,
    leaf: Leaf,
) -> Result<Resolution<'w>, Step> {
    let resolution = if request.access.allowed_by(leaf) {
        Resolution::Spurious
    } else if request.access != Access::Write || !leaf.may_write() {
        return Ok(Resolution::NotPermitted);
    } else if request.split && context.level != Level::L3 {
        return split_for_write(worker, vm, request.ipa, context, leaf);
    } else if context
        .entry
        .exchange(context.observed, Descriptor::Leaf(leaf.with_write()))
        .is_ok()
    {
        worker.counters.relaxed.add(1);
        Resolution::Relaxed(context.level)
    } else {
        return Err(lost(worker));
    };
    worker.counters.tlbi_local.add(1);
    worker
        .tlb
        .invalidate_local(vm, context.ipa, context.level, request.va);
    Ok(resolution)
}

/// Replaces a block by tables that map the same memory read-only, but for the page that is being written: the subtree is
/// built off-line, then linked with one break and one make (rule 6).
#[cold]
fn split_for_write<'w, M: TableMemory, T: Tlb, E: Epoch>(
    worker: &Worker<'w, M, T, E>,
    vm: Vttbr,
    written: Ipa,
    context: &VisitContext<'w>,
    block: Leaf,
) -> Result<Resolution<'w>, Step> {
    let Some(subtree) = build_subtree(worker, context.level, block, written) else {
        return Ok(Resolution::OutOfFrames);
    };
    let Ok(unflushed) = context.entry.lock(context.observed, context.ipa) else {
        free_subtree(worker, context.level, subtree, written);
        return Err(lost(worker));
    };
    worker.counters.tlbi_broadcast.add(1);
    let broken = unflushed.flush(worker.tlb, vm);
    worker.tlb.publish_tables();
    if broken.make(Descriptor::Table(subtree.pa())).is_err() {
        free_subtree(worker, context.level, subtree, written);
        return Err(Step::Restart);
    }
    worker.counters.splits.add(1);
    worker
        .counters
        .tables_linked
        .add(tables_below(context.level));
    Ok(Resolution::Split)
}

/// Tables that a split of a block of `level` links: one for each level below, along the written page.
const fn tables_below(level: Level) -> u64 {
    3 - level as u64
}

/// The tables that replace `block`, an entry of `level`, by entries down to the page at `written`.
fn build_subtree<M: TableMemory, T: Tlb, E: Epoch>(
    worker: &Worker<'_, M, T, E>,
    level: Level,
    block: Leaf,
    written: Ipa,
) -> Option<TableFrame> {
    let below = level.below()?;
    let target = index_at(written.get(), below);
    let piece = |index: usize| {
        block
            .without_write()
            .moved_to(below, block.pa().offset(index as u64 * below.span()))
    };
    let mut child = None;
    let entry = if below == Level::L3 {
        Descriptor::Leaf(piece(target).with_write())
    } else {
        let table = build_subtree(worker, below, piece(target), written)?;
        let link = Descriptor::Table(table.pa());
        child = Some(table);
        link
    };
    let table = worker.build_table(|index| {
        if index == target {
            entry
        } else {
            Descriptor::Leaf(piece(index))
        }
    });
    if table.is_none()
        && let Some(child) = child
    {
        free_subtree(worker, below, child, written);
    }
    table
}

/// Gives back what [`build_subtree`] built and nobody saw.
fn free_subtree<M: TableMemory, T: Tlb, E: Epoch>(
    worker: &Worker<'_, M, T, E>,
    level: Level,
    table: TableFrame,
    written: Ipa,
) {
    if let Some(below) = level.below() {
        let entry = &worker.table(table.pa())[index_at(written.get(), below) % TABLE_ENTRIES];
        if let Descriptor::Table(child) = entry.observe(below).descriptor() {
            free_subtree(worker, below, TableFrame::from_linked(child), written);
        }
    }
    worker.memory.free(table);
}
