//! How long a process group has worked: limits count this, not the time that passes, so that a busy host ends nothing.
//!
//! The clock of a group stands still while the group waits for a CPU of the host, for a disk, or is stopped. It goes on while
//! the group computes, as fast as it would on an idle host, and while all of it sleeps, which no load makes longer. Where the
//! system doesn't tell (it isn't Linux), it is the time that passes.
//!
//! Belongs to the thread that watches the group.

use std::fmt;
#[cfg(target_os = "linux")]
use std::fs;
#[cfg(target_os = "linux")]
use std::path::Path;
use std::time::{Duration, Instant};

#[cfg(target_os = "linux")]
use nix::unistd::{SysconfVar, sysconf};

/// How often the group is looked at. A look reads some files for each process of the system.
const LOOK: Duration = Duration::from_millis(500);

/// The clock of a process group.
#[derive(Debug)]
pub struct Effort {
    groups: [i32; 2],
    cores: usize,
    looked: Instant,
    /// The group's CPU time when it was looked at last.
    cpu: Duration,
    spent: Duration,
}

/// How long a command may take, by the clock of its group ([`Effort`]). `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limit {
    /// In all.
    pub total: Option<Duration>,
    /// Without printing a line.
    pub silence: Option<Duration>,
    /// Until its first line.
    pub first_line: Option<Duration>,
}

/// A limit that was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reached {
    /// That of all of it.
    Total(Duration),
    /// That of its silence.
    Silence(Duration),
    /// That of its silence at the beginning.
    FirstLine(Duration),
}

/// Watches over a command's limit.
#[derive(Debug)]
pub struct Watchdog {
    effort: Effort,
    limit: Limit,
    /// When the last line came, by the group's clock.
    line: Option<Duration>,
}

impl Limit {
    /// None.
    pub const NONE: Self = Self {
        total: None,
        silence: None,
        first_line: None,
    };

    /// Of so long in all.
    pub const fn total(limit: Duration) -> Self {
        Self {
            total: Some(limit),
            ..Self::NONE
        }
    }

    /// Of so long without a line.
    pub const fn silence(limit: Duration) -> Self {
        Self {
            silence: Some(limit),
            ..Self::NONE
        }
    }
}

impl fmt::Display for Reached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Total(limit) => write!(f, "it hadn't ended after {} s", limit.as_secs()),
            Self::Silence(limit) => write!(f, "it printed nothing for {} s", limit.as_secs()),
            Self::FirstLine(limit) => {
                write!(f, "it printed nothing in its first {} s", limit.as_secs())
            }
        }
    }
}

impl Watchdog {
    /// Over groups, by their numbers, which have just been started.
    pub fn new(groups: [i32; 2], limit: Limit) -> Self {
        Self {
            effort: Effort::new(groups),
            limit,
            line: None,
        }
    }

    /// The command has printed a line.
    pub fn line(&mut self) {
        self.line = Some(self.effort.spent());
    }

    /// From now on it may print nothing for as long as it likes.
    pub fn may_be_silent(&mut self) {
        self.limit = Limit {
            total: self.limit.total,
            ..Limit::NONE
        };
    }

    /// It is about to end, and may take so long from now on, if it hadn't to be quicker anyway.
    pub fn ends_within(&mut self, rest: Duration) {
        let end = self.effort.spent() + rest;
        let total = self.limit.total.map_or(end, |total| total.min(end));
        self.limit = Limit::total(total);
    }

    /// The limit that was reached, if one was.
    pub fn reached(&mut self) -> Option<Reached> {
        let spent = self.effort.spent();
        let over = |limit: Option<Duration>, since| limit.filter(|limit| spent - since >= *limit);
        let first = self.limit.first_line.filter(|_| self.line.is_none());
        let line = self.line.unwrap_or_default();
        over(self.limit.total, Duration::ZERO)
            .map(Reached::Total)
            .or(over(first, Duration::ZERO).map(Reached::FirstLine))
            .or(over(self.limit.silence, line).map(Reached::Silence))
    }
}

/// The activity of a group at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Activity {
    /// The CPU time that it has had so far, with that of all whom it has started and outlived.
    cpu: Duration,
    /// Threads that compute, or want to, or wait for a disk.
    busy: usize,
    /// Whether somebody has stopped one of its processes (SIGSTOP).
    is_stopped: bool,
}

impl Effort {
    /// The clock of these groups, by their numbers, at 0.
    pub fn new(groups: [i32; 2]) -> Self {
        let cores = std::thread::available_parallelism();
        Self {
            groups,
            cores: cores.map_or(1, |count| count.get()),
            looked: Instant::now(),
            cpu: Duration::ZERO,
            spent: Duration::ZERO,
        }
    }

    /// How long the group has worked, as it was when it was looked at last, which is at most half a second ago if this is
    /// called often.
    pub fn spent(&mut self) -> Duration {
        let passed = self.looked.elapsed();
        if passed >= LOOK {
            self.looked += passed;
            self.spent += match activity(self.groups) {
                None => passed,
                Some(now) => {
                    let cpu = now.cpu.saturating_sub(self.cpu);
                    self.cpu = now.cpu;
                    charged(passed, cpu, now, self.cores)
                }
            };
        }
        self.spent
    }
}

/// How long it would have taken on an idle host with `cores` cores to do what a group did in `passed`, in which it had `cpu`
/// of CPU time and did at last what `now` says.
fn charged(passed: Duration, cpu: Duration, now: Activity, cores: usize) -> Duration {
    let side_by_side = now.busy.min(cores);
    if now.is_stopped {
        Duration::ZERO
    } else if side_by_side == 0 {
        passed
    } else {
        passed.min(cpu / u32::try_from(side_by_side).unwrap_or(u32::MAX))
    }
}

/// The activity of the group, if the system tells it.
#[cfg(target_os = "linux")]
fn activity(groups: [i32; 2]) -> Option<Activity> {
    let mut activity = Activity::default();
    let mut ticks = 0;
    // Processes and threads may end while they are looked at.
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let process = process.path();
        let Some(stat) = Stat::of(&process).filter(|stat| groups.contains(&stat.group)) else {
            continue;
        };
        ticks += stat.ticks;
        let tasks = fs::read_dir(process.join("task")).into_iter().flatten();
        for task in tasks.flatten().filter_map(|task| Stat::of(&task.path())) {
            activity.busy += usize::from(matches!(task.state, 'R' | 'D'));
            activity.is_stopped |= task.state == 'T';
        }
    }
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten()?;
    activity.cpu = Duration::from_millis(ticks * 1000 / u64::try_from(per_second).ok()?.max(1));
    Some(activity)
}

/// Linux's statistics of a process or a thread.
#[cfg(target_os = "linux")]
struct Stat {
    state: char,
    group: i32,
    /// The CPU time of its own, and of its children that have ended.
    ticks: u64,
}

#[cfg(target_os = "linux")]
impl Stat {
    /// Of the process or thread whose folder under `/proc` this is, if it is one.
    fn of(folder: &Path) -> Option<Self> {
        Self::parse(&fs::read_to_string(folder.join("stat")).ok()?)
    }

    /// Reads the file `stat`, whose fields proc(5) describes. The second is a name, which may hold anything.
    fn parse(text: &str) -> Option<Self> {
        let (_, fields) = text.rsplit_once(") ")?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let ticks = fields.get(11..15)?.iter();
        Some(Self {
            state: fields[0].chars().next()?,
            group: fields[2].parse().ok()?,
            ticks: ticks.filter_map(|ticks| ticks.parse::<u64>().ok()).sum(),
        })
    }
}

#[cfg(not(target_os = "linux"))]
fn activity(_: [i32; 2]) -> Option<Activity> {
    None
}

/// A number of seconds in words.
pub fn in_words(seconds: f64) -> String {
    let seconds = seconds.max(0.0).round() as u64;
    match (seconds / 3600, seconds / 60, seconds) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {:02} s", seconds % 60),
        (hours, minutes, _) => format!("{hours} h {:02} min", minutes % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn doing(busy: usize) -> Activity {
        Activity {
            busy,
            ..Activity::default()
        }
    }

    #[test]
    fn what_a_loaded_host_makes_longer_is_not_charged() {
        // Alone on the host, one thread or many: the time that passes.
        assert_eq!(charged(SECOND, SECOND, doing(1), 2), SECOND);
        assert_eq!(charged(SECOND, 2 * SECOND, doing(19), 2), SECOND);
        // Others have seven eighths of the host.
        let eighth = SECOND / 8;
        assert_eq!(charged(SECOND, eighth, doing(1), 2), eighth);
        assert_eq!(charged(SECOND, 2 * eighth, doing(19), 2), eighth);
        // It gets no CPU at all.
        assert_eq!(charged(SECOND, Duration::ZERO, doing(3), 2), Duration::ZERO);
    }

    #[test]
    fn sleeping_is_charged_and_being_stopped_is_not() {
        assert_eq!(charged(SECOND, Duration::ZERO, doing(0), 2), SECOND);
        assert_eq!(charged(SECOND, SECOND / 100, doing(0), 2), SECOND);
        let stopped = Activity {
            is_stopped: true,
            ..doing(2)
        };
        assert_eq!(charged(SECOND, SECOND, stopped, 2), Duration::ZERO);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_process_is_told_whatever_its_name_is() {
        let text = "7 (a ) S 0) R 1 5 5 0 -1 4194304 1 2 3 4 10 20 30 40 20 0 1 0 1";
        let stat = Stat::parse(text).expect("it is sound");
        assert_eq!((stat.state, stat.group, stat.ticks), ('R', 5, 100));
        assert!(Stat::parse("7 (a) R 1").is_none() && Stat::parse("").is_none());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_group_is_seen_with_all_its_processes() {
        use crate::process::Group;
        use std::process::Command;

        let group =
            Group::spawn(Command::new("sh").args(["-c", "sleep 1000 & while :; do :; done"]))
                .expect("sh starts");
        let groups = group.numbers();
        let mut last = Activity::default();
        // However busy the host is, a loop wants a CPU, and gets one sooner or later.
        while last.busy == 0 || last.cpu == Duration::ZERO {
            last = activity(groups).expect("Linux tells");
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(!last.is_stopped);
        nix::sys::signal::killpg(
            nix::unistd::Pid::from_raw(groups[0]),
            nix::sys::signal::Signal::SIGSTOP,
        )
        .expect("the group is ours");
        while !last.is_stopped {
            last = activity(groups).expect("Linux tells");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn durations_are_said_in_their_largest_units() {
        assert_eq!(in_words(0.4), "0 s");
        assert_eq!(in_words(75.0), "1 min 15 s");
        assert_eq!(in_words(7320.0), "2 h 02 min");
    }
}
