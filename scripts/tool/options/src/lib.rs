//! The options of `scripts/run`, their defaults, and the checks that need no machine. Options that pass here are well-formed;
//! the hypervisor may still refuse them, as it alone knows the machine.

pub mod backing;
pub mod cpu;
pub mod kernel_files;
pub mod linux;
pub mod merging;
pub mod refusal;
pub mod series;
pub mod shared;
pub mod typed;
pub mod vms;
pub mod words;
pub mod workload;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt::Display;
use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, CommandFactory, Parser};

use self::backing::BackingOptions;
use self::linux::{LOGGED, LinuxOptions, MEASURED, USUAL_BYTES, USUAL_INTERVAL, USUAL_VCPUS};
use self::shared::{MachineOptions, WorkloadOptions, host_cpus, one, usual_vcpus};
use self::workload::Workload;
use emulator::effort::Limit;
use emulator::error::ToolError;
use emulator::qemu::{Gic, MOST_CPUS};
use emulator::size::{self, Size, mib};
use records::words::{CpuFeature, Profile};

/// How long a guest may go on without progress, unless the user says.
const USUAL_TIMEOUT: u64 = 120;
/// How long beyond the hypervisor's own limits the machine may be silent: while it boots, or verifies.
const HOST_MARGIN_SECONDS: u64 = 60;
/// How long a machine on simulated time may be silent: a second of it takes minutes of the host's, the more the more CPUs there
/// are.
const SIMULATED_SECONDS: u64 = 30 * 60;
/// How long a machine may take for its first line, and how much longer for each CPU, in milliseconds.
const FIRST_LINE_MILLIS: u64 = 15_000;
const FIRST_LINE_MILLIS_PER_CPU: u64 = 250;
/// The help of `--vcpus` where it is one number.
const VCPUS: &str = "How many vCPUs access memory at the same time, each on a CPU of its own [default: as many as this host \
                     has CPUs, but at most 4; 4 with --linux or --kernel]";
/// The port of a debugger, unless the user names another one.
const GDB_PORT: &str = "1234";
/// The memory of each vCPU under stress, unless the user chooses it. All of it is compared again and again.
const STRESS_BYTES: Size = mib(8);

/// Boots Parvisor in an emulator and measures it: several vCPUs write to their memory while the hypervisor harvests,
/// again and again, which pages they wrote.
///
/// Installs what is missing, builds, runs every mode in one boot, and ends with a table that compares them. With --linux or
/// --kernel it boots Linux as a guest instead, on this terminal. Exit status: 0 all runs verified, or the guest powered off; 1
/// a run failed or something is missing; 2 bad options; 3 the hypervisor itself failed; 4 the emulator ended without a word;
/// with --exec the command's.
#[derive(Clone, Debug, Parser)]
#[command(
    bin_name = "scripts/run",
    disable_version_flag = true,
    allow_negative_numbers = true,
    max_term_width = 120,
    mut_arg("vcpus", |option| option.action(ArgAction::Set).value_delimiter(None).help(VCPUS)),
    mut_arg("bytes", |option| option.help(
        "The memory of each vCPU: a multiple of 4K [default: 64M; 8M with --stress; 512M with --linux or --kernel]"
    )),
    mut_arg("backing", |option| usual_backing(option.action(ArgAction::Set).value_delimiter(None))),
    mut_arg("write_percent", one("100")),
    mut_arg("granularity", one("4K")),
    mut_arg("harvest", one("bitmap")),
    mut_arg("harvesters", one("1")),
    mut_arg("enable", one("protect"))
)]
pub struct RunOptions {
    /// The measured workload.
    #[command(flatten)]
    pub workload: WorkloadOptions,

    /// The machine that it is measured on.
    #[command(flatten)]
    pub machine: MachineOptions,

    /// How many CPUs the machine has, at most 128; one is the hypervisor's own. [default: as many as the other options need]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_CPUS)))]
    pub smp: Option<u32>,

    /// How much RAM the machine has. [default: what the other options need]
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    pub mem: Option<Size>,

    /// How the hypervisor is built. [default: quick; best with --simulated, whose times mean something]
    #[arg(long, value_name = "PROFILE", value_enum)]
    pub profile: Option<Profile>,

    /// Write the results to this file: an array with one record per run.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Run this guest image instead of the benchmark, until it powers off. It has --bytes of memory in all.
    #[arg(
        long,
        value_name = "IMAGE",
        conflicts_with_all = MEASURED
    )]
    pub guest: Option<PathBuf>,

    /// Instead of the benchmark, do everything that there is to dirty logging at random for so many seconds, check that no
    /// written page is lost, and fail if one is. Runs in --mode parallel unless others are chosen.
    #[arg(
        long,
        value_name = "SECONDS",
        value_parser = clap::value_parser!(u64).range(1..=1_000_000),
        conflicts_with_all = [
            "iterations", "write_percent", "random", "split", "tracking", "granularity", "harvest", "harvesters",
            "enable", "clear", "restore", "split_reserve", "exit_times", "guest", "workload", "overcommits", "merging", "merge_targets",
            "pages_to_scan", "sleep_millisecs", "max_page_sharing"
        ]
    )]
    pub stress: Option<u64>,

    /// Workloads that change backing memory.
    #[command(flatten)]
    pub backing: BackingOptions,

    /// The command line of that guest.
    #[arg(long, value_name = "STRING", requires = "guest")]
    pub guest_append: Option<String>,

    /// What else of the CPU the guest sees and has, with --linux, --kernel or --guest.
    #[arg(long, value_name = "FEATURE,...", value_enum, value_delimiter = ',')]
    pub cpu_features: Vec<CpuFeature>,

    /// A Linux guest.
    #[command(flatten)]
    pub linux: LinuxOptions,

    /// Stop before the first instruction, print how to attach gdb, and wait for it, on port 1234 unless another one is named.
    #[arg(
        long,
        value_name = "PORT",
        num_args = 0..=1,
        default_missing_value = GDB_PORT,
        value_parser = clap::value_parser!(u16).range(1..),
        conflicts_with_all = ["host_timeout", "simulated"]
    )]
    pub gdb: Option<u16>,

    /// Run a debug build, in which a break-before-make checker watches every change of the tables and ends the run at the
    /// first rule that is broken. Slow: its times mean nothing. With --append inject=no-flush, no-break, local or
    /// no-publish it has a bug to find.
    #[arg(long, conflicts_with = "simulated")]
    pub check: bool,
}

/// Workloads that change backing memory have another default.
pub fn usual_backing(option: Arg) -> Arg {
    option.help(
        "The size of the pages that guest memory is made of [default: 2M; 4K with --workload]",
    )
}

/// A run, with all defaults and all checks passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The hypervisor's runs.
    pub workload: Workload,
    /// The interrupt controller.
    pub gic: Gic,
    /// The CPUs of the machine.
    pub cpus: u32,
    /// The RAM of the machine.
    pub memory: Size,
    /// The hypervisor's options.
    pub append: String,
    /// When the emulator is killed; never while a debugger may hold it.
    pub limit: Limit,
}

impl RunOptions {
    /// Reads command-line arguments, the first of which is the command itself.
    ///
    /// # Errors
    ///
    /// clap's, which also stands for `--help`.
    pub fn parse_arguments(
        arguments: impl IntoIterator<Item = OsString>,
    ) -> Result<Self, clap::Error> {
        let arguments: Vec<OsString> = arguments.into_iter().collect();
        let options = Self::try_parse_from(&arguments)?;
        if options.linux.linux.is_some() && !options.linux.dirty_log {
            check_unlogged(&arguments)?;
        }
        if options.linux.is_wanted() && !options.linux.dirty_log {
            let strict = |option: Arg| option.conflicts_with_all(LOGGED);
            let command = Self::command();
            let command = command.mut_arg("linux", strict).mut_arg("kernel", strict);
            command.try_get_matches_from(arguments)?;
        }
        Ok(options)
    }

    /// How the hypervisor is built.
    pub fn profile(&self) -> Profile {
        self.profile.unwrap_or(match self.machine.simulated {
            true => Profile::Best,
            false => Profile::Quick,
        })
    }

    /// Fills in the defaults and checks the options against each other.
    ///
    /// # Errors
    ///
    /// [`ToolError::Usage`] naming the option that can't be.
    pub fn plan(&self) -> Result<Plan, ToolError> {
        let workload = self.checked_workload()?;
        let mut plan = self.machine.plan(workload, self.smp, self.mem)?;
        if self.gdb.is_some() {
            plan.limit = Limit::NONE;
        }
        Ok(plan)
    }

    fn checked_workload(&self) -> Result<Workload, ToolError> {
        self.backing.check_one_overcommit()?;
        let program = self.guest.is_some();
        let linux = self.linux.is_wanted();
        let merging = &self.backing.merging;
        let mut options = self.workload.clone();
        if options.vcpus.is_empty() {
            options.vcpus.push(match linux {
                true => USUAL_VCPUS,
                false => usual_vcpus(host_cpus()),
            });
        }
        let mut workload = Workload {
            program: program || linux,
            stress: self.stress,
            merging: merging.checked(self.backing.workload, program || linux)?,
            ..Workload::of(&options, &self.backing, self.machine.simulated)?
        };
        if self.linux.is_wanted() {
            workload.bytes = self.workload.bytes.unwrap_or(USUAL_BYTES);
            workload.vms = vms::named(&self.linux.vms)?;
            let room = match workload.vms.is_empty() {
                true => self.linux.check_files(workload.bytes)?,
                false => vms::check_files(&workload.vms)?,
            };
            workload.linux = Some(room);
            workload.restarts = self.linux.exec.is_none() && !self.linux.dirty_log;
            workload.logged =
                (self.linux.dirty_log).then(|| self.linux.interval.unwrap_or(USUAL_INTERVAL));
        }
        distinct("--cpu-features", &self.cpu_features)?;
        if !self.cpu_features.is_empty() && !workload.program {
            return usage("--cpu-features: needs --linux, --kernel or --guest");
        }
        workload.cpu_features = self.cpu_features.clone();
        self.linux.command_line(self.machine.verbose)?;
        if workload.modes.is_empty() {
            workload.modes = workload.usual_modes();
        }
        if self.stress.is_some() && self.workload.bytes.is_none() {
            workload.bytes = STRESS_BYTES;
        }
        if workload.program && workload.logged.is_none() && workload.modes.len() > 1 {
            return usage("--mode: a guest of your own runs in one mode only");
        }
        match workload.contradiction() {
            Some(why) => usage(why),
            None => Ok(workload),
        }
    }
}

/// Checks that these arguments, which are sound beside `--dirty-log`, have no option that means nothing without.
fn check_unlogged(arguments: &[OsString]) -> Result<(), clap::Error> {
    let mut command = RunOptions::command();
    let matches = command.try_get_matches_from_mut(arguments)?;
    let given = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
    let Some(id) = LOGGED.into_iter().find(|id| given(id)) else {
        return Ok(());
    };
    let option = id.replace('_', "-");
    let why = format!("--{option} with --linux needs --dirty-log");
    Err(command.error(ErrorKind::MissingRequiredArgument, why))
}

impl WorkloadOptions {
    /// Checks that no list names the same thing twice.
    ///
    /// # Errors
    ///
    /// [`ToolError::Usage`] naming the option and the value that it has twice.
    pub fn check_lists(&self) -> Result<(), ToolError> {
        distinct("--vcpus", &self.vcpus)?;
        distinct("--backing", &self.backings)?;
        distinct("--mode", &self.modes)?;
        distinct("--split", &self.splits)?;
        distinct("--tracking", &self.trackings)?;
        distinct("--granularity", &self.granularities)?;
        distinct("--harvest", &self.harvests)?;
        distinct("--enable", &self.enables)?;
        distinct("--write-percent", &self.write_percents)
    }
}

impl MachineOptions {
    /// What booting `workload` takes, on a machine with so many CPUs and so much RAM where that is said.
    ///
    /// # Errors
    ///
    /// [`ToolError::Usage`] naming the option that can't be.
    pub fn plan(
        &self,
        workload: Workload,
        cpus: Option<u32>,
        memory: Option<Size>,
    ) -> Result<Plan, ToolError> {
        let gic = if self.gic == 2 { Gic::V2 } else { Gic::V3 };
        let cpus = checked_cpus(&workload, cpus, gic)?;
        let memory = workload.memory(memory)?;
        cpu::check(&self.cpu)?;
        let timeout = match workload.linux {
            None => Some(self.timeout.unwrap_or(USUAL_TIMEOUT)),
            Some(_) => self.timeout,
        };
        typed::check_appended(&workload.words(timeout, None), self.append.as_deref())?;
        Ok(Plan {
            append: workload.words(timeout, self.append.as_deref()),
            workload,
            gic,
            cpus,
            memory,
            limit: self.limit(cpus),
        })
    }

    /// When the emulator is killed that runs a machine with so many CPUs. The hypervisor prints something at least as often as it
    /// looks after its guests' limit.
    fn limit(&self, cpus: u32) -> Limit {
        if let Some(seconds) = self.host_timeout {
            return Limit::total(Duration::from_secs(seconds));
        }
        let is_held = self.qemu.iter().any(|argument| argument == "-S");
        if is_held {
            return Limit::NONE;
        }
        if self.simulated {
            return Limit::silence(Duration::from_secs(SIMULATED_SECONDS));
        }
        let first = FIRST_LINE_MILLIS + FIRST_LINE_MILLIS_PER_CPU * u64::from(cpus);
        Limit {
            first_line: Some(Duration::from_millis(first)),
            ..Limit::silence(Duration::from_secs(
                self.timeout.unwrap_or(USUAL_TIMEOUT) + HOST_MARGIN_SECONDS,
            ))
        }
    }
}

fn checked_cpus(workload: &Workload, wanted: Option<u32>, gic: Gic) -> Result<u32, ToolError> {
    let (busy, most) = (workload.busy_cpus(), gic.most_cpus());
    let usual = (workload.useful_cpus() + 1).min(most);
    let cpus = wanted.unwrap_or(usual.max(busy + 1));
    if busy >= cpus {
        return usage(format!(
            "--smp {cpus}: too few CPUs: {} {busy}, and the hypervisor has one of its own",
            busy_with(workload)
        ));
    }
    match wanted {
        _ if cpus <= most => Ok(cpus),
        Some(_) => usage(format!(
            "--smp {cpus}: --gic {} serves at most {most} CPUs",
            gic.version()
        )),
        None => usage(format!(
            "{} {busy} CPUs, and the hypervisor has one of its own: --gic {} serves at most {most}",
            busy_with(workload),
            gic.version()
        )),
    }
}

/// The users of CPUs, as the beginning of a sentence.
fn busy_with(workload: &Workload) -> String {
    if !workload.vms.is_empty() {
        let beside = match workload.merging.beside {
            0 => "",
            _ => " and --merging",
        };
        return format!("the VMs of --vm{beside} need");
    }
    let compared = workload.compared.as_ref();
    let merging = match workload.merging.beside {
        1 => "--merging".to_string(),
        several => format!("--merging={several}"),
    };
    let harvesters = format!("--harvesters {}", workload.harvesters);
    let others = [
        (
            compared.is_some_and(|compared| compared.vms() > 1),
            "a second VM",
        ),
        (
            compared.is_some_and(|compared| compared.most_workers() > 0),
            "--workers",
        ),
        (workload.merging.beside > 0, merging.as_str()),
        (workload.harvesters > 1, harvesters.as_str()),
    ];
    let others: String = others
        .iter()
        .filter(|(is_so, _)| *is_so)
        .map(|(_, other)| format!(" and {other}"))
        .collect();
    let verb = if others.is_empty() { "needs" } else { "need" };
    format!("--vcpus {}{others} {verb}", workload.vcpus)
}

fn distinct<T: Ord + Display>(option: &str, values: &[T]) -> Result<(), ToolError> {
    let mut seen = BTreeSet::new();
    match values.iter().find(|value| !seen.insert(*value)) {
        Some(twice) => usage(format!("{option}: {twice} is given twice")),
        None => Ok(()),
    }
}

/// An error in the options, of this text.
///
/// # Errors
///
/// Always.
pub fn usage<T>(text: impl Into<String>) -> Result<T, ToolError> {
    Err(ToolError::Usage(text.into()))
}

/// clap's account of bad arguments in one line.
pub fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.is_empty())
        .collect();
    let joined = lines.join(" ");
    joined
        .strip_prefix("error: ")
        .unwrap_or(&joined)
        .to_string()
}

#[cfg(test)]
mod tests;
