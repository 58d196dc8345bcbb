//! The suites that have to catch mutants, and how the run of one is read.
//!
//! A suite is built first and run second: a compile error is no catch. The run ends at the first test that fails.

use std::fmt;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use emulator::cargo::{CargoCommand, Ended};
use emulator::effort::Limit;

/// The suites in the order of their runs: the fast ones first.
pub const SUITES: &[Suite] = &[
    Suite {
        name: "stage2",
        package: "stage2",
        all: &["--lib"],
        checker: false,
    },
    Suite {
        name: "memory",
        package: "memory",
        all: &["--lib"],
        checker: false,
    },
    Suite {
        name: "checker",
        package: "checker",
        all: &["--tests"],
        checker: false,
    },
    Suite {
        name: "model",
        package: "model",
        all: &["--tests"],
        checker: false,
    },
    Suite {
        name: "loom",
        package: "model",
        all: &["--tests"],
        checker: true,
    },
];
/// How long a build may take.
const BUILD_LIMIT: Duration = Duration::from_secs(15 * 60);
/// Mutants are built and run on so many CPUs.
const CPUS: &str = "2";
/// The seed of the tests' random choices, the same for each mutant and each run.
const SEED: &str = "1";

/// A set of tests.
#[derive(Debug)]
pub struct Suite {
    /// Its name in mutants and tables.
    pub name: &'static str,
    /// The package whose tests it consists of.
    package: &'static str,
    /// cargo test's arguments that choose all of them.
    all: &'static [&'static str],
    /// Whether it is built for the model checker.
    checker: bool,
}

/// Some tests of a suite.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Those of this test target alone, which is all that is built then.
    pub target: Option<String>,
    /// Those whose names contain this.
    pub test: Option<String>,
}

/// The result of a suite's run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All tests passed, and took so long.
    Passed(Duration),
    /// A test failed.
    Failed(Failure),
    /// It wasn't built, and the compiler's first error.
    NotBuilt(String),
}

/// How a suite failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// This test failed.
    Test(String),
    /// The tests' process ended in the middle; the test that panicked last, if any did.
    Death(Option<String>),
    /// They didn't end within the time limit; a test that ran for long by then, if one was named.
    TimeLimit(Option<String>),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Test(test) => f.write_str(test),
            Self::Death(Some(test)) => write!(f, "{test} (which ended the process)"),
            Self::Death(None) => f.write_str("the end of the process"),
            Self::TimeLimit(Some(test)) => write!(f, "time limit, in {test}"),
            Self::TimeLimit(None) => f.write_str("time limit"),
        }
    }
}

impl Suite {
    /// Builds the suite of the source tree at `tree`, under `build`, and runs it for at most `limit`: all of its tests, or
    /// those of `selection`.
    ///
    /// # Errors
    ///
    /// If cargo can't be run.
    pub fn run(
        &self,
        tree: &Path,
        build: &Path,
        selection: Option<&Selection>,
        limit: Duration,
    ) -> io::Result<Verdict> {
        let mut error = None;
        let (target, test) = selection.map_or((None, None), |selection| {
            (selection.target.as_deref(), selection.test.as_deref())
        });
        let command = || {
            let command = self.command(tree, build);
            match target {
                Some(target) => command.args(["--test", target]),
                None => command.args(self.all),
            }
        };
        let building = command().limited(Limit::total(BUILD_LIMIT));
        let built = building
            .args(["--no-run", "--message-format=short"])
            .watch(|line| {
                if error.is_none() && (line.starts_with("error") || line.contains(": error")) {
                    error = Some(line.to_string());
                }
                ControlFlow::Continue(())
            })?;
        if !matches!(built, Ended::Exited(status) if status.success()) {
            let unknown = || "the build didn't end well".to_string();
            return Ok(Verdict::NotBuilt(error.unwrap_or_else(unknown)));
        }
        let started = Instant::now();
        let mut results = Results::default();
        // Without --nocapture, the last output of a test that ends the process would be lost.
        let run = command().limited(Limit::total(limit));
        let ended = run
            .args(["--", "--nocapture"])
            .args(test)
            .watch(|line| results.read(line))?;
        Ok(results.verdict(ended, started.elapsed()))
    }

    fn command(&self, tree: &Path, build: &Path) -> CargoCommand {
        let command = CargoCommand::new(["test", "-p", self.package]);
        let command = if self.checker {
            command.arg("--release").env("RUSTFLAGS", "--cfg loom")
        } else {
            command
        };
        // The flag makes other crates of all: in one folder the two would undo each other's work.
        let folder = build.join(if self.checker { "loom" } else { "host" });
        command
            .within(tree)
            .env("CARGO_TARGET_DIR", folder)
            .env("CARGO_BUILD_JOBS", CPUS)
            .env("RUST_TEST_THREADS", CPUS)
            .env("PROPTEST_RNG_SEED", SEED)
            .env("PROPTEST_MAX_SHRINK_ITERS", "0")
    }
}

/// The part of libtest's output that was read.
#[derive(Debug, Default)]
struct Results {
    failed: Option<String>,
    panicked: Option<String>,
    slow: Option<String>,
}

impl Results {
    /// Reads a line; breaks at the first failed test.
    fn read(&mut self, line: &str) -> ControlFlow<()> {
        let test = line.strip_prefix("test ");
        if let Some(name) = test.and_then(|test| test.strip_suffix(" ... FAILED")) {
            let name = name.strip_suffix(" - should panic").unwrap_or(name);
            self.failed = Some(name.into());
            return ControlFlow::Break(());
        }
        if let Some((name, _)) = test.and_then(|test| test.split_once(" has been running for")) {
            self.slow = Some(name.into());
        }
        // libtest names each test's thread after it.
        let thread = line.strip_prefix("thread '");
        if let Some((name, rest)) = thread.and_then(|thread| thread.split_once('\''))
            && rest.contains("panicked at")
        {
            self.panicked = Some(name.into());
        }
        ControlFlow::Continue(())
    }

    fn verdict(self, ended: Ended, time: Duration) -> Verdict {
        match (self.failed, ended) {
            (Some(test), _) => Verdict::Failed(Failure::Test(test)),
            (None, Ended::TimedOut(_)) => Verdict::Failed(Failure::TimeLimit(self.slow)),
            (None, Ended::Exited(status)) if status.success() => Verdict::Passed(time),
            (None, _) => Verdict::Failed(Failure::Death(self.panicked)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use emulator::effort::Reached;
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    const TIME: Duration = Duration::from_secs(1);

    fn verdict(lines: &[&str], ended: Ended) -> Verdict {
        let mut results = Results::default();
        for line in lines {
            if results.read(line).is_break() {
                return results.verdict(Ended::Stopped, TIME);
            }
        }
        results.verdict(ended, TIME)
    }

    fn exited(status: i32) -> Ended {
        Ended::Exited(ExitStatus::from_raw(status))
    }

    #[test]
    fn the_first_failed_test_is_named() {
        let lines = [
            "test a ... ok",
            "test b - should panic ... FAILED",
            "test c ... FAILED",
        ];
        let failed = Verdict::Failed(Failure::Test("b".into()));
        assert_eq!(verdict(&lines, exited(256)), failed);
        assert_eq!(verdict(&lines[..1], exited(0)), Verdict::Passed(TIME));
    }

    #[test]
    fn a_process_that_dies_names_the_test_that_panicked() {
        let lines = ["thread 'a::b' (17) panicked at src/lib.rs:1:1:", "gone"];
        let death = |test| Verdict::Failed(Failure::Death(test));
        assert_eq!(verdict(&lines, exited(6)), death(Some("a::b".into())));
        assert_eq!(verdict(&[], exited(6)), death(None));
        assert_eq!(verdict(&lines, exited(0)), Verdict::Passed(TIME));
    }

    #[test]
    fn a_hang_names_the_test_that_libtest_named() {
        let lines = ["test a::b has been running for over 60 seconds"];
        let failure = Failure::TimeLimit(Some("a::b".into()));
        assert_eq!(failure.to_string(), "time limit, in a::b");
        let ended = Ended::TimedOut(Reached::Total(TIME));
        assert_eq!(verdict(&lines, ended), Verdict::Failed(failure));
    }
}
