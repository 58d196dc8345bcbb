//! CPUs: their TLB instructions and barriers, as the engine issues and the monitor sees them; and who runs on which.

use crate::schedule::{pause, trace};
use crate::system::Physical;
use stage2::{Barrier, Instructions, Tlbi};
use std::cell::Cell;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use watcher::{Monitor, Violation};

use crate::locked;

thread_local! {
    /// For threads that no scheduler runs.
    static HERE: Cell<usize> = const { Cell::new(0) };
}

/// The CPU that a scheduled thread runs on.
#[derive(Clone, Copy, Debug)]
struct RunsOn(usize);

/// The CPU that the caller runs on.
pub(crate) fn current() -> usize {
    match shuttle::current::try_get_current_task() {
        Some(task) => {
            shuttle::current::get_label_for_task::<RunsOn>(task).map_or(0, |RunsOn(cpu)| cpu)
        }
        None => HERE.get(),
    }
}

/// Runs `work` on a CPU.
pub(crate) fn run_on<R>(cpu: usize, work: impl FnOnce() -> R) -> R {
    let before = move_to(cpu);
    let result = work();
    move_to(before);
    result
}

fn move_to(cpu: usize) -> usize {
    match shuttle::current::try_get_current_task() {
        Some(task) => shuttle::current::set_label_for_task(task, RunsOn(cpu))
            .map_or(0, |RunsOn(before)| before),
        None => HERE.replace(cpu),
    }
}

/// One CPU, for the engine's TLB maintenance.
#[derive(Clone, Copy, Debug)]
pub struct Cpu<'m> {
    pub(crate) monitor: &'m Monitor<Physical>,
    pub(crate) found: &'m Mutex<Vec<Violation>>,
    pub(crate) vttbr: &'m AtomicU64,
    pub(crate) number: usize,
}

impl Instructions for Cpu<'_> {
    fn tlbi(&self, operation: Tlbi) {
        pause();
        trace(self.number, || format!("{operation:x?}"));
        self.monitor.tlbi(self.number, operation.into());
    }

    fn barrier(&self, barrier: Barrier) {
        pause();
        trace(self.number, || format!("{barrier:?}"));
        self.monitor.barrier(self.number, barrier.into());
    }

    fn vttbr(&self) -> u64 {
        self.vttbr.load(Ordering::Relaxed)
    }

    fn set_vttbr(&self, value: u64) {
        pause();
        self.vttbr.store(value, Ordering::Relaxed);
        let found = self.monitor.vttbr(self.number, value);
        locked(self.found).extend(found);
    }
}
