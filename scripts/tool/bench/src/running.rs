//! Measures a matrix, one boot after the other, on an emulator. The results are written after each, so that neither a boot that
//! fails nor Ctrl-C loses them.

mod estimate;
pub mod guest;
mod progress;

use std::path::{Path, PathBuf};

use records::record::Record;

use self::guest::LinuxGuest;
use super::PROFILE;
use super::beside::Beside;
use super::results::{Results, Run};
use super::table::counted;
use ::options::Plan;
use ::options::refusal::Started;
use ::options::shared::MachineOptions;
use ::options::typed::as_typed;
use ::options::workload::Workload;
use emulator::boot::{self, Outcome};
use emulator::console::Line;
use emulator::error::{ToolError, USAGE};
use emulator::process;
use emulator::qemu::{Machine, Module, ModuleKind};
use emulator::session::marks::Marks;
use emulator::simclock::Simulation;
use emulator::standard_output::print_line;
use estimate::{Job, work};
use progress::MatrixProgress;

/// The boots to measure, and the means to do so.
#[derive(Debug)]
pub struct Measurement<'m> {
    /// The emulator.
    pub emulator: &'m Path,
    /// The hypervisor's image.
    pub hypervisor: PathBuf,
    /// The benchmark's guest.
    pub guest: PathBuf,
    /// Linux, if that is measured instead.
    pub linux: Option<LinuxGuest>,
    /// The simulation of time, with the hypervisor's text, if it is wanted.
    pub simulation: Option<(Simulation, std::ops::Range<u64>)>,
    /// The machine and how it is watched.
    pub options: &'m MachineOptions,
    /// The boots of one repetition.
    pub boots: &'m [Plan],
    /// Linux's runs in each repetition.
    pub beside: &'m [Beside],
    /// How often everything is measured.
    pub repeat: u64,
    /// The files of the results so far.
    pub files: Vec<PathBuf>,
}

impl Measurement<'_> {
    /// Measures everything into `results`, which note failures too.
    ///
    /// # Errors
    ///
    /// [`ToolError::Usage`] if the emulator refuses the machine; or results can't be written.
    pub fn run(&self, results: &mut Results) -> Result<(), ToolError> {
        let jobs = (0..self.repeat).flat_map(|_| self.jobs());
        let progress = MatrixProgress::new(jobs, self.options.verbose);
        let outcome =
            (1..=self.repeat).try_for_each(|repeat| self.once(repeat, results, &progress));
        progress.finish();
        outcome
    }

    /// The jobs of one repetition, in their order.
    fn jobs(&self) -> impl Iterator<Item = Job> {
        let boots = self.boots.iter().map(|boot| Job {
            name: workload_in_words(&boot.workload),
            runs: boot
                .workload
                .each()
                .map(|run| (run.to_string(), work(&boot.workload)))
                .collect(),
        });
        let beside = self.beside.iter().map(|beside| Job {
            name: format!("{}, {}", beside.name, workload_in_words(&beside.workload)),
            runs: vec![(beside.name.clone(), work(&beside.workload))],
        });
        boots.chain(beside)
    }

    fn once(
        &self,
        repeat: u64,
        results: &mut Results,
        progress: &MatrixProgress,
    ) -> Result<(), ToolError> {
        for boot in self.boots {
            progress.begin();
            let failures = results.failures.len();
            self.boot(boot, repeat, results, progress)?;
            progress.ended(results.failures.len() == failures);
            self.write(results)?;
        }
        for beside in self.beside {
            progress.begin();
            let well = self.beside(beside, repeat, results, progress);
            progress.ended(well);
            self.write(results)?;
        }
        Ok(())
    }

    fn write(&self, results: &Results) -> Result<(), ToolError> {
        self.files.iter().try_for_each(|file| results.write(file))?;
        if let Some(kept) = self.files.first() {
            process::say_when_ended(format!(
                "ended early; what was measured is in {}, and scripts/bench --parse shows it",
                kept.display()
            ));
        }
        Ok(())
    }

    /// Boots the hypervisor once.
    fn boot(
        &self,
        plan: &Plan,
        repeat: u64,
        results: &mut Results,
        progress: &MatrixProgress,
    ) -> Result<(), ToolError> {
        let machine = self.machine(plan)?;
        let mut marks = self.linux.as_ref().map(LinuxGuest::marks);
        let verbose = self.options.verbose;
        let observe = |line: &Line, text: &str| {
            if let Line::Progress(step) = line {
                progress.run(step);
            }
            if let (Line::Guest(printed), Some(marks)) = (line, &mut marks) {
                marks.take(printed);
            }
            if verbose {
                print_line(text);
            }
        };
        let complain = |text: &str| {
            if verbose {
                eprintln!("{text}");
            }
        };
        let outcome = boot::run(&mut machine.command(), plan.limit, observe, complain);
        let outcome = outcome.map_err(|error| {
            ToolError::Io(format!("{} can't be run: {error}", self.emulator.display()))
        })?;
        let started = Started {
            plan,
            machine: self.options,
            memory: None,
        };
        if let Some(why) = started.why_nothing_ran(&outcome) {
            return Err(ToolError::Usage(why));
        }
        let append = self.options.append.as_deref();
        let refused = outcome
            .errors
            .first()
            .filter(|_| outcome.status == Some(USAGE.into()));
        if let Some(reason) = refused {
            return Err(ToolError::Usage(as_typed(reason, append)));
        }
        self.file(plan, repeat, outcome, results);
        let statuses = marks.as_ref().map_or(&[][..], Marks::statuses);
        if let Some(status) = statuses.iter().find(|status| **status != 0) {
            let workload = workload_in_words(&plan.workload);
            let why = format!("{workload}: the guest's load failed with status {status}");
            results.failures.push(why);
        }
        Ok(())
    }

    fn machine(&self, plan: &Plan) -> Result<Machine, ToolError> {
        let (append, modules) = match &self.linux {
            Some(linux) => (linux.words(&plan.append), linux.modules(plan.memory)?),
            None => (
                plan.append.clone(),
                vec![Module {
                    kind: ModuleKind::Kernel,
                    image: self.guest.clone(),
                    address: Machine::module_address(plan.memory),
                    bootargs: None,
                }],
            ),
        };
        Ok(Machine {
            emulator: self.emulator.into(),
            cpu: self.options.cpu.clone(),
            gic: plan.gic,
            cpus: plan.cpus,
            memory: plan.memory,
            el2: true,
            kernel: Some(self.hypervisor.clone()),
            append,
            modules,
            debugger: None,
            simulation: self.simulation.clone(),
            extra: self.options.qemu.clone(),
        })
    }

    /// Files the results of a boot, and its missing runs.
    fn file(&self, plan: &Plan, repeat: u64, mut outcome: Outcome, results: &mut Results) {
        let cause = cause(&outcome, self.options.append.as_deref());
        for run in plan.workload.each() {
            let found = outcome.records.iter().position(|record| run.is(record));
            let why = match found.map(|index| outcome.records.remove(index)) {
                None => cause
                    .clone()
                    .unwrap_or_else(|| "the hypervisor gave no result".into()),
                Some(record) => {
                    let verified = record.verified;
                    let record = self.completed(record, plan);
                    results.runs.push(Run { repeat, record });
                    if verified {
                        continue;
                    }
                    cause
                        .clone()
                        .unwrap_or_else(|| "the result isn't verified".into())
                }
            };
            let workload = workload_in_words(&plan.workload);
            results.failures.push(format!("{workload}, {run}: {why}"));
        }
    }

    /// The record, with the facts that the hypervisor doesn't know.
    fn completed(&self, mut record: Record, plan: &Plan) -> Record {
        record.profile = PROFILE.to_string();
        record.cpu.clone_from(&self.options.cpu);
        record.gic = plan.gic.version();
        if let Some((simulation, _)) = &self.simulation {
            record.clock = simulation.clock();
        }
        record
    }

    /// Boots Linux once; true if that went well.
    fn beside(
        &self,
        beside: &Beside,
        repeat: u64,
        results: &mut Results,
        progress: &MatrixProgress,
    ) -> bool {
        let verbose = self.options.verbose;
        let observe = |phase: &records::record::Phase| {
            if verbose {
                progress.suspend(|| print_line(format_args!("{}: {phase}", beside.name)));
            }
        };
        match linux::run(&beside.kernel, self.emulator, &beside.test, observe) {
            Ok(record) => results.runs.push(Run { repeat, record }),
            Err(error) => {
                let workload = workload_in_words(&beside.workload);
                results
                    .failures
                    .push(format!("{workload}, {}: {error}", beside.name));
                return false;
            }
        }
        true
    }
}

/// The failure of a boot, in one line.
fn cause(outcome: &Outcome, append: Option<&str>) -> Option<String> {
    let errors = outcome.errors.first().map(|error| as_typed(error, append));
    let said = errors.or_else(|| outcome.fatal.first().cloned());
    match (outcome.status, said) {
        (_, Some(said)) => Some(said),
        (Some(0), None) => None,
        (Some(status), None) => Some(format!("the hypervisor ended with status {status}")),
        (None, None) => Some(outcome.end_in_words()),
    }
}

/// The values in which a boot differs from others of the matrix, in words.
fn workload_in_words(workload: &Workload) -> String {
    let Workload {
        vcpus,
        backing,
        write_percent,
        granularity,
        harvest,
        enable,
        harvesters,
        compared,
        overcommit,
        logged,
        ..
    } = workload;
    let count = counted(u64::from(*vcpus));
    if let Some(compared) = compared {
        return format!("{count}, workload {}, backing {backing}", compared.workload);
    }
    let what = match logged {
        Some(_) => "Linux".to_string(),
        None => format!("{write_percent} % writes"),
    };
    let overcommit = match overcommit {
        100 => String::new(),
        percent => format!(", overcommit {percent} %"),
    };
    let harvesters = match harvesters {
        1 => String::new(),
        several => format!(", {several} harvesters"),
    };
    format!(
        "{count}, backing {backing}, {what}, logs {granularity}, {harvest}{harvesters}, \
         {enable}{overcommit}"
    )
}
