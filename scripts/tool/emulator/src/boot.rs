//! Runs a machine from its start to its end and collects its records, errors and exit status.
//!
//! A machine always ends: by itself, at its limit, or soon after it gave its exit status. Several may run at once, each driven
//! by a thread of its own. Limits are of the emulator's own time ([`effort`](crate::effort)): that others keep the host busy
//! ends no machine.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::{self, Read};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use crate::console::{Line, Splitter};
use crate::effort::{Limit, Reached, Watchdog};
use crate::process::Group;
use records::record::Record;

/// How many lines of the console are kept.
const MOST_LINES: usize = 20_000;
/// How long the emulator may take to end after the hypervisor gave its exit status.
const GRACE: Duration = Duration::from_secs(15);
/// How long the readers of a dead group's pipes may take to end.
const READERS_END: Duration = Duration::from_secs(1);
/// How often a silent machine is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// How a machine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The emulator ended by itself.
    Ended(ExitStatus),
    /// It went on after the exit status and was ended.
    EndedAfterStatus,
    /// It reached its limit and was ended.
    TimedOut(Reached),
}

/// The output of a machine until its end.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The emulator, as it was started.
    pub emulator: PathBuf,
    /// How it ended.
    pub end: End,
    /// The exit status that the hypervisor gave, if it came to that.
    pub status: Option<i32>,
    /// The measured runs.
    pub records: Vec<Record>,
    /// The hypervisor's errors, one line each, and lines that couldn't be read.
    pub errors: Vec<String>,
    /// The report on a fatal exception or a panic, from its first line on.
    pub fatal: Vec<String>,
    /// The lines of the console; of very many, the last ones.
    pub lines: VecDeque<String>,
    /// The emulator's own messages.
    pub complaints: Vec<String>,
}

/// One event of a running machine.
enum Event {
    Console(String),
    Complaint(String),
    ConsoleEnded,
}

/// Starts `command` and follows it to its end, at the latest at its limit. `observe` sees every line of the console as
/// it comes, `complain` every line that the emulator prints on standard error.
///
/// # Errors
///
/// If the program can't be started or waited for.
pub fn run(
    command: &mut Command,
    limit: Limit,
    mut observe: impl FnMut(&Line, &str),
    mut complain: impl FnMut(&str),
) -> io::Result<Outcome> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut group = Group::spawn(command)?;
    let mut watchdog = Watchdog::new(group.numbers(), limit);
    let events = follow(&mut group);
    let mut outcome = Outcome::new(command.get_program());
    let mut take = |event, watchdog: &mut Watchdog| match event {
        Event::Console(text) => {
            watchdog.line();
            let line = Line::parse(&text);
            observe(&line, &text);
            if outcome.take(line, text) {
                watchdog.ends_within(GRACE);
            }
        }
        Event::Complaint(text) => {
            complain(&text);
            outcome.complaints.push(text);
        }
        Event::ConsoleEnded => watchdog.ends_within(GRACE),
    };
    let end = loop {
        match events.recv_timeout(LOOK) {
            Ok(event) => take(event, &mut watchdog),
            // It has closed its pipes, and is about to end.
            Err(RecvTimeoutError::Disconnected) => thread::sleep(LOOK),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if let Some(status) = group.ended()? {
            break End::Ended(status);
        }
        if let Some(reached) = watchdog.reached() {
            break End::TimedOut(reached);
        }
    };
    group.kill();
    // The readers end when the last of the group has gone, and give their last lines then.
    while let Ok(event) = events.recv_timeout(READERS_END) {
        take(event, &mut watchdog);
    }
    outcome.end = match end {
        End::TimedOut(_) if outcome.status.is_some() => End::EndedAfterStatus,
        end => end,
    };
    Ok(outcome)
}

impl Outcome {
    /// Of a machine that has said nothing.
    pub(crate) fn new(emulator: &OsStr) -> Self {
        Self {
            emulator: emulator.into(),
            end: End::EndedAfterStatus,
            status: None,
            records: Vec::new(),
            errors: Vec::new(),
            fatal: Vec::new(),
            lines: VecDeque::new(),
            complaints: Vec::new(),
        }
    }

    /// Files one line; true if it is the exit status.
    pub(crate) fn take(&mut self, line: Line, text: String) -> bool {
        let mut is_status = false;
        match line {
            Line::Record(record) => self.records.push(*record),
            Line::Error(error) | Line::Unreadable(error) => self.errors.push(error),
            Line::Fatal(_) if self.fatal.is_empty() => self.fatal.push(text.clone()),
            Line::ExitStatus(status) => {
                self.status = Some(status);
                is_status = true;
            }
            _ if !self.fatal.is_empty() => self.fatal.push(text.clone()),
            _ => {}
        }
        if self.lines.len() == MOST_LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(text);
        is_status
    }

    /// Why the emulator refused to start, if it did, in one line: its own last message with the lines that follow it, or a
    /// wrapper's last message.
    pub fn refusal(&self) -> Option<String> {
        let failed = matches!(self.end, End::Ended(status) if !status.success());
        if !failed || !self.lines.is_empty() {
            return None;
        }
        let is_own = |line: &String| line.starts_with("qemu") && !line.contains(": warning: ");
        let Some(first) = self.complaints.iter().rposition(is_own) else {
            return self.complaints.last().cloned();
        };
        let mut said = self.complaints[first..].iter().map(|line| line.trim());
        let reason = said.next()?;
        let (_, reason) = reason.split_once(": ").unwrap_or(("", reason));
        let mut whole = vec![reason];
        whole.extend(said);
        Some(whole.join("; "))
    }

    /// The limit of a machine that never printed a line.
    pub fn never_spoke(&self) -> Option<Reached> {
        match self.end {
            End::TimedOut(silence @ Reached::FirstLine(_)) => Some(silence),
            _ => None,
        }
    }

    /// How a machine ended that gave no exit status.
    pub fn end_in_words(&self) -> String {
        let ended = || {
            let emulator = self.emulator.display();
            format!("the emulator {emulator} ended without an exit status of the hypervisor")
        };
        match self.end {
            End::TimedOut(reached) => format!("the machine was ended: {reached} of its own time"),
            End::Ended(status) => format!("{} ({status})", ended()),
            End::EndedAfterStatus => ended(),
        }
    }

    /// The first line of the console that contains `text`.
    pub fn line_with(&self, text: &str) -> Option<&str> {
        self.lines
            .iter()
            .map(String::as_str)
            .find(|line| line.contains(text))
    }

    /// The last `count` lines of the console.
    pub fn last_lines(&self, count: usize) -> impl Iterator<Item = &str> {
        self.lines
            .iter()
            .skip(self.lines.len().saturating_sub(count))
            .map(String::as_str)
    }
}

/// Starts the threads that read the child's pipes.
fn follow(group: &mut Group) -> Receiver<Event> {
    let (sender, events) = mpsc::channel();
    if let Some(stdout) = group.child().stdout.take() {
        let sender = sender.clone();
        thread::spawn(move || {
            read_lines(stdout, &sender, Event::Console);
            // The receiver may be gone; then this thread ends too.
            let _ = sender.send(Event::ConsoleEnded);
        });
    }
    if let Some(stderr) = group.child().stderr.take() {
        thread::spawn(move || read_lines(stderr, &sender, Event::Complaint));
    }
    events
}

fn read_lines(mut pipe: impl Read, sender: &Sender<Event>, event: fn(String) -> Event) {
    let mut splitter = Splitter::default();
    let mut buffer = [0; 4096];
    // The receiver goes away when the machine is ended; then nobody wants the rest.
    let send = |line: &str| {
        let _ = sender.send(event(line.to_string()));
    };
    while let Ok(count @ 1..) = pipe.read(&mut buffer) {
        splitter.push(&buffer[..count], send);
    }
    splitter.end(send);
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: &str = include_str!("../samples/record.json").trim_ascii();

    fn shell(script: &str, limit: Limit) -> Outcome {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        run(&mut command, limit, |_, _| {}, |_| {}).expect("sh starts")
    }

    const LONG: Limit = Limit::total(Duration::from_secs(60));

    #[test]
    fn a_run_that_ends_well_gives_its_records_and_status() {
        let script = format!(
            "echo '[ 0.1 cpu0] INFO hello'; echo '@record {RECORD}'; echo 'parvisor: exit status 0'"
        );
        let outcome = shell(&script, LONG);
        assert_eq!(outcome.status, Some(0));
        assert_eq!(outcome.records.len(), 1);
        assert_eq!(outcome.lines.len(), 3);
        assert!(matches!(outcome.end, End::Ended(status) if status.success()));
    }

    #[test]
    fn errors_and_complaints_are_kept() {
        let outcome = shell(
            "echo 'parvisor: error: mode=x: unknown'; echo 'qemu: bad' >&2; exit 1",
            LONG,
        );
        assert_eq!(outcome.status, None);
        assert_eq!(
            outcome.end_in_words(),
            "the emulator sh ended without an exit status of the hypervisor (exit status: 1)"
        );
        assert_eq!(outcome.errors, ["mode=x: unknown"]);
        assert_eq!(outcome.complaints, ["qemu: bad"]);
    }

    #[test]
    fn a_fatal_report_is_kept_from_its_first_line_on() {
        let outcome = shell(
            "echo before; echo 'parvisor: FATAL abort'; echo x0; echo 'parvisor: exit status 3'",
            LONG,
        );
        assert_eq!(outcome.fatal, ["parvisor: FATAL abort", "x0"]);
        assert_eq!(outcome.status, Some(3));
    }

    #[test]
    fn a_machine_that_never_ends_is_ended_at_the_limit() {
        let limit = Duration::from_millis(300);
        let outcome = shell("echo hello; sleep 1000", Limit::total(limit));
        assert_eq!(outcome.end, End::TimedOut(Reached::Total(limit)));
        assert_eq!(outcome.status, None);
        let limit = Limit {
            first_line: Some(limit),
            ..Limit::NONE
        };
        let said = shell("sleep 1000", limit).end_in_words();
        assert!(said.contains("printed nothing in its first"), "{said}");
        assert!(matches!(
            shell("echo hello; sleep 2", limit).end,
            End::Ended(_)
        ));
    }

    /// Nobody could stop a machine for longer in less time: as a host does that gives it no CPU.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_machine_that_gets_no_cpu_for_long_is_not_ended() {
        let script = "(sleep 3; kill -CONT $$) & kill -STOP $$; echo 'parvisor: exit status 0'";
        let outcome = shell(script, Limit::total(Duration::from_secs(1)));
        assert_eq!(outcome.status, Some(0), "{:?}", outcome.end);
    }

    #[test]
    fn what_a_machine_leaves_behind_is_not_waited_for() {
        let outcome = shell("echo hello; sleep 1000 & exit 0", LONG);
        assert!(matches!(outcome.end, End::Ended(status) if status.success()));
        assert_eq!(outcome.lines.len(), 1);
    }

    #[test]
    fn of_endless_output_the_last_lines_are_kept() {
        let outcome = shell(
            "i=0; while [ $i -lt 20100 ]; do echo $i; i=$((i+1)); done",
            LONG,
        );
        assert_eq!(outcome.lines.len(), MOST_LINES);
        assert_eq!(outcome.last_lines(1).next(), Some("20099"));
    }
}
