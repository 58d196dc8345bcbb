//! `scripts/test`: everything that has to hold, step by step. A step that fails doesn't keep the next ones from
//! running; what they found is summed up in the last line.
//!
//! Each command has a limit on how long it prints nothing ([`cargo`](emulator::cargo)), so that a test that hangs fails instead of
//! holding everything up, and a busy host fails none.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};

use crate::instructions;
use crate::mutants;
use crate::trace;
use emulator::cargo::CargoCommand;
use emulator::effort::in_words;
use emulator::error::{FAILED, ToolError, USAGE};
use emulator::files;
use emulator::images;
use emulator::repository::{repository, target_folder};
use emulator::setup::{self, TARGET, cargo};
use emulator::simclock;
use options::one_line;
use records::words::Profile;

/// The packages for the bare-metal target, in groups that are built together. The groups are checked apart, or they would share
/// the features of the crates that they use.
const TARGET_PACKAGES: [&[&str]; 2] = [
    &["platform", "firmware"],
    &[
        "guest-runtime",
        "dirty-log-guest",
        "probe-guest",
        "scaling-guest",
    ],
];
/// The package of the system tests, which have a step of their own.
const SYSTEM_TESTS: &str = "qemu-tests";
/// The package of the rules of the house, which have a step of their own.
const HOUSE: &str = "house";
/// The package that is published.
const PUBLISHED: &str = "stage2";
/// The crate of the fuzz targets, which is no member of the workspace.
const FUZZ: &str = "tests/fuzz";
/// Miri's flags: no pointer is made of an integer, physical addresses lead to the frames of tests by number.
const MIRI: &str = "-Zmiri-strict-provenance";

/// Checks everything that has to hold: formatting, lints, host tests, model checking, documentation, the bare-metal
/// build, and system tests under QEMU; with --slow also Miri, fuzzing and mutants, and more of the hostile guests. Installs what is missing. The last line
/// counts: `N passed, N failed`.
#[derive(Debug, Parser)]
#[command(
    bin_name = "scripts/test",
    disable_version_flag = true,
    max_term_width = 120
)]
struct TestOptions {
    /// Run the slow steps too: miri, fuzz, mutants.
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

/// The steps, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Step {
    /// Formatting: cargo fmt --check.
    Format,
    /// The rules of the house: which crates, folders and files may import which, names, lengths, unsafe.
    House,
    /// Lints of the host's crates, tests included.
    LintHost,
    /// Lints of the bare-metal crates.
    LintTarget,
    /// Unit tests and suites on the host.
    Host,
    /// Model checking of the protocol with loom.
    Loom,
    /// Documentation of all crates, without a warning.
    Docs,
    /// The bare-metal images.
    Build,
    /// Packages that others may use without the rest, built alone.
    Package,
    /// Instructions and cache lines of the fast paths, against their limits.
    Instructions,
    /// Instructions of whole exits on the target, by parts, as QEMU traces them, against their bars.
    Trace,
    /// System tests: boots under QEMU.
    Qemu,
    /// The simulated clock: its parts, and loops under QEMU whose time is known.
    Simclock,
    /// Slow: Miri over the tests of the page tables.
    Miri,
    /// Slow: each fuzz target for a minute.
    Fuzz,
    /// Slow: deliberate bugs, each of which a test has to catch (see scripts/mutate).
    Mutants,
}

impl Step {
    fn heading(self) -> &'static str {
        match self {
            Self::Format => "formatting",
            Self::House => "the rules of the house",
            Self::LintHost => "lints, host",
            Self::LintTarget => "lints, bare metal",
            Self::Host => "host tests",
            Self::Loom => "model checking",
            Self::Docs => "documentation",
            Self::Build => "bare-metal images",
            Self::Package => "packages",
            Self::Instructions => "instructions",
            Self::Trace => "traces",
            Self::Qemu => "system tests under QEMU",
            Self::Simclock => "simulated clock",
            Self::Miri => "Miri",
            Self::Fuzz => "fuzzing",
            Self::Mutants => "mutants",
        }
    }

    fn is_slow(self) -> bool {
        matches!(self, Self::Miri | Self::Fuzz | Self::Mutants)
    }

    /// Installs the additional programs that the step needs.
    fn set_up(self) -> Result<(), ToolError> {
        match self {
            Self::Trace | Self::Qemu | Self::Simclock => setup::emulator().map(|_| ()),
            Self::Instructions => setup::valgrind(),
            Self::Miri => setup::nightly(),
            Self::Fuzz => setup::nightly().and_then(|()| setup::cargo_fuzz()),
            _ => Ok(()),
        }
    }

    fn run(self, host_packages: &[String], slow: bool) -> Counts {
        let host = || selected(host_packages);
        let deny = ["--", "-D", "warnings"];
        match self {
            Self::Format => check(CargoCommand::new(["fmt", "--all", "--check"]))
                .plus(check(in_fuzz(CargoCommand::new(["fmt", "--check"]))))
                .plus(check(in_simclock(CargoCommand::new(["fmt", "--check"])))),
            Self::House => tests(CargoCommand::new(["test", "--no-fail-fast", "-p", HOUSE])),
            Self::LintHost => check(CargoCommand::new(["clippy", "--all-targets"]).args(deny))
                .plus(on_linux(|| {
                    check(built_in_simclock(["clippy", "--all-targets"]).args(deny))
                })),
            Self::LintTarget => on_target(
                || CargoCommand::new(["clippy", "--profile", "firmware"]),
                &deny,
            ),
            Self::Host => tests(CargoCommand::new(["test", "--no-fail-fast"]).args(host())),
            // Examples in the documentation are built without the flag. vm's other tests use its atomics outside of a model.
            // Many of the model's tests wait for each other, as they share a pool: so many threads that others run meanwhile.
            Self::Loom => tests(
                CargoCommand::loom("model")
                    .args(["--tests", "--no-fail-fast"])
                    .env("RUST_TEST_THREADS", "16"),
            )
            .plus(tests(CargoCommand::loom("vm").args(["--lib", "model::"]))),
            Self::Docs => {
                let docs =
                    || CargoCommand::new(["doc", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings");
                let folder = ["--target-dir", simclock::TARGET_FOLDER];
                check(docs())
                    .plus(on_target(docs, &[]))
                    .plus(on_linux(|| check(in_simclock(docs().args(folder)))))
            }
            Self::Build => match images::build(Profile::Best).and_then(|_| images::build_probe()) {
                Ok(_) => Counts::PASSED,
                Err(error) => failed(&error.to_string()),
            },
            Self::Package => packages(),
            Self::Qemu => {
                let command = CargoCommand::new(["test", "--no-fail-fast", "-p", SYSTEM_TESTS])
                    .args(["--lib", "--test", "system"])
                    .env("RUST_TEST_THREADS", "2");
                // Hostile guests do more then, and interrupts are counted for longer.
                tests(match slow {
                    true => command.env("PARVISOR_SLOW", "1"),
                    false => command,
                })
            }
            Self::Simclock => simulated_clock(),
            Self::Instructions => counted(),
            Self::Trace => traced(),
            Self::Miri => miri(),
            Self::Fuzz => fuzz(),
            Self::Mutants => match mutants::run_all() {
                Ok(tally) => Counts {
                    passed: tally.caught,
                    failed: tally.survived + tally.broken,
                },
                Err(error) => failed(&error.to_string()),
            },
        }
    }
}

/// Builds the programs that are looked at, and looks.
fn counted() -> Counts {
    let build = CargoCommand::new(["build", "--release", "--bins", "-p", instructions::PACKAGE]);
    if !build
        .args(["--target-dir", "target/instructions"])
        .run(|_| {})
    {
        return Counts::FAILED;
    }
    let mut counts = Counts::default();
    let programs = repository().join("target/instructions/release");
    let measured = instructions::measure(&programs, |finding| {
        let (verdict, count) = match finding.holds {
            true => ("ok", Counts::PASSED),
            false => ("TOO MUCH", Counts::FAILED),
        };
        say(&format!("{} ... {verdict}", finding.text));
        counts = counts.plus(count);
    });
    match measured {
        Ok(()) => counts,
        Err(error) => counts.plus(failed(&error.to_string())),
    }
}

/// Boots the images and traces them.
fn traced() -> Counts {
    let mut counts = Counts::default();
    let measured = trace::measure(|finding| {
        let (verdict, count) = match finding.holds {
            None => ("", Counts::default()),
            Some(true) => (" ... ok", Counts::PASSED),
            Some(false) => (" ... TOO MUCH", Counts::FAILED),
        };
        say(&format!("{}{verdict}", finding.text));
        counts = counts.plus(count);
    });
    match measured {
        Ok(()) => counts,
        Err(error) => counts.plus(failed(&error.to_string())),
    }
}

/// The packages of the page tables and of the simulated clock, built as whoever downloads them would; and the page tables with
/// the features that this system has no use for.
fn packages() -> Counts {
    let features = |features: &str| {
        CargoCommand::new(["clippy", "-p", PUBLISHED, "--no-default-features"])
            .args([
                "--target",
                TARGET,
                "--target-dir",
                "target/package",
                "--features",
                features,
            ])
            .args(["--", "-D", "warnings"])
    };
    // Uncommitted changes are checked, too.
    let package = ["package", "--allow-dirty", "--target-dir", "target/package"];
    check(CargoCommand::new(package).args(["-p", PUBLISHED]))
        .plus(check(features("")))
        .plus(check(features("instructions,watch")))
        .plus(on_linux(|| check(in_simclock(CargoCommand::new(package)))))
}

/// Miri over the page tables' unit tests and their tests on a machine, which have few cases for it.
fn miri() -> Counts {
    let miri = |package: &str| {
        CargoCommand::nightly(["miri", "test", "--no-fail-fast"])
            .args(["--target-dir", "target/miri", "-p", package])
            .env("MIRIFLAGS", MIRI)
    };
    tests(miri("stage2").arg("--lib"))
        .plus(tests(miri("checker").args(["--lib", "--tests"])))
        .plus(tests(miri("model")))
}

/// Each fuzz target for a minute. Its findings are kept under the crate's `artifacts`, its inputs under `corpus`.
fn fuzz() -> Counts {
    let lints = CargoCommand::new(["clippy", "--all-targets", "--target-dir", "target/fuzz"]);
    let mut counts = check(in_fuzz(lints).args(["--", "-D", "warnings"]));
    let mut targets = Vec::new();
    let list = CargoCommand::nightly(["fuzz", "list", "--fuzz-dir", FUZZ]);
    if !list.run(|line| targets.push(line.trim().to_string())) || targets.is_empty() {
        return counts.plus(failed("cargo fuzz knows no targets"));
    }
    for target in &targets {
        let run = CargoCommand::nightly(["fuzz", "run", "--target-dir", "target/fuzz"])
            .args(["--fuzz-dir", FUZZ, target, "--"])
            .args(["-max_total_time=60", "-timeout=10", "-print_final_stats=1"]);
        counts = counts.plus(check(run));
    }
    counts
}

/// The parts of the simulated clock on the host, and the whole under QEMU where that has plugins.
fn simulated_clock() -> Counts {
    let counts = on_linux(|| tests(built_in_simclock(["test", "--no-fail-fast"])));
    let supported = setup::emulator().and_then(|emulator| simclock::is_supported(&emulator));
    if let Err(reason) = supported {
        say(&format!("skipped under QEMU: {reason}"));
        return counts;
    }
    // One machine at a time: each keeps all cores of a small host busy.
    let under_qemu = CargoCommand::new(["test", "--no-fail-fast", "-p", SYSTEM_TESTS])
        .args(["--test", "simclock"])
        .env("RUST_TEST_THREADS", "1");
    counts.plus(tests(under_qemu))
}

/// The checks of the crate of the simulated clock, on systems that can build it.
fn on_linux(checks: impl Fn() -> Counts) -> Counts {
    if cfg!(target_os = "linux") {
        checks()
    } else {
        Counts::default()
    }
}

/// A command on the crate of the simulated clock.
fn in_simclock(command: CargoCommand) -> CargoCommand {
    command.args([
        "--manifest-path",
        &format!("{}/Cargo.toml", simclock::CRATE),
    ])
}

/// As [`in_simclock`], for commands that build it.
fn built_in_simclock<const N: usize>(arguments: [&str; N]) -> CargoCommand {
    in_simclock(CargoCommand::new(arguments).args(["--target-dir", simclock::TARGET_FOLDER]))
}

/// A command on the crate of the fuzz targets.
fn in_fuzz(command: CargoCommand) -> CargoCommand {
    command.args(["--manifest-path", &format!("{FUZZ}/Cargo.toml")])
}

/// How many tests and checks passed and failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
}

impl Counts {
    const PASSED: Self = Self {
        passed: 1,
        failed: 0,
    };
    const FAILED: Self = Self {
        passed: 0,
        failed: 1,
    };

    fn plus(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
        }
    }
}

/// Runs the command with these arguments, the first of which is its name. Gives the exit status.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let options = match TestOptions::try_parse_from(arguments) {
        Ok(options) => options,
        Err(error) if !error.use_stderr() => {
            // `--help`. If nobody reads it, nobody misses it.
            let _ = error.print();
            return 0;
        }
        Err(error) => {
            eprintln!("error: {} (see scripts/test --help)", one_line(&error));
            return USAGE;
        }
    };
    match run(&options) {
        Ok(counts) => {
            say(&format!(
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
        say(&format!("\n== {heading} ({number} of {count}{left}) =="));
        let started = Instant::now();
        let counts = step.run(&host_packages, options.slow);
        let took = started.elapsed();
        say(&format!(
            "-- {heading}: {} passed, {} failed, {} s",
            counts.passed,
            counts.failed,
            took.as_secs()
        ));
        times.took(*step, took);
        sum = sum.plus(counts);
    }
    say("");
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

/// Prints a line on standard output, which may be closed.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// The workspace's packages that are built for the host by default, without the system tests.
fn host_packages() -> Result<Vec<String>, ToolError> {
    let mut command = Command::new(cargo());
    command
        .args(["metadata", "--no-deps", "--format-version=1"])
        .current_dir(repository())
        .stderr(Stdio::inherit());
    let output = command
        .output()
        .map_err(|error| ToolError::Io(format!("cargo can't be run: {error}")))?;
    let unreadable = || ToolError::Io("cargo metadata gave no list of packages".into());
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).map_err(|_| unreadable())?;
    let defaults = metadata["workspace_default_members"]
        .as_array()
        .ok_or_else(unreadable)?;
    let packages = metadata["packages"].as_array().ok_or_else(unreadable)?;
    let names = packages
        .iter()
        .filter(|package| defaults.contains(&package["id"]))
        .filter_map(|package| package["name"].as_str())
        .filter(|name| ![SYSTEM_TESTS, HOUSE].contains(name));
    Ok(names.map(String::from).collect())
}

/// cargo's arguments that choose these packages.
fn selected<S: ToString>(packages: impl IntoIterator<Item = S>) -> impl Iterator<Item = String> {
    packages
        .into_iter()
        .flat_map(|package| ["-p".to_string(), package.to_string()])
}

/// Runs a command that as a whole holds or doesn't.
fn check(command: CargoCommand) -> Counts {
    if command.run(|_| {}) {
        Counts::PASSED
    } else {
        Counts::FAILED
    }
}

/// Runs a command on the packages for the bare-metal target, with `last` at its end.
fn on_target(command: impl Fn() -> CargoCommand, last: &[&str]) -> Counts {
    let checked = TARGET_PACKAGES.map(|packages| {
        check(
            command()
                .args(selected(packages))
                .args(["--target", TARGET])
                .args(last),
        )
    });
    checked.into_iter().fold(Counts::default(), Counts::plus)
}

/// Runs `cargo test` and sums its counts. A failure that isn't one of a test (of the build, say) counts as one.
fn tests(command: CargoCommand) -> Counts {
    let mut counts = Counts::default();
    let succeeded = command.run(|line| counts = counts.plus(test_result(line).unwrap_or_default()));
    if succeeded || counts.failed != 0 {
        counts
    } else {
        counts.plus(Counts::FAILED)
    }
}

fn failed(reason: &str) -> Counts {
    eprintln!("error: {reason}");
    Counts::FAILED
}

/// Reads libtest's `test result: ok. 12 passed; 0 failed; …`.
fn test_result(line: &str) -> Option<Counts> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let count = |name: &str| {
        let count = counts
            .split("; ")
            .find_map(|part| part.strip_suffix(name))?;
        count.trim().parse().ok()
    };
    Some(Counts {
        passed: count(" passed")?,
        failed: count(" failed")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_from_libtests_last_line() {
        let line = "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.30s";
        assert_eq!(
            test_result(line),
            Some(Counts {
                passed: 12,
                failed: 0
            })
        );
        let line = "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s";
        assert_eq!(
            test_result(line),
            Some(Counts {
                passed: 3,
                failed: 2
            })
        );
        assert_eq!(test_result("test a_test ... ok"), None);
    }

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

    #[test]
    fn the_host_packages_leave_out_bare_metal_and_system_tests() {
        let packages = host_packages().expect("cargo metadata works");
        assert!(packages.iter().any(|name| name == "verify"));
        assert!(
            packages
                .iter()
                .all(|name| name != SYSTEM_TESTS && name != "firmware")
        );
    }

    #[test]
    fn a_command_that_fails_without_a_failed_test_counts_as_one() {
        let unknown = CargoCommand::new(["no-such-subcommand"]).quiet();
        assert_eq!(tests(unknown), Counts::FAILED);
        assert_eq!(check(CargoCommand::new(["--version"])), Counts::PASSED);
    }
}
