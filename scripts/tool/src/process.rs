//! Child processes that never outlive this one's wish: each leads a process group of its own (a wrapper script and the
//! emulator that it starts are one group), and Ctrl-C, a termination signal or a limit ends the whole group.
//!
//! Threads may start and end children at the same time; the set of groups is behind a lock.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// The exit status after Ctrl-C, as shells have it.
const INTERRUPTED: i32 = 130;

/// What is said when a signal ends this process.
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
    leader: i32,
}

impl Group {
    /// Starts `command` as the leader of a new group.
    ///
    /// # Errors
    ///
    /// Whatever keeps the program from starting.
    pub fn spawn(command: &mut Command) -> io::Result<Self> {
        // The lock is held over the start, so that a signal can't fall between it and the entry into the set.
        let mut groups = groups();
        let child = command.process_group(0).spawn()?;
        let leader = i32::try_from(child.id()).unwrap_or(i32::MAX);
        groups.insert(leader);
        Ok(Self { child, leader })
    }

    /// The child itself, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// The process that leads it, by whose number the group is known.
    pub fn leader(&self) -> i32 {
        self.leader
    }

    /// How the leader has ended, if it has.
    ///
    /// # Errors
    ///
    /// If the child can't be waited for.
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Ends the whole group at once and waits for its leader.
    pub fn kill(&mut self) {
        kill_group(self.leader);
        // Killed, it can't be waited for in vain; and if it is gone already, so much the better.
        let _ = self.child.wait();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
        groups().remove(&self.leader);
    }
}

fn kill_group(leader: i32) {
    // The group may be gone already.
    let _ = killpg(Pid::from_raw(leader), Signal::SIGKILL);
}

/// From now on this is said on standard error when a signal ends this process.
pub fn say_when_ended(words: String) {
    *LAST_WORDS.lock().unwrap_or_else(PoisonError::into_inner) = Some(words);
}

/// From now on Ctrl-C, SIGTERM and SIGHUP end every group and then this process.
///
/// # Errors
///
/// If there is such a handler already, or the system allows none.
pub fn end_groups_on_signals() -> Result<(), ctrlc::Error> {
    ctrlc::set_handler(|| {
        // Held until the end, so that no further child is started.
        let groups = groups();
        groups.iter().copied().for_each(kill_group);
        let words = LAST_WORDS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(words) = words.as_deref() {
            eprintln!("\n{words}");
        }
        std::process::exit(INTERRUPTED);
    })
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
    fn a_group_whose_leader_runs_has_not_ended() {
        let mut group = Group::spawn(Command::new("sleep").arg("1000")).expect("sleep starts");
        assert!(group.ended().expect("waiting works").is_none());
        group.kill();
        assert!(group.ended().expect("waiting works").is_some());
    }
}
