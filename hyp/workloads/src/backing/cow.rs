//! The copy-on-write workload: forks a VM whose vCPUs wait for their next step; a second harness leads the fork's vCPUs. The
//! fork reads every page, then writes every page. Then the parent writes its pages, which are no longer shared.

use super::stage::Stage;
use super::{Outcome, Run};
use crate::harness::error::WorkloadError;
use crate::harness::service::Bench;
use abi::step;
use alloc::sync::Arc;
use control::Machine;
use control::background_merge::Scanner;
use control::{GuestPlan, RunningGuest};
use memory::MmuLock;
use records::record::{CounterMap, Phase, PhaseName};

/// The values that the parent writes before and after the fork's writes, and the fork's own.
const BEFORE: u64 = 1;
const OF_FORK: u64 = 2;
const AFTER: u64 = 3;

impl<M: Machine> Run<'_, M> {
    pub(super) fn cow<L: MmuLock + 'static>(
        &self,
        outcome: &mut Outcome,
    ) -> Result<(), WorkloadError> {
        let plans = [0, 1].map(|index| self.plan(self.vms[index]));
        let bench = self.bench(&plans[0], self.options.seed);
        let guest = self.host.launch::<L, _>(&plans[0], &bench)?;
        let done = self.lead_original(&guest, &bench, &plans[1], outcome);
        let (done, state) = guest.end_after(done);
        bench.flush();
        outcome.add_state(plans[0].vm, state);
        done.map_err(|error| bench.explain(error))
    }

    /// Has the parent write its memory, and forks it by this plan.
    fn lead_original<L: MmuLock + 'static>(
        &self,
        guest: &RunningGuest<'_, M, L>,
        bench: &Bench<M>,
        plan: &GuestPlan<'_>,
        outcome: &mut Outcome,
    ) -> Result<(), WorkloadError> {
        let scanner = Scanner::beside(guest, self.options)?;
        let original = Stage::open(guest, bench, self.options.bytes.0)?;
        let write = original.whole(step::WRITE, BEFORE);
        original.measure(&mut outcome.results, (PhaseName::Write, BEFORE), write)?;
        let paused = guest.pause()?;
        let fork_bench = Arc::new(bench.fork());
        let fork = self.host.launch_fork(paused, plan, &fork_bench)?;
        let done = self.lead_fork(&fork, &fork_bench, &original, scanner.as_ref(), outcome);
        let (done, state) = fork.end_after(done);
        fork_bench.flush();
        outcome.add_state(plan.vm, state);
        done.map_err(|error| fork_bench.explain(error))?;
        original.close()?;
        outcome.end_merging(scanner);
        Ok(())
    }

    /// Has the fork and the parent read and write.
    fn lead_fork<L: MmuLock + 'static>(
        &self,
        fork: &RunningGuest<'_, M, L>,
        bench: &Bench<M>,
        original: &Stage<'_, M, L>,
        scanner: Option<&Scanner<'_, M>>,
        outcome: &mut Outcome,
    ) -> Result<(), WorkloadError> {
        let phase = Phase {
            name: PhaseName::Fork,
            iteration: 0,
            ns: fork.filled_ns,
            counters: CounterMap::new(),
        };
        outcome.results.add(fork.machine, phase);
        let _added = scanner.map(|scanner| scanner.add(fork)).transpose()?;
        let copy = Stage::open(fork, bench, self.options.bytes.0)?;
        self.write_both(original, &copy, outcome)?;
        copy.close()
    }

    fn write_both<L: MmuLock>(
        &self,
        original: &Stage<'_, M, L>,
        copy: &Stage<'_, M, L>,
        outcome: &mut Outcome,
    ) -> Result<(), WorkloadError> {
        let results = &mut outcome.results;
        // Its code and stacks are mapped anew: not what is to be measured.
        copy.perform(copy.part(step::READ, BEFORE, 0, 0))?;
        let read = copy.whole(step::READ, BEFORE);
        copy.measure(results, (PhaseName::Read, BEFORE), read)?;
        let write = copy.whole(step::WRITE, OF_FORK);
        copy.measure(results, (PhaseName::Write, OF_FORK), write)?;
        original.perform(original.whole(step::READ, BEFORE))?;
        let write = original.whole(step::WRITE, AFTER);
        original.measure(results, (PhaseName::Write, AFTER), write)?;
        copy.perform(copy.whole(step::READ, OF_FORK))?;
        original.perform(original.whole(step::READ, AFTER))?;
        self.note_image(results);
        Ok(())
    }
}
