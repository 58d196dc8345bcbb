//! The steps, and what each of them runs.

use std::process::{Command, Stdio};

use clap::ValueEnum;

use super::counts::{Counts, check, failed, tests};
use crate::instructions;
use crate::mutants;
use crate::trace;
use emulator::cargo::CargoCommand;
use emulator::error::ToolError;
use emulator::images;
use emulator::repository::repository;
use emulator::setup::{self, TARGET, cargo};
use emulator::simclock;
use emulator::standard_output::print_line;
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
        "load",
        "micro-guest",
        "vmm",
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

/// The steps, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Step {
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
    /// Slow: Debian's kernels on each CPU, GIC and number of vCPUs.
    Kernels,
    /// Slow: deliberate bugs, each of which a test has to catch (see scripts/mutate).
    Mutants,
}

impl Step {
    pub fn heading(self) -> &'static str {
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
            Self::Kernels => "kernels",
            Self::Mutants => "mutants",
        }
    }

    pub fn is_slow(self) -> bool {
        matches!(
            self,
            Self::Miri | Self::Fuzz | Self::Kernels | Self::Mutants
        )
    }

    /// Installs the additional programs that the step needs.
    pub fn set_up(self) -> Result<(), ToolError> {
        match self {
            Self::Trace | Self::Qemu | Self::Simclock | Self::Kernels => {
                setup::emulator().map(|_| ())
            }
            Self::Instructions => setup::valgrind(),
            Self::Miri => setup::nightly(),
            Self::Fuzz => setup::nightly().and_then(|()| setup::cargo_fuzz()),
            _ => Ok(()),
        }
    }

    pub fn run(self, host_packages: &[String], slow: bool) -> Counts {
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
                let command = system_tests().args(["--lib", "--test", "system"]);
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
            Self::Kernels => {
                let ignored = ["--test", "system", "--", "--ignored", "kernels::"];
                tests(system_tests().args(ignored))
            }
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

/// The command of the system tests, two at a time.
fn system_tests() -> CargoCommand {
    CargoCommand::new(["test", "--no-fail-fast", "-p", SYSTEM_TESTS]).env("RUST_TEST_THREADS", "2")
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
        print_line(format_args!("{} ... {verdict}", finding.text));
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
        print_line(format_args!("{}{verdict}", finding.text));
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
        print_line(format_args!("skipped under QEMU: {reason}"));
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

/// The workspace's packages that are built for the host by default, without the system tests.
pub fn host_packages() -> Result<Vec<String>, ToolError> {
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
