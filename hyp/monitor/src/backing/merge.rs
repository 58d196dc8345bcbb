//! Equal pages of two VMs are merged while both run: their guests fill their memory as two Linux machines would, and check it
//! over and over.

use super::stage::Stage;
use super::{Outcome, Run};
use crate::error::RunError;
use crate::machine::Machine;
use crate::record::PhaseName;
use hypercall::step;
use memory::MmuLock;

/// Of each share, this part is filled anew once pages are merged.
const FILLED_ANEW: u64 = 10;

impl<M: Machine> Run<'_, M> {
    pub(super) fn merge<L: MmuLock + 'static>(
        &self,
        outcome: &mut Outcome,
    ) -> Result<(), RunError> {
        let [one, other] = [0, 1].map(|index| self.plan(self.vms[index]));
        let benches = [
            self.bench(&one, self.options.seed),
            self.bench(&other, !self.options.seed),
        ];
        let bytes = self.options.bytes.0;
        let (done, remains) = self.host.run::<L, _, _>(&one, &benches[0], |watch| {
            let (done, remains) = self.host.run::<L, _, _>(&other, &benches[1], |second| {
                let stages = [
                    Stage::open(watch, &benches[0], bytes)?,
                    Stage::open(second, &benches[1], bytes)?,
                ];
                self.merge_two(&stages, outcome)?;
                stages.into_iter().try_for_each(Stage::close)
            });
            benches[1].flush();
            outcome.remain(other.vm, remains);
            done.map_err(|error| benches[1].explain(error))
        });
        benches[0].flush();
        outcome.remain(one.vm, remains);
        done.map_err(|error| benches[0].explain(error))
    }

    fn merge_two<L: MmuLock>(
        &self,
        stages: &[Stage<'_, M, L>; 2],
        outcome: &mut Outcome,
    ) -> Result<(), RunError> {
        let [one, other] = stages;
        let results = &mut outcome.results;
        other.begin(other.whole(step::FILL, 0));
        one.measure(results, (PhaseName::Fill, 0), one.whole(step::FILL, 0))?;
        other.wait()?;
        for iteration in 1..=self.options.iterations {
            other.begin(other.whole(step::CHECK, 0));
            let check = one.whole(step::CHECK, 0);
            one.measure(results, (PhaseName::Check, iteration), check)?;
            other.wait()?;
        }
        let anew = one.share / FILLED_ANEW;
        for stage in stages {
            stage.begin(stage.part(step::FILL, 1, 0, anew));
        }
        one.wait()?;
        other.wait()?;
        for stage in stages {
            stage.perform(stage.part(step::CHECK, 1, 0, anew))?;
            stage.perform(stage.part(step::CHECK, 0, anew, stage.share - anew))?;
        }
        Ok(())
    }
}
