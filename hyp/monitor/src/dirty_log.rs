//! The benchmark: what `dirty_log_perf_test` of the Linux KVM selftests does, and a check of everything it sees.
//!
//! All vCPUs write their share of the test memory once (populate); logging is switched on; in each iteration they access it
//! again, and the harness, on CPU 0, gets and clears the log; logging is switched off. vCPUs and harness take turns, as in
//! the selftest. What was harvested must be what the guests wrote, and guest memory must hold it.

use crate::bench::{Bench, journal_bytes};
use crate::counters::Snapshot;
use crate::error::RunError;
use crate::guest::{GuestPlan, Host, Remains, TEST_SLOT, Watch};
use crate::image::GuestImage;
use crate::machine::Machine;
use crate::options::{Backing, Options, TEST_MEMORY};
use crate::record::{PARVISOR, Phase, PhaseName, Progress, Record};
use crate::report;
use crate::steps::Step;
use crate::verify::{self, Contents};
use alloc::string::ToString;
use alloc::sync::Arc;
use alloc::vec::Vec;
use hypercall::step;
use memory::{LogPolicy, MmuLock, VmId};
use stage2::{Ipa, PAGE_SIZE};
use vm::{StopReason, VcpuId};

/// What the guest gets beside its image and journals: per vCPU for its stack, and once for its tables.
const RAM_PER_VCPU: u64 = 128 << 10;
const RAM_FOR_TABLES: u64 = 2 << 20;

/// Runs the benchmark once, and prints its results.
///
/// # Errors
/// It couldn't be run to its end, or its result is wrong.
pub(crate) fn run<M: Machine, L: MmuLock + 'static>(
    host: &mut Host<'_, M>,
    options: &Options,
    vm: VmId,
    image: GuestImage<'_>,
    bootargs: &str,
) -> Result<(), RunError> {
    let machine = host.machine;
    let plan = plan(options, vm, image, bootargs);
    let bench = Arc::new(Bench::new(machine, options, plan.ram));
    report::heading(machine, L::NAME, options);
    let mut results = Results::default();
    let (outcome, remains) = host.run::<L, _, _>(&plan, &bench, |watch| {
        let mut harness = Harness::new(watch, &bench, options, &mut results)?;
        harness.run()
    });
    bench.flush();
    let outcome = outcome.map_err(|error| match (bench.complaint(), error) {
        (Some(complaint), RunError::Ended(StopReason::Requested)) => RunError::Guest(complaint),
        (_, error) => error,
    });
    if let Some(remains) = remains {
        report::remains(machine, vm, &remains);
        let verified = outcome.is_ok();
        if verified || outcome.as_ref().is_err_and(RunError::is_mismatch) {
            report::record(
                machine,
                &record::<M, L>(machine, options, results, remains, verified),
            )?;
        }
    }
    outcome
}

fn plan<'p>(
    options: &Options,
    vm: VmId,
    image: GuestImage<'p>,
    bootargs: &'p str,
) -> GuestPlan<'p> {
    let journal = journal_bytes(options.bytes.0 / PAGE_SIZE).next_multiple_of(PAGE_SIZE);
    let per_vcpu = (journal + RAM_PER_VCPU) * options.vcpus as u64;
    // An image beyond any memory is refused later, when it doesn't fit.
    let image_end = image.end().unwrap_or(0).min(1 << 40);
    GuestPlan {
        vm,
        image,
        bootargs,
        vcpus: options.vcpus,
        ram: (image_end + per_vcpu + RAM_FOR_TABLES).next_multiple_of(Backing::Block2M.bytes()),
        ram_backing: Backing::Block2M,
        test: options.test_bytes(),
        test_backing: options.backing,
        ipa_bits: options.ipa_bits,
        timeout: options.timeout,
    }
}

fn record<M: Machine, L: MmuLock>(
    machine: &M,
    options: &Options,
    results: Results,
    remains: Remains,
    verified: bool,
) -> Record {
    let facts = machine.facts();
    Record {
        system: PARVISOR.into(),
        mode: L::NAME.into(),
        split: "fault".into(),
        tracking: "writeprotect".into(),
        granularity: "4K".into(),
        harvest: "bitmap".into(),
        enable: "protect".into(),
        clear: "manual".into(),
        restore: "at_once".into(),
        slots: 1,
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
        stage2: report::Stage2Use(&remains.stage2).to_string(),
        most_tlbi: facts.most_tlbi.into(),
        phases: results.phases,
        counters: remains.counters,
        verified,
    }
}

/// What was measured so far.
#[derive(Debug, Default)]
struct Results {
    phases: Vec<Phase>,
}

/// The benchmark while its guest runs.
struct Harness<'h, M: Machine, L> {
    watch: &'h Watch<'h, M, L>,
    bench: &'h Bench<M>,
    options: &'h Options,
    results: &'h mut Results,
    /// Pages of one vCPU's share.
    share: u64,
    /// The log as it was got, then as it was cleared.
    log: Vec<u64>,
    /// What the guest's journals say.
    written: Vec<u64>,
    contents: Contents,
    /// Steps of the progress.
    done: u64,
}

impl<'h, M: Machine, L: MmuLock> Harness<'h, M, L> {
    fn new(
        watch: &'h Watch<'h, M, L>,
        bench: &'h Bench<M>,
        options: &'h Options,
        results: &'h mut Results,
    ) -> Result<Self, RunError> {
        let share = options.bytes.0 / PAGE_SIZE;
        let pages = options.test_bytes().unwrap_or(0) / PAGE_SIZE;
        Ok(Self {
            watch,
            bench,
            options,
            results,
            share,
            log: bitmap(pages).ok_or(RunError::Heap)?,
            written: bitmap(pages).ok_or(RunError::Heap)?,
            contents: Contents::populated(share * options.vcpus as u64).ok_or(RunError::Heap)?,
            done: 0,
        })
    }

    fn run(&mut self) -> Result<(), RunError> {
        self.progress(0);
        self.wait_for_vcpus()?;
        self.populate()?;
        self.enable()?;
        for iteration in 1..=self.options.iterations {
            self.dirty(iteration)?;
            self.harvest(iteration)?;
            self.progress(1);
        }
        self.disable()?;
        self.check_contents(self.options.iterations)?;
        self.end_guest()
    }

    fn populate(&mut self) -> Result<(), RunError> {
        self.step_phase(
            PhaseName::Populate,
            Step {
                code: step::POPULATE,
                iteration: 0,
            },
        )?;
        for (vcpu, arrival) in self.bench.steps().arrivals().enumerate() {
            check_count(vcpu, arrival.written, self.share)?;
        }
        self.check_contents(0)?;
        self.progress(1);
        Ok(())
    }

    fn enable(&mut self) -> Result<(), RunError> {
        self.phase(PhaseName::Enable, 0, |this| {
            let Watch { own, vm, .. } = this.watch;
            let policy = LogPolicy::default();
            vm.space.enable_dirty_log(&own.memory, TEST_SLOT, &policy)?;
            Ok(())
        })?;
        self.progress(1);
        Ok(())
    }

    fn dirty(&mut self, iteration: u64) -> Result<(), RunError> {
        self.step_phase(
            PhaseName::Dirty,
            Step {
                code: step::DIRTY,
                iteration,
            },
        )?;
        self.read_journals()
    }

    /// Gets and clears the log; both must name exactly what was written, and guest memory must hold it.
    fn harvest(&mut self, iteration: u64) -> Result<(), RunError> {
        self.phase(PhaseName::Get, iteration, |this| {
            let Watch { own, vm, .. } = this.watch;
            Ok(vm
                .space
                .get_dirty_log(&own.memory, TEST_SLOT, 0, &mut this.log)?)
        })?;
        self.check_log(iteration, "get")?;
        self.phase(PhaseName::Clear, iteration, |this| {
            let Watch { own, vm, .. } = this.watch;
            vm.space
                .clear_dirty_log(&own.memory, TEST_SLOT, 0, &mut this.log)?;
            Ok(())
        })?;
        self.check_log(iteration, "clear")?;
        // Iterations have 16 bits, as the options were checked to.
        self.contents.write(iteration as u16, 0, &self.written);
        verify::pages(&self.written).try_for_each(|page| self.check_page(iteration, page))
    }

    fn disable(&mut self) -> Result<(), RunError> {
        self.phase(PhaseName::Disable, 0, |this| {
            let Watch { own, vm, .. } = this.watch;
            vm.space.disable_dirty_log(&own.memory, TEST_SLOT)?;
            let mut next = Some(Ipa::new(TEST_MEMORY));
            while let Some(from) = next {
                let restored = vm.space.restore_blocks(&own.memory, TEST_SLOT, from)?;
                next = restored.next;
            }
            Ok(())
        })?;
        self.progress(1);
        Ok(())
    }

    fn end_guest(&mut self) -> Result<(), RunError> {
        self.post(Step {
            code: step::STOP,
            iteration: 0,
        });
        match self.watch.wait_for_end()? {
            StopReason::PoweredOff | StopReason::AllVcpusOff => Ok(()),
            reason => Err(RunError::Ended(reason)),
        }
    }

    /// Measures what CPU 0 does itself.
    fn phase(
        &mut self,
        name: PhaseName,
        iteration: u64,
        operation: impl FnOnce(&mut Self) -> Result<(), RunError>,
    ) -> Result<(), RunError> {
        let before = self.watch.snapshot();
        let start = self.watch.machine.now_ns();
        operation(self)?;
        let end = self.watch.machine.now_ns();
        self.note(name, iteration, end.saturating_sub(start), &before);
        Ok(())
    }

    /// Measures a step of all vCPUs, up to the moment at which the last one is done.
    fn step_phase(&mut self, name: PhaseName, step: Step) -> Result<(), RunError> {
        let before = self.watch.snapshot();
        let start = self.watch.machine.now_ns();
        self.post(step);
        self.wait_for_vcpus()?;
        let end = self
            .bench
            .steps()
            .arrivals()
            .map(|arrival| arrival.at_ns)
            .max()
            .unwrap_or(start);
        self.note(name, step.iteration, end.saturating_sub(start), &before);
        Ok(())
    }

    fn post(&self, step: Step) {
        self.bench.steps().post(step);
        for vcpu in self.watch.vm.vcpus() {
            if let Some(cpu) = self.watch.vm.cpu_of(vcpu) {
                self.watch.machine.kick(cpu);
            }
        }
    }

    fn wait_for_vcpus(&self) -> Result<(), RunError> {
        let steps = self.bench.steps();
        self.watch
            .wait_until(|| steps.all_arrived())
            .map_err(|error| match error {
                RunError::TimedOut { seconds } => RunError::StepTimedOut {
                    seconds,
                    arrived: steps.arrived(),
                    vcpus: self.options.vcpus,
                },
                other => other,
            })
    }

    fn note(&mut self, name: PhaseName, iteration: u64, ns: u64, before: &Snapshot) {
        let mut counters = self.watch.snapshot().since(before);
        let frames = self
            .watch
            .own
            .memory
            .pool()
            .counts_of(self.watch.vm.space.vm());
        counters.insert("frames_table".into(), frames.table);
        counters.insert("frames_pending".into(), frames.pending);
        let pool = self.watch.own.memory.pool();
        counters.insert("frames_pending_most".into(), pool.most_pending());
        let phase = Phase {
            name,
            iteration,
            ns,
            counters,
        };
        self.watch.machine.write_line(format_args!("{phase}"));
        self.results.phases.push(phase);
    }

    /// Collects what the vCPUs' journals name.
    fn read_journals(&mut self) -> Result<(), RunError> {
        self.written.fill(0);
        let Some(journals) = self.bench.journals() else {
            return Ok(());
        };
        let mut bytes = Vec::new();
        let length = journal_bytes(self.share) as usize;
        bytes
            .try_reserve_exact(length)
            .map_err(|_| RunError::Heap)?;
        bytes.resize(length, 0);
        for (vcpu, arrival) in self.bench.steps().arrivals().enumerate() {
            let Watch { own, vm, .. } = self.watch;
            vm.space
                .read_guest(&own.memory, journals.of(vcpu), &mut bytes)?;
            let journal: Vec<u64> = bytes.chunks_exact(8).map(little_endian).collect();
            verify::merge(
                &mut self.written,
                self.share * vcpu as u64,
                self.share,
                &journal,
            )
            .map_err(|error| RunError::Journal {
                vcpu: VcpuId(vcpu),
                error,
            })?;
            check_count(vcpu, arrival.written, self.expected_count(&journal))?;
        }
        Ok(())
    }

    /// How many pages a vCPU with this journal has written. Where every page is to be written once, the journal can't say
    /// otherwise.
    fn expected_count(&self, journal: &[u64]) -> u64 {
        match (self.options.write_percent, self.options.random) {
            (100, false) => self.share,
            _ => verify::count(journal),
        }
    }

    fn check_log(&self, iteration: u64, by: &'static str) -> Result<(), RunError> {
        verify::compare(&self.written, &self.log).map_err(|mismatch| RunError::Harvest {
            iteration,
            by,
            mismatch,
        })
    }

    fn check_contents(&self, iteration: u64) -> Result<(), RunError> {
        (0..self.contents.pages()).try_for_each(|page| self.check_page(iteration, page))
    }

    fn check_page(&self, iteration: u64, page: u64) -> Result<(), RunError> {
        let Watch { own, vm, .. } = self.watch;
        let mut word = [0; 8];
        vm.space.read_guest(
            &own.memory,
            Ipa::new(TEST_MEMORY).offset(page * PAGE_SIZE),
            &mut word,
        )?;
        let checked = self.contents.check(page, u64::from_le_bytes(word));
        checked.map_err(|error| RunError::Content { iteration, error })
    }

    fn progress(&mut self, steps: u64) {
        self.done += steps;
        let progress = Progress {
            mode: L::NAME.into(),
            step: self.done,
            steps: self.options.iterations + 3,
        };
        report::progress(self.watch.machine, &progress);
    }
}

fn bitmap(pages: u64) -> Option<Vec<u64>> {
    let words = usize::try_from(pages.div_ceil(u64::BITS.into())).ok()?;
    let mut bitmap = Vec::new();
    bitmap.try_reserve_exact(words).ok()?;
    bitmap.resize(words, 0);
    Some(bitmap)
}

fn little_endian(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .rev()
        .fold(0, |word, byte| word << 8 | u64::from(*byte))
}

fn check_count(vcpu: usize, counted: u64, expected: u64) -> Result<(), RunError> {
    if counted == expected {
        Ok(())
    } else {
        Err(RunError::WrongCount {
            vcpu: VcpuId(vcpu),
            counted,
            expected,
        })
    }
}
