//! Lock step between a workload's harness and its vCPUs: the harness posts a step, every vCPU performs it and reports arrival,
//! and the harness continues when all have arrived.
//!
//! One harness, any number of vCPUs. Each vCPU has a seat in its own cache lines; shared lines are written once per vCPU and
//! step.

use crate::harness::error::WorkloadError;
use alloc::boxed::Box;
use control::{Machine, RunError, RunningGuest};
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use memory::MmuLock;

/// A step for all vCPUs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    /// One of [`abi::step`].
    pub code: u64,
    /// The iteration, from 1, or 0.
    pub iteration: u64,
    /// For steps that have one, the part of each share: its first page, and how many.
    pub part: (u64, u64),
}

impl Step {
    /// A step without a part.
    pub const fn new(code: u64, iteration: u64) -> Self {
        Self {
            code,
            iteration,
            part: (0, 0),
        }
    }
}

/// The meeting point of harness and vCPUs.
#[derive(Debug)]
pub struct Steps {
    posted: Posted,
    arrived: Arrived,
    seats: Box<[Seat]>,
}

/// The step that was posted last, in a cache line that all vCPUs read at the same time.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Posted {
    /// How many steps were posted. Published after the step itself.
    count: AtomicU64,
    code: AtomicU64,
    iteration: AtomicU64,
    part: (AtomicU64, AtomicU64),
}

/// How many vCPUs have arrived, apart from what the others still read.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Arrived(AtomicUsize);

#[derive(Debug, Default)]
#[repr(align(128))]
struct Seat {
    /// The step that the vCPU waits for, by its number from 1.
    waits_for: AtomicU64,
    written: AtomicU64,
    read: AtomicU64,
    at_ns: AtomicU64,
}

/// A vCPU's report on arrival.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Arrival {
    /// How many pages it has written, by its own count.
    pub written: u64,
    /// How many pages it has read, by its own count.
    pub read: u64,
    /// When it arrived.
    pub at_ns: u64,
}

impl Steps {
    /// For `vcpus` vCPUs, none of which has arrived.
    pub fn new(vcpus: usize) -> Self {
        Self {
            posted: Posted::default(),
            arrived: Arrived::default(),
            seats: (0..vcpus).map(|_| Seat::default()).collect(),
        }
    }

    /// The meeting point for a fork's vCPUs, with the same arrivals and the same awaited steps. Meanwhile none of these vCPUs
    /// runs, and nothing is posted.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self {
            posted: Posted {
                count: copy(&self.posted.count),
                code: copy(&self.posted.code),
                iteration: copy(&self.posted.iteration),
                part: (copy(&self.posted.part.0), copy(&self.posted.part.1)),
            },
            arrived: Arrived(AtomicUsize::new(self.arrived())),
            seats: self.seats.iter().map(Seat::fork).collect(),
        }
    }

    /// Notes that a vCPU has finished its step, or has just started. Returns whether it was the last to arrive. Its next step
    /// comes from [`Self::answer`]. Called by the vCPU's own thread; ignores a vCPU that doesn't exist.
    pub fn arrive(&self, vcpu: usize, arrival: Arrival) -> bool {
        let Some(seat) = self.seats.get(vcpu) else {
            return false;
        };
        // The harness posts nothing before this vCPU has arrived, so this is the step that the vCPU has just done.
        let next = self.posted.count.load(Ordering::Acquire) + 1;
        if seat.waits_for.swap(next, Ordering::Relaxed) == next {
            return false;
        }
        seat.written.store(arrival.written, Ordering::Relaxed);
        seat.read.store(arrival.read, Ordering::Relaxed);
        seat.at_ns.store(arrival.at_ns, Ordering::Relaxed);
        // Release: the seat, and all that the vCPU did, come before. Acquire for the last one's sake.
        self.arrived.0.fetch_add(1, Ordering::AcqRel) + 1 == self.seats.len()
    }

    /// The step that an arrived vCPU waits for, once it is posted.
    pub fn answer(&self, vcpu: usize) -> Option<Step> {
        let seat = self.seats.get(vcpu)?;
        // Acquire: pairs with the release of `post`.
        let posted = &self.posted;
        let count = posted.count.load(Ordering::Acquire);
        (count >= seat.waits_for.load(Ordering::Relaxed)).then(|| Step {
            code: posted.code.load(Ordering::Relaxed),
            iteration: posted.iteration.load(Ordering::Relaxed),
            part: (
                posted.part.0.load(Ordering::Relaxed),
                posted.part.1.load(Ordering::Relaxed),
            ),
        })
    }

    /// Whether all vCPUs have arrived. Acquire: their work is visible to the caller.
    pub fn all_arrived(&self) -> bool {
        self.arrived() == self.seats.len()
    }

    /// How many vCPUs there are.
    pub fn seats(&self) -> usize {
        self.seats.len()
    }

    /// How many vCPUs have arrived.
    pub fn arrived(&self) -> usize {
        self.arrived.0.load(Ordering::Acquire)
    }

    /// Posts the next step, when all vCPUs have arrived. They see it when they are kicked.
    pub fn post(&self, step: Step) {
        debug_assert!(self.all_arrived());
        self.arrived.0.store(0, Ordering::Relaxed);
        let posted = &self.posted;
        posted.code.store(step.code, Ordering::Relaxed);
        posted.iteration.store(step.iteration, Ordering::Relaxed);
        posted.part.0.store(step.part.0, Ordering::Relaxed);
        posted.part.1.store(step.part.1, Ordering::Relaxed);
        posted.count.fetch_add(1, Ordering::Release);
    }

    /// Posts a step for all vCPUs of a guest and wakes them.
    pub fn post_to<M: Machine, L: MmuLock>(&self, guest: &RunningGuest<'_, M, L>, step: Step) {
        self.post(step);
        guest.kick_vcpus();
    }

    /// Waits until all vCPUs of a guest have finished their step; calls `meanwhile` at first and whenever this CPU is kicked.
    ///
    /// # Errors
    /// The guest has ended before, or its time is up.
    pub fn wait<M: Machine, L: MmuLock>(
        &self,
        guest: &RunningGuest<'_, M, L>,
        mut meanwhile: impl FnMut(),
    ) -> Result<(), WorkloadError> {
        let done = || {
            meanwhile();
            self.all_arrived()
        };
        let waited = guest.wait_until(done).map_err(|error| match error {
            RunError::TimedOut { seconds } => WorkloadError::StepTimedOut {
                seconds,
                arrived: self.arrived(),
                vcpus: self.seats(),
            },
            other => other.into(),
        });
        guest.note_progress();
        waited
    }

    /// All vCPUs' reports, once all have arrived.
    pub fn arrivals(&self) -> impl Iterator<Item = Arrival> + '_ {
        self.seats.iter().map(|seat| Arrival {
            written: seat.written.load(Ordering::Relaxed),
            read: seat.read.load(Ordering::Relaxed),
            at_ns: seat.at_ns.load(Ordering::Relaxed),
        })
    }

    /// The time of the last arrival, once all have arrived.
    pub fn last_arrival_ns(&self) -> u64 {
        self.arrivals()
            .map(|arrival| arrival.at_ns)
            .max()
            .unwrap_or(0)
    }
}

impl Seat {
    fn fork(&self) -> Self {
        Self {
            waits_for: copy(&self.waits_for),
            written: copy(&self.written),
            read: copy(&self.read),
            at_ns: copy(&self.at_ns),
        }
    }
}

/// A copy of a word that nobody is writing.
fn copy(word: &AtomicU64) -> AtomicU64 {
    AtomicU64::new(word.load(Ordering::Relaxed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use std::hint;
    use std::thread;

    const ARRIVAL: Arrival = Arrival {
        written: 0,
        read: 0,
        at_ns: 0,
    };

    #[test]
    fn a_step_is_seen_by_those_who_wait_for_it_only() {
        let steps = Steps::new(2);
        assert!(!steps.arrive(0, ARRIVAL));
        assert_eq!(steps.answer(0), None);
        assert!(!steps.arrive(0, ARRIVAL), "a vCPU arrives once");
        assert!(!steps.all_arrived());
        assert!(steps.arrive(
            1,
            Arrival {
                written: 7,
                read: 0,
                at_ns: 9
            }
        ));
        assert!(steps.all_arrived());
        assert_eq!(
            steps
                .arrivals()
                .map(|arrival| arrival.written)
                .collect::<Vec<_>>(),
            [0, 7]
        );
        let step = Step {
            part: (3, 4),
            ..Step::new(2, 5)
        };
        steps.post(step);
        assert_eq!(
            (steps.answer(0), steps.answer(1), steps.answer(2)),
            (Some(step), Some(step), None)
        );
        assert!(!steps.arrive(0, ARRIVAL));
        assert_eq!(steps.answer(0), None);
        assert!(!steps.arrive(5, ARRIVAL));
    }

    #[test]
    fn a_fork_goes_on_where_its_vcpus_were_and_apart_from_then_on() {
        let steps = Steps::new(2);
        assert!(!steps.arrive(0, ARRIVAL));
        assert!(steps.arrive(1, ARRIVAL));
        steps.post(Step::new(2, 5));
        assert!(!steps.arrive(
            1,
            Arrival {
                written: 7,
                ..ARRIVAL
            }
        ));
        // vCPU 0 has yet to learn of its step, vCPU 1 is done with it.
        let fork = steps.fork();
        assert_eq!(fork.answer(0), Some(Step::new(2, 5)));
        assert_eq!((fork.answer(1), fork.arrived()), (None, 1));
        assert!(fork.arrive(0, ARRIVAL));
        assert_eq!(
            steps.arrived(),
            1,
            "the fork's vCPU arrived at its parent's"
        );
        assert_eq!(
            fork.arrivals().map(|arrival| arrival.written).max(),
            Some(7)
        );
        fork.post(Step::new(3, 6));
        assert_eq!(fork.answer(1), Some(Step::new(3, 6)));
        assert_eq!(steps.answer(1), None);
    }

    #[test]
    fn threads_stay_in_step() {
        const VCPUS: usize = 4;
        const STEPS: u64 = 200;
        let steps = Steps::new(VCPUS);
        let done: Vec<AtomicU64> = (0..VCPUS).map(|_| AtomicU64::new(0)).collect();
        thread::scope(|scope| {
            for vcpu in 0..VCPUS {
                let (steps, done) = (&steps, &done);
                scope.spawn(move || {
                    loop {
                        let written = done[vcpu].load(Ordering::Relaxed);
                        steps.arrive(vcpu, Arrival { written, ..ARRIVAL });
                        let step = loop {
                            match steps.answer(vcpu) {
                                Some(step) => break step,
                                None => thread::yield_now(),
                            }
                        };
                        if step.code == 0 {
                            return;
                        }
                        done[vcpu].store(step.iteration, Ordering::Relaxed);
                    }
                });
            }
            for iteration in 0..STEPS {
                while !steps.all_arrived() {
                    hint::spin_loop();
                }
                assert!(steps.arrivals().all(|arrival| arrival.written == iteration));
                assert!(
                    done.iter()
                        .all(|done| done.load(Ordering::Relaxed) == iteration)
                );
                let last = iteration + 1 == STEPS;
                steps.post(Step::new(u64::from(!last), iteration + 1));
            }
        });
    }
}
