//! One machine on simulated time: what happens when a CPU begins, uses up its turn, waits, idles, touches memory or
//! invalidates TLBs.
//!
//! Each CPU's thread calls for its own CPU; threads that wait for all CPUs to be outside guest code call too. The schedule
//! is behind a lock that is held for moments, never while a thread sleeps or is woken.

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::MOST_CPUS;
use crate::clock::Clock;
use crate::counters::{Counters, END};
use crate::decode::Scope;
use crate::invalidations::Interconnect;
use crate::lines::{Access, Lines};
use crate::options::Options;
use crate::schedule::{Released, Schedule, Thread, Verdict};
use crate::sleep::{Lock, Turn};

/// Real time between looks at the CPU that holds time back. One that made no progress between two looks is outside guest
/// code for a reason that nobody told: whoever waits goes on for a moment. A busy host may keep a thread waiting for long.
const LOOK: Duration = Duration::from_millis(250);

/// Real time between looks whether an idle CPU has been woken, which are not what wakes it.
const LONG: Duration = Duration::from_secs(3600);

/// The emulator's machine; nothing before the plugin is installed.
pub static SIMULATION: OnceLock<Simulation> = OnceLock::new();

/// All state.
pub struct Simulation {
    schedule: Lock<Schedule>,
    clock: Clock,
    counters: Counters,
    /// What added to a CPU's counter is its time (modulo 2^64).
    bases: [AtomicU64; MOST_CPUS],
    turns: [Turn; MOST_CPUS],
    /// What idle CPUs' threads wait for.
    alarms: [Turn; MOST_CPUS],
    /// The length of each CPU's next turn: a quantum, but short ones after it has met others on a line. Its own thread's.
    lengths: [AtomicU64; MOST_CPUS],
    quantum: u64,
    shortest: u64,
    lines: Option<Lines>,
    text: Range<u64>,
    interconnect: Interconnect,
    statistics: Statistics,
}

/// What is told at the end.
#[derive(Default)]
struct Statistics {
    /// Simulated nanoseconds of all CPUs that weren't idle.
    busy: AtomicU64,
    waits: AtomicU64,
    let_go: AtomicU64,
    moves: AtomicU64,
    contended: AtomicU64,
    broadcasts: AtomicU64,
    locals: AtomicU64,
    /// Simulated nanoseconds that CPUs waited for lines and invalidations.
    delays: AtomicU64,
}

impl Simulation {
    /// A machine that begins at `real` time, without CPUs.
    pub fn new(options: Options, cores: usize, real: u64) -> Self {
        Self {
            schedule: Lock::new(Schedule::new(options.quantum, cores)),
            clock: Clock::new(real),
            counters: Counters::new(),
            bases: [const { AtomicU64::new(0) }; MOST_CPUS],
            turns: [const { Turn::new() }; MOST_CPUS],
            alarms: [const { Turn::new() }; MOST_CPUS],
            lengths: [const { AtomicU64::new(0) }; MOST_CPUS],
            quantum: options.quantum,
            // Less than a move, so that who has got a line doesn't use it again before the next one has.
            shortest: (options.line_cost / 2).clamp(1, options.quantum),
            lines: (options.line_cost != 0).then(|| Lines::new(options.line_cost)),
            text: options.text,
            interconnect: Interconnect::new(options.tlbi_cost),
            statistics: Statistics::default(),
        }
    }

    /// The clock that replaces the emulator's.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// How far CPUs are within their turns.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Whether the accesses of the instruction at a virtual address take part in the cache-line model.
    pub fn has_lines(&self, address: u64) -> bool {
        self.lines.is_some() && self.text.contains(&address)
    }

    /// A CPU begins to execute, for the first time or after it was idle.
    pub fn start(&self, cpu: usize, real: u64) {
        let (time, turn) = self.schedule.with(|schedule| {
            let now = match schedule.floor() {
                Some(_) => self.clock.time(real),
                None => self.clock.hold(real),
            };
            let turn = schedule.start(cpu, now);
            (schedule.time(cpu), turn)
        });
        self.begin_turn(cpu, time, turn);
    }

    /// A CPU goes into WFI, or is powered off.
    pub fn idle(&self, cpu: usize, real: u64) {
        let time = self.now(cpu);
        let released = self.schedule.with(|schedule| {
            self.account(schedule, cpu, time);
            let released = schedule.idle(cpu, time);
            match schedule.floor() {
                Some(floor) => self.clock.advance(floor),
                None => {
                    self.clock.advance(time);
                    self.clock.follow(real);
                }
            }
            released
        });
        self.release(released);
    }

    /// A CPU is gone.
    pub fn remove(&self, cpu: usize) {
        let released = self.schedule.with(|schedule| schedule.remove(cpu));
        self.release(released);
    }

    /// A CPU has used up its turn. Returns when it has another.
    pub fn spent(&self, cpu: usize) {
        let time = self.now(cpu);
        let length = self.lengths[cpu].load(Relaxed).max(self.shortest);
        self.lengths[cpu].store((2 * length).min(self.quantum), Relaxed);
        self.turns[cpu].end();
        let (verdict, released) = self.schedule.with(|schedule| {
            self.account(schedule, cpu, time);
            let result = schedule.spent(cpu, time, length);
            if let Some(floor) = schedule.floor() {
                self.clock.advance(floor);
            }
            result
        });
        self.release(released);
        let turn = match verdict {
            Verdict::Run(turn) => turn,
            Verdict::Wait => {
                self.statistics.waits.fetch_add(1, Relaxed);
                self.wait(cpu).min(length)
            }
        };
        self.begin_turn(cpu, time, turn);
    }

    /// Sleeps until a CPU has its next turn.
    fn wait(&self, cpu: usize) -> u64 {
        let mut seen = None;
        loop {
            if let Some(turn) = self.turns[cpu].wait(LOOK) {
                return turn;
            }
            let let_go = self.schedule.with(|schedule| {
                let slowest = schedule
                    .slowest()
                    .map(|(other, time)| (other, time, self.counters.get(other)));
                if slowest == seen && schedule.let_go(cpu) {
                    return Some(schedule.quantum());
                }
                seen = slowest;
                None
            });
            if let Some(turn) = let_go {
                self.statistics.let_go.fetch_add(1, Relaxed);
                return turn;
            }
        }
    }

    /// A thread is about to wait for a condition of the emulator's. Gives the CPU if it is that of an idle one, which is to
    /// [`doze`](Self::doze).
    pub fn sleeps(&self, thread: Thread, condition: usize, real: u64) -> Option<usize> {
        if let Thread::Cpu(cpu) = thread {
            self.alarms[cpu].end();
        }
        let (released, idle) = self.schedule.with(|schedule| {
            let was_busy = schedule.floor().is_some();
            let released = schedule.sleeps(thread, condition);
            if was_busy && schedule.floor().is_none() {
                self.clock.follow(real);
            }
            let idle = match thread {
                Thread::Cpu(cpu) if schedule.is_idle(cpu) => Some(cpu),
                _ => None,
            };
            (released, idle)
        });
        self.release(released);
        idle
    }

    /// Waits until an idle CPU is woken. A wake between [`sleeps`](Self::sleeps) and this isn't lost.
    pub fn doze(&self, cpu: usize) {
        while self.alarms[cpu].wait(LONG).is_none() {}
    }

    /// Those who wait for a condition are about to be woken, or one of them.
    pub fn wakes(&self, condition: usize, all: bool, real: u64) {
        let woken = self.schedule.with(|schedule| {
            if !schedule.is_awaited(condition) {
                return 0;
            }
            let was_busy = schedule.floor().is_some();
            let woken = schedule.wakes(condition, all, self.clock.time(real));
            if !was_busy && schedule.floor().is_some() {
                self.clock.hold(real);
            }
            woken
        });
        for cpu in (0..MOST_CPUS).filter(|cpu| woken >> cpu & 1 != 0) {
            self.alarms[cpu].grant(1);
        }
    }

    /// A thread has stopped waiting.
    pub fn has_slept(&self, thread: Thread) {
        self.schedule.with(|schedule| schedule.has_slept(thread));
    }

    /// An instruction that takes part in the cache-line model accesses physical memory.
    pub fn access(&self, cpu: usize, address: u64, access: Access) {
        let Some(lines) = &self.lines else { return };
        let Some(moved) = lines.access(cpu, address, access, || self.now(cpu)) else {
            return;
        };
        self.statistics.moves.fetch_add(1, Relaxed);
        self.delay(cpu, moved.wait);
        if moved.is_contended {
            self.statistics.contended.fetch_add(1, Relaxed);
            // Its turn is over, and the next one comes when the others have caught up.
            self.lengths[cpu].store(self.shortest, Relaxed);
            self.begin_turn(cpu, self.now(cpu), 0);
        }
    }

    /// A CPU invalidates TLB entries.
    pub fn invalidate(&self, cpu: usize, scope: Scope) {
        let count = match scope {
            Scope::Local => &self.statistics.locals,
            Scope::Broadcast => &self.statistics.broadcasts,
        };
        count.fetch_add(1, Relaxed);
        self.delay(cpu, self.interconnect.invalidate(scope, self.now(cpu)));
    }

    /// What has happened, in one line.
    pub fn summary(&self, real: u64) -> String {
        let get = |count: &AtomicU64| count.load(Relaxed);
        let statistics = &self.statistics;
        let instructions = get(&statistics.busy).saturating_sub(get(&statistics.delays));
        let seconds = self.clock.elapsed(real) as f64 / 1e9;
        format!(
            "simulated {:.3} ms in {seconds:.1} real s; {:.1} million instructions, {:.1} a second; {} waits, {} let go as \
             stuck; {} line moves, {} of them contended, {} broadcast and {} local TLBIs; waited {:.3} ms for them",
            self.clock.time(real) as f64 / 1e6,
            instructions as f64 / 1e6,
            instructions as f64 / 1e6 / seconds,
            get(&statistics.waits),
            get(&statistics.let_go),
            get(&statistics.moves),
            get(&statistics.contended),
            get(&statistics.broadcasts),
            get(&statistics.locals),
            get(&statistics.delays) as f64 / 1e6,
        )
    }

    /// The time of a CPU that runs.
    fn now(&self, cpu: usize) -> u64 {
        self.bases[cpu]
            .load(Relaxed)
            .wrapping_add(self.counters.get(cpu))
    }

    fn account(&self, schedule: &Schedule, cpu: usize, time: u64) {
        let busy = time.saturating_sub(schedule.time(cpu));
        self.statistics.busy.fetch_add(busy, Relaxed);
    }

    fn release(&self, released: Released) {
        for cpu in released.iter() {
            self.turns[cpu].grant(released.turn);
        }
    }

    fn delay(&self, cpu: usize, nanoseconds: u64) {
        self.statistics.delays.fetch_add(nanoseconds, Relaxed);
        self.counters.add(cpu, nanoseconds);
    }

    fn begin_turn(&self, cpu: usize, time: u64, turn: u64) {
        let start = END - turn;
        self.bases[cpu].store(time.wrapping_sub(start), Relaxed);
        self.counters.set(cpu, start);
    }
}
