//! A VM of a run, with what leads its vCPUs through steps.
//!
//! Used by CPU 0.

use crate::bench::Bench;
use crate::error::RunError;
use crate::guest::Watch;
use crate::machine::Machine;
use crate::results::Results;
use crate::steps::Step;
use abi::step;
use memory::MmuLock;
use records::record::PhaseName;
use stage2::PAGE_SIZE;
use vm::StopReason;

/// A VM whose vCPUs are led.
pub(super) struct Stage<'s, M: Machine, L> {
    /// The VM.
    pub watch: &'s Watch<'s, M, L>,
    bench: &'s Bench<M>,
    /// Pages of a vCPU's share.
    pub share: u64,
}

impl<'s, M: Machine, L: MmuLock> Stage<'s, M, L> {
    /// Waits until the VM's vCPUs, with `bytes` of memory each, are ready for their first step.
    pub fn open(
        watch: &'s Watch<'s, M, L>,
        bench: &'s Bench<M>,
        bytes: u64,
    ) -> Result<Self, RunError> {
        let stage = Self {
            watch,
            bench,
            share: bytes / PAGE_SIZE,
        };
        stage.wait()?;
        Ok(stage)
    }

    /// A step for all of each share.
    pub fn whole(&self, code: u64, iteration: u64) -> Step {
        self.part(code, iteration, 0, self.share)
    }

    /// A step for `pages` pages of each share, from page `first` on.
    pub fn part(&self, code: u64, iteration: u64, first: u64, pages: u64) -> Step {
        Step {
            part: (first, pages),
            ..Step::new(code, iteration)
        }
    }

    /// Sets all vCPUs to do a step, when they are done with the last one.
    pub fn begin(&self, step: Step) {
        self.watch.post(self.bench.steps(), step);
    }

    /// Waits until all vCPUs are done with their step.
    pub fn wait(&self) -> Result<(), RunError> {
        self.watch.wait_for_step(self.bench.steps(), || {})
    }

    /// Has all vCPUs do a step.
    pub fn perform(&self, step: Step) -> Result<(), RunError> {
        self.begin(step);
        self.wait()
    }

    /// Has all vCPUs do a step, and measures it up to the moment at which the last one is done, as a phase of this name and
    /// iteration.
    pub fn measure(
        &self,
        results: &mut Results,
        meant: (PhaseName, u64),
        step: Step,
    ) -> Result<(), RunError> {
        let start = Results::start(self.watch);
        self.perform(step)?;
        let end_ns = self.bench.steps().last_arrival_ns();
        results.end(self.watch, meant, end_ns, start);
        Ok(())
    }

    /// Lets the guest end.
    pub fn close(self) -> Result<(), RunError> {
        self.begin(Step::new(step::STOP, 0));
        match self.watch.wait_for_end()? {
            StopReason::PoweredOff | StopReason::AllVcpusOff => Ok(()),
            reason => Err(RunError::Ended(reason)),
        }
    }
}
