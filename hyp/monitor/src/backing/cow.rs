//! A VM is forked while its vCPUs wait for their next step, which those of the fork are then told by a harness of their own. The
//! fork reads every page, then writes every page; then the original writes its own, which nobody shares any more.

use super::stage::Stage;
use super::{Outcome, Run};
use crate::error::RunError;
use crate::machine::Machine;
use crate::merging::Scanner;
use abi::step;
use alloc::sync::Arc;
use memory::MmuLock;
use records::record::{CounterMap, Phase, PhaseName};

/// What the original writes before and after the fork writes its own.
const BEFORE: u64 = 1;
const OF_FORK: u64 = 2;
const AFTER: u64 = 3;

impl<M: Machine> Run<'_, M> {
    pub(super) fn cow<L: MmuLock + 'static>(&self, outcome: &mut Outcome) -> Result<(), RunError> {
        let plans = [0, 1].map(|index| self.plan(self.vms[index]));
        let bench = self.bench(&plans[0], self.options.seed);
        let bytes = self.options.bytes.0;
        let (done, remains) = self.host.run::<L, _, _>(&plans[0], &bench, |watch| {
            let scanner = Scanner::beside(watch, self.options)?;
            let original = Stage::open(watch, &bench, bytes)?;
            let write = original.whole(step::WRITE, BEFORE);
            original.measure(&mut outcome.results, (PhaseName::Write, BEFORE), write)?;
            let paused = watch.pause()?;
            let fork = Arc::new(bench.fork());
            let run = self.host.run_fork(paused, &plans[1], &fork, |copy| {
                let phase = Phase {
                    name: PhaseName::Fork,
                    iteration: 0,
                    ns: copy.filled_ns,
                    counters: CounterMap::new(),
                };
                outcome.results.add(copy.machine, phase);
                let _added = scanner
                    .as_ref()
                    .map(|scanner| scanner.add(copy))
                    .transpose()?;
                let copy = Stage::open(copy, &fork, bytes)?;
                self.write_both(&original, &copy, outcome)?;
                copy.close()
            });
            let (done, remains) = run;
            fork.flush();
            outcome.remain(plans[1].vm, remains);
            done.map_err(|error| fork.explain(error))?;
            original.close()?;
            outcome.end_merging(scanner);
            Ok(())
        });
        bench.flush();
        outcome.remain(plans[0].vm, remains);
        done.map_err(|error| bench.explain(error))
    }

    fn write_both<L: MmuLock>(
        &self,
        original: &Stage<'_, M, L>,
        copy: &Stage<'_, M, L>,
        outcome: &mut Outcome,
    ) -> Result<(), RunError> {
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
