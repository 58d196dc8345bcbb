//! The options of `scripts/bench`: those of `scripts/run` as lists, and those for the results.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{CommandFactory, FromArgMatches, Parser};

use super::capture::Known;
use ::options::backing::BackingOptions;
use ::options::linux::USUAL_INTERVAL;
use ::options::shared::{MachineOptions, WorkloadOptions};
use ::options::words::{Backing, Enable, Split, Tracking};
use ::options::{usage, usual_backing};
use emulator::error::ToolError;
use emulator::size::mib;
use linux::Series;

/// The options for files that are read, and for the folder of the results.
const PLACES: [&str; 4] = ["parse", "json", "out", "force"];

/// Measures a matrix: every combination of the given numbers of vCPUs, modes, policies and workloads, as often as wanted.
///
/// Ends with tables, and writes JSON, plots (SVG and PNG) and a page that shows all of it. With --parse it measures
/// nothing and renders earlier results, or what a board printed on its serial line. Exit status: 0 all runs verified; 1 a
/// run failed, whatever ended it, a log is cut, or something is missing (what was measured is written all the same); 2 bad
/// options.
#[derive(Clone, Debug, Parser)]
#[command(
    bin_name = "scripts/bench",
    disable_version_flag = true,
    allow_negative_numbers = true,
    max_term_width = 120,
    mut_arg("vcpus", |option| option.default_value("1,2,4")),
    mut_arg("iterations", |option| option.default_value("4")),
    mut_arg("bytes", |option| option.default_value("8M")),
    mut_arg("backing", usual_backing),
    mut_arg("write_percent", |option| option.default_value("100")),
    mut_arg("granularity", |option| option.default_value("4K")),
    mut_arg("harvest", |option| option.default_value("bitmap")),
    mut_arg("enable", |option| option.help(
        "What enabling the log does [default: all_set, as dirty_log_perf_test has it; protect with --harvest ring]"
    )),
)]
pub struct BenchOptions {
    /// The measured workload.
    #[command(flatten)]
    pub workload: WorkloadOptions,

    /// Workloads that change backing memory.
    #[command(flatten)]
    pub backing: BackingOptions,

    /// The machine that it is measured on.
    #[command(flatten)]
    pub machine: MachineOptions,

    /// How often the whole matrix is measured.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub repeat: u64,

    /// Write the results to this file as well.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Measure Linux's own benchmark under KVM in the same emulator beside it: kernels of these series, like 6.1,6.12.
    /// Fetched once from Debian's registry; nothing of the system is changed.
    #[arg(
        long,
        value_name = "SERIES",
        value_delimiter = ',',
        value_parser = series,
        conflicts_with = "workload"
    )]
    pub with_kvm: Vec<Series>,

    /// Instead of the benchmark's guest, measure Debian's Linux while it runs a load: its memory is logged and copied round by
    /// round, and compared after a stop. It has --vcpus and --bytes of memory in all. [default series: 6.12; with it --vcpus 2,
    /// --bytes 256M, --split none,eager, --tracking writeprotect,hardware, --enable protect]
    #[arg(
        long,
        value_name = "SERIES",
        num_args = 0..=1,
        default_missing_value = "6.12",
        value_parser = series,
        conflicts_with_all = ["workload", "with_kvm", "write_percent", "random", "seed", "slots"]
    )]
    pub linux: Option<Series>,

    /// With --linux, how long the guest runs between two rounds, in milliseconds. [default: 100]
    #[arg(long, value_name = "MS", requires = "linux")]
    pub interval: Option<u32>,

    /// Measure what single operations cost a guest instead: calls, accesses to the interrupt controller, interrupts between vCPUs,
    /// and the way to a guest's first instruction, on simulated time, beside the machine without a hypervisor. With --with-kvm,
    /// KVM with the same guest, too, and the boot of that Linux as a guest. Takes --vcpus (usually 2), --cpu, --json and --append.
    #[arg(
        long,
        conflicts_with_all = [
            "workload", "out", "parse", "repeat", "simulated", "linux", "mode", "bytes", "backing", "split", "tracking",
            "granularity", "harvest", "enable", "write_percent", "iterations", "gic",
        ]
    )]
    pub micro: bool,

    /// Where page, plots and results go. [default: a new folder in target/bench; nowhere with --parse]
    #[arg(long, value_name = "FOLDER")]
    pub out: Option<PathBuf>,

    /// Replace the results that --out has already.
    #[arg(long, requires = "out")]
    pub force: bool,

    /// Measure nothing, render these files: results of scripts/bench, records of scripts/run, or captured serial logs. What a
    /// log doesn't say can be said by --vcpus, --bytes, --backing, --write-percent and --cpu; no other option of a measurement
    /// goes with it.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub parse: Vec<PathBuf>,

    /// The options that the user gave, and that don't merely have their default values.
    #[arg(skip)]
    given: BTreeSet<String>,
}

impl BenchOptions {
    /// Reads command-line arguments, the first of which is the command itself.
    ///
    /// # Errors
    ///
    /// clap's, which also stands for `--help`.
    pub fn parse_arguments(
        arguments: impl IntoIterator<Item = OsString>,
    ) -> Result<Self, clap::Error> {
        let matches = Self::command().try_get_matches_from(arguments)?;
        let mut options = Self::from_arg_matches(&matches)?;
        let given = matches.ids().map(clap::Id::as_str);
        let given = given.filter(|id| matches.value_source(id) == Some(ValueSource::CommandLine));
        options.given = given.map(String::from).collect();
        if options.linux.is_some() {
            options.choose_for_linux();
        }
        Ok(options)
    }

    /// Chooses for Linux what the user hasn't.
    fn choose_for_linux(&mut self) {
        let is_given = |id: &str| self.given.contains(id);
        let workload = &mut self.workload;
        if !is_given("vcpus") {
            workload.vcpus = vec![2];
        }
        if !is_given("bytes") {
            workload.bytes = Some(mib(256));
        }
        if !is_given("split") {
            workload.splits = vec![Split::None, Split::Eager];
        }
        if !is_given("tracking") {
            workload.trackings = vec![Tracking::WriteProtect, Tracking::Hardware];
        }
        if !is_given("enable") {
            workload.enables = vec![Enable::Protect];
        }
    }

    /// How long Linux runs between two rounds, if it is measured, in milliseconds.
    pub fn logged(&self) -> Option<u32> {
        self.linux.map(|_| self.interval.unwrap_or(USUAL_INTERVAL))
    }

    /// Checks that --parse comes only with options for values that results may lack.
    ///
    /// # Errors
    ///
    /// [`ToolError::Usage`] naming the option that would be ignored.
    pub fn check_parse(&self) -> Result<(), ToolError> {
        let known = Known::OPTIONS.map(|(id, _)| id);
        let command = Self::command();
        let mut options = command.get_arguments();
        let ignored = options.find(|option| {
            let id = option.get_id().as_str();
            self.given.contains(id) && !PLACES.contains(&id) && !known.contains(&id)
        });
        if let Some(option) = ignored {
            return usage(match option.get_long() {
                Some(name) => format!("--{name}: nothing is measured with --parse"),
                None => "arguments for QEMU: nothing is measured with --parse".into(),
            });
        }
        let lists = [
            ("--vcpus", self.workload.vcpus.len()),
            ("--backing", self.workload.backings.len()),
            ("--write-percent", self.workload.write_percents.len()),
        ];
        let is_given = |option: &str| self.given.contains(&option[2..].replace('-', "_"));
        match lists
            .iter()
            .find(|(option, count)| is_given(option) && *count > 1)
        {
            Some((option, _)) => usage(format!("{option}: one value says what a log doesn't")),
            None => Ok(()),
        }
    }

    /// The numbers of vCPUs of --micro.
    pub fn micro_vcpus(&self) -> &[u32] {
        match self.given.contains("vcpus") {
            true => &self.workload.vcpus,
            false => &[2],
        }
    }

    /// The user's values for results that lack them: the options that are given, with one value each.
    pub fn known(&self) -> Known {
        let is_given = |option: &str| self.given.contains(option);
        let workload = &self.workload;
        let vcpus = workload.vcpus.first().filter(|_| is_given("vcpus"));
        let backing = workload.backings.first().filter(|_| is_given("backing"));
        let percent = workload.write_percents.first();
        Known {
            vcpus: vcpus.map(|count| u64::from(*count)),
            bytes: workload
                .bytes
                .map(|size| size.0)
                .filter(|_| is_given("bytes")),
            backing: backing.map(Backing::to_string),
            write_percent: percent
                .filter(|_| is_given("write_percent"))
                .map(|percent| u64::from(*percent)),
            cpu: Some(self.machine.cpu.clone()).filter(|_| is_given("cpu")),
        }
    }
}

fn series(text: &str) -> Result<Series, String> {
    Series::parse(text).ok_or_else(|| "expected a series of Linux kernels, like 6.12".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::options::one_line;

    #[test]
    fn what_is_no_series_of_kernels_is_named_with_its_option() {
        let parse = |value: &str| {
            let all = ["scripts/bench", "--with-kvm", value];
            BenchOptions::parse_arguments(all.map(OsString::from))
        };
        assert_eq!(
            one_line(&parse("6.1,foo").expect_err("it is none")),
            "invalid value 'foo' for '--with-kvm <SERIES>': expected a series of Linux kernels, like 6.12"
        );
        let both = parse("6.1,6.12").expect("they are").with_kvm;
        let words: Vec<String> = both.iter().map(Series::to_string).collect();
        assert_eq!(words, ["6.1", "6.12"]);
    }
}
