//! The options of `scripts/run`, their defaults, and the checks that need no machine. What passes here may still be
//! refused by the hypervisor, which alone knows what it can do; but then it is well-formed.

pub mod backing;
pub mod merging;
pub mod shared;
pub mod words;
pub mod workload;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt::Display;
use std::path::PathBuf;

use clap::{Arg, ArgAction, Parser};

use self::backing::BackingOptions;
use self::shared::{MachineOptions, WorkloadOptions, one};
use self::workload::Workload;
use crate::error::ToolError;
use crate::qemu::Gic;
use crate::size::{self, Size};

/// The most CPUs that the hypervisor brings up.
pub const MOST_CPUS: u32 = 128;
/// How long beyond the hypervisor's own limits a run may take: the boot, and the verification.
const HOST_MARGIN_SECONDS: u64 = 60;
/// How long a run on simulated time may take: a second of it takes minutes of the host's, the more the more CPUs there are.
const SIMULATED_RUN_SECONDS: u64 = 30 * 60;

/// Boots Parvisor in an emulator and measures it: several vCPUs write to their memory while the hypervisor harvests,
/// again and again, which pages they wrote.
///
/// Installs what is missing, builds, runs every mode in one boot, and ends with a table that compares them. Exit
/// status: 0 all runs verified; 1 a run failed or something is missing; 2 bad options; 3 the hypervisor itself failed;
/// 4 the emulator ended without a word.
#[derive(Clone, Debug, Parser)]
#[command(
    bin_name = "scripts/run",
    disable_version_flag = true,
    max_term_width = 120,
    mut_arg("vcpus", one("4")),
    mut_arg("backing", |option| usual_backing(option.action(ArgAction::Set).value_delimiter(None))),
    mut_arg("write_percent", one("100")),
    mut_arg("granularity", one("4K")),
    mut_arg("harvest", one("bitmap")),
    mut_arg("enable", one("protect"))
)]
pub struct RunOptions {
    /// What is measured.
    #[command(flatten)]
    pub workload: WorkloadOptions,

    /// The machine that it is measured on.
    #[command(flatten)]
    pub machine: MachineOptions,

    /// How many CPUs the machine has, at most 128; one is the hypervisor's own. [default: vcpus + 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_CPUS)))]
    pub smp: Option<u32>,

    /// How much RAM the machine has. [default: what the other options need]
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    pub mem: Option<Size>,

    /// Write the results to this file: an array with one record per run.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Run this guest image instead of the benchmark, until it powers off. It has --bytes of memory in all.
    #[arg(
        long,
        value_name = "IMAGE",
        conflicts_with_all = [
            "iterations", "write_percent", "random", "seed", "json", "split", "tracking", "granularity", "harvest",
            "ring_entries", "enable", "clear", "restore", "split_chunk", "split_reserve", "slots", "exit_times",
            "workload", "overcommits"
        ]
    )]
    pub guest: Option<PathBuf>,

    /// Instead of the benchmark, do everything that there is to dirty logging at random for so many seconds, check that no
    /// written page is lost, and fail if one is. Runs in --mode parallel unless others are chosen.
    #[arg(
        long,
        value_name = "SECONDS",
        value_parser = clap::value_parser!(u64).range(1..=1_000_000),
        conflicts_with_all = [
            "iterations", "write_percent", "random", "split", "tracking", "granularity", "harvest", "enable", "clear",
            "restore", "split_reserve", "exit_times", "guest", "workload", "overcommits", "merging", "merge_targets",
            "pages_to_scan", "sleep_millisecs", "max_page_sharing"
        ]
    )]
    pub stress: Option<u64>,

    /// Runs in which what backs memory changes.
    #[command(flatten)]
    pub backing: BackingOptions,

    /// The command line of that guest.
    #[arg(long, value_name = "STRING", requires = "guest")]
    pub guest_append: Option<String>,

    /// Stop before the first instruction, print how to attach gdb, and wait for it.
    #[arg(long, conflicts_with_all = ["host_timeout", "simulated"])]
    pub gdb: bool,

    /// Run a debug build, in which a break-before-make monitor watches every change of the tables and ends the run at the
    /// first rule that is broken. Slow: its times mean nothing. With --append inject=no-flush, no-break, local or
    /// no-publish it has a bug to find.
    #[arg(long, conflicts_with = "simulated")]
    pub monitor: bool,
}

/// Its default is another one where what backs memory changes.
pub fn usual_backing(option: Arg) -> Arg {
    option.help(
        "The size of the pages that guest memory is made of [default: 2M; 4K with --workload]",
    )
}

/// What a run consists of, all defaults filled in and all checks passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What the hypervisor runs.
    pub workload: Workload,
    /// The interrupt controller.
    pub gic: Gic,
    /// The CPUs of the machine.
    pub cpus: u32,
    /// The RAM of the machine.
    pub memory: Size,
    /// The hypervisor's options.
    pub append: String,
    /// After how many seconds the emulator is killed; nothing while a debugger may hold it.
    pub host_seconds: Option<u64>,
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
        Self::try_parse_from(arguments)
    }

    /// Fills in the defaults and checks the options against each other.
    ///
    /// # Errors
    ///
    /// [`ToolError::Usage`] naming the option that can't be.
    pub fn plan(&self) -> Result<Plan, ToolError> {
        let workload = self.checked_workload()?;
        let mut plan = self.machine.plan(workload, self.smp, self.mem)?;
        if self.gdb {
            plan.host_seconds = None;
        }
        Ok(plan)
    }

    fn checked_workload(&self) -> Result<Workload, ToolError> {
        self.backing.check_one_overcommit()?;
        let program = self.guest.is_some();
        let merging = &self.backing.merging;
        let mut workload = Workload {
            program,
            stress: self.stress,
            merging: merging.checked(self.backing.workload, program)?,
            ..Workload::of(&self.workload, &self.backing)?
        };
        if workload.modes.is_empty() {
            workload.modes = workload.usual_modes();
        }
        if program && workload.modes.len() > 1 {
            return usage("--guest: a guest of your own runs in one mode only");
        }
        match workload.contradiction() {
            Some(why) => usage(why),
            None => Ok(workload),
        }
    }
}

impl WorkloadOptions {
    /// Checks that no list names the same thing twice.
    ///
    /// # Errors
    ///
    /// [`ToolError::Usage`] naming the option and what it names twice.
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
        if self.cpu.is_empty() {
            return usage("--cpu: the name of the model is empty");
        }
        let runs = workload.runs() as u64;
        let seconds = self.timeout + workload.stress.unwrap_or(0);
        let host_seconds = self.host_timeout.unwrap_or(if self.simulated {
            SIMULATED_RUN_SECONDS * runs
        } else {
            seconds * runs + HOST_MARGIN_SECONDS
        });
        Ok(Plan {
            append: workload.words(self.timeout, self.append.as_deref()),
            workload,
            gic,
            cpus,
            memory,
            host_seconds: Some(host_seconds),
        })
    }
}

fn checked_cpus(workload: &Workload, wanted: Option<u32>, gic: Gic) -> Result<u32, ToolError> {
    let (vcpus, busy) = (workload.vcpus, workload.busy_cpus());
    let usual = (workload.useful_cpus() + 1).min(gic.most_cpus());
    let cpus = wanted.unwrap_or(usual.max(busy + 1));
    if busy > cpus - 1 {
        let compared = workload.compared.as_ref();
        let reasons = [
            (
                compared.is_some_and(|compared| compared.vms() > 1),
                "a second VM",
            ),
            (
                compared.is_some_and(|compared| compared.most_workers() > 0),
                "--workers",
            ),
            (workload.merging.beside, "--merging"),
        ];
        let more: String = reasons
            .iter()
            .filter(|(is_so, _)| *is_so)
            .map(|(_, reason)| format!(" and {reason}"))
            .collect();
        return usage(format!(
            "--vcpus {vcpus}{more}, {busy} CPUs: a machine with {cpus} CPUs has room for {}, one CPU is the hypervisor's own",
            cpus - 1
        ));
    }
    if cpus > gic.most_cpus() {
        return usage(format!(
            "--gic {}: it serves at most {} CPUs, not {cpus}",
            gic.version(),
            gic.most_cpus()
        ));
    }
    Ok(cpus)
}

fn distinct<T: Ord + Display>(option: &str, values: &[T]) -> Result<(), ToolError> {
    let mut seen = BTreeSet::new();
    match values.iter().find(|value| !seen.insert(*value)) {
        Some(twice) => usage(format!("{option}: {twice} is given twice")),
        None => Ok(()),
    }
}

pub(crate) fn usage<T>(text: impl Into<String>) -> Result<T, ToolError> {
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
mod tests {
    use super::words::Mode;
    use super::*;
    use crate::simclock::Costs;
    use crate::size::mib;

    fn parse(arguments: &[&str]) -> Result<RunOptions, clap::Error> {
        let all = std::iter::once("scripts/run").chain(arguments.iter().copied());
        RunOptions::parse_arguments(all.map(OsString::from))
    }

    fn plan(arguments: &[&str]) -> Result<Plan, ToolError> {
        match parse(arguments) {
            Ok(options) => options.plan(),
            Err(error) => Err(ToolError::Usage(one_line(&error))),
        }
    }

    fn refused(arguments: &[&str]) -> String {
        match plan(arguments) {
            Err(ToolError::Usage(text)) => {
                assert!(!text.contains('\n'), "more than one line: {text}");
                text
            }
            other => panic!("{arguments:?} gave {other:?}"),
        }
    }

    #[test]
    fn the_defaults_compare_the_three_modes() {
        let plan = plan(&[]).expect("the defaults are sound");
        assert_eq!(
            plan.workload.modes,
            [Mode::Mutex, Mode::Rwlock, Mode::Parallel]
        );
        assert_eq!((plan.cpus, plan.gic, plan.memory), (5, Gic::V3, mib(512)));
        assert_eq!(
            plan.append,
            "mode=mutex,rwlock,parallel vcpus=4 bytes=65536K backing=2M timeout=120 iterations=3 write_percent=100"
        );
        assert_eq!(plan.host_seconds, Some(420));
    }

    #[test]
    fn every_option_reaches_the_hypervisor() {
        let plan = plan(&[
            "--vcpus=2",
            "--bytes=8M",
            "--iterations=5",
            "--backing=4k",
            "--mode=parallel",
            "--mode=mutex",
            "--random",
            "--write-percent=50",
            "--seed=7",
            "--append=log=debug",
            "--smp=4",
            "--mem=1G",
            "--timeout=9",
        ]);
        let plan = plan.expect("sound options");
        assert_eq!((plan.cpus, plan.memory), (4, mib(1024)));
        assert_eq!(
            plan.append,
            "mode=parallel,mutex vcpus=2 bytes=8192K backing=4K timeout=9 iterations=5 write_percent=50 random seed=7 \
             log=debug"
        );
    }

    #[test]
    fn the_memory_has_as_many_slots_as_a_vm_has_for_it() {
        let most = plan(&["--backing=4k", "--slots=500"]).expect("sound options");
        assert!(most.append.contains("slots=500"), "{}", most.append);
        let beyond = refused(&["--slots=501"]);
        assert!(beyond.contains("501") && beyond.contains("500"), "{beyond}");
        let help = parse(&["--help"]).expect_err("it is help").to_string();
        assert!(
            help.contains("slots the memory is cut, at most 500"),
            "{help}"
        );
    }

    #[test]
    fn the_stress_run_replaces_the_benchmark_and_has_room_for_copies() {
        let plan = plan(&[
            "--stress=9",
            "--vcpus=4",
            "--bytes=128M",
            "--seed=3",
            "--slots=2",
        ]);
        let plan = plan.expect("sound options");
        assert_eq!(
            plan.append,
            "mode=parallel vcpus=4 bytes=131072K backing=2M timeout=120 guest=stress seconds=9 seed=3 slots=2"
        );
        assert_eq!(plan.memory, mib(1280));
        assert_eq!(plan.host_seconds, Some(189));
        assert_eq!(plan.cpus, 9, "a fork may run beside the VM");
        assert!(refused(&["--stress=9", "--split=none"]).contains("--split"));
        assert!(refused(&["--stress=9", "--iterations=2"]).contains("--iterations"));
    }

    #[test]
    fn changes_of_backing_replace_the_benchmark_and_have_cpus_and_memory_for_all() {
        let plan = plan(&["--workload=cow", "--vcpus=8", "--bytes=64M"]).expect("sound options");
        assert_eq!(
            plan.append,
            "mode=parallel vcpus=8 bytes=65536K backing=4K timeout=120 guest=backing workload=cow tracker=ranges \
             change=direct,unmap overcommit=100 workers=0 iterations=3"
        );
        assert_eq!((plan.cpus, plan.memory), (17, mib(1280)));
        assert_eq!(plan.workload.runs(), 2);
        let options = [
            "--workload=invalidate",
            "--workers=0,4",
            "--backing=2M",
            "--mode=rwlock,parallel",
        ];
        let plan = super::tests::plan(&options).expect("sound options");
        assert_eq!((plan.cpus, plan.workload.runs()), (9, 8));
        assert!(plan.append.contains("backing=2M") && plan.append.contains("workers=0,4"));
        assert!(refused(&["--workload=cow", "--split=none"]).contains("--split"));
        assert!(refused(&["--workload=cow", "--stress=2"]).contains("--stress"));
        assert!(refused(&["--workload=swap"]).contains("swap"));
        assert!(refused(&["--tracker=ranges"]).contains("--workload"));
        assert!(
            refused(&["--workload=cow", "--change=direct,direct"])
                .contains("direct is given twice")
        );
        assert!(refused(&["--workload=cow", "--vcpus=4", "--smp=8"]).contains("has room for 7"));
    }

    #[test]
    fn merging_takes_a_cpu_and_says_only_what_is_given() {
        let plan = |arguments: &[&str]| plan(arguments).expect("sound options");
        let usual = plan(&["--merging", "--mode=parallel"]);
        assert_eq!(usual.cpus, 6);
        assert!(
            usual.append.ends_with("write_percent=100 merging"),
            "{}",
            usual.append
        );
        let given = plan(&[
            "--workload=merge",
            "--merge-targets=test,ram",
            "--pages-to-scan=500",
            "--sleep-millisecs=20",
            "--max-page-sharing=8",
        ]);
        let words = "workers=0,1 iterations=3 merge_targets=test,ram pages_to_scan=500 sleep_millisecs=20 max_page_sharing=8";
        assert!(given.append.ends_with(words), "{}", given.append);
        let program = plan(&["--guest=x", "--merging", "--merge-targets=ram"]);
        assert!(
            program
                .append
                .ends_with("guest=program merging merge_targets=ram")
        );
    }

    #[test]
    fn merging_that_cant_be_is_refused() {
        assert!(refused(&["--merging", "--workload=merge"]).contains("--merging"));
        let says = "--vcpus 4 and --merging, 5 CPUs: a machine with 5 CPUs has room for 4";
        assert!(refused(&["--merging", "--vcpus=4", "--smp=5"]).contains(says));
        assert!(refused(&["--merging", "--stress=5"]).contains("--merging"));
        assert!(refused(&["--sleep-millisecs=5"]).contains("--sleep-millisecs: nothing is merged"));
        assert!(refused(&["--merging", "--pages-to-scan=0"]).contains("--pages-to-scan"));
        assert!(refused(&["--merging", "--max-page-sharing=1"]).contains("--max-page-sharing"));
        assert!(refused(&["--merging", "--merge-targets=disk"]).contains("disk"));
        assert!(refused(&["--merging", "--merge-targets=ram,ram"]).contains("ram is given twice"));
        let program = ["--guest=x", "--merging", "--merge-targets=test"];
        assert!(refused(&program).contains("--merge-targets test"));
    }

    #[test]
    fn the_benchmark_takes_one_overcommit() {
        let plan = plan(&["--overcommit=150", "--mode=parallel"]).expect("sound options");
        assert!(
            plan.append.ends_with("write_percent=100 overcommit=150"),
            "{}",
            plan.append
        );
        assert!(refused(&["--overcommit=100,150"]).contains("--overcommit: the benchmark"));
        assert!(refused(&["--overcommit=99"]).contains("99"));
        assert!(refused(&["--overcommit=150", "--stress=5"]).contains("--overcommit"));
        assert!(refused(&["--overcommit=150", "--guest=x"]).contains("--overcommit"));
    }

    #[test]
    fn a_guest_of_ones_own_replaces_the_benchmark() {
        let plan = plan(&["--guest", "some.img", "--vcpus=1"]).expect("sound options");
        assert_eq!(
            plan.append,
            "mode=parallel vcpus=1 bytes=65536K backing=2M timeout=120 guest=program"
        );
        assert!(refused(&["--guest", "a.img", "--json", "x"]).contains("--json"));
        assert!(refused(&["--guest", "a.img", "--mode=mutex,parallel"]).contains("one mode"));
        assert!(refused(&["--guest-append", "x"]).contains("--guest"));
    }

    #[test]
    fn unknown_and_malformed_options_are_refused_in_one_line() {
        assert!(refused(&["--vcpu", "3"]).contains("--vcpu"));
        assert!(refused(&["stray"]).contains("stray"));
        assert!(refused(&["--bytes", "64T"]).contains("64T"));
        assert!(refused(&["--bytes"]).contains("--bytes"));
        assert!(refused(&["--mode", "fast"]).contains("fast"));
        assert!(refused(&["--backing", "8M"]).contains("8M"));
        assert!(refused(&["--write-percent", "101"]).contains("101"));
        assert!(refused(&["--gic", "4"]).contains('4'));
        assert!(refused(&["--vcpus", "0"]).contains('0'));
        assert!(refused(&["--iterations", "0"]).contains('0'));
        assert!(refused(&["--smp", "129"]).contains("129"));
        assert!(refused(&["--cpu", ""]).contains("--cpu"));
        assert!(refused(&["--vcpus=2", "--vcpus=3"]).contains("--vcpus"));
    }

    #[test]
    fn contradictions_are_refused() {
        assert!(refused(&["--vcpus", "4", "--smp", "4"]).contains("room for 3"));
        assert!(refused(&["--smp", "1"]).contains("room for 0"));
        assert!(refused(&["--gic", "2", "--vcpus", "8"]).contains("at most 8"));
        assert!(refused(&["--bytes", "0"]).contains("4 KiB"));
        assert!(refused(&["--bytes", "6000"]).contains("4 KiB"));
        assert!(refused(&["--mem", "256M"]).contains("don't fit"));
        assert!(refused(&["--mem", "5000"]).contains("1 MiB"));
        assert!(refused(&["--bytes", "17179869183G"]).contains("any machine"));
        assert!(refused(&["--mode=mutex", "--mode=mutex"]).contains("twice"));
        assert!(refused(&["--gdb", "--host-timeout=5"]).contains("--gdb"));
    }

    #[test]
    fn memory_leaves_room_for_aligned_blocks() {
        let memory = |arguments: &[&str]| plan(arguments).expect("sound options").memory;
        assert_eq!(memory(&["--backing=1G"]), mib(2304));
        assert_eq!(memory(&["--bytes=1G", "--vcpus=2"]), mib(2304));
        assert!(memory(&["--bytes=8M", "--vcpus=32"]) >= mib(448));
    }

    #[test]
    fn what_follows_two_dashes_is_qemus() {
        let options = parse(&["--vcpus=1", "--", "-d", "int"]).expect("sound options");
        assert_eq!(options.machine.qemu, ["-d", "int"]);
    }

    #[test]
    fn simulated_time_has_costs_and_takes_long() {
        let costs = |arguments: &[&str]| parse(arguments).expect("sound options").machine.costs();
        assert_eq!(costs(&[]), None);
        assert_eq!(costs(&["--simulated"]), Some(Costs::default()));
        let given = costs(&["--simulated", "--line-cost=0", "--tlbi-cost=400"]);
        assert_eq!(
            given,
            Some(Costs {
                line_ns: 0,
                tlbi_ns: 400
            })
        );
        let plan = plan(&["--simulated", "--mode=parallel"]).expect("sound options");
        assert_eq!(plan.host_seconds, Some(SIMULATED_RUN_SECONDS));
        assert!(refused(&["--line-cost=50"]).contains("--simulated"));
        assert!(refused(&["--simulated", "--monitor"]).contains("--monitor"));
        assert!(refused(&["--simulated", "--tlbi-cost=2000000"]).contains("2000000"));
    }

    #[test]
    fn a_debugger_may_take_its_time() {
        assert_eq!(plan(&["--gdb"]).expect("sound options").host_seconds, None);
    }
}
