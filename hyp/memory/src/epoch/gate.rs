//! Keeps the epoch's own upkeep out of faults.
//!
//! crossbeam-epoch lets every 128th entry of a CPU look through all the others, to advance the epoch: on many CPUs those
//! looks, and the lines that they take from their owners, are most of what faults cost each other. The gate is one more
//! participant, which stays in the epoch for good and so holds it: as the last one that was registered it is the first that
//! a look meets, and the look ends there. All that it reads then is written by nobody.
//!
//! Whoever has something to reclaim opens the gate by one step ([`Gate::step`]), and lets the epoch advance that far: the
//! CPU that waits ([`settle`](crate::CpuMemory)), idle ones, and those that fill their cache of frames. What was retired is
//! free after two or three steps.

use crossbeam_epoch::{Collector, Guard, LocalHandle};
use spin::Mutex;

/// The participant that holds the epoch, once it is closed.
#[derive(Debug, Default)]
pub(crate) struct Gate(Mutex<Option<Held>>);

#[derive(Debug)]
struct Held {
    /// Given up before the handle.
    guard: Guard,
    _handle: LocalHandle,
}

// SAFETY: handle and guard are one participant of the collector, whose state isn't bound to a thread; the lock lets one CPU
// at a time use them.
unsafe impl Send for Held {}

impl Gate {
    /// Holds the epoch from now on. To be called when all CPUs are registered: a later one would be looked at first.
    pub(crate) fn close(&self, collector: &Collector) {
        let handle = collector.register();
        let guard = handle.pin();
        *self.0.lock() = Some(Held {
            guard,
            _handle: handle,
        });
    }

    /// Lets the epoch advance by one, if all CPUs that are in it follow. Does nothing while another CPU is at it.
    pub(crate) fn step(&self) {
        if let Some(mut held) = self.0.try_lock()
            && let Some(held) = held.as_mut()
        {
            held.guard.repin();
        }
    }
}
