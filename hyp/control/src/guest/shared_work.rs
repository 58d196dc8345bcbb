//! Work on a guest's memory that CPU 0 shares with the guest's helpers: CPUs without a vCPU, reserved for it while it runs
//! ([`GuestPlan::helpers`](crate::GuestPlan)).
//!
//! The work is cut into parts, and each CPU begins with a run of neighbouring parts of its own: neighbours share cache lines of
//! tables and logs. It takes part after part by one atomic addition, first of its own run, then of the others', so a slow part
//! holds up nobody else. CPU 0 takes parts too, and returns when all are done; meanwhile it serves nobody else. Or it leaves all
//! parts to the helpers ([`RunningGuest::begin_work`]), and serves others.
//! Parts run on different CPUs at the same time and in any order: they must be of a kind that [`AddressSpace`] allows so.

use crate::guest::running::{BackgroundWork, RunningGuest};
use crate::machine::{Machine, OwnCpu};
use alloc::boxed::Box;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicUsize, Ordering};
use memory::{AddressSpace, CpuMemory, MmuLock};
use spin::Once;
use vm::Vm;

/// The parts that are still to be done, and the first error. Shared by all CPUs that do them.
struct Parts<E> {
    runs: Box<[Run]>,
    error: Once<E>,
}

/// The neighbouring parts that one CPU begins with.
#[repr(align(128))]
struct Run {
    next: AtomicUsize,
    end: usize,
}

impl<E> Parts<E> {
    /// So many parts for so many CPUs.
    fn new(count: usize, cpus: usize) -> Self {
        let run = |cpu| Run {
            next: AtomicUsize::new(count * cpu / cpus),
            end: count * (cpu + 1) / cpus,
        };
        Self {
            runs: (0..cpus).map(run).collect(),
            error: Once::new(),
        }
    }

    /// Lets nobody begin another one.
    fn call_off(&self) {
        for run in &self.runs {
            run.next.store(run.end, Ordering::Relaxed);
        }
    }

    /// Does parts until none is left, as the CPU `cpu` of them. Relaxed: a part's result reaches CPU 0 with the end of the job.
    fn work_off(&self, cpu: usize, mut work: impl FnMut(usize) -> Result<(), E>) {
        let (before, own) = self.runs.split_at(cpu);
        for run in own.iter().chain(before) {
            loop {
                let part = run.next.fetch_add(1, Ordering::Relaxed);
                if part >= run.end {
                    break;
                }
                if let Err(error) = work(part) {
                    self.error.call_once(|| error);
                    return self.call_off();
                }
            }
        }
    }
}

impl<M: Machine, L: MmuLock> RunningGuest<'_, M, L> {
    /// Calls `work` for each of `parts` parts, by their numbers from 0, on this CPU and on the guest's helpers. Returns when all
    /// are done: what the helpers did is visible then.
    ///
    /// # Errors
    /// The first error of a part. Parts that were being done then are finished, and the rest is left.
    pub fn share_work<E: Send + Sync + 'static>(
        &self,
        parts: usize,
        work: impl Fn(&AddressSpace<L>, &CpuMemory<M::Hardware>, usize) -> Result<(), E>
        + Send
        + Sync
        + 'static,
    ) -> Result<(), E> {
        let first = self.helpers().start;
        let parts = Arc::new(Parts::new(parts, self.helpers().len() + 1));
        let work = Arc::new(work);
        let helpers = {
            let (parts, work) = (parts.clone(), work.clone());
            move |vm: &Vm<AddressSpace<L>>, own: &OwnCpu<M>| {
                let cpu = own.id.0 - first + 1;
                parts.work_off(cpu, |part| work(&vm.space, &own.memory, part));
            }
        };
        let helped = self.call_helpers(helpers);
        parts.work_off(0, |part| work(&self.vm.space, &self.own.memory, part));
        helped.wait();
        // Each helper has dropped its reference before it was done.
        let error = Arc::into_inner(parts).and_then(|parts| parts.error.try_into_inner());
        error.map_or(Ok(()), Err)
    }
}

impl<M: Machine, L: MmuLock> RunningGuest<'_, M, L> {
    /// As [`Self::share_work`], by the guest's helpers alone, of whom there are some: this CPU goes on, and is kicked when they
    /// have finished.
    pub fn begin_work<E: Send + Sync + 'static>(
        &self,
        parts: usize,
        work: impl Fn(&AddressSpace<L>, &CpuMemory<M::Hardware>, usize) -> Result<(), E>
        + Send
        + Sync
        + 'static,
    ) -> WorkBegun<'_, M, E>
    where
        L: 'static,
    {
        let first = self.helpers().start;
        let parts = Arc::new(Parts::new(parts, self.helpers().len()));
        let shared = parts.clone();
        let helpers = move |vm: &Vm<AddressSpace<L>>, own: &OwnCpu<M>| {
            shared.work_off(own.id.0 - first, |part| work(&vm.space, &own.memory, part));
        };
        WorkBegun {
            beside: self.call_helpers(helpers),
            parts,
        }
    }
}

/// Work that a guest's helpers do. When this is dropped, they finish the parts that they are at, and begin no other.
pub struct WorkBegun<'g, M: Machine, E> {
    beside: BackgroundWork<'g, M>,
    parts: Arc<Parts<E>>,
}

impl<M: Machine, E> WorkBegun<'_, M, E> {
    /// Whether all parts are done, or one has failed. What the helpers did is visible then.
    pub fn is_over(&self) -> bool {
        self.beside.are_done()
    }

    /// Waits for the end, if it hasn't come.
    ///
    /// # Errors
    /// The first error of a part.
    pub fn end(self) -> Result<(), E> {
        self.beside.wait();
        let parts = self.parts.clone();
        drop(self);
        // Each helper has dropped its reference before it was done.
        let error = Arc::into_inner(parts).and_then(|parts| parts.error.try_into_inner());
        error.map_or(Ok(()), Err)
    }
}

impl<M: Machine, E> Drop for WorkBegun<'_, M, E> {
    fn drop(&mut self) {
        self.parts.call_off();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;
    use std::thread;
    use std::vec::Vec;

    #[test]
    fn each_part_is_done_once_by_whichever_thread() {
        const PARTS: usize = 1000;
        let parts = Parts::<()>::new(PARTS, 4);
        let done: Vec<AtomicU64> = (0..PARTS).map(|_| AtomicU64::new(0)).collect();
        thread::scope(|scope| {
            // The last CPU never comes, and the others do its parts.
            for cpu in 0..3 {
                let (parts, done) = (&parts, &done);
                scope.spawn(move || {
                    parts.work_off(cpu, |part| {
                        done[part].fetch_add(1, Ordering::Relaxed);
                        Ok(())
                    });
                });
            }
        });
        assert!(done.iter().all(|done| done.load(Ordering::Relaxed) == 1));
        assert!(parts.error.get().is_none());
    }

    #[test]
    fn nothing_begins_after_an_error_and_the_first_one_stays() {
        let parts = Parts::new(10, 3);
        let mut done = Vec::new();
        for cpu in [1, 0, 2] {
            parts.work_off(cpu, |part| {
                done.push(part);
                if part == 7 { Err("seventh") } else { Ok(()) }
            });
        }
        assert_eq!(done, [3, 4, 5, 6, 7]);
        assert_eq!(parts.error.get(), Some(&"seventh"));
    }
}
