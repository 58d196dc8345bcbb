//! A vCPU's power state, on which PSCI CPU_ON, CPU_OFF and AFFINITY_INFO work.
//!
//! Off → claimed → pending → on → off. If several callers turn one vCPU on at once, a single one wins the claim. It writes the
//! entry point and publishes it as pending. The vCPU's own slices make the last two steps.

use crate::registers::state::Start;
use stage2::sync::{AtomicU64, Ordering};

const OFF: u64 = 0;
const CLAIMED: u64 = 1;
const PENDING: u64 = 2;
const ON: u64 = 3;

/// One vCPU's power switch.
#[derive(Debug)]
pub struct PowerSwitch {
    state: AtomicU64,
    entry: AtomicU64,
    context: AtomicU64,
}

/// A vCPU as AFFINITY_INFO tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerState {
    /// It runs.
    On,
    /// It doesn't.
    Off,
    /// It was turned on, and will start soon.
    OnPending,
}

impl PowerSwitch {
    /// A vCPU that is off.
    pub fn new() -> Self {
        Self {
            state: AtomicU64::new(OFF),
            entry: AtomicU64::new(0),
            context: AtomicU64::new(0),
        }
    }

    /// A switch in the same state, for a fork's vCPU. Nobody turns this one on meanwhile; the fork's own slices start or
    /// continue its vCPU.
    pub(crate) fn fork(&self) -> Self {
        Self {
            // Acquire: pairs with what publishes PENDING, for where to start.
            state: AtomicU64::new(self.state.load(Ordering::Acquire)),
            entry: AtomicU64::new(self.entry.load(Ordering::Relaxed)),
            context: AtomicU64::new(self.context.load(Ordering::Relaxed)),
        }
    }

    /// Turns the vCPU on, to start at `start`. If it isn't off, returns its state.
    pub fn turn_on(&self, start: Start) -> Result<(), PowerState> {
        // Acquire: the writes below come after what the last turn_off has published.
        if self
            .state
            .compare_exchange(OFF, CLAIMED, Ordering::Acquire, Ordering::Relaxed)
            .is_err()
        {
            return Err(match self.state() {
                PowerState::On => PowerState::On,
                // It has gone off since: it was on or about to be when the exchange looked.
                PowerState::Off | PowerState::OnPending => PowerState::OnPending,
            });
        }
        self.entry.store(start.entry, Ordering::Relaxed);
        self.context.store(start.context, Ordering::Relaxed);
        self.state.store(PENDING, Ordering::Release);
        Ok(())
    }

    /// The start, if the vCPU was turned on; from here on it is on. For the vCPU's own slice.
    pub fn take_start(&self) -> Option<Start> {
        if self.state.load(Ordering::Acquire) != PENDING {
            return None;
        }
        let start = Start {
            entry: self.entry.load(Ordering::Relaxed),
            context: self.context.load(Ordering::Relaxed),
        };
        self.state.store(ON, Ordering::Release);
        Some(start)
    }

    /// Turns the vCPU off. For its own slice, while it is on.
    pub fn turn_off(&self) {
        self.state.store(OFF, Ordering::Release);
    }

    /// The vCPU's power state.
    pub fn state(&self) -> PowerState {
        match self.state.load(Ordering::Acquire) {
            OFF => PowerState::Off,
            ON => PowerState::On,
            _ => PowerState::OnPending,
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const START: Start = Start {
        entry: 0x4000_0000,
        context: 7,
    };

    #[test]
    fn a_forked_switch_has_its_parents_state_and_a_life_of_its_own() {
        let parent = PowerSwitch::new();
        assert_eq!(parent.fork().state(), PowerState::Off);
        parent.turn_on(START).unwrap();
        let child = parent.fork();
        assert_eq!(child.take_start(), Some(START));
        assert_eq!(parent.state(), PowerState::OnPending);
        assert_eq!(child.fork().state(), PowerState::On);
    }

    #[test]
    fn a_vcpu_is_turned_on_once() {
        let switch = PowerSwitch::new();
        assert_eq!(switch.state(), PowerState::Off);
        assert_eq!(switch.take_start(), None);
        assert_eq!(switch.turn_on(START), Ok(()));
        assert_eq!(
            switch.turn_on(Start {
                entry: 1,
                context: 2
            }),
            Err(PowerState::OnPending)
        );
        assert_eq!(switch.state(), PowerState::OnPending);
        assert_eq!(switch.take_start(), Some(START));
        assert_eq!(switch.take_start(), None);
        assert_eq!(switch.turn_on(START), Err(PowerState::On));
        switch.turn_off();
        assert_eq!(switch.turn_on(START), Ok(()));
    }
}

#[cfg(all(test, loom))]
mod model {
    use super::*;
    use loom::sync::Arc;
    use loom::thread;

    #[test]
    fn of_two_that_turn_a_vcpu_on_one_wins_and_its_start_is_whole() {
        loom::model(|| {
            let switch = Arc::new(PowerSwitch::new());
            let callers: [_; 2] = core::array::from_fn(|i| {
                let switch = switch.clone();
                thread::spawn(move || {
                    switch
                        .turn_on(Start {
                            entry: i as u64 + 1,
                            context: i as u64 + 1,
                        })
                        .is_ok()
                })
            });
            let mut start = switch.take_start();
            let wins = callers.map(|caller| caller.join().unwrap());
            start = start.or_else(|| switch.take_start());
            let start = start.expect("nobody turned the vCPU on");
            assert_eq!(start.entry, start.context);
            assert_eq!(wins.iter().filter(|&&won| won).count(), 1);
            assert!(wins[start.entry as usize - 1]);
        });
    }

    #[test]
    fn a_vcpu_that_goes_off_can_be_turned_on_with_a_new_start() {
        loom::model(|| {
            let switch = Arc::new(PowerSwitch::new());
            switch
                .turn_on(Start {
                    entry: 1,
                    context: 1,
                })
                .unwrap();
            let own = {
                let switch = switch.clone();
                thread::spawn(move || {
                    let first = switch.take_start().unwrap();
                    switch.turn_off();
                    (first, switch.take_start())
                })
            };
            let again = switch.turn_on(Start {
                entry: 2,
                context: 2,
            });
            let (first, second) = own.join().unwrap();
            assert_eq!(
                first,
                Start {
                    entry: 1,
                    context: 1
                }
            );
            match again {
                Ok(()) => {
                    let second = second.or_else(|| switch.take_start());
                    assert_eq!(
                        second,
                        Some(Start {
                            entry: 2,
                            context: 2
                        })
                    );
                }
                Err(_) => assert_eq!(second, None),
            }
        });
    }
}
