//! The dirty-log benchmark: does what `dirty_log_perf_test` of the Linux KVM selftests does, and checks all results.
//!
//! All vCPUs write their share of the test memory once (populate). Logging is enabled. In each iteration the vCPUs access the
//! memory again, and the harness harvests the log on CPU 0, or on several CPUs. Logging is disabled. vCPUs and harness take turns, as in the
//! selftest, except that rings are harvested while the vCPUs write, and blocks may be restored in the background. The harvest
//! must match the guest's writes, and so must guest memory.

mod check;
pub(crate) mod harvest;
mod measure;
pub(crate) mod parts;
mod restore;

use crate::harness::error::WorkloadError;
use crate::harness::policy::Choice;
use crate::harness::results::Results;
use crate::harness::service::{Bench, journal_bytes};
use crate::harness::steps::Step;
use crate::harness::test_memory::guest_ram;
use crate::harness::test_memory::{self, bitmap};
use crate::harness::verify::Contents;
use crate::report;
use abi::step;
use alloc::string::ToString;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use check::check_count;
use control::Machine;
use control::Request;
use control::RunError;
use control::background_merge::Scanner;
use control::guest::TestSlot;
use control::guest::{FinalState, GuestPlan, Host, RunningGuest};
use control::options::Options;
use harvest::{NO_PAGES, TAKEN_AT_ONCE};
use memory::{AddressSpace, CpuMemory, DirtyPages, LogError, LogPolicy, MmuLock, Splitting, VmId};
use parts::Part;
use records::record::{CounterMap, PARVISOR, Phase, PhaseName, Record};
use records::words::{Backing, Enable, Harvest, Tracking};
use stage2::PAGE_SIZE;

/// Runs the benchmark once, and prints its results.
///
/// # Errors
/// It couldn't be run to its end, or its result is wrong.
pub(crate) fn run<M: Machine, L: MmuLock + 'static>(
    host: &Host<'_, M>,
    request: &Request<'_>,
    choice: Choice,
    vm: VmId,
) -> Result<(), WorkloadError> {
    let (machine, options) = (host.machine, &request.options);
    let plan = plan(request, choice, vm);
    let bench = Arc::new(Bench::new(machine, options, plan.ram));
    report::heading(machine, options, choice);
    let mut results = Results::default();
    let guest = host.launch::<L, _>(&plan, &bench)?;
    let mut merged = CounterMap::new();
    let outcome = measure(&guest, &bench, options, choice, &mut results, &mut merged);
    let (outcome, state) = guest.end_after(outcome);
    bench.flush();
    let outcome = outcome.map_err(|error| bench.explain(error));
    if let Some(mut state) = state {
        control::report::final_state(machine, vm, &state);
        control::report::merged(machine, &merged);
        state.counters.append(&mut merged);
        let verified = outcome.is_ok();
        if verified || outcome.as_ref().is_err_and(WorkloadError::is_mismatch) {
            let record = record(machine, options, choice, results.phases, state, verified);
            report::record(machine, &record)?;
        }
    }
    outcome
}

/// Runs the benchmark with its guest, and merges its memory meanwhile if the options say so.
fn measure<M: Machine, L: MmuLock + 'static>(
    guest: &RunningGuest<'_, M, L>,
    bench: &Bench<M>,
    options: &Options,
    choice: Choice,
    results: &mut Results,
    merged: &mut CounterMap,
) -> Result<(), WorkloadError> {
    let scanner = Scanner::beside(guest, options)?;
    let mut harness = Harness::new(guest, bench, options, choice, results)?;
    let outcome = harness.run();
    *merged = scanner.map(Scanner::end).unwrap_or_default();
    outcome
}

fn plan<'p>(request: &Request<'p>, choice: Choice, vm: VmId) -> GuestPlan<'p> {
    let options = &request.options;
    let journal = journal_bytes(options.bytes.0 / PAGE_SIZE);
    let plan = GuestPlan {
        helpers: options.harvesters - 1,
        test: test_memory::slots(options),
        lazy: options.is_overcommitted(),
        hardware_dirty: choice.tracking == Tracking::Hardware,
        ring_entries: (options.harvest == Harvest::Ring).then_some(options.ring_entries),
        exit_times: options.exit_times,
        ..GuestPlan::of(request, vm, guest_ram(options, request.image, journal))
    };
    plan.limited_to(options.overcommits[0])
}

/// The record of a run with these options.
pub(crate) fn record<M: Machine>(
    machine: &M,
    options: &Options,
    choice: Choice,
    phases: Vec<Phase>,
    state: FinalState,
    verified: bool,
) -> Record {
    let facts = machine.facts();
    let record = Record {
        system: PARVISOR.into(),
        mode: choice.mode.name().into(),
        split: choice.split.name().into(),
        tracking: choice.tracking.name().into(),
        granularity: options.granularity.name().into(),
        harvest: options.harvest.name().into(),
        harvesters: options.harvesters as u64,
        enable: options.enable.name().into(),
        clear: options.clear.name().into(),
        restore: options.restore.name().into(),
        slots: options.slots as u64,
        vcpus: options.vcpus as u64,
        bytes_per_vcpu: options.bytes.0,
        backing: options.backing.name().into(),
        iterations: options.iterations,
        write_percent: options.write_percent,
        random: options.random,
        seed: options.seed,
        cpu: facts.cpu_model.into(),
        gic: facts.gic,
        clock: facts.clock.into(),
        stage2: control::guest::Stage2Use(&state.stage2).to_string(),
        most_tlbi: facts.most_tlbi.into(),
        phases,
        counters: state.counters,
        verified,
        overcommit: match options.overcommits[0] {
            100 => 0,
            percent => percent,
        },
        ..Record::default()
    };
    options.with_merging(record)
}

/// The benchmark while its guest runs.
struct Harness<'h, M: Machine, L: MmuLock> {
    guest: &'h RunningGuest<'h, M, L>,
    bench: &'h Bench<M>,
    options: &'h Options,
    policy: LogPolicy,
    results: &'h mut Results,
    slots: Vec<TestSlot>,
    /// Pages of the test memory.
    pages: u64,
    /// Pages of one vCPU's share.
    share: u64,
    /// The slots in parts, each for one CPU at a time.
    parts: Arc<[Part]>,
    /// Pages harvested from rings since the last check.
    from_rings: Vec<u64>,
    ring_buffer: Vec<DirtyPages>,
    /// All pages harvested in an iteration.
    harvested: Vec<u64>,
    /// The pages in the guest's journals.
    written: Vec<u64>,
    contents: Contents,
    /// Tables that were in use before logging.
    tables_before: u64,
    /// Steps of the progress.
    done: u64,
}

impl<'h, M: Machine, L: MmuLock> Harness<'h, M, L> {
    fn new(
        guest: &'h RunningGuest<'h, M, L>,
        bench: &'h Bench<M>,
        options: &'h Options,
        choice: Choice,
        results: &'h mut Results,
    ) -> Result<Self, WorkloadError> {
        let share = options.bytes.0 / PAGE_SIZE;
        let pages = options.test_bytes().unwrap_or(0) / PAGE_SIZE;
        let slots = test_memory::slots(options);
        let map = |pages| bitmap(pages).ok_or(RunError::Heap);
        Ok(Self {
            guest,
            bench,
            options,
            policy: choice.policy(options),
            results,
            pages,
            share,
            parts: parts::cut(&slots, options.backing, options.harvesters).ok_or(RunError::Heap)?,
            slots,
            from_rings: map(pages)?,
            ring_buffer: vec![NO_PAGES; TAKEN_AT_ONCE],
            harvested: map(pages)?,
            written: map(pages)?,
            contents: Contents::populated(share * options.vcpus as u64).ok_or(RunError::Heap)?,
            tables_before: 0,
            done: 0,
        })
    }

    fn run(&mut self) -> Result<(), WorkloadError> {
        self.progress(0);
        self.wait_for_vcpus()?;
        self.populate()?;
        match self.options.enable {
            Enable::Overlapped => self.enable_overlapped()?,
            Enable::Protect | Enable::AllSet => self.phase(PhaseName::Enable, 0, Self::enable)?,
        }
        self.progress(1);
        for iteration in 1..=self.options.iterations {
            self.dirty(iteration)?;
            self.harvest(iteration)?;
            self.written_in(iteration)?;
            self.progress(1);
        }
        self.end_logging()?;
        self.progress(1);
        self.check_contents(self.options.iterations)?;
        self.end_guest()
    }

    fn populate(&mut self) -> Result<(), WorkloadError> {
        self.step_phase(PhaseName::Populate, Step::new(step::POPULATE, 0))?;
        for (vcpu, arrival) in self.bench.steps().arrivals().enumerate() {
            check_count(vcpu, arrival.written, self.share)?;
        }
        self.check_contents(0)?;
        self.tables_before = self.tables_in_use();
        self.progress(1);
        Ok(())
    }

    fn enable(&mut self) -> Result<(), WorkloadError> {
        let RunningGuest { own, vm, .. } = self.guest;
        let splits_ahead = matches!(self.policy.splitting, Splitting::Eager(_));
        let is_in_pages = self.options.backing == Backing::Page4K;
        if self.policy.initially_set || !(splits_ahead || is_in_pages) {
            // To protect the blocks takes less time than to call others.
            for slot in &self.slots {
                (vm.space).enable_dirty_log(&own.memory, slot.id, &self.policy)?;
            }
            return Ok(());
        }
        for slot in &self.slots {
            (vm.space).start_dirty_log(&own.memory, slot.id, &self.policy)?;
        }
        self.split_in_parts(|space, memory, part| {
            space.protect_part(memory, part.slot, part.pages.clone())
        })
    }

    /// Has all harvesters call `work` for the parts of the test memory, each part once. A CPU takes some at once.
    fn in_parts(
        &self,
        at_once: usize,
        work: impl Fn(&AddressSpace<L>, &CpuMemory<M::Hardware>, &Part) -> Result<(), LogError>
        + Send
        + Sync
        + 'static,
    ) -> Result<(), WorkloadError> {
        let parts = self.parts.clone();
        let work = move |space: &_, memory: &_, index: usize| {
            let mut taken = parts.chunks(at_once).nth(index).into_iter().flatten();
            taken.try_for_each(|part| work(space, memory, part))
        };
        let count = self.parts.len().div_ceil(at_once);
        Ok(self.guest.share_work(count, work)?)
    }

    /// Enables the log while the vCPUs access their memory once more. The phase's time is that of enabling; its counters
    /// include the vCPUs'. Pages written meanwhile may or may not be in the log, which begins empty.
    fn enable_overlapped(&mut self) -> Result<(), WorkloadError> {
        let iteration = self.options.iterations + 2;
        let start = self.start_phase();
        self.post(Step::new(step::DIRTY, iteration));
        self.enable()?;
        let end_ns = self.guest.machine.now_ns();
        self.wait_for_vcpus()?;
        self.end_phase(PhaseName::Enable, 0, end_ns, start);
        self.read_journals()?;
        self.written_in(iteration)?;
        self.take_all()
    }

    fn dirty(&mut self, iteration: u64) -> Result<(), WorkloadError> {
        self.step_phase(PhaseName::Dirty, Step::new(step::DIRTY, iteration))?;
        self.read_journals()
    }

    fn end_guest(&mut self) -> Result<(), WorkloadError> {
        self.post(Step::new(step::STOP, 0));
        Ok(self.guest.wait_for_power_off()?)
    }

    fn post(&self, step: Step) {
        self.bench.steps().post_to(self.guest, step);
    }

    /// Waits until all vCPUs have finished their step, and harvests their rings meanwhile.
    fn wait_for_vcpus(&mut self) -> Result<(), WorkloadError> {
        let (guest, steps) = (self.guest, self.bench.steps());
        steps.wait(guest, || self.take_low_rings())
    }
}
