//! Runs a program to its end within a time limit, and makes one line of it if it fails.
//!
//! Each has a process group of its own, which ends with this process. Several may run at once.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use emulator::boot::{self, End};
use emulator::effort::Limit;
use emulator::error::ToolError;

/// How many of a failed program's last lines are shown.
const SHOWN_LINES: usize = 3;

/// The output of a program.
#[derive(Debug)]
pub struct Output {
    /// The lines of its standard output.
    pub lines: Vec<String>,
    /// The lines of its standard error.
    pub complaints: Vec<String>,
}

/// Runs `command`, in English, to its end.
///
/// # Errors
///
/// [`ToolError::Setup`]: `what` couldn't be done, with the program's last lines, or that it reached `limit`.
pub fn finish(command: &mut Command, limit: Duration, what: &str) -> Result<Output, ToolError> {
    let program = command.get_program().to_owned();
    let program = Path::new(&program)
        .file_name()
        .unwrap_or(&program)
        .to_string_lossy();
    command.env("LC_ALL", "C");
    let outcome = boot::run(command, Limit::total(limit), |_, _| {}, |_| {})
        .map_err(|error| failed(what, &format!("{program} can't be run: {error}")))?;
    let lines: Vec<String> = outcome.lines.into_iter().collect();
    match outcome.end {
        End::Ended(status) if status.success() => Ok(Output {
            lines,
            complaints: outcome.complaints,
        }),
        End::Ended(_) => {
            let said = last_lines(&outcome.complaints).or_else(|| last_lines(&lines));
            let said = said.unwrap_or_else(|| "it didn't say why".into());
            Err(failed(what, &format!("{program} failed: {said}")))
        }
        End::TimedOut(_) | End::EndedAfterStatus => Err(failed(
            what,
            &format!("{program} hadn't ended after {} s", limit.as_secs()),
        )),
    }
}

/// The error that `what` couldn't be done, and why.
pub fn failed(what: &str, why: &str) -> ToolError {
    ToolError::Setup(format!("{what}: {why}"))
}

/// The last lines that say something, as one.
pub fn last_lines(lines: &[String]) -> Option<String> {
    let lines: Vec<&str> = lines
        .iter()
        .map(|line| line.trim())
        .filter(|line| !line.is_empty())
        .collect();
    let shown = &lines[lines.len().saturating_sub(SHOWN_LINES)..];
    (!shown.is_empty()).then(|| shown.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn shell(script: &str, limit: Duration) -> Result<Output, ToolError> {
        finish(
            Command::new("sh").args(["-c", script]),
            limit,
            "it can't be done",
        )
    }

    #[test]
    fn what_a_program_printed_is_given_back() {
        let output = shell("echo a; echo b >&2; echo c", LONG).expect("it ends well");
        assert_eq!(output.lines, ["a", "c"]);
        assert_eq!(output.complaints, ["b"]);
    }

    #[test]
    fn a_failure_is_one_line_with_the_programs_last_words() {
        let error = |script| shell(script, LONG).expect_err("it fails").to_string();
        assert_eq!(
            error("echo x; for i in 1 2 3 4; do echo; echo $i >&2; done; exit 1"),
            "it can't be done: sh failed: 2; 3; 4"
        );
        assert_eq!(error("echo x; exit 1"), "it can't be done: sh failed: x");
        assert_eq!(
            error("exit 1"),
            "it can't be done: sh failed: it didn't say why"
        );
    }

    #[test]
    fn a_program_that_hangs_is_ended() {
        let error = shell("sleep 1000", Duration::from_millis(100)).expect_err("it hangs");
        assert_eq!(
            error.to_string(),
            "it can't be done: sh hadn't ended after 0 s"
        );
    }

    #[test]
    fn a_program_that_is_missing_is_named() {
        let missing = finish(
            &mut Command::new("/no/such-program"),
            LONG,
            "it can't be done",
        );
        let error = missing.expect_err("there is none").to_string();
        assert!(
            error.starts_with("it can't be done: such-program can't be run"),
            "{error}"
        );
    }
}
