//! The merging workload: merges equal pages of two running VMs that trust each other. Their guests fill their memory like two
//! Linux machines and check it over and over. Then each refills a part of its own.

use super::stage::Stage;
use super::{Outcome, Run};
use crate::harness::error::WorkloadError;
use crate::harness::results::Results;
use crate::harness::service::Bench;
use abi::step;
use alloc::sync::Arc;
use control::Machine;
use control::RunningGuest;
use control::background_merge::Scanner;
use memory::MmuLock;
use records::record::PhaseName;

/// The fraction (one in so many) of each share that is refilled once pages are merged.
const FILLED_ANEW: u64 = 10;
/// The number of scans of all pages: one for checksums, one to find equal pages, and one to see that nothing is left.
const SCANS: u64 = 3;

impl<M: Machine> Run<'_, M> {
    pub(super) fn merge<L: MmuLock + 'static>(
        &self,
        outcome: &mut Outcome,
    ) -> Result<(), WorkloadError> {
        let plans = [0, 1].map(|index| self.plan(self.vms[index]));
        let seeds = [self.options.seed, !self.options.seed];
        let benches = [0, 1].map(|index| self.bench(&plans[index], seeds[index]));
        let first = self.host.launch::<L, _>(&plans[0], &benches[0])?;
        let done = match self.host.launch::<L, _>(&plans[1], &benches[1]) {
            Ok(second) => {
                // Without it their equal pages would stay apart.
                (first.own.memory.system()).trust(plans[1].vm, plans[0].vm);
                let done = self.lead_two([&first, &second], &benches, outcome);
                let (done, state) = second.end_after(done);
                benches[1].flush();
                outcome.add_state(plans[1].vm, state);
                done.map_err(|error| benches[1].explain(error))
            }
            Err(error) => Err(error.into()),
        };
        let (done, state) = first.end_after(done);
        benches[0].flush();
        outcome.add_state(plans[0].vm, state);
        done.map_err(|error| benches[0].explain(error))
    }

    fn lead_two<L: MmuLock + 'static>(
        &self,
        [first, second]: [&RunningGuest<'_, M, L>; 2],
        benches: &[Arc<Bench<M>>; 2],
        outcome: &mut Outcome,
    ) -> Result<(), WorkloadError> {
        let bytes = self.options.bytes.0;
        let stages = [
            Stage::open(first, &benches[0], bytes)?,
            Stage::open(second, &benches[1], bytes)?,
        ];
        self.merge_two(&stages, &mut outcome.results)?;
        stages.into_iter().try_for_each(Stage::close)
    }

    fn merge_two<L: MmuLock + 'static>(
        &self,
        stages: &[Stage<'_, M, L>; 2],
        results: &mut Results,
    ) -> Result<(), WorkloadError> {
        let [one, other] = stages;
        other.begin(other.whole(step::FILL, 0));
        one.measure(results, (PhaseName::Fill, 0), one.whole(step::FILL, 0))?;
        other.wait()?;
        let frames = || one.guest.own.memory.pool().counts().guest;
        results.note("frames_guest", frames());
        if self.case.workers != 0 {
            self.scan(stages, results)?;
            one.guest.own.memory.wait_for_epoch();
            results.note("frames_guest", frames());
        }
        for iteration in 1..=self.options.iterations {
            other.begin(other.whole(step::CHECK, 0));
            let check = one.whole(step::CHECK, 0);
            one.measure(results, (PhaseName::Check, iteration), check)?;
            other.wait()?;
        }
        let anew = one.share / FILLED_ANEW;
        other.begin(other.part(step::FILL, 1, 0, anew));
        let fill = one.part(step::FILL, 1, 0, anew);
        one.measure(results, (PhaseName::Fill, 1), fill)?;
        other.wait()?;
        results.note("frames_guest", frames());
        for stage in stages {
            stage.perform(stage.part(step::CHECK, 1, 0, anew))?;
            stage.perform(stage.part(step::CHECK, 0, anew, stage.share - anew))?;
        }
        self.note_image(results);
        Ok(())
    }

    /// Has all memory scanned while the vCPUs check it.
    fn scan<L: MmuLock + 'static>(
        &self,
        stages: &[Stage<'_, M, L>; 2],
        results: &mut Results,
    ) -> Result<(), WorkloadError> {
        let [one, _] = stages;
        let start = Results::start(one.guest);
        let guests = stages.each_ref().map(|stage| stage.guest);
        let scanner = Scanner::start(
            &guests,
            &self.options.merge,
            self.case.workers as usize,
            SCANS,
        )?;
        loop {
            for stage in stages {
                stage.begin(stage.whole(step::CHECK, 0));
            }
            stages.iter().try_for_each(Stage::wait)?;
            if scanner.is_done() {
                break;
            }
        }
        results.end(
            one.guest,
            (PhaseName::Merge, 0),
            one.guest.machine.now_ns(),
            start,
        );
        for (name, count) in scanner.counts() {
            results.note(&name, count);
        }
        Ok(())
    }
}
