//! The simulated time that the emulator is told: that which every busy CPU has reached. While all CPUs are idle it runs at
//! real speed, so that timers fire.
//!
//! Any thread may read it at any time; it is set by one at a time.

use std::sync::atomic::{AtomicU64, Ordering};

/// Simulated nanoseconds since the machine's start.
#[derive(Debug)]
pub struct Clock {
    /// Real time at the machine's start, for which simulated time is added.
    origin: u64,
    /// Twice the time; or, plus one, twice how far it is ahead of real time (modulo 2^63).
    state: AtomicU64,
}

const FOLLOWS_REAL_TIME: u64 = 1;

impl Clock {
    /// A clock that begins at 0, follows real time, and shows what is `real` now.
    pub fn new(real: u64) -> Self {
        Self {
            origin: real,
            state: AtomicU64::new(real.wrapping_neg() << 1 | FOLLOWS_REAL_TIME),
        }
    }

    /// The simulated time when it is `real`.
    pub fn time(&self, real: u64) -> u64 {
        let state = self.state.load(Ordering::Acquire);
        if state & FOLLOWS_REAL_TIME == 0 {
            return state >> 1;
        }
        // The sum modulo 2^63. Whoever read the real time before another set the clock may be a little early.
        let time = (state >> 1).wrapping_add(real) << 1 >> 1;
        if time >> 62 == 0 { time } else { 0 }
    }

    /// What the emulator is told when it is `real`.
    pub fn shown(&self, real: u64) -> u64 {
        self.origin + self.time(real)
    }

    /// Real time since the machine's start.
    pub fn elapsed(&self, real: u64) -> u64 {
        real - self.origin
    }

    /// Some CPU is busy: from now on time is what [`Clock::advance`] says. Gives the time.
    pub fn hold(&self, real: u64) -> u64 {
        let time = self.time(real);
        self.state.store(time << 1, Ordering::Release);
        time
    }

    /// Every busy CPU has reached `time`.
    pub fn advance(&self, time: u64) {
        let state = self.state.load(Ordering::Relaxed);
        if state & FOLLOWS_REAL_TIME == 0 && time > state >> 1 {
            self.state.store(time << 1, Ordering::Release);
        }
    }

    /// All CPUs are idle: from now on time runs at real speed.
    pub fn follow(&self, real: u64) {
        let ahead = self.time(real).wrapping_sub(real);
        self.state
            .store(ahead << 1 | FOLLOWS_REAL_TIME, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 5_000_000;

    #[test]
    fn time_follows_the_real_one_until_a_cpu_is_busy() {
        let clock = Clock::new(START);
        assert_eq!(clock.time(START), 0);
        assert_eq!(clock.time(START + 70), 70);
        assert_eq!(clock.shown(START + 70), START + 70);
        assert_eq!(clock.hold(START + 100), 100);
        assert_eq!(clock.time(START + 999), 100);
    }

    #[test]
    fn busy_cpus_move_time_and_never_back() {
        let clock = Clock::new(START);
        clock.advance(50);
        assert_eq!(clock.time(START), 0, "nobody is busy");
        clock.hold(START);
        clock.advance(1000);
        clock.advance(900);
        assert_eq!(clock.time(START + 1), 1000);
        assert_eq!(clock.shown(START + 1), START + 1000);
    }

    #[test]
    fn real_time_goes_on_from_where_simulated_time_is() {
        let clock = Clock::new(START);
        clock.hold(START);
        for simulated in [10, 90_000_000_000] {
            clock.advance(simulated);
            clock.follow(START + 500);
            assert_eq!(clock.time(START + 500), simulated);
            assert_eq!(clock.time(START + 600), simulated + 100);
            assert_eq!(clock.hold(START + 600), simulated + 100);
        }
    }

    #[test]
    fn a_late_reader_sees_no_nonsense() {
        let clock = Clock::new(START);
        assert_eq!(clock.time(START - 1), 0);
    }
}
