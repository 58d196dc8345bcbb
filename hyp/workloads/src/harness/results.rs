//! The measurements of a run so far: its phases, each with its duration and counter differences.
//!
//! Used by CPU 0.

use alloc::vec::Vec;
use control::Machine;
use control::guest::RunningGuest;
use control::guest::counters::Snapshot;
use memory::MmuLock;
use records::record::{CounterMap, Phase, PhaseName};

/// The finished phases, and the counts for the current one.
#[derive(Debug, Default)]
pub(crate) struct Results {
    /// The phases.
    pub phases: Vec<Phase>,
    to_count: CounterMap,
}

/// The state at the start of a phase.
pub(crate) struct Start {
    ns: u64,
    counters: Snapshot,
}

impl Results {
    /// Begins a phase.
    pub fn start<M: Machine, L: MmuLock>(guest: &RunningGuest<'_, M, L>) -> Start {
        guest.vm.begin_hold_period();
        Start {
            counters: guest.snapshot(),
            ns: guest.machine.now_ns(),
        }
    }

    /// Adds to a counter of the current phase.
    pub fn count(&mut self, name: &str, count: u64) {
        *self.to_count.entry(name.into()).or_default() += count;
    }

    /// Adds a finished phase, and prints its result.
    pub fn add<M: Machine>(&mut self, machine: &M, phase: Phase) {
        machine.write_line(format_args!("{phase}"));
        self.phases.push(phase);
    }

    /// Sets a counter of the last finished phase.
    pub fn note(&mut self, name: &str, count: u64) {
        if let Some(last) = self.phases.last_mut() {
            last.counters.insert(name.into(), count);
        }
    }

    /// Ends a phase, named by `meant` with its iteration, at a given moment; prints and keeps its result.
    pub fn end<M: Machine, L: MmuLock>(
        &mut self,
        guest: &RunningGuest<'_, M, L>,
        (name, iteration): (PhaseName, u64),
        end_ns: u64,
        Start { ns, counters }: Start,
    ) {
        let mut counters = guest.snapshot().since(&counters);
        counters.append(&mut self.to_count);
        let pool = guest.own.memory.pool();
        let frames = pool.counts_of(guest.vm.space.vm());
        counters.insert("frames_table".into(), frames.table);
        counters.insert("frames_pending".into(), frames.pending);
        counters.insert("frames_pending_most".into(), pool.most_pending());
        if guest.exit_times {
            counters.insert("longest_exit_ns".into(), guest.vm.longest_hold_ns());
        }
        let phase = Phase {
            name,
            iteration,
            ns: end_ns.saturating_sub(ns),
            counters,
        };
        self.add(guest.machine, phase);
    }
}
