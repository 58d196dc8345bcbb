//! CPUs: their TLB instructions and barriers, as the engine issues and the checker sees them; and who runs on which.

use crate::schedule::{pause, trace};
use crate::system::Physical;
use checker::Checker;
use stage2::{Barrier, Instructions, Tlbi};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

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

/// A CPU's registers, as they were written last: what an MRS finds.
#[derive(Debug, Default)]
pub struct Registers {
    vttbr: AtomicU64,
    vtcr: AtomicU64,
}

/// One CPU, for the engine's TLB maintenance.
#[derive(Clone, Copy, Debug)]
pub struct Cpu<'m> {
    pub(crate) checker: &'m Checker<Physical>,
    pub(crate) registers: &'m Registers,
    pub(crate) number: usize,
}

impl Instructions for Cpu<'_> {
    fn tlbi(&self, operation: Tlbi) {
        pause();
        trace(self.number, || format!("{operation:x?}"));
        self.checker.tlbi(self.number, operation.into());
    }

    fn barrier(&self, barrier: Barrier) {
        pause();
        trace(self.number, || format!("{barrier:?}"));
        self.checker.barrier(self.number, barrier.into());
    }

    fn vttbr(&self) -> u64 {
        self.registers.vttbr.load(Ordering::Relaxed)
    }

    fn set_vttbr(&self, value: u64) {
        pause();
        trace(self.number, || format!("VTTBR_EL2 {value:#x}"));
        self.registers.vttbr.store(value, Ordering::Relaxed);
        self.checker.vttbr(self.number, value);
    }

    fn vtcr(&self) -> u64 {
        self.registers.vtcr.load(Ordering::Relaxed)
    }

    fn set_vtcr(&self, value: u64) {
        pause();
        trace(self.number, || format!("VTCR_EL2 {value:#x}"));
        self.registers.vtcr.store(value, Ordering::Relaxed);
        self.checker.vtcr(self.number, value);
    }
}
