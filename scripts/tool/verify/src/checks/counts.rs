//! What comes out of the checks: how many tests and checks passed and failed.

use emulator::cargo::CargoCommand;

/// How many tests and checks passed and failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub passed: u64,
    pub failed: u64,
}

impl Counts {
    pub const PASSED: Self = Self {
        passed: 1,
        failed: 0,
    };
    pub const FAILED: Self = Self {
        passed: 0,
        failed: 1,
    };

    pub fn plus(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
        }
    }
}

/// Runs a command that as a whole holds or doesn't.
pub fn check(command: CargoCommand) -> Counts {
    if command.run(|_| {}) {
        Counts::PASSED
    } else {
        Counts::FAILED
    }
}

/// Runs `cargo test` and sums its counts. A failure that isn't one of a test (of the build, say) counts as one.
pub fn tests(command: CargoCommand) -> Counts {
    let mut counts = Counts::default();
    let succeeded = command.run(|line| counts = counts.plus(test_result(line).unwrap_or_default()));
    if succeeded || counts.failed != 0 {
        counts
    } else {
        counts.plus(Counts::FAILED)
    }
}

pub fn failed(reason: &str) -> Counts {
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
    fn a_command_that_fails_without_a_failed_test_counts_as_one() {
        let unknown = CargoCommand::new(["no-such-subcommand"]).quiet();
        assert_eq!(tests(unknown), Counts::FAILED);
        assert_eq!(check(CargoCommand::new(["--version"])), Counts::PASSED);
    }
}
