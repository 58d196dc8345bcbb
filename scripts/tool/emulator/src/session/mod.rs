//! Runs a machine whose console is the user's: a guest's output is shown byte by byte as it comes, and what the user types goes
//! to the guest.
//!
//! From a terminal each key goes to the guest at once, but for Ctrl-A and the key behind it. What comes from elsewhere goes to
//! the guest as if it were typed; when that ends, a guest with a shell of ours is told so until it has read it, and ends. Of
//! several VMs the one is told that has the input; when it has ended, it is the next one's turn. A kernel of the user's goes on.
//! Nothing is given to a guest of ours before it says that it takes input: what comes earlier would be lost.

pub mod keys;
pub mod logs;
pub mod marks;
pub mod output;
mod part;
mod tagged;
pub mod terminal;
pub mod token;

use std::io::{self, IsTerminal, Read, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, SyncSender};
use std::thread;
use std::time::Duration;

use self::keys::{HELP, Keys, Request};
use self::logs::Logs;
use self::output::{Guest, Output};
use self::part::Part;
use self::terminal::RawMode;
use crate::boot::{End, Outcome};
use crate::console::{Line, Splitter};
use crate::effort::{Limit, Watchdog};
use crate::error::ToolError;
use crate::process::Group;

/// How long the emulator may take to end after the guest's command, or when its console has ended.
const GRACE: Duration = Duration::from_secs(15);
/// How long the readers of a dead group's pipes may take to end.
const READERS_END: Duration = Duration::from_secs(1);
/// How often a silent machine is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// How many pieces of input wait for a guest that takes none.
const WAITING: usize = 64;
/// The end of input on a terminal, Ctrl-D, and how often it is said.
const END_OF_INPUT: u8 = 4;
const END_OF_INPUT_EVERY: Duration = Duration::from_secs(1);

/// How a session ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// What the hypervisor and the emulator said. Its lines are those before and after the guest's output.
    pub outcome: Outcome,
    /// The status of the guest's command.
    pub command: Option<u8>,
    /// Whether the user has ended the machine.
    pub by_user: bool,
}

/// One event of a running machine.
enum Event {
    Console(Vec<u8>),
    ConsoleEnded,
    Complaint(String),
    Request(Request),
}

/// The name under which the only guest is logged.
pub const ONLY_GUEST: &str = "guest";

/// Runs `command`, a machine with `guest`, to its end. With `verbose` standard error has all that the machine says beside the
/// guest's output. `logs` get that, too.
///
/// `limit` is that of the emulator's own time; what it says of silence holds until a guest of ours takes input or begins its
/// command, or until the machine prints something if the guest is the user's.
///
/// # Errors
///
/// [`ToolError::Io`] if the emulator can't be started, or standard output is closed.
pub fn run(
    command: &mut Command,
    guest: &Guest,
    limit: Limit,
    verbose: bool,
    logs: Option<Logs>,
) -> Result<Ended, ToolError> {
    let input = match guest {
        Guest::Command(_) => Stdio::null(),
        Guest::Shell(_) | Guest::Own { .. } | Guest::Several(_) => Stdio::piped(),
    };
    command
        .stdin(input)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let program = command.get_program().to_string_lossy().into_owned();
    let failed = |error: io::Error| ToolError::Io(format!("{program} can't be run: {error}"));
    let mut group = Group::spawn(command).map_err(failed)?;
    let (sender, events) = mpsc::channel();
    follow(&mut group, &sender);
    let raw = match guest {
        Guest::Command(_) => None,
        Guest::Shell(_) | Guest::Own { .. } | Guest::Several(_) => {
            let raw = RawMode::enter();
            raw.map_err(|error| ToolError::Io(format!("the terminal's mode: {error}")))?
        }
    };
    let taking = take_input(&mut group, guest, &sender);
    drop(sender);
    let mut machine = Running {
        outcome: Outcome::new(command.get_program()),
        splitter: Splitter::default(),
        command: None,
        by_user: false,
        is_own: matches!(guest, Guest::Own { .. } | Guest::Several(None)),
        is_several: matches!(guest, Guest::Several(_)),
        logs,
        taking,
        closed: None,
        watchdog: Watchdog::new(group.numbers(), limit),
        verbose,
    };
    let end = machine.follow(&mut group, &events, guest).map_err(failed)?;
    drop(raw);
    machine.outcome.end = end;
    let incomplete = machine.logs.as_ref().and_then(Logs::failure);
    if let Some(why) = incomplete {
        return Err(ToolError::Io(why.into()));
    }
    match machine.closed {
        Some(error) => Err(ToolError::Io(format!("standard output: {error}"))),
        None => Ok(Ended {
            outcome: machine.outcome,
            command: machine.command,
            by_user: machine.by_user,
        }),
    }
}

/// A machine that runs.
struct Running {
    outcome: Outcome,
    /// Of the lines beside the guest's output.
    splitter: Splitter,
    command: Option<u8>,
    by_user: bool,
    /// Whether the kernel is the user's, which never says that it takes input.
    is_own: bool,
    /// Whether there are several VMs.
    is_several: bool,
    /// What they have printed.
    logs: Option<Logs>,
    /// Lets input through to the guest.
    taking: Option<Sender<()>>,
    /// Why standard output takes no more.
    closed: Option<io::Error>,
    watchdog: Watchdog,
    verbose: bool,
}

impl Running {
    /// To the machine's end. The group is dead then.
    fn follow(
        &mut self,
        group: &mut Group,
        events: &Receiver<Event>,
        guest: &Guest,
    ) -> io::Result<End> {
        let mut output = Output::new(guest);
        if self.is_own {
            self.let_input_through();
        }
        let mut silent = Duration::ZERO;
        let end = loop {
            match events.recv_timeout(LOOK) {
                Ok(event) => {
                    silent = Duration::ZERO;
                    self.take(event, &mut output);
                }
                // It has closed its pipes, and is about to end.
                Err(RecvTimeoutError::Disconnected) => thread::sleep(LOOK),
                Err(RecvTimeoutError::Timeout) => {
                    silent += LOOK;
                    output.pause(silent, &mut |part| self.part(part));
                }
            }
            if self.by_user || self.closed.is_some() {
                break None;
            }
            if let Some(status) = group.ended()? {
                break Some(End::Ended(status));
            }
            if let Some(reached) = self.watchdog.reached() {
                break Some(End::TimedOut(reached));
            }
        };
        group.kill();
        // The readers end when the last of the group has gone, and give their last pieces then.
        while let Ok(event) = events.recv_timeout(READERS_END) {
            if matches!(event, Event::ConsoleEnded) {
                break;
            }
            self.take(event, &mut output);
        }
        output.end(&mut |part| self.part(part));
        let mut last = None;
        self.splitter.end(|line| last = Some(line.to_string()));
        last.into_iter().for_each(|line| self.line(line));
        Ok(end.unwrap_or(End::EndedAfterStatus))
    }

    fn take(&mut self, event: Event, output: &mut Output) {
        match event {
            Event::Console(bytes) => {
                self.watchdog.line();
                if self.is_own {
                    self.watchdog.may_be_silent();
                }
                output.take(&bytes, &mut |part| self.part(part));
            }
            Event::ConsoleEnded => self.watchdog.ends_within(GRACE),
            Event::Complaint(text) => {
                self.say(&text);
                self.outcome.complaints.push(text);
            }
            Event::Request(Request::Help) => self.show(HELP.as_bytes()),
            Event::Request(Request::End) => self.by_user = true,
        }
    }

    fn part(&mut self, part: Part<'_>) {
        match part {
            Part::Shown(bytes) => {
                self.show(bytes);
                if !self.is_several {
                    self.log(ONLY_GUEST, bytes);
                }
            }
            Part::Of(name, bytes) => self.log(name, bytes),
            Part::Log(bytes) => {
                let mut lines = Vec::new();
                self.splitter
                    .push(bytes, |line| lines.push(line.to_string()));
                lines.into_iter().for_each(|line| self.line(line));
            }
            Part::Begun => {
                self.watchdog.may_be_silent();
                self.let_input_through();
            }
            Part::Status(status) => {
                self.command = Some(status);
                self.watchdog.ends_within(GRACE);
            }
        }
    }

    /// Takes a line beside the guest's output.
    fn line(&mut self, text: String) {
        self.say(&text);
        self.outcome.take(Line::parse(&text), text);
    }

    fn let_input_through(&mut self) {
        if let Some(taking) = self.taking.take() {
            // Where nothing waits any more, standard input has ended.
            let _ = taking.send(());
        }
    }

    fn show(&mut self, bytes: &[u8]) {
        let mut output = io::stdout().lock();
        let shown = output.write_all(bytes).and_then(|()| output.flush());
        self.closed = self.closed.take().or(shown.err());
    }

    fn log(&mut self, name: &str, bytes: &[u8]) {
        if let Some(logs) = &mut self.logs {
            logs.add(name, bytes);
        }
    }

    fn say(&self, text: &str) {
        if self.verbose {
            // The terminal may be in raw mode.
            let _ = write!(io::stderr(), "{text}\r\n");
        }
    }
}

/// Starts the threads that read the child's pipes.
fn follow(group: &mut Group, sender: &Sender<Event>) {
    if let Some(mut stdout) = group.child().stdout.take() {
        let sender = sender.clone();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = stdout.read(&mut buffer) {
                // The receiver goes away when the machine is ended; then nobody wants the rest.
                let _ = sender.send(Event::Console(buffer[..count].to_vec()));
            }
            let _ = sender.send(Event::ConsoleEnded);
        });
    }
    if let Some(mut stderr) = group.child().stderr.take() {
        let sender = sender.clone();
        thread::spawn(move || {
            let mut splitter = Splitter::default();
            let mut buffer = [0; 4096];
            let send = |line: &str| {
                let _ = sender.send(Event::Complaint(line.to_string()));
            };
            while let Ok(count @ 1..) = stderr.read(&mut buffer) {
                splitter.push(&buffer[..count], send);
            }
            splitter.end(send);
        });
    }
}

/// Starts the threads that take the user's input to the guest, when a word is sent to what this gives. They end with the
/// process.
fn take_input(group: &mut Group, guest: &Guest, sender: &Sender<Event>) -> Option<Sender<()>> {
    let mut pipe = group.child().stdin.take()?;
    let (typed, waiting) = mpsc::sync_channel(WAITING);
    let (taking, is_taken) = mpsc::channel();
    let has_shell = guest.has_shell();
    let sender = sender.clone();
    thread::spawn(move || read_input(&typed, &sender));
    thread::spawn(move || {
        if is_taken.recv().is_err() {
            return;
        }
        // The pipe breaks when the machine has ended.
        let mut at_begin = true;
        for bytes in waiting {
            let bytes: Vec<u8> = bytes;
            at_begin = bytes.ends_with(b"\n");
            if pipe.write_all(&bytes).is_err() {
                return;
            }
        }
        if has_shell && !at_begin {
            let _ = pipe.write_all(b"\n");
        }
        while !has_shell || pipe.write_all(&[END_OF_INPUT]).is_ok() {
            thread::sleep(END_OF_INPUT_EVERY);
        }
    });
    Some(taking)
}

/// Reads standard input to its end.
fn read_input(typed: &SyncSender<Vec<u8>>, sender: &Sender<Event>) {
    let mut keys = io::stdin().is_terminal().then(Keys::default);
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = io::stdin().lock().read(&mut buffer) {
        let bytes = &buffer[..count];
        match &mut keys {
            None => {
                if typed.send(bytes.to_vec()).is_err() {
                    return;
                }
            }
            Some(keys) => {
                let (guests, requests) = keys.take(bytes);
                for request in requests {
                    let _ = sender.send(Event::Request(request));
                }
                if !guests.is_empty() {
                    // A terminal drops what nobody takes.
                    let _ = typed.try_send(guests);
                }
            }
        }
    }
}
