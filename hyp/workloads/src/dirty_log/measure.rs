//! Measurements: the harness's own phases, and the steps of all vCPUs.

use super::Harness;
use crate::harness::error::WorkloadError;
use crate::harness::results::{Results, Start};
use crate::harness::steps::Step;
use crate::report;
use control::Machine;
use memory::MmuLock;
use records::record::{PhaseName, Progress};

impl<M: Machine, L: MmuLock> Harness<'_, M, L> {
    /// Measures work of CPU 0 itself.
    pub(super) fn phase(
        &mut self,
        name: PhaseName,
        iteration: u64,
        operation: impl FnOnce(&mut Self) -> Result<(), WorkloadError>,
    ) -> Result<(), WorkloadError> {
        let start = self.start_phase();
        operation(self)?;
        self.end_phase(name, iteration, self.guest.machine.now_ns(), start);
        Ok(())
    }

    /// Measures a step of all vCPUs, until the last one has finished.
    pub(super) fn step_phase(&mut self, name: PhaseName, step: Step) -> Result<(), WorkloadError> {
        let start = self.start_phase();
        self.post(step);
        self.wait_for_vcpus()?;
        self.end_phase(
            name,
            step.iteration,
            self.bench.steps().last_arrival_ns(),
            start,
        );
        Ok(())
    }

    pub(super) fn start_phase(&self) -> Start {
        Results::start(self.guest)
    }

    /// Ends a phase at a given moment; prints and keeps its result.
    pub(super) fn end_phase(&mut self, name: PhaseName, iteration: u64, end_ns: u64, start: Start) {
        self.results
            .end(self.guest, (name, iteration), end_ns, start);
    }

    /// Adds to a counter of the current phase.
    pub(super) fn count(&mut self, name: &str, count: u64) {
        self.results.count(name, count);
    }

    pub(super) fn progress(&mut self, steps: u64) {
        self.done += steps;
        let progress = Progress {
            mode: L::NAME.into(),
            step: self.done,
            steps: self.options.iterations + 3,
        };
        report::progress(self.guest.machine, &progress);
    }
}
