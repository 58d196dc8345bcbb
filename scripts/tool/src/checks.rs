//! `scripts/test`: everything that has to hold, step by step. A step that fails doesn't keep the next ones from
//! running; what they found is summed up in the last line.
//!
//! Each step has a time limit, so that a test that hangs fails instead of holding everything up.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};

use crate::error::{FAILED, ToolError, USAGE};
use crate::images::{self, repository, without_foreign_flags};
use crate::options::one_line;
use crate::process::Group;
use crate::setup::{self, TARGET, cargo};

/// The packages that exist for the bare-metal target, with what they are built from. Checked apart, as they are built
/// apart: together, they would share the features of the crates that they use.
const TARGET_PACKAGES: [&[&str]; 2] = [
    &["platform", "firmware"],
    &["guest-runtime", "dirty-log-guest", "probe-guest"],
];
/// The package of the system tests, which have a step of their own.
const SYSTEM_TESTS: &str = "qemu-tests";
/// No step may take longer.
const STEP_LIMIT: Duration = Duration::from_secs(15 * 60);

/// Checks everything that has to hold: formatting, lints, host tests, model checking, documentation, the bare-metal
/// build, and system tests under QEMU. Installs what is missing. The last line counts: `N passed, N failed`.
#[derive(Debug, Parser)]
#[command(
    bin_name = "scripts/test",
    disable_version_flag = true,
    max_term_width = 120
)]
struct TestOptions {
    /// Run this step alone; may be given several times.
    #[arg(long, value_name = "STEP", value_enum)]
    only: Vec<Step>,
}

/// The steps, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Step {
    /// Formatting: cargo fmt --check.
    Format,
    /// Lints of what runs on the host, tests included.
    LintHost,
    /// Lints of what runs on bare metal.
    LintTarget,
    /// Unit tests and suites on the host.
    Host,
    /// Model checking of the protocol with loom.
    Loom,
    /// Documentation of all crates, without a warning.
    Docs,
    /// The bare-metal images.
    Build,
    /// System tests: boots under QEMU.
    Qemu,
}

impl Step {
    fn heading(self) -> &'static str {
        match self {
            Self::Format => "formatting",
            Self::LintHost => "lints, host",
            Self::LintTarget => "lints, bare metal",
            Self::Host => "host tests",
            Self::Loom => "model checking",
            Self::Docs => "documentation",
            Self::Build => "bare-metal images",
            Self::Qemu => "system tests under QEMU",
        }
    }

    fn run(self, host_packages: &[String]) -> Counts {
        let host = || selected(host_packages);
        let deny = ["--", "-D", "warnings"];
        match self {
            Self::Format => check(CargoCommand::new(["fmt", "--all", "--check"])),
            Self::LintHost => check(CargoCommand::new(["clippy", "--all-targets"]).args(deny)),
            Self::LintTarget => on_target(
                || CargoCommand::new(["clippy", "--profile", "firmware"]),
                &deny,
            ),
            Self::Host => tests(CargoCommand::new(["test", "--no-fail-fast"]).args(host())),
            // vm's other tests use its atomics outside of a model.
            Self::Loom => tests(loom("model").arg("--no-fail-fast"))
                .plus(tests(loom("vm").args(["--lib", "model::"]))),
            Self::Docs => {
                let docs =
                    || CargoCommand::new(["doc", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings");
                check(docs()).plus(on_target(docs, &[]))
            }
            Self::Build => match images::build() {
                Ok(_) => Counts::PASSED,
                Err(error) => failed(&error.to_string()),
            },
            Self::Qemu => tests(
                CargoCommand::new(["test", "--no-fail-fast", "-p", SYSTEM_TESTS])
                    .env("RUST_TEST_THREADS", "2"),
            ),
        }
    }
}

/// The tests of a package, built for the model checker.
fn loom(package: &'static str) -> CargoCommand {
    CargoCommand::new([
        "test",
        "--release",
        "--target-dir",
        "target/loom",
        "-p",
        package,
    ])
    .env("RUSTFLAGS", "--cfg loom")
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
    let wanted = |step: &Step| options.only.is_empty() || options.only.contains(step);
    setup::rust_components()?;
    setup::rust_target()?;
    if wanted(&Step::Qemu) {
        setup::emulator()?;
    }
    let host_packages = host_packages()?;
    let mut sum = Counts::default();
    for step in Step::value_variants().iter().filter(|step| wanted(step)) {
        say(&format!("\n== {} ==", step.heading()));
        let started = Instant::now();
        let counts = step.run(&host_packages);
        let seconds = started.elapsed().as_secs();
        say(&format!(
            "-- {}: {} passed, {} failed, {seconds} s",
            step.heading(),
            counts.passed,
            counts.failed
        ));
        sum = sum.plus(counts);
    }
    say("");
    Ok(sum)
}

/// A line for the user; whoever closed standard output doesn't want it.
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
        .filter(|name| *name != SYSTEM_TESTS);
    Ok(names.map(String::from).collect())
}

/// cargo's arguments that choose these packages.
fn selected<S: ToString>(packages: impl IntoIterator<Item = S>) -> impl Iterator<Item = String> {
    packages
        .into_iter()
        .flat_map(|package| ["-p".to_string(), package.to_string()])
}

/// A cargo command that is run in the repository, with the environment that the workspace's settings expect.
struct CargoCommand {
    command: Command,
}

impl CargoCommand {
    fn new<const N: usize>(arguments: [&str; N]) -> Self {
        let mut command = Command::new(cargo());
        command
            .args(arguments)
            .current_dir(repository())
            .stdin(Stdio::null());
        without_foreign_flags(&mut command);
        Self { command }
    }

    fn arg(mut self, argument: &str) -> Self {
        self.command.arg(argument);
        self
    }

    fn args<S: AsRef<std::ffi::OsStr>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.command.args(arguments);
        self
    }

    fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// Runs it, shows what it prints, and gives each line of its standard output to `line`. Whether it succeeded.
    fn run(mut self, mut line: impl FnMut(&str) + Send) -> bool {
        self.command.stdout(Stdio::piped());
        let mut group = match Group::spawn(&mut self.command) {
            Ok(group) => group,
            Err(error) => {
                eprintln!("error: cargo can't be run: {error}");
                return false;
            }
        };
        let output = group.child().stdout.take();
        let ended = thread::scope(|scope| {
            scope.spawn(move || {
                for text in output
                    .map(|pipe| BufReader::new(pipe).lines())
                    .into_iter()
                    .flatten()
                    .map_while(Result::ok)
                {
                    say(&text);
                    line(&text);
                }
            });
            let ended = group.wait_until(Instant::now() + STEP_LIMIT);
            group.kill();
            ended
        });
        match ended {
            Ok(Some(status)) => status.success(),
            Ok(None) => {
                eprintln!("error: ended after {} minutes", STEP_LIMIT.as_secs() / 60);
                false
            }
            Err(error) => {
                eprintln!("error: cargo was lost: {error}");
                false
            }
        }
    }
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
    fn the_host_packages_leave_out_bare_metal_and_system_tests() {
        let packages = host_packages().expect("cargo metadata works");
        assert!(packages.iter().any(|name| name == "tool"));
        assert!(
            packages
                .iter()
                .all(|name| name != SYSTEM_TESTS && name != "firmware")
        );
    }

    #[test]
    fn a_command_that_fails_without_a_failed_test_counts_as_one() {
        let mut unknown = CargoCommand::new(["no-such-subcommand"]);
        unknown.command.stderr(Stdio::null());
        assert_eq!(tests(unknown), Counts::FAILED);
        assert_eq!(check(CargoCommand::new(["--version"])), Counts::PASSED);
    }
}
