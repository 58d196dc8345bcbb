//! What it costs to share memory: 64-byte cache lines that move between CPUs. A CPU that has a line, alone if it writes,
//! pays nothing; one that doesn't waits until the line has come, and moves of one line queue behind each other.
//!
//! All CPUs may call at once. An access to a line that the CPU has takes no lock; the others take that of the line.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::sleep::Lock;

const LINE_SHIFT: u32 = 6;
/// Lines that are known at once; one that falls on the place of another is forgotten, and comes back for nothing.
const PLACES: usize = 1 << 20;
const LOCKS: usize = 4096;
/// No line.
const NONE: u64 = u64::MAX;
/// The share of a move that keeps the next one waiting if the CPU only reads: those are served nearly together.
const READ_SHARE: u64 = 4;

/// A line that moves again within so many simulated nanoseconds is contended.
const SHORTLY: u64 = 1000;

/// What a CPU does with memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Reads it.
    Load,
    /// Writes it, or reads and writes.
    Store,
}

/// What it takes until a CPU has a line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Move {
    /// For how many simulated nanoseconds the CPU waits.
    pub wait: u64,
    /// Whether the line has moved shortly before: several CPUs want it, and their order matters.
    pub is_contended: bool,
}

/// Where every line is.
#[derive(Debug)]
pub struct Lines {
    places: Box<[Place]>,
    locks: [Lock<()>; LOCKS],
    /// Simulated nanoseconds of a move.
    cost: u64,
}

/// One line. Written under its lock; read at any time, by those who only ask whether they have it.
#[derive(Debug)]
#[repr(align(32))]
struct Place {
    /// The line's physical address, shifted.
    line: AtomicU64,
    /// The CPUs that have it.
    sharers: [AtomicU64; 2],
    /// Simulated time until which it is on its way to a CPU.
    busy_until: AtomicU64,
}

impl Lines {
    /// No CPU has any line; a move costs `cost` simulated nanoseconds.
    pub fn new(cost: u64) -> Self {
        let place = || Place {
            line: AtomicU64::new(NONE),
            sharers: [const { AtomicU64::new(0) }; 2],
            busy_until: AtomicU64::new(0),
        };
        Self {
            places: (0..PLACES).map(|_| place()).collect(),
            locks: [const { Lock::new(()) }; LOCKS],
            cost,
        }
    }

    /// A CPU accesses physical memory. Gives what it takes if the line has to move; `now` tells the CPU's time.
    pub fn access(
        &self,
        cpu: usize,
        address: u64,
        access: Access,
        now: impl FnOnce() -> u64,
    ) -> Option<Move> {
        let line = address >> LINE_SHIFT;
        // The multiplier of Fibonacci hashing: lines that are used together don't fall on one place.
        let index = (line.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as usize % PLACES;
        let place = &self.places[index];
        if place.line.load(Relaxed) == line && place.is_had_by(cpu, access) {
            return None;
        }
        self.locks[index % LOCKS].with(|()| {
            if place.line.load(Relaxed) != line {
                place.give(cpu, Access::Store);
                place.busy_until.store(0, Relaxed);
                place.line.store(line, Relaxed);
                return None;
            }
            if place.is_had_by(cpu, access) {
                return None;
            }
            let now = now();
            let busy_until = place.busy_until.load(Relaxed);
            let start = now.max(busy_until);
            let share = match access {
                Access::Load => READ_SHARE,
                Access::Store => 1,
            };
            place.busy_until.store(start + self.cost / share, Relaxed);
            place.give(cpu, access);
            Some(Move {
                wait: start + self.cost - now,
                is_contended: busy_until != 0 && now < busy_until + SHORTLY,
            })
        })
    }
}

impl Place {
    fn is_had_by(&self, cpu: usize, access: Access) -> bool {
        let sharers = || self.sharers.each_ref().map(|word| word.load(Relaxed));
        match access {
            Access::Load => self.sharers[cpu / 64].load(Relaxed) & bit(cpu) != 0,
            Access::Store => sharers() == only(cpu),
        }
    }

    /// To be called under the lock.
    fn give(&self, cpu: usize, access: Access) {
        match access {
            Access::Load => {
                self.sharers[cpu / 64].fetch_or(bit(cpu), Relaxed);
            }
            Access::Store => {
                for (word, sharers) in self.sharers.iter().zip(only(cpu)) {
                    word.store(sharers, Relaxed);
                }
            }
        }
    }
}

/// A CPU within its word of the sharers.
fn bit(cpu: usize) -> u64 {
    1 << (cpu % 64)
}

/// The sharers of a line that one CPU has alone.
fn only(cpu: usize) -> [u64; 2] {
    let mut sharers = [0; 2];
    sharers[cpu / 64] = bit(cpu);
    sharers
}

#[cfg(test)]
mod tests {
    use super::*;
    use Access::{Load, Store};

    const COST: u64 = 100;
    const WORD: u64 = 0x4020_1040;

    /// Accesses by (CPU, address, access, now), with what each waited.
    fn waits<const N: usize>(accesses: [(usize, u64, Access, u64); N]) -> [u64; N] {
        let lines = Lines::new(COST);
        accesses.map(|(cpu, address, access, now)| {
            lines
                .access(cpu, address, access, || now)
                .map_or(0, |moved| moved.wait)
        })
    }

    #[test]
    fn a_line_that_a_cpu_has_alone_costs_nothing() {
        let own = [
            (3, WORD, Store, 0),
            (3, WORD, Load, 5),
            (3, WORD + 8, Store, 9),
        ];
        assert_eq!(waits(own), [0; 3]);
    }

    #[test]
    fn a_line_of_another_cpu_has_to_move() {
        for writer in [1, 63, 64, 127] {
            let moved = [
                (0, WORD, Store, 0),
                (writer, WORD, Store, 10),
                (writer, WORD, Store, 200),
            ];
            assert_eq!(waits(moved), [0, COST, 0]);
            let back = [
                (0, WORD, Store, 0),
                (writer, WORD, Store, 10),
                (0, WORD, Load, 1000),
            ];
            assert_eq!(waits(back), [0, COST, COST]);
        }
    }

    #[test]
    fn moves_of_one_line_queue_behind_each_other() {
        let stores = [
            (0, WORD, Store, 0),
            (1, WORD, Store, 10),
            (2, WORD, Store, 20),
            (3, WORD, Store, 30),
        ];
        assert_eq!(waits(stores), [0, COST, 2 * COST - 10, 3 * COST - 20]);
    }

    #[test]
    fn readers_share_a_line_and_are_served_nearly_together() {
        let loads = [
            (0, WORD, Store, 0),
            (1, WORD, Load, 10),
            (2, WORD, Load, 10),
            (1, WORD, Load, 500),
            (0, WORD, Load, 500),
        ];
        assert_eq!(waits(loads), [0, COST, COST + COST / READ_SHARE, 0, 0]);
        let write_again = [
            (0, WORD, Store, 0),
            (1, WORD, Load, 10),
            (0, WORD, Store, 500),
            (1, WORD, Load, 1000),
        ];
        assert_eq!(waits(write_again), [0, COST, COST, COST]);
    }

    #[test]
    fn a_line_that_moves_again_soon_is_contended() {
        let lines = Lines::new(COST);
        let is_contended = |cpu, now| {
            let moved = lines.access(cpu, WORD, Store, || now);
            moved.expect("it moves").is_contended
        };
        assert_eq!(lines.access(0, WORD, Store, || 10), None);
        assert!(!is_contended(1, 20));
        assert!(is_contended(2, 30));
        assert!(is_contended(1, SHORTLY));
        assert!(!is_contended(2, 4 * SHORTLY));
    }

    #[test]
    fn neighbours_don_t_share() {
        let apart = [
            (0, WORD, Store, 0),
            (1, WORD + 64, Store, 10),
            (0, WORD + 63, Store, 20),
        ];
        assert_eq!(waits(apart), [0; 3]);
    }
}
