//! Child processes that never outlive this one: each belongs to a process group of its own (a wrapper script and the
//! emulator that it starts are one group), and Ctrl-C, a termination signal, a limit or this process's death ends the whole
//! group.
//!
//! A shell leads the group and waits at a pipe, whose other end closes when this process ends, even by SIGKILL; then it kills its
//! group. It isn't waited for before the group has been killed for the last time: so long the group's number is nobody
//! else's.
//!
//! A child may make a group of its own, as `timeout` does. It is killed as well, for as long as it hasn't been waited for; only
//! the shell doesn't know of it.
//!
//! Threads may start and end children at the same time; the set of groups is behind a lock.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::session::terminal;

/// The leader's program. Nobody writes to the pipe, so its read ends when the pipe is closed.
const LEADER: &str = "read -r nothing; kill -KILL 0";

/// The exit status after a signal is this and the signal's number, as shells have it: 130 after Ctrl-C.
const SIGNALLED: i32 = 128;

/// The message when a signal ends this process.
static LAST_WORDS: Mutex<Option<String>> = Mutex::new(None);

/// The groups that are alive.
static GROUPS: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

fn groups() -> MutexGuard<'static, BTreeSet<i32>> {
    GROUPS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running child with all that it started. Dropping it kills the group.
#[derive(Debug)]
pub struct Group {
    child: Child,
    /// The child's number, and that of its own group if it makes one; none when it has been waited for.
    own: Option<i32>,
    leader: Leader,
}

/// The leader of a group. Dropping it kills the group.
#[derive(Debug)]
struct Leader {
    process: Child,
    /// The group.
    number: i32,
    /// The pipe that it reads.
    lifeline: Option<ChildStdin>,
}

impl Leader {
    /// Starts one, and enters its group into the set.
    fn spawn(groups: &mut BTreeSet<i32>) -> io::Result<Self> {
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", LEADER])
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut process = command.spawn()?;
        let number = i32::try_from(process.id()).unwrap_or(i32::MAX);
        groups.insert(number);
        let lifeline = process.stdin.take();
        Ok(Self {
            process,
            number,
            lifeline,
        })
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        // The lock is held until the number is out of the set, as it may soon be another group's.
        let mut groups = groups();
        kill_group(self.number);
        groups.remove(&self.number);
        self.lifeline = None;
        // Killed, it can't be waited for in vain.
        let _ = self.process.wait();
    }
}

impl Group {
    /// Starts `command` in a new group.
    ///
    /// # Errors
    ///
    /// Whatever keeps the program from starting.
    pub fn spawn(command: &mut Command) -> io::Result<Self> {
        // The lock is held over the start, so that a signal can't fall between it and the entry into the set.
        let mut groups = groups();
        let leader = Leader::spawn(&mut groups)?;
        let child = command.process_group(leader.number).spawn();
        let own = (child.as_ref().ok()).and_then(|child| i32::try_from(child.id()).ok());
        groups.extend(own);
        drop(groups);
        Ok(Self {
            child: child?,
            own,
            leader,
        })
    }

    /// The child itself, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// The numbers of the groups of the child and its own children: the leader's group, and the child's if it makes one.
    pub fn numbers(&self) -> [i32; 2] {
        [self.leader.number, self.own.unwrap_or(self.leader.number)]
    }

    /// How the child has ended, if it has.
    ///
    /// # Errors
    ///
    /// If the child can't be waited for.
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        // The lock is held until its number is out of the set, as it may soon be another process's.
        let mut groups = groups();
        let ended = self.child.try_wait()?;
        if ended.is_some() {
            self.forget(&mut groups);
        }
        Ok(ended)
    }

    /// Ends the whole group at once and waits for the child.
    pub fn kill(&mut self) {
        let mut groups = groups();
        kill_group(self.leader.number);
        self.own.into_iter().for_each(kill_group);
        // Killed, it can't be waited for in vain; and if it is gone already, so much the better.
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.forget(&mut groups);
    }

    /// The child has been waited for.
    fn forget(&mut self, groups: &mut BTreeSet<i32>) {
        if let Some(own) = self.own.take() {
            groups.remove(&own);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

fn kill_group(leader: i32) {
    // The group may be gone already.
    let _ = killpg(Pid::from_raw(leader), Signal::SIGKILL);
}

/// Prints this on standard error when a signal ends this process from now on.
pub fn say_when_ended(words: String) {
    *LAST_WORDS.lock().unwrap_or_else(PoisonError::into_inner) = Some(words);
}

/// From now on Ctrl-C, SIGTERM and SIGHUP end every group and then this process, whose exit status tells the signal; the terminal
/// gets its usual mode back.
///
/// # Errors
///
/// If the system allows no handler.
pub fn end_groups_on_signals() -> io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    let end = move || {
        let Some(signal) = signals.forever().next() else {
            return;
        };
        // Held until the end, so that no further child is started.
        let groups = groups();
        groups.iter().copied().for_each(kill_group);
        terminal::restore();
        let words = LAST_WORDS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(words) = words.as_deref() {
            eprintln!("\n{words}");
        }
        std::process::exit(SIGNALLED + signal);
    };
    thread::Builder::new().name("signals".into()).spawn(end)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_ends_with_all_that_its_leader_started() {
        let mut command = Command::new("sh");
        command
            .args(["-c", "sleep 1000 & wait"])
            .stdout(std::process::Stdio::piped());
        let mut group = Group::spawn(&mut command).expect("sh starts");
        let mut output = group.child().stdout.take().expect("a pipe");
        drop(group);
        // The pipe ends when its last writer has gone: the sleeper.
        io::Read::read_to_end(&mut output, &mut Vec::new()).expect("the end of the pipe");
    }

    #[test]
    fn a_child_that_makes_a_group_of_its_own_ends_too() {
        let mut command = Command::new("timeout");
        command
            .args(["1000", "sh", "-c", "sleep 1000 & wait"])
            .stdout(Stdio::piped());
        let mut group = Group::spawn(&mut command).expect("timeout starts");
        let mut output = group.child().stdout.take().expect("a pipe");
        let own = Pid::from_raw(group.numbers()[1]);
        while killpg(own, None).is_err() {
            std::thread::yield_now();
        }
        drop(group);
        io::Read::read_to_end(&mut output, &mut Vec::new()).expect("the end of the pipe");
        assert!(!groups().contains(&own.as_raw()));
    }

    #[test]
    fn a_group_whose_child_runs_has_not_ended() {
        let mut group = Group::spawn(Command::new("sleep").arg("1000")).expect("sleep starts");
        assert!(group.ended().expect("waiting works").is_none());
        group.kill();
        assert!(group.ended().expect("waiting works").is_some());
    }

    /// However this process dies, the system closes its end of the pipe.
    #[test]
    fn a_group_ends_when_nobody_holds_its_pipe() {
        let mut command = Command::new("sh");
        command
            .args(["-c", "sleep 1000 & wait"])
            .stdout(Stdio::piped());
        let mut group = Group::spawn(&mut command).expect("sh starts");
        let mut output = group.child().stdout.take().expect("a pipe");
        group.leader.lifeline = None;
        io::Read::read_to_end(&mut output, &mut Vec::new()).expect("the end of the pipe");
        assert!(!group.child().wait().expect("it is ours").success());
    }

    #[test]
    fn a_groups_number_is_nobody_elses_before_it_was_killed_for_the_last_time() {
        let mut group = Group::spawn(&mut Command::new("true")).expect("true starts");
        let number = Pid::from_raw(group.numbers()[0]);
        group.child().wait().expect("it is ours");
        group.kill();
        assert_eq!(killpg(number, None), Ok(()), "the leader isn't waited for");
        drop(group);
        assert_eq!(killpg(number, None), Err(nix::errno::Errno::ESRCH));
    }
}
