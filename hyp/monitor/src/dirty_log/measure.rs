//! What is measured: the harness's own phases, and the steps of all vCPUs.

use super::Harness;
use crate::counters::Snapshot;
use crate::error::RunError;
use crate::machine::Machine;
use crate::record::{Phase, PhaseName, Progress};
use crate::report;
use crate::steps::Step;
use memory::MmuLock;

/// What is known at the start of a phase.
pub(super) struct Start {
    ns: u64,
    counters: Snapshot,
}

impl<M: Machine, L: MmuLock> Harness<'_, M, L> {
    /// Measures what CPU 0 does itself.
    pub(super) fn phase(
        &mut self,
        name: PhaseName,
        iteration: u64,
        operation: impl FnOnce(&mut Self) -> Result<(), RunError>,
    ) -> Result<(), RunError> {
        let start = self.start_phase();
        operation(self)?;
        self.end_phase(name, iteration, self.watch.machine.now_ns(), start);
        Ok(())
    }

    /// Measures a step of all vCPUs, up to the moment at which the last one is done.
    pub(super) fn step_phase(&mut self, name: PhaseName, step: Step) -> Result<(), RunError> {
        let start = self.start_phase();
        self.post(step);
        self.wait_for_vcpus()?;
        self.end_phase(name, step.iteration, self.last_arrival_ns(), start);
        Ok(())
    }

    pub(super) fn start_phase(&self) -> Start {
        self.watch.vm.begin_hold_period();
        Start {
            counters: self.watch.snapshot(),
            ns: self.watch.machine.now_ns(),
        }
    }

    /// Ends a phase at a moment, and prints and keeps its result.
    pub(super) fn end_phase(
        &mut self,
        name: PhaseName,
        iteration: u64,
        end_ns: u64,
        Start { ns, counters }: Start,
    ) {
        let mut counters = self.watch.snapshot().since(&counters);
        counters.append(&mut self.results.to_count);
        let pool = self.watch.own.memory.pool();
        let frames = pool.counts_of(self.watch.vm.space.vm());
        counters.insert("frames_table".into(), frames.table);
        counters.insert("frames_pending".into(), frames.pending);
        counters.insert("frames_pending_most".into(), pool.most_pending());
        if self.options.exit_times {
            counters.insert("longest_exit_ns".into(), self.watch.vm.longest_hold_ns());
        }
        let phase = Phase {
            name,
            iteration,
            ns: end_ns.saturating_sub(ns),
            counters,
        };
        self.watch.machine.write_line(format_args!("{phase}"));
        self.results.phases.push(phase);
    }

    /// Adds to a counter of the phase that is measured.
    pub(super) fn count(&mut self, name: &str, count: u64) {
        *self.results.to_count.entry(name.into()).or_default() += count;
    }

    /// When the last vCPU was done with its step.
    pub(super) fn last_arrival_ns(&self) -> u64 {
        let arrivals = self.bench.steps().arrivals();
        arrivals.map(|arrival| arrival.at_ns).max().unwrap_or(0)
    }

    pub(super) fn progress(&mut self, steps: u64) {
        self.done += steps;
        let progress = Progress {
            mode: L::NAME.into(),
            step: self.done,
            steps: self.options.iterations + 3,
        };
        report::progress(self.watch.machine, &progress);
    }
}
