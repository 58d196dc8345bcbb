//! Workloads that change a guest's backing memory while it runs. Each measures one mechanism against a baseline with it off;
//! the guest checks its memory throughout.
//!
//! CPU 0 leads the vCPUs through steps, while other CPUs work on the memory.

mod cow;
mod invalidate;
mod merge;
mod prefault;
mod reclaim;
mod stage;

use crate::harness::case::Case;
use crate::harness::error::WorkloadError;
use crate::harness::results::Results;
use crate::harness::service::{Bench, journal_bytes};
use crate::harness::test_memory;
use crate::harness::test_memory::guest_ram;
use crate::report;
use alloc::string::ToString;
use alloc::sync::Arc;
use alloc::vec::Vec;
use control::MAIN_VMS;
use control::Machine;
use control::Request;
use control::RunningGuest;
use control::background_merge::Scanner;
use control::guest::{FinalState, GuestPlan, Host};
use control::options::{Options, TEST_MEMORY};
use core::ops::Range;
use memory::{MmuLock, Object, SlotError, VmId};
use records::record::{CounterMap, PARVISOR, Progress, Record};
use records::words::{Mode, Workload};
use stage::Stage;
use stage2::{Ipa, IpaRange, PAGE_SIZE};

/// The runs in one mode, in their order.
fn cases(options: &Options, mode: Mode) -> Vec<Case> {
    let mut cases = Vec::new();
    for &tracker in &options.trackers {
        for &change in &options.changes {
            for &overcommit in &options.overcommits {
                cases.extend(options.workers.iter().map(|&workers| Case {
                    mode,
                    tracker,
                    change,
                    overcommit,
                    workers,
                }));
            }
        }
    }
    cases
}

/// Runs all cases that the options ask for in this mode, one after the other, and prints their results.
///
/// # Errors
/// One couldn't be run to its end, or its result is wrong.
pub(crate) fn run<M: Machine, L: MmuLock + 'static>(
    host: &Host<'_, M>,
    request: &Request<'_>,
    mode: Mode,
) -> Result<(), WorkloadError> {
    let options = &request.options;
    let vms = options.vms();
    for (number, case) in cases(options, mode).into_iter().enumerate() {
        let vms = (0..vms).map(|vm| VmId::new((number * vms + vm) % MAIN_VMS));
        let run = Run {
            host,
            request,
            options,
            case,
            vms: vms.flatten().collect(),
            kernel: kernel(host, request)?,
        };
        run.make::<L>()?;
    }
    Ok(())
}

/// One copy of the image for all VMs of a run, if there are several and the image begins at a page.
fn kernel<M: Machine>(
    host: &Host<'_, M>,
    request: &Request<'_>,
) -> Result<Option<Arc<Object>>, WorkloadError> {
    let image = request.image;
    if request.options.vms() == 1 || !image.offset.is_multiple_of(PAGE_SIZE) {
        return Ok(None);
    }
    let kernel = Object::image(&host.own.memory, image.bytes);
    Ok(Some(kernel.map_err(SlotError::from)?))
}

/// One run.
struct Run<'r, M: Machine> {
    host: &'r Host<'r, M>,
    request: &'r Request<'r>,
    options: &'r Options,
    case: Case,
    /// The numbers of its VMs.
    vms: Vec<VmId>,
    /// The image, if several VMs start from it.
    kernel: Option<Arc<Object>>,
}

/// The outcome of a run.
#[derive(Default)]
struct Outcome {
    results: Results,
    /// All counters, of all its VMs.
    counters: CounterMap,
    /// The statistics of background merging.
    merged: CounterMap,
    /// The final state of each VM that has ended.
    final_states: Vec<(VmId, FinalState)>,
}

impl<M: Machine> Run<'_, M> {
    fn make<L: MmuLock + 'static>(&self) -> Result<(), WorkloadError> {
        let machine = self.host.machine;
        report::backing_heading(machine, self.options, self.case);
        self.progress(0);
        let mut outcome = Outcome::default();
        let done = match self.options.workload {
            Workload::Invalidate => self.invalidate::<L>(&mut outcome),
            Workload::Cow => self.cow::<L>(&mut outcome),
            Workload::Merge => self.merge::<L>(&mut outcome),
            Workload::Prefault => self.prefault::<L>(&mut outcome),
            Workload::Reclaim => self.reclaim::<L>(&mut outcome),
        };
        for (vm, state) in &outcome.final_states {
            control::report::final_state(machine, *vm, state);
        }
        done?;
        control::report::merged(machine, &outcome.merged);
        let record = self.record(outcome);
        report::record(machine, &record)?;
        self.progress(1);
        Ok(())
    }

    /// Reports progress: a case counts as a whole or not at all.
    fn progress(&self, step: u64) {
        let progress = Progress {
            mode: self.case.mode.name().into(),
            step,
            steps: 1,
        };
        report::progress(self.host.machine, &progress);
    }

    /// The plan of a VM.
    fn plan(&self, vm: VmId) -> GuestPlan<'_> {
        let options = self.options;
        let journal = journal_bytes(options.bytes.0 / PAGE_SIZE);
        let ram = guest_ram(options, self.request.image, journal);
        let plan = GuestPlan {
            kernel: self.kernel.clone(),
            test: test_memory::slots(options),
            lazy: true,
            policy: self.case.policy(),
            exit_times: options.exit_times || options.workload == Workload::Reclaim,
            ..GuestPlan::of(self.request, vm, ram)
        };
        plan.limited_to(self.case.overcommit)
    }

    /// Runs one VM alone, led by `drive`.
    fn alone<L: MmuLock + 'static>(
        &self,
        outcome: &mut Outcome,
        drive: impl FnOnce(&Stage<'_, M, L>, &mut Results) -> Result<(), WorkloadError>,
    ) -> Result<(), WorkloadError> {
        let plan = self.plan(self.vms[0]);
        let bench = self.bench(&plan, self.options.seed);
        let guest = self.host.launch::<L, _>(&plan, &bench)?;
        let done = self.lead(&guest, &bench, outcome, drive);
        let (done, state) = guest.end_after(done);
        bench.flush();
        outcome.add_state(plan.vm, state);
        done.map_err(|error| bench.explain(error))
    }

    /// Leads a running guest through `drive`, and merges its memory meanwhile if the options say so.
    fn lead<L: MmuLock + 'static>(
        &self,
        guest: &RunningGuest<'_, M, L>,
        bench: &Bench<M>,
        outcome: &mut Outcome,
        drive: impl FnOnce(&Stage<'_, M, L>, &mut Results) -> Result<(), WorkloadError>,
    ) -> Result<(), WorkloadError> {
        let scanner = Scanner::beside(guest, self.options)?;
        let stage = Stage::open(guest, bench, self.options.bytes.0)?;
        drive(&stage, &mut outcome.results)?;
        stage.close()?;
        outcome.end_merging(scanner);
        Ok(())
    }

    /// Adds to the last measured phase how much of the VMs' memory still is the image's.
    fn note_image(&self, results: &mut Results) {
        if let Some(kernel) = &self.kernel {
            results.note("image_frames", kernel.pages());
            results.note("image_sharers", kernel.sharers());
        }
    }

    /// The handler of a VM's calls. VMs that differ in `seed` fill some of their pages differently.
    fn bench(&self, plan: &GuestPlan<'_>, seed: u64) -> Arc<Bench<M>> {
        let options = Options {
            seed,
            ..self.options.clone()
        };
        Arc::new(Bench::new(self.host.machine, &options, plan.ram))
    }

    fn record(&self, mut outcome: Outcome) -> Record {
        let (options, case) = (self.options, self.case);
        outcome.counters.append(&mut outcome.merged);
        let facts = self.host.machine.facts();
        let stage2 = outcome.final_states.first();
        let record = Record {
            system: PARVISOR.into(),
            mode: case.mode.name().into(),
            workload: options.workload.name().into(),
            tracker: case.tracker.name().into(),
            change: case.change.name().into(),
            workers: case.workers,
            overcommit: case.overcommit,
            slots: options.slots as u64,
            vcpus: options.vcpus as u64,
            bytes_per_vcpu: options.bytes.0,
            backing: options.backing.name().into(),
            iterations: options.iterations,
            seed: options.seed,
            cpu: facts.cpu_model.into(),
            gic: facts.gic,
            clock: facts.clock.into(),
            stage2: stage2.map_or_else(Default::default, |(_, state)| {
                control::guest::Stage2Use(&state.stage2).to_string()
            }),
            most_tlbi: facts.most_tlbi.into(),
            phases: outcome.results.phases,
            counters: outcome.counters,
            verified: true,
            ..Record::default()
        };
        options.with_merging(record)
    }
}

impl Outcome {
    /// Ends background merging, if there was any, and takes its statistics.
    fn end_merging<M: Machine>(&mut self, scanner: Option<Scanner<'_, M>>) {
        if let Some(scanner) = scanner {
            self.merged = scanner.end();
        }
    }

    /// Adds the final state of a VM that has ended.
    fn add_state(&mut self, vm: VmId, state: Option<FinalState>) {
        let Some(state) = state else { return };
        for (name, count) in &state.counters {
            *self.counters.entry(name.clone()).or_default() += count;
        }
        self.final_states.push((vm, state));
    }
}

/// The addresses of some pages of the test memory.
fn range_of(pages: Range<u64>) -> IpaRange {
    let start = Ipa::new(TEST_MEMORY);
    start.offset(pages.start * PAGE_SIZE)..start.offset(pages.end * PAGE_SIZE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_the_product_of_the_lists_the_workers_fastest() {
        let options = Options::parse("guest=backing workers=0,4").unwrap();
        let all = cases(&options, Mode::Parallel);
        let words: Vec<_> = all
            .iter()
            .map(|case| (case.tracker.name(), case.workers))
            .collect();
        assert_eq!(
            words,
            [
                ("ranges", 0),
                ("ranges", 4),
                ("sequence", 0),
                ("sequence", 4)
            ]
        );
    }
}
