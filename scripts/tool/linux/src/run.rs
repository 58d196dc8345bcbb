//! One measurement: starts the machine, follows its console, and makes a record of the test's result lines.
//!
//! Any number may run at once.

use std::path::Path;

use records::record::{Phase, PhaseName, Record};

use super::Kernel;
use super::command::last_lines;
use super::test::Test;
use emulator::boot::{self, End, Outcome};
use emulator::console::Line;
use emulator::effort::Limit;
use emulator::error::ToolError;

/// The beginning of `init.sh`'s error lines.
const ERROR: &str = "@linux error: ";
/// The line of `init.sh` with the test's exit status.
const END: &str = "@linux end ";
/// The beginning of the test's line with the reason of its failure.
const ASSERTION: &str = "==== Test Assertion Failure ====";
/// How many lines of that are shown.
const ASSERTION_LINES: usize = 4;
/// The beginning of the test's line with the kind of guest.
const GUEST_MODE: &str = "Testing guest mode: PA-bits:";
/// The usual seed of the test's random numbers.
const SEED: u64 = 1;

/// Runs `test` on `kernel` in the emulator; `observe` sees each phase when it is over.
///
/// # Errors
///
/// [`ToolError::Usage`] for a run that is impossible; [`ToolError::Io`] if the test fails, with its reason;
/// [`ToolError::NoStatus`] if the machine ends, or has to be ended, before the test does.
pub fn run(
    kernel: &Kernel,
    emulator: &Path,
    test: &Test,
    mut observe: impl FnMut(&Phase),
) -> Result<Record, ToolError> {
    let mut command = test.machine(kernel, emulator)?.command();
    let observe_line = |_: &Line, text: &str| {
        if let Some(phase) = Phase::parse(text) {
            observe(&phase);
        }
    };
    let outcome = boot::run(
        &mut command,
        Limit::total(test.limit()),
        observe_line,
        |_| {},
    )
    .map_err(|error| ToolError::Io(format!("{}: {error}", emulator.display())))?;
    record(kernel, test, &outcome)
}

/// Makes the record of the machine's output.
fn record(kernel: &Kernel, test: &Test, outcome: &Outcome) -> Result<Record, ToolError> {
    let lines: Vec<String> = outcome.lines.iter().cloned().collect();
    match failure(&lines) {
        None => {}
        Some(Failure::Test(why)) => {
            return Err(ToolError::Io(format!("Linux {}: {why}", kernel.version)));
        }
        Some(Failure::NoEnd) => return Err(no_end(kernel, test, outcome, &lines)),
    }
    let phases: Vec<Phase> = lines.iter().filter_map(|line| Phase::parse(line)).collect();
    if names(&phases) != expected(test) {
        return Err(ToolError::Io(format!(
            "Linux {}: dirty_log_perf_test printed other phases than it should have: {}",
            kernel.version,
            last_lines(&lines).unwrap_or_default()
        )));
    }
    let (enable, clear) = match test.manual_clear {
        true => ("all_set", "manual"),
        false => ("protect", "with_get"),
    };
    Ok(Record {
        system: format!("linux {}", kernel.version),
        mode: "kvm".into(),
        split: if test.eager_split.is_some() {
            "eager"
        } else {
            "none"
        }
        .into(),
        tracking: "writeprotect".into(),
        granularity: "4K".into(),
        harvest: "bitmap".into(),
        enable: enable.into(),
        clear: clear.into(),
        restore: "never".into(),
        slots: test.slots.into(),
        vcpus: test.vcpus.into(),
        bytes_per_vcpu: test.bytes_per_vcpu,
        backing: test.backing.size().into(),
        iterations: test.iterations.into(),
        write_percent: test.write_percent.into(),
        random: test.random,
        seed: SEED,
        cpu: test.cpu.clone(),
        gic: test.gic.version(),
        clock: match &test.simulation {
            Some(simulation) => simulation.clock(),
            None => "CLOCK_MONOTONIC".into(),
        },
        stage2: stage2(&lines).unwrap_or_default(),
        phases,
        ..Record::default()
    })
}

/// How a test can come to no result.
#[derive(Debug, PartialEq, Eq)]
enum Failure {
    /// This line, or one before it, has the reason.
    Test(String),
    /// The machine's end came first.
    NoEnd,
}

/// Why the test failed, if it did.
fn failure(lines: &[String]) -> Option<Failure> {
    if let Some(why) = lines.iter().find_map(|line| line.strip_prefix(ERROR)) {
        return Some(Failure::Test(why.into()));
    }
    match lines.iter().find_map(|line| line.strip_prefix(END)) {
        None => Some(Failure::NoEnd),
        Some("0") => None,
        Some(status) => {
            let reason = lines.iter().skip_while(|line| *line != ASSERTION).skip(1);
            let reason = reason.take_while(|line| !line.starts_with("@linux"));
            let reason: Vec<&str> = reason
                .take(ASSERTION_LINES)
                .map(|line| line.trim())
                .collect();
            let reason = if reason.is_empty() {
                last_lines(lines).unwrap_or_default()
            } else {
                reason.join("; ")
            };
            Some(Failure::Test(format!(
                "dirty_log_perf_test failed with status {status}: {reason}"
            )))
        }
    }
}

/// The error for a machine that ended, or was ended, before the test.
fn no_end(kernel: &Kernel, test: &Test, outcome: &Outcome, lines: &[String]) -> ToolError {
    let how = match outcome.end {
        End::Ended(status) => format!("the emulator ended ({status}) before the test"),
        End::EndedAfterStatus | End::TimedOut(_) => {
            format!("the test hadn't ended after {} s", test.limit().as_secs())
        }
    };
    let said = last_lines(lines).or_else(|| last_lines(&outcome.complaints));
    let said = said.map_or_else(
        || "there was no output".into(),
        |said| format!("the last output was: {said}"),
    );
    ToolError::NoStatus(format!("Linux {}: {how}; {said}", kernel.version))
}

/// The names of `phases`, in their order.
fn names(phases: &[Phase]) -> Vec<(PhaseName, u64)> {
    phases
        .iter()
        .map(|phase| (phase.name, phase.iteration))
        .collect()
}

/// The phases of a whole test.
fn expected(test: &Test) -> Vec<(PhaseName, u64)> {
    let mut phases = vec![(PhaseName::Populate, 0), (PhaseName::Enable, 0)];
    for iteration in 1..=test.iterations.into() {
        phases.extend([(PhaseName::Dirty, iteration), (PhaseName::Get, iteration)]);
        phases.extend(test.manual_clear.then_some((PhaseName::Clear, iteration)));
    }
    phases.push((PhaseName::Disable, 0));
    phases
}

/// The guest's layout, in the words of Parvisor's records.
fn stage2(lines: &[String]) -> Option<String> {
    let mode = lines
        .iter()
        .find_map(|line| line.strip_prefix(GUEST_MODE))?;
    let bits = mode.split(',').next()?;
    Some(format!("{bits}-bit IPA, 4K pages"))
}

#[cfg(test)]
mod tests {
    use super::super::test::tests::{kernel, test};
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    /// The output of Linux 6.12.
    const CONSOLE: &str = "\
@linux begin
Random seed: 0x6b8b4567
Test iterations: 2
Testing guest mode: PA-bits:48,  VA-bits:48,  4K pages
Random seed: 0x1
guest physical test memory: [0xffffff600000, 0xffffffe00000)
Populate memory time: 0.005238912s
Enabling dirty logging time: 0.000071232s

Iteration 1 dirty memory time: 0.000096192s
Iteration 1 get dirty log time: 0.000010064s
Iteration 1 clear dirty log time: 0.000020160s
Iteration 2 dirty memory time: 0.008647328s
Iteration 2 get dirty log time: 0.000010032s
Iteration 2 clear dirty log time: 0.000215936s
Disabling dirty logging time: 0.000021936s
Get dirty log over 2 iterations took 0.000020096s. (Avg 0.000010048s/iteration)
Clear dirty log over 2 iterations took 0.000236096s. (Avg 0.000118048s/iteration)
@linux end 0
[    1.870786] reboot: Power down
";

    fn read(console: &str, options: &Test) -> Result<Record, ToolError> {
        let outcome = Outcome {
            emulator: "qemu".into(),
            end: End::Ended(ExitStatus::from_raw(0)),
            status: None,
            records: Vec::new(),
            errors: Vec::new(),
            fatal: Vec::new(),
            lines: console.lines().map(String::from).collect(),
            complaints: Vec::new(),
        };
        record(&kernel(), options, &outcome)
    }

    fn two_iterations() -> Test {
        Test {
            iterations: 2,
            ..test()
        }
    }

    fn error(console: &str) -> String {
        read(console, &two_iterations())
            .expect_err("it failed")
            .to_string()
    }

    #[test]
    fn the_result_lines_become_a_record() {
        let record = read(CONSOLE, &two_iterations()).expect("a record");
        assert_eq!((&*record.system, &*record.mode), ("linux 6.12.117", "kvm"));
        assert_eq!(
            (&*record.split, &*record.enable, &*record.clear),
            ("none", "all_set", "manual")
        );
        assert_eq!((&*record.backing, record.vcpus, record.gic), ("2M", 4, 3));
        assert_eq!(record.stage2, "48-bit IPA, 4K pages");
        assert_eq!(record.phases.len(), 9);
        let dirty = &record.phases[5];
        assert_eq!(
            (dirty.name, dirty.iteration, dirty.ns),
            (PhaseName::Dirty, 2, 8_647_328)
        );
        assert!(record.counters.is_empty() && !record.verified);
    }

    #[test]
    fn without_manual_clearing_there_is_no_phase_for_it() {
        let together = Test {
            manual_clear: false,
            ..two_iterations()
        };
        let console: String = CONSOLE
            .lines()
            .filter(|line| !line.contains("clear"))
            .map(|line| format!("{line}\n"))
            .collect();
        let record = read(&console, &together).expect("a record");
        assert_eq!((&*record.enable, &*record.clear), ("protect", "with_get"));
        assert_eq!(record.phases.len(), 7);
        assert!(read(CONSOLE, &together).is_err());
    }

    #[test]
    fn a_phase_that_is_missing_is_an_error() {
        assert!(
            error(&CONSOLE.replace("Iteration 2 get", "Iteration 2 got")).contains("other phases")
        );
    }

    #[test]
    fn a_failed_assertion_is_one_line() {
        let console = "@linux begin\n==== Test Assertion Failure ====\n  lib/kvm_util.c:1057: ret == 0\n  \
                       pid=95 tid=95 errno=22 - Invalid argument\n@linux end 254\n";
        assert_eq!(
            error(console),
            "Linux 6.12.117: dirty_log_perf_test failed with status 254: lib/kvm_util.c:1057: ret == 0; \
             pid=95 tid=95 errno=22 - Invalid argument"
        );
    }

    #[test]
    fn what_keeps_the_test_from_running_is_told() {
        let console = "@linux error: this kernel has no KVM on this CPU\n";
        assert_eq!(
            error(console),
            "Linux 6.12.117: this kernel has no KVM on this CPU"
        );
        let split =
            "@linux begin\n@linux error: this kernel has no eager splitting\n@linux end 1\n";
        assert_eq!(
            error(split),
            "Linux 6.12.117: this kernel has no eager splitting"
        );
    }

    #[test]
    fn a_machine_that_ended_first_is_told_with_its_last_words() {
        let error = error("@linux begin\nKernel panic - not syncing\n");
        assert!(
            error.contains("ended (exit status: 0) before the test"),
            "{error}"
        );
        assert!(error.ends_with("Kernel panic - not syncing"), "{error}");
    }
}
