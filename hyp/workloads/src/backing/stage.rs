//! A workload's VM, together with the harness that leads its vCPUs through steps.
//!
//! Used by CPU 0.

use crate::harness::error::WorkloadError;
use crate::harness::results::Results;
use crate::harness::service::Bench;
use crate::harness::steps::Step;
use abi::step;
use control::Machine;
use control::guest::RunningGuest;
use memory::MmuLock;
use records::record::PhaseName;
use stage2::PAGE_SIZE;

/// A VM whose vCPUs run in steps.
pub(super) struct Stage<'s, M: Machine, L: MmuLock> {
    /// The VM.
    pub guest: &'s RunningGuest<'s, M, L>,
    bench: &'s Bench<M>,
    /// Pages of a vCPU's share.
    pub share: u64,
}

impl<'s, M: Machine, L: MmuLock> Stage<'s, M, L> {
    /// Waits until the VM's vCPUs, with `bytes` of memory each, are ready for their first step.
    pub fn open(
        guest: &'s RunningGuest<'s, M, L>,
        bench: &'s Bench<M>,
        bytes: u64,
    ) -> Result<Self, WorkloadError> {
        let stage = Self {
            guest,
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

    /// Starts a step on all vCPUs, once they have finished the last one.
    pub fn begin(&self, step: Step) {
        self.bench.steps().post_to(self.guest, step);
    }

    /// Waits until all vCPUs have finished their step.
    pub fn wait(&self) -> Result<(), WorkloadError> {
        self.bench.steps().wait(self.guest, || {})
    }

    /// Has all vCPUs do a step.
    pub fn perform(&self, step: Step) -> Result<(), WorkloadError> {
        self.begin(step);
        self.wait()
    }

    /// Performs a step on all vCPUs, and measures it until the last one has finished, as a phase of this name and iteration.
    pub fn measure(
        &self,
        results: &mut Results,
        meant: (PhaseName, u64),
        step: Step,
    ) -> Result<(), WorkloadError> {
        let start = Results::start(self.guest);
        self.perform(step)?;
        let end_ns = self.bench.steps().last_arrival_ns();
        results.end(self.guest, meant, end_ns, start);
        Ok(())
    }

    /// Lets the guest end.
    pub fn close(self) -> Result<(), WorkloadError> {
        self.begin(Step::new(step::STOP, 0));
        Ok(self.guest.wait_for_power_off()?)
    }
}
