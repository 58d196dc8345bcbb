//! A batch of broken entries that share one TLB invalidation.
//!
//! Each is held locked by the exchange that took it, beside any other operation. The holder of a non-empty batch waits for
//! nobody (rule 4).

use crate::address::{Ipa, IpaRange};
use crate::entry::{Broken, Unflushed};
use crate::memory::{Epoch, TableMemory, Worker};
use crate::stage2::Stage2;
use crate::tlb::Tlb;
use crate::walk::{Step, VisitContext, lost};

/// Entries that are held locked at a time.
const MOST: usize = if cfg!(loom) { 2 } else { 32 };

/// Locked entries that are invalidated together, each with its later use.
pub(crate) struct Batch<'w, B> {
    entries: [Option<(Unflushed<'w>, B)>; MOST],
    taken: usize,
    range: IpaRange,
}

impl<B> Default for Batch<'_, B> {
    fn default() -> Self {
        Self {
            entries: [const { None }; MOST],
            taken: 0,
            range: Ipa::new(u64::MAX)..Ipa::new(0),
        }
    }
}

impl<'w, B> Batch<'w, B> {
    pub(crate) fn is_empty(&self) -> bool {
        self.taken == 0
    }

    pub(crate) fn is_full(&self) -> bool {
        self.taken == MOST
    }

    /// Locks the context's entry, to remove its mapping. If the batch is full, the walk ends.
    pub(crate) fn take<M: TableMemory, T: Tlb, E: Epoch>(
        &mut self,
        worker: &Worker<'w, M, T, E>,
        context: &VisitContext<'w>,
        becomes: B,
    ) -> Step {
        let Some(slot) = self.entries.get_mut(self.taken) else {
            return Step::Stop;
        };
        let Ok(unflushed) = context.entry.lock(context.observed, context.ipa) else {
            return lost(worker);
        };
        *slot = Some((unflushed, becomes));
        self.taken += 1;
        self.range.start = self.range.start.min(context.ipa);
        self.range.end = context.ipa_end;
        Step::Continue
    }

    /// Invalidates the old mappings of all entries, and the links to tables above them if `tables` is set; then passes the
    /// entries to `each`, in address order.
    pub(crate) fn flush<M: TableMemory, T: Tlb, E: Epoch>(
        self,
        worker: &Worker<'w, M, T, E>,
        stage2: &Stage2,
        tables: bool,
        mut each: impl FnMut(Broken<'w>, B),
    ) {
        if self.is_empty() {
            return;
        }
        worker.counters.tlbi_broadcast.add(1);
        worker
            .tlb
            .invalidate_range(stage2.regime(), self.range, tables);
        for (unflushed, becomes) in self.entries.into_iter().flatten() {
            each(unflushed.flushed(), becomes);
        }
    }
}
