//! The invalidation workload: vCPUs fault in their memory while other CPUs constantly invalidate ranges right beside it.

use super::stage::Stage;
use super::{Outcome, Run, range_of};
use crate::harness::error::WorkloadError;
use abi::step;
use alloc::sync::Arc;
use control::Machine;
use control::RunError;
use control::guest::BackgroundWork;
use core::sync::atomic::{AtomicU64, Ordering};
use memory::{Access, MmuLock};
use records::record::PhaseName;

/// The last pages of each share, which the vCPU doesn't use: they are mapped and invalidated all the time.
const LAST_PAGES: u64 = 16;

/// A worker's count of invalidations, in a cache line of its own.
#[derive(Default)]
#[repr(align(128))]
struct Tally(AtomicU64);

impl<M: Machine> Run<'_, M> {
    pub(super) fn invalidate<L: MmuLock + 'static>(
        &self,
        outcome: &mut Outcome,
    ) -> Result<(), WorkloadError> {
        self.alone::<L>(outcome, |stage, results| {
            let invalidated = Arc::new(Tally::default());
            let _beside = self.invalidate_beside(stage, &invalidated)?;
            let pages = stage.share.saturating_sub(LAST_PAGES).max(1);
            let (own, space) = (&stage.guest.own.memory, &stage.guest.vm.space);
            for iteration in 1..=self.options.iterations {
                let before = invalidated.0.load(Ordering::Relaxed);
                let write = stage.part(step::WRITE, iteration, 0, pages);
                stage.measure(results, (PhaseName::Write, iteration), write)?;
                let since = invalidated.0.load(Ordering::Relaxed) - before;
                results.note("invalidations", since);
                stage.perform(stage.part(step::READ, iteration, 0, pages))?;
                // The next time it is to be mapped again.
                space.invalidate(own, range_of(0..stage.share * self.options.vcpus as u64));
            }
            Ok(())
        })
    }

    /// Starts the workers, if there are any.
    fn invalidate_beside<'s, L: MmuLock + 'static>(
        &self,
        stage: &'s Stage<'_, M, L>,
        invalidated: &Arc<Tally>,
    ) -> Result<Option<BackgroundWork<'s, M>>, WorkloadError> {
        let workers = self.case.workers as usize;
        if workers == 0 {
            return Ok(None);
        }
        let (vcpus, share, invalidated) = (self.options.vcpus, stage.share, invalidated.clone());
        let beside = stage.guest.beside(workers, move |vm, own, index, stop| {
            let mut vcpu = index % vcpus;
            while !stop.load(Ordering::Relaxed) {
                let end = share * (vcpu as u64 + 1);
                let range = range_of(end.saturating_sub(LAST_PAGES)..end);
                // Without a frame there is nothing to map, and nothing to invalidate.
                let _ = vm
                    .space
                    .prefault(&own.memory, vcpu, range.clone(), Access::Write);
                vm.space.invalidate(&own.memory, range);
                invalidated.0.fetch_add(1, Ordering::Relaxed);
                vcpu = (vcpu + workers) % vcpus;
            }
        });
        Ok(Some(beside.ok_or(RunError::Stuck)?))
    }
}
