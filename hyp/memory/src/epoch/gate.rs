//! Keeps the epoch's bookkeeping out of faults.
//!
//! In crossbeam-epoch every 128th entry of a CPU scans all other participants to advance the epoch. With many CPUs these scans,
//! and the cache lines they take from their owners, are most of what faults cost each other. The gate is an extra participant
//! that stays pinned and so holds the epoch. It is registered last, so a scan meets it first and ends there, having read only
//! lines that nobody writes.
//!
//! A CPU with memory to reclaim opens the gate for one step ([`Gate::step`]), which lets the epoch advance that far. Callers
//! are a CPU that waits ([`settle`](crate::CpuMemory)), idle CPUs, and CPUs that refill their frame cache. Retired memory is
//! free after two or three steps.

use crossbeam_epoch::{Collector, Guard, LocalHandle};
use spin::Mutex;

/// The participant that holds the epoch once the gate is closed.
#[derive(Debug, Default)]
pub(crate) struct Gate(Mutex<Option<Held>>);

#[derive(Debug)]
struct Held {
    /// Dropped before the handle.
    guard: Guard,
    _handle: LocalHandle,
}

// SAFETY: handle and guard are one participant of the collector, whose state isn't bound to a thread; the lock lets one CPU
// at a time use them.
unsafe impl Send for Held {}

impl Gate {
    /// Holds the epoch from now on. Call it when all CPUs are registered: a CPU registered later would be scanned before the
    /// gate.
    pub(crate) fn close(&self, collector: &Collector) {
        let handle = collector.register();
        let guard = handle.pin();
        *self.0.lock() = Some(Held {
            guard,
            _handle: handle,
        });
    }

    /// Lets the epoch advance by one, if all pinned CPUs follow. Does nothing while another CPU is doing it.
    pub(crate) fn step(&self) {
        if let Some(mut held) = self.0.try_lock()
            && let Some(held) = held.as_mut()
        {
            held.guard.repin();
        }
    }
}
