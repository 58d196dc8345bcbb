//! Runs cargo in the repository, or in a copy of it, and follows what it prints. Every run has a limit, so that a test that
//! hangs fails instead of holding everything up: on how long it prints nothing, which no test that ends does for long. Limits
//! are of the run's own time ([`effort`](crate::effort)): that others keep the host busy doesn't count.
//!
//! Each command is a process group of its own, which ends with the run, on Ctrl-C too.

use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, Read};
use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use crate::effort::{Limit, Reached, Watchdog};
use crate::images::without_foreign_flags;
use crate::process::Group;
use crate::repository::repository;
use crate::setup::{NIGHTLY, cargo};
use crate::standard_output::print_line;

/// The usual limit of a command without output. Each test that ends prints a line.
const USUAL_LIMIT: Limit = Limit::silence(Duration::from_secs(15 * 60));
/// How often a silent command is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// How long the readers of a dead group's pipes may take to end.
const READERS_END: Duration = Duration::from_secs(1);

/// A cargo command that is run in the repository, with the environment that the workspace's settings expect.
#[derive(Debug)]
pub struct CargoCommand {
    command: Command,
    limit: Limit,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By itself.
    Exited(ExitStatus),
    /// The caller has stopped it.
    Stopped,
    /// It reached a limit and was ended.
    TimedOut(Reached),
}

impl CargoCommand {
    /// The cargo that runs this tool, with these arguments.
    pub fn new<const N: usize>(arguments: [&str; N]) -> Self {
        Self::of(Command::new(cargo())).args(arguments)
    }

    /// The nightly toolchain's cargo, which [`setup`](crate::setup) installs.
    pub fn nightly<const N: usize>(arguments: [&str; N]) -> Self {
        let mut command = Command::new("rustup");
        command.args(["run", NIGHTLY, "cargo"]);
        // Variables that the stable cargo behind this tool has set for its own children.
        for variable in ["CARGO", "RUSTC", "RUSTDOC", "RUSTUP_TOOLCHAIN"] {
            command.env_remove(variable);
        }
        Self::of(command).args(arguments)
    }

    /// The tests of `package`, built for the model checker, in a target folder of their own: the flag makes other crates
    /// of all.
    pub fn loom(package: &str) -> Self {
        Self::new(["test", "--release", "-p", package])
            .args(["--target-dir", "target/loom"])
            .env("RUSTFLAGS", "--cfg loom")
    }

    fn of(mut command: Command) -> Self {
        command.current_dir(repository()).stdin(Stdio::null());
        without_foreign_flags(&mut command);
        Self {
            command,
            limit: USUAL_LIMIT,
        }
    }

    /// With one more argument.
    #[must_use]
    pub fn arg(self, argument: &str) -> Self {
        self.args([argument])
    }

    /// With more arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.command.args(arguments);
        self
    }

    /// With an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Run in another folder than the repository.
    #[must_use]
    pub fn within(mut self, folder: &Path) -> Self {
        self.command.current_dir(folder);
        self
    }

    /// Ended at this limit instead of the usual one.
    #[must_use]
    pub fn limited(mut self, limit: Limit) -> Self {
        self.limit = limit;
        self
    }

    /// Its errors aren't shown.
    #[must_use]
    pub fn quiet(mut self) -> Self {
        self.command.stderr(Stdio::null());
        self
    }

    /// Runs it, shows its output, and gives each line of its standard output to `line`. Returns whether it succeeded.
    pub fn run(mut self, mut line: impl FnMut(&str)) -> bool {
        self.command.stdout(Stdio::piped());
        let ended = follow(&mut self.command, self.limit, |text| {
            print_line(text);
            line(text);
            ControlFlow::Continue(())
        });
        match ended {
            Ok(Ended::Exited(status)) => status.success(),
            Ok(Ended::Stopped) => false,
            Ok(Ended::TimedOut(reached)) => {
                eprintln!("error: ended by force: {reached} of its own time");
                false
            }
            Err(error) => {
                eprintln!("error: cargo can't be run: {error}");
                false
            }
        }
    }

    /// Runs it, shows nothing, and gives each line that it prints to `line`, which may stop it.
    ///
    /// # Errors
    ///
    /// If it can't be started or waited for.
    pub fn watch(mut self, line: impl FnMut(&str) -> ControlFlow<()>) -> io::Result<Ended> {
        self.command.stdout(Stdio::piped()).stderr(Stdio::piped());
        follow(&mut self.command, self.limit, line)
    }
}

/// Runs `command` and gives each line from its pipes to `line`, up to its limit.
fn follow(
    command: &mut Command,
    limit: Limit,
    mut line: impl FnMut(&str) -> ControlFlow<()>,
) -> io::Result<Ended> {
    let mut group = Group::spawn(command)?;
    let mut watchdog = Watchdog::new(group.numbers(), limit);
    let lines = lines_of(&mut group);
    let status = loop {
        match lines.recv_timeout(LOOK) {
            Ok(text) => {
                watchdog.line();
                if line(&text).is_break() {
                    return Ok(Ended::Stopped);
                }
            }
            // It has closed its pipes, and is about to end.
            Err(RecvTimeoutError::Disconnected) => thread::sleep(LOOK),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if let Some(status) = group.ended()? {
            break status;
        }
        if let Some(reached) = watchdog.reached() {
            return Ok(Ended::TimedOut(reached));
        }
    };
    // A process that it has left behind may hold the pipes for ever.
    group.kill();
    while let Ok(text) = lines.recv_timeout(READERS_END) {
        if line(&text).is_break() {
            return Ok(Ended::Stopped);
        }
    }
    Ok(Ended::Exited(status))
}

/// Starts the threads that read the child's pipes.
fn lines_of(group: &mut Group) -> Receiver<String> {
    let (sender, lines) = mpsc::channel();
    let child = group.child();
    let stdout = child.stdout.take().map(|pipe| Box::new(pipe) as _);
    let stderr = child.stderr.take().map(|pipe| Box::new(pipe) as _);
    for pipe in [stdout, stderr].into_iter().flatten() {
        let pipe: Box<dyn Read + Send> = pipe;
        let sender = sender.clone();
        thread::spawn(move || {
            let read = BufReader::new(pipe).split(b'\n').map_while(Result::ok);
            for line in read {
                let text = String::from_utf8_lossy(&line);
                if sender
                    .send(text.trim_end_matches('\r').to_string())
                    .is_err()
                {
                    break;
                }
            }
        });
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Limit, stop_at: &str) -> (Ended, Vec<String>) {
        let mut command = Command::new("sh");
        command
            .args(["-c", script])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut lines = Vec::new();
        let ended = follow(&mut command, limit, |line| {
            lines.push(line.to_string());
            if line == stop_at {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        (ended.expect("sh starts"), lines)
    }

    const LONG: Limit = Limit::total(Duration::from_secs(60));

    #[test]
    fn both_pipes_are_read_to_their_end() {
        let (ended, mut lines) = shell("echo a; echo b >&2; printf c; exit 3", LONG, "");
        lines.sort();
        assert_eq!(lines, ["a", "b", "c"]);
        assert!(matches!(ended, Ended::Exited(status) if status.code() == Some(3)));
    }

    #[test]
    fn a_command_is_stopped_at_the_line_that_was_waited_for() {
        let (ended, lines) = shell("echo a; echo b; sleep 1000", LONG, "b");
        assert_eq!((ended, lines.len()), (Ended::Stopped, 2));
    }

    #[test]
    fn a_command_ends_at_its_limit_even_while_it_prints() {
        let limit = Duration::from_millis(200);
        let reached = Ended::TimedOut(Reached::Total(limit));
        assert_eq!(shell("sleep 1000", Limit::total(limit), "").0, reached);
        let (ended, _) = shell(
            "while :; do echo a; sleep 0.01; done",
            Limit::total(limit),
            "",
        );
        assert_eq!(ended, reached);
    }

    #[test]
    fn a_command_that_says_something_now_and_then_goes_on() {
        let limit = Limit::silence(Duration::from_secs(2));
        let (ended, lines) = shell(
            "for i in 1 2 3 4 5 6; do sleep 0.7; echo $i; done",
            limit,
            "",
        );
        assert!(matches!(ended, Ended::Exited(status) if status.success()));
        assert_eq!(lines.len(), 6);
        let (ended, _) = shell("echo a; sleep 1000", limit, "");
        let reached = Reached::Silence(Duration::from_secs(2));
        assert_eq!(ended, Ended::TimedOut(reached));
    }

    #[test]
    fn what_a_command_leaves_behind_is_not_waited_for() {
        let (ended, lines) = shell("echo a; sleep 1000 & exit 0", LONG, "");
        assert!(matches!(ended, Ended::Exited(status) if status.success()));
        assert_eq!(lines, ["a"]);
    }
}
