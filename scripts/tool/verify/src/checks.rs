//! `scripts/test`: everything that has to hold, step by step. A step that fails doesn't keep the next ones from
//! running; what they found is summed up in the last line.
//!
//! Each command has a limit on how long it prints nothing ([`cargo`](emulator::cargo)), so that a test that hangs fails instead of
//! holding everything up, and a busy host fails none.

mod counts;
mod step;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};

use counts::Counts;
use emulator::effort::in_words;
use emulator::error::{FAILED, ToolError, USAGE};
use emulator::files;
use emulator::repository::target_folder;
use emulator::setup;
use emulator::standard_output::{self, print_line};
use options::one_line;
use step::{Step, host_packages};

/// Checks everything that has to hold: formatting, lints, host tests, model checking, documentation, the bare-metal
/// build, and system tests under QEMU; with --slow also Miri, fuzzing, mutants, and more of the kernels and of the hostile guests.
/// Installs what is missing. The last line counts: `N passed, N failed`.
#[derive(Debug, Parser)]
#[command(
    bin_name = "scripts/test",
    disable_version_flag = true,
    max_term_width = 120
)]
struct TestOptions {
    /// Run the slow steps too: miri, fuzz, kernels, mutants.
    #[arg(long)]
    slow: bool,

    /// Run this step alone, slow or not; may be given several times.
    #[arg(long, value_name = "STEP", value_enum)]
    only: Vec<Step>,
}

impl TestOptions {
    /// The steps that are wanted, in their order.
    fn steps(&self) -> Vec<Step> {
        let is_wanted = |step: &Step| match self.only.as_slice() {
            [] => self.slow || !step.is_slow(),
            only => only.contains(step),
        };
        let steps = Step::value_variants().iter().copied();
        steps.filter(is_wanted).collect()
    }
}

/// Runs the command with these arguments, the first of which is its name. Gives the exit status.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let options = match TestOptions::try_parse_from(arguments) {
        Ok(options) => options,
        Err(error) if !error.use_stderr() => {
            // `--help`.
            standard_output::note(error.print());
            return 0;
        }
        Err(error) => {
            eprintln!("error: {} (see scripts/test --help)", one_line(&error));
            return USAGE;
        }
    };
    match run(&options) {
        Ok(counts) => {
            print_line(format_args!(
                "{} passed, {} failed",
                counts.passed, counts.failed
            ));
            if counts.failed == 0 { 0 } else { FAILED }
        }
        Err(error) => {
            eprintln!("error: {error}");
            error.exit_status()
        }
    }
}

fn run(options: &TestOptions) -> Result<Counts, ToolError> {
    let steps = options.steps();
    setup::rust_components()?;
    setup::rust_target()?;
    for step in &steps {
        step.set_up()?;
    }
    let host_packages = host_packages()?;
    let mut sum = Counts::default();
    let mut times = Times::open(target_folder().join("parvisor/test-seconds.json"));
    for (index, step) in steps.iter().enumerate() {
        let left = times.left(&steps[index..]);
        let left = left.map_or_else(String::new, |left| format!(", about {left} left"));
        let (heading, number, count) = (step.heading(), index + 1, steps.len());
        print_line(format_args!(
            "\n== {heading} ({number} of {count}{left}) =="
        ));
        let started = Instant::now();
        let counts = step.run(&host_packages, options.slow);
        let took = started.elapsed();
        print_line(format_args!(
            "-- {heading}: {} passed, {} failed, {} s",
            counts.passed,
            counts.failed,
            took.as_secs()
        ));
        times.took(*step, took);
        sum = sum.plus(counts);
    }
    print_line("");
    Ok(sum)
}

/// How long each step took last, by its heading.
struct Times {
    path: PathBuf,
    seconds: BTreeMap<String, f64>,
}

impl Times {
    /// Those that are kept in this file; none if there is no such file.
    fn open(path: PathBuf) -> Self {
        let kept = fs::read(&path).ok();
        let seconds = kept.and_then(|kept| serde_json::from_slice(&kept).ok());
        Self {
            path,
            seconds: seconds.unwrap_or_default(),
        }
    }

    /// How long these steps take, in words, if all of them are known.
    fn left(&self, steps: &[Step]) -> Option<String> {
        let of_step = |step: &Step| self.seconds.get(step.heading()).copied();
        let all: Option<f64> = steps.iter().map(of_step).sum();
        all.map(in_words)
    }

    /// Keeps the duration of a step. If it can't be written, no remaining time is shown.
    fn took(&mut self, step: Step, took: Duration) {
        self.seconds
            .insert(step.heading().into(), took.as_secs_f64());
        if let Ok(text) = serde_json::to_vec(&self.seconds) {
            let _ = files::replace(&self.path, &text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_that_is_left_is_that_of_the_last_runs() {
        let folder = tempfile::TempDir::new().expect("room for a folder");
        let path = folder.path().join("made/times");
        let mut times = Times::open(path.clone());
        times.took(Step::Host, Duration::from_secs(70));
        times.took(Step::Loom, Duration::from_secs(20));
        let times = Times::open(path);
        let left = |steps: &[Step]| times.left(steps);
        assert_eq!(
            left(&[Step::Host, Step::Loom]).as_deref(),
            Some("1 min 30 s")
        );
        assert_eq!(left(&[Step::Loom, Step::Docs]), None);
    }

    #[test]
    fn slow_steps_run_when_they_are_asked_for() {
        let steps = |arguments: &[&str]| {
            let arguments = ["scripts/test"].iter().chain(arguments);
            TestOptions::try_parse_from(arguments)
                .expect("the options are right")
                .steps()
        };
        assert!(!steps(&[]).contains(&Step::Miri));
        assert_eq!(steps(&["--slow"]), Step::value_variants());
        assert_eq!(
            steps(&["--only", "fuzz", "--only", "host"]),
            [Step::Host, Step::Fuzz]
        );
    }
}
