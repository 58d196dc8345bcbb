//! The reclaim workload: a VM whose limit is below its memory use. Cold pages are compressed and decompressed while its guest
//! fills its memory and checks it over and over.

use super::stage::Stage;
use super::{Outcome, Run};
use crate::harness::error::WorkloadError;
use crate::harness::results::Results;
use crate::harness::steps::Step;
use abi::step;
use control::Machine;
use memory::MmuLock;
use records::record::{CounterMap, PhaseName};

/// The counter of compressed pages.
const COMPRESSED: &str = "reclaim_compressed";

impl<M: Machine> Run<'_, M> {
    pub(super) fn reclaim<L: MmuLock + 'static>(
        &self,
        outcome: &mut Outcome,
    ) -> Result<(), WorkloadError> {
        self.alone::<L>(outcome, |stage, results| {
            let fill = stage.whole(step::FILL, 0);
            self.with_reclaim(stage, results, (PhaseName::Fill, 0), fill)?;
            for iteration in 1..=self.options.iterations {
                let check = stage.whole(step::CHECK, 0);
                self.with_reclaim(stage, results, (PhaseName::Check, iteration), check)?;
            }
            Ok(())
        })
    }

    /// Measures a step, together with the work of reclaim meanwhile.
    fn with_reclaim<L: MmuLock>(
        &self,
        stage: &Stage<'_, M, L>,
        results: &mut Results,
        meant: (PhaseName, u64),
        step: Step,
    ) -> Result<(), WorkloadError> {
        let system = stage.guest.own.memory.system();
        let count = || {
            let mut counts = CounterMap::new();
            let add = |name: &'static str, count| {
                counts.insert(name.into(), count);
            };
            system.reclaim_counters().for_each(add);
            counts
        };
        let (before, away_before) = (count(), system.compressed().pages);
        stage.measure(results, meant, step)?;
        let mut compressed = 0;
        for (name, count) in count() {
            let since = count - before.get(&name).copied().unwrap_or(0);
            if name == COMPRESSED {
                compressed = since;
            }
            if since != 0 {
                results.note(&name, since);
            }
        }
        let away = system.compressed();
        results.note("compressed", away.pages);
        results.note("compressed_bytes", away.bytes);
        // By faults or by the hypervisor itself: what was there and isn't any more.
        let back = (away_before + compressed).saturating_sub(away.pages);
        results.note("brought_back", back);
        Ok(())
    }
}
