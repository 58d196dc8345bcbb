//! Who may run: keeps all busy CPUs within a few quanta of simulated time, with as few switches between them as can be.
//! Decides only; whoever asks puts threads to sleep and wakes them. Pure.
//!
//! A CPU runs for one turn and then asks. It goes on as long as its lead over the slowest busy CPU is at most as long as
//! the turn that it asks for; that is a quantum, or less where the order of CPUs matters, so none is ever more than two
//! quanta ahead. No more CPUs run than the host can run at once, and of those that wait the slowest is next: each turn is as
//! long as can be, and each switch wakes one thread.
//!
//! Two things depend on what threads of the emulator wait for, so it is told here (see [`Schedule::sleeps`]):
//!
//! - Sometimes the emulator wants all CPUs outside guest code (a broadcast TLB invalidation, a full translation buffer), and
//!   a thread waits until they are. Then no CPU may wait here, or both would wait for ever.
//! - A CPU that was idle is busy from the moment on at which another one woke it, however long the host takes to run it.

use crate::MOST_CPUS;

/// What a CPU does, as far as time is concerned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// There is no such CPU, or it has gone.
    Off,
    /// Executes instructions.
    Running,
    /// Too far ahead of the others, or no core of the host is free.
    Waiting,
    /// In WFI, or powered off: doesn't hold time back.
    Idle,
    /// Was idle, and somebody has woken it: holds time back, and will be running.
    Waking,
}

impl State {
    fn is_busy(self) -> bool {
        matches!(self, Self::Running | Self::Waiting | Self::Waking)
    }

    /// Whether it needs a core of the host.
    fn runs(self) -> bool {
        matches!(self, Self::Running | Self::Waking)
    }
}

#[derive(Clone, Copy, Debug)]
struct Cpu {
    state: State,
    /// Its time when it was last heard of.
    time: u64,
    /// How far it may be ahead when its next turn begins.
    lead: u64,
}

/// All CPUs and their times, in simulated nanoseconds.
#[derive(Debug)]
pub struct Schedule {
    cpus: [Cpu; MOST_CPUS],
    /// CPUs from this number on are off.
    count: usize,
    running: usize,
    quantum: u64,
    /// How many CPUs the host runs at once.
    cores: usize,
    /// What the threads of the CPUs, and behind them the first thread, wait for in the emulator; 0: nothing.
    conditions: [usize; THREADS],
}

/// A thread of the emulator, by the number of its CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Thread {
    /// That of a CPU.
    Cpu(usize),
    /// The first one.
    First,
}

const THREADS: usize = MOST_CPUS + 1;

impl Thread {
    fn index(self) -> usize {
        match self {
            Self::Cpu(cpu) => cpu,
            Self::First => MOST_CPUS,
        }
    }
}

/// What a CPU that has used up its turn does next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Runs for so many nanoseconds and asks again.
    Run(u64),
    /// Waits until it is released.
    Wait,
}

/// CPUs that waited and may run now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub struct Released {
    /// A bit for each.
    pub cpus: u128,
    /// For at most so many nanoseconds each.
    pub turn: u64,
}

impl Released {
    /// The CPUs' numbers.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..MOST_CPUS).filter(move |cpu| self.cpus >> cpu & 1 != 0)
    }
}

/// A turn that ends at once: for CPUs that are to leave guest code at the next opportunity.
const SHORTEST_TURN: u64 = 1;

impl Schedule {
    /// No CPUs. Each may be `quantum` ahead of the slowest when it begins another quantum; `cores` run at once.
    pub const fn new(quantum: u64, cores: usize) -> Self {
        const OFF: Cpu = Cpu {
            state: State::Off,
            time: 0,
            lead: 0,
        };
        Self {
            cpus: [OFF; MOST_CPUS],
            count: 0,
            running: 0,
            quantum,
            cores,
            conditions: [0; THREADS],
        }
    }

    /// A CPU begins to execute at time `now`, for the first time or after it was idle. Gives its turn.
    pub fn start(&mut self, cpu: usize, now: u64) -> u64 {
        self.count = self.count.max(cpu + 1);
        self.set_state(cpu, State::Running);
        let time = &mut self.cpus[cpu].time;
        *time = now.max(*time);
        self.quantum
    }

    /// A CPU has used up its turn, is at `time` now, and wants a `turn` that isn't longer than a quantum.
    pub fn spent(&mut self, cpu: usize, time: u64, turn: u64) -> (Verdict, Released) {
        self.cpus[cpu].time = time;
        self.cpus[cpu].lead = turn;
        if self.cpus[cpu].state != State::Running {
            // Nobody said that it runs again.
            self.set_state(cpu, State::Running);
        }
        if self.all_are_wanted_out() {
            return (Verdict::Run(SHORTEST_TURN), self.release_due());
        }
        let slowest = self.floor().unwrap_or(time);
        let too_many = self.running > self.cores && time > slowest;
        if time <= slowest + turn && !too_many {
            return (Verdict::Run(turn), self.release_due());
        }
        self.set_state(cpu, State::Waiting);
        (Verdict::Wait, self.release_due())
    }

    /// A CPU goes into WFI at `time`, or is powered off.
    pub fn idle(&mut self, cpu: usize, time: u64) -> Released {
        self.cpus[cpu].time = time;
        self.set_state(cpu, State::Idle);
        self.release_due()
    }

    /// A CPU is gone.
    pub fn remove(&mut self, cpu: usize) -> Released {
        self.set_state(cpu, State::Off);
        self.release_due()
    }

    /// A thread is about to wait for a condition. That of a CPU which isn't idle, and the first one, may wait until all CPUs
    /// are outside guest code: then no CPU waits until the thread has been woken.
    pub fn sleeps(&mut self, thread: Thread, condition: usize) -> Released {
        self.conditions[thread.index()] = condition;
        let mut released = 0;
        if let Thread::Cpu(cpu) = thread {
            match self.cpus[cpu].state {
                State::Idle => return self.release_due(),
                State::Waking => {
                    // It was woken for something else than to run.
                    self.set_state(cpu, State::Idle);
                    return self.release_due();
                }
                _ => {}
            }
        }
        for cpu in 0..self.count {
            if self.cpus[cpu].state == State::Waiting {
                self.set_state(cpu, State::Running);
                released |= 1 << cpu;
            }
        }
        Released {
            cpus: released,
            turn: SHORTEST_TURN,
        }
    }

    /// Those who wait for a condition are woken, or one of them. CPUs that were idle go on at time `now`; gives a bit for each.
    pub fn wakes(&mut self, condition: usize, all: bool, now: u64) -> u128 {
        let mut woken = 0;
        for index in 0..THREADS {
            if self.conditions[index] != condition {
                continue;
            }
            self.conditions[index] = 0;
            if index < MOST_CPUS && self.cpus[index].state == State::Idle {
                self.set_state(index, State::Waking);
                let time = &mut self.cpus[index].time;
                *time = now.max(*time);
                woken |= 1 << index;
            }
            if !all {
                break;
            }
        }
        woken
    }

    /// Whether a CPU is in WFI or off, and nobody has woken it.
    pub fn is_idle(&self, cpu: usize) -> bool {
        self.cpus[cpu].state == State::Idle
    }

    /// Whether a thread waits for a condition.
    pub fn is_awaited(&self, condition: usize) -> bool {
        self.conditions.contains(&condition)
    }

    /// A thread has stopped waiting, woken or not.
    pub fn has_slept(&mut self, thread: Thread) {
        self.conditions[thread.index()] = 0;
    }

    /// Whether a thread waits, and not for its idle CPU's next interrupt.
    fn all_are_wanted_out(&self) -> bool {
        let mut waiting = (0..self.count)
            .chain([MOST_CPUS])
            .filter(|index| self.conditions[*index] != 0);
        waiting.any(|index| index == MOST_CPUS || self.cpus[index].state != State::Idle)
    }

    /// Lets a CPU go on that has waited for too long. False if it doesn't wait any more.
    pub fn let_go(&mut self, cpu: usize) -> bool {
        let waits = self.cpus[cpu].state == State::Waiting;
        if waits {
            self.set_state(cpu, State::Running);
        }
        waits
    }

    /// How far one goes that is let go.
    pub fn quantum(&self) -> u64 {
        self.quantum
    }

    /// A CPU's time when it was last heard of.
    pub fn time(&self, cpu: usize) -> u64 {
        self.cpus[cpu].time
    }

    /// The busy CPU that holds time back, and its time when it was last heard of.
    pub fn slowest(&self) -> Option<(usize, u64)> {
        let busy = self.numbered(State::is_busy);
        busy.min_by_key(|(_, time)| *time)
    }

    /// The time that every busy CPU has reached; nothing if all are idle.
    pub fn floor(&self) -> Option<u64> {
        self.slowest().map(|(_, time)| time)
    }

    fn numbered(&self, wanted: impl Fn(State) -> bool) -> impl Iterator<Item = (usize, u64)> {
        let cpus = self.cpus[..self.count].iter().enumerate();
        cpus.filter(move |(_, cpu)| wanted(cpu.state))
            .map(|(number, cpu)| (number, cpu.time))
    }

    /// Lets the slowest of those that wait run, as far as cores are free and they aren't too far ahead.
    fn release_due(&mut self) -> Released {
        let mut released = 0;
        if let Some(floor) = self.floor() {
            while self.running < self.cores {
                let waiting = self.numbered(|state| state == State::Waiting);
                let Some((cpu, time)) = waiting.min_by_key(|(_, time)| *time) else {
                    break;
                };
                if time > floor + self.cpus[cpu].lead {
                    break;
                }
                self.set_state(cpu, State::Running);
                released |= 1 << cpu;
            }
        }
        Released {
            cpus: released,
            turn: self.quantum,
        }
    }

    fn set_state(&mut self, cpu: usize, state: State) {
        let ran = self.cpus[cpu].state.runs();
        self.running = self.running - usize::from(ran) + usize::from(state.runs());
        self.cpus[cpu].state = state;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUANTUM: u64 = 1000;
    const CONDITION: usize = 0x1000;

    fn with_cpus(cpus: usize, cores: usize) -> Schedule {
        let mut schedule = Schedule::new(QUANTUM, cores);
        for cpu in 0..cpus {
            assert_eq!(schedule.start(cpu, 0), QUANTUM);
        }
        schedule
    }

    /// Runs all CPUs, each turn to its end, until all have reached `end`. Gives how often one had to wait, and how far apart
    /// two ever were.
    fn run_all(cpus: usize, cores: usize, end: u64) -> (u64, u64) {
        let mut schedule = with_cpus(cpus, cores);
        let mut times = vec![0; cpus];
        let mut turns: Vec<Option<u64>> = vec![Some(QUANTUM); cpus];
        let (mut waits, mut spread) = (0, 0);
        while times.iter().min() < Some(&end) {
            let runner = (0..cpus).filter(|&cpu| turns[cpu].is_some());
            // The one that has run least in real time: all run side by side.
            let cpu = runner.min_by_key(|&cpu| times[cpu]).expect("somebody runs");
            times[cpu] += turns[cpu].expect("it runs");
            let (verdict, released) = schedule.spent(cpu, times[cpu], QUANTUM);
            turns[cpu] = match verdict {
                Verdict::Run(turn) => Some(turn),
                Verdict::Wait => {
                    waits += 1;
                    None
                }
            };
            for other in released.iter() {
                turns[other] = Some(released.turn);
            }
            let (least, most) = (times.iter().min(), times.iter().max());
            spread = spread.max(most.expect("CPUs") - least.expect("CPUs"));
        }
        (waits, spread)
    }

    #[test]
    fn no_cpu_is_ever_more_than_two_quanta_ahead() {
        for (cpus, cores) in [(1, 1), (2, 1), (2, 2), (5, 2), (16, 2), (17, 4), (128, 2)] {
            let (_, spread) = run_all(cpus, cores, 100 * QUANTUM);
            assert!(spread <= 2 * QUANTUM, "{cpus} on {cores}: {spread}");
        }
    }

    #[test]
    fn a_switch_pays_for_nearly_two_quanta() {
        let rounds = 1000;
        let (waits, _) = run_all(16, 2, rounds * QUANTUM);
        assert!(waits <= 16 * rounds * 6 / 10, "{waits}");
        assert_eq!(run_all(1, 2, rounds * QUANTUM).0, 0);
    }

    #[test]
    fn of_those_that_wait_the_slowest_is_next() {
        let mut schedule = with_cpus(3, 1);
        assert_eq!(schedule.spent(0, 900, QUANTUM).0, Verdict::Wait);
        assert_eq!(schedule.spent(1, 500, QUANTUM).0, Verdict::Wait);
        let (verdict, released) = schedule.spent(2, 1800, QUANTUM);
        assert_eq!(verdict, Verdict::Wait);
        assert_eq!(released.iter().collect::<Vec<_>>(), [1]);
        assert_eq!(released.turn, QUANTUM);
    }

    #[test]
    fn a_cpu_that_wants_a_short_turn_waits_for_a_short_lead() {
        let mut schedule = with_cpus(2, 2);
        assert_eq!(schedule.spent(0, 100, 50).0, Verdict::Wait);
        assert_eq!(schedule.spent(1, 40, QUANTUM).1.cpus, 0);
        assert_eq!(schedule.spent(1, 60, QUANTUM).1.cpus, 0b01);
        assert_eq!(schedule.spent(0, 100, 50).0, Verdict::Run(50));
    }

    #[test]
    fn an_idle_cpu_holds_nobody_back() {
        let mut schedule = with_cpus(2, 2);
        assert_eq!(schedule.spent(0, 5 * QUANTUM, QUANTUM).0, Verdict::Wait);
        assert_eq!(schedule.idle(1, 10).cpus, 0b01);
        assert_eq!(schedule.floor(), Some(5 * QUANTUM));
        let _ = schedule.idle(0, 6 * QUANTUM);
        assert_eq!(schedule.floor(), None);
        schedule.start(1, 7 * QUANTUM);
        assert_eq!(schedule.slowest(), Some((1, 7 * QUANTUM)));
    }

    #[test]
    fn a_cpu_that_is_removed_holds_nobody_back() {
        let mut schedule = with_cpus(2, 2);
        assert_eq!(schedule.spent(0, 5 * QUANTUM, QUANTUM).0, Verdict::Wait);
        assert_eq!(schedule.remove(1).cpus, 0b01);
    }

    #[test]
    fn nobody_waits_while_all_are_wanted_out() {
        let mut schedule = with_cpus(3, 3);
        assert_eq!(schedule.spent(0, 5 * QUANTUM, QUANTUM).0, Verdict::Wait);
        let released = schedule.sleeps(Thread::Cpu(2), CONDITION);
        assert_eq!((released.cpus, released.turn), (0b001, SHORTEST_TURN));
        let far = 50 * QUANTUM;
        assert_eq!(
            schedule.spent(1, far, QUANTUM).0,
            Verdict::Run(SHORTEST_TURN)
        );
        assert!(!schedule.let_go(1));
        assert_eq!(schedule.wakes(CONDITION, false, far), 0);
        assert_eq!(schedule.spent(1, far, QUANTUM).0, Verdict::Wait);
        assert!(schedule.let_go(1));
        schedule.has_slept(Thread::Cpu(2));
        assert_eq!(schedule.sleeps(Thread::First, CONDITION).cpus, 0);
        assert_eq!(
            schedule.spent(1, far, QUANTUM).0,
            Verdict::Run(SHORTEST_TURN)
        );
        schedule.has_slept(Thread::First);
        assert_eq!(schedule.spent(1, far, QUANTUM).0, Verdict::Wait);
    }

    #[test]
    fn an_idle_cpu_s_wait_keeps_nobody_from_waiting() {
        let mut schedule = with_cpus(3, 3);
        let _ = schedule.idle(2, 10);
        assert_eq!(schedule.sleeps(Thread::Cpu(2), CONDITION).cpus, 0);
        assert_eq!(schedule.spent(0, 5 * QUANTUM, QUANTUM).0, Verdict::Wait);
    }

    #[test]
    fn a_cpu_that_is_woken_holds_time_back_before_it_runs() {
        let mut schedule = with_cpus(2, 2);
        let _ = schedule.idle(1, 10);
        let _ = schedule.sleeps(Thread::Cpu(1), CONDITION);
        assert!(schedule.is_awaited(CONDITION) && !schedule.is_awaited(CONDITION + 1));
        let woken_at = 5 * QUANTUM;
        assert_eq!(
            schedule.spent(0, woken_at, QUANTUM).0,
            Verdict::Run(QUANTUM)
        );
        assert_eq!(schedule.wakes(CONDITION + 1, true, woken_at), 0);
        assert_eq!(schedule.floor(), Some(woken_at));
        assert!(schedule.is_idle(1));
        assert_eq!(schedule.wakes(CONDITION, true, woken_at), 0b10);
        assert!(!schedule.is_idle(1));
        assert_eq!(
            schedule.spent(0, woken_at + 2 * QUANTUM, QUANTUM).0,
            Verdict::Wait
        );
        assert_eq!(schedule.slowest(), Some((1, woken_at)));
        // It was nothing: it sleeps on.
        assert_eq!(schedule.sleeps(Thread::Cpu(1), CONDITION).cpus, 0b01);
        assert_eq!(schedule.floor(), Some(woken_at + 2 * QUANTUM));
    }
}
