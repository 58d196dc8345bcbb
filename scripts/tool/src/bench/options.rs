//! The options of `scripts/bench`: those of `scripts/run` as lists, and what is done with the results.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Parser;

use crate::options::shared::{MachineOptions, WorkloadOptions};

/// Measures a matrix: every combination of the given numbers of vCPUs, modes, policies and workloads, as often as wanted.
///
/// Ends with tables, and writes JSON, plots (SVG and PNG) and a page that shows all of it. With --parse it measures
/// nothing and renders earlier results, or what a board printed on its serial line. Exit status: 0 all runs verified; 1 a
/// run failed or something is missing (what was measured is written all the same); 2 bad options.
#[derive(Clone, Debug, Parser)]
#[command(
    bin_name = "scripts/bench",
    disable_version_flag = true,
    max_term_width = 120,
    mut_arg("vcpus", |option| option.default_value("1,2,4")),
    mut_arg("iterations", |option| option.default_value("4")),
    mut_arg("bytes", |option| option.default_value("8M")),
    mut_arg("backing", |option| option.default_value("2M")),
    mut_arg("write_percent", |option| option.default_value("100")),
    mut_arg("granularity", |option| option.default_value("4K")),
    mut_arg("harvest", |option| option.default_value("bitmap")),
    mut_arg("enable", |option| option.help(
        "What enabling the log does [default: all_set, as dirty_log_perf_test has it; protect with --harvest ring]"
    )),
)]
pub struct BenchOptions {
    /// What is measured.
    #[command(flatten)]
    pub workload: WorkloadOptions,

    /// The machine that it is measured on.
    #[command(flatten)]
    pub machine: MachineOptions,

    /// How often the whole matrix is measured.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub repeat: u64,

    /// Write the results to this file as well.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Where page, plots and results go. [default: a new folder in target/bench; nowhere with --parse]
    #[arg(long, value_name = "FOLDER")]
    pub out: Option<PathBuf>,

    /// Measure nothing, render these files: results of scripts/bench, records of scripts/run, or captured serial logs.
    #[arg(
        long,
        value_name = "FILE",
        num_args = 1..,
        conflicts_with_all = ["repeat", "mode", "split", "tracking", "json", "timeout", "host_timeout", "append", "qemu"]
    )]
    pub parse: Vec<PathBuf>,
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
        Self::try_parse_from(arguments)
    }
}
