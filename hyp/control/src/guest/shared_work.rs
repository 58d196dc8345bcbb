//! Work on a guest's memory that CPU 0 shares with the guest's helpers: CPUs without a vCPU, reserved for it while it runs
//! ([`GuestPlan::helpers`](crate::GuestPlan)).
//!
//! The work is cut into parts. Each CPU takes the next part from a common cursor, by one atomic addition, until none is left, so
//! a slow part holds up nobody else. CPU 0 takes parts too, and returns when all are done; meanwhile it serves nobody else.
//! Parts run on different CPUs at the same time and in any order: they must be of a kind that [`AddressSpace`] allows so.

use crate::guest::running::RunningGuest;
use crate::machine::{Machine, OwnCpu};
use alloc::sync::Arc;
use core::sync::atomic::{AtomicUsize, Ordering};
use memory::{AddressSpace, CpuMemory, MmuLock};
use spin::Once;
use vm::Vm;

/// The parts that are still to be done, and the first error. Shared by all CPUs that do them.
#[repr(align(128))]
struct Parts<E> {
    next: AtomicUsize,
    count: usize,
    error: Once<E>,
}

impl<E> Parts<E> {
    fn new(count: usize) -> Self {
        Self {
            next: AtomicUsize::new(0),
            count,
            error: Once::new(),
        }
    }

    /// Does parts until none is left. Relaxed: a part's result reaches CPU 0 with the end of the job.
    fn work_off(&self, mut work: impl FnMut(usize) -> Result<(), E>) {
        loop {
            let part = self.next.fetch_add(1, Ordering::Relaxed);
            if part >= self.count {
                return;
            }
            if let Err(error) = work(part) {
                self.error.call_once(|| error);
                // Nobody begins another one.
                self.next.store(self.count, Ordering::Relaxed);
                return;
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
        let parts = Arc::new(Parts::new(parts));
        let work = Arc::new(work);
        let helpers = {
            let (parts, work) = (parts.clone(), work.clone());
            move |vm: &Vm<AddressSpace<L>>, own: &OwnCpu<M>| {
                parts.work_off(|part| work(&vm.space, &own.memory, part));
            }
        };
        let helped = self.call_helpers(helpers);
        parts.work_off(|part| work(&self.vm.space, &self.own.memory, part));
        helped.wait();
        // Each helper has dropped its reference before it was done.
        let error = Arc::into_inner(parts).and_then(|parts| parts.error.try_into_inner());
        error.map_or(Ok(()), Err)
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
        let parts = Parts::<()>::new(PARTS);
        let done: Vec<AtomicU64> = (0..PARTS).map(|_| AtomicU64::new(0)).collect();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    parts.work_off(|part| {
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
        let parts = Parts::new(10);
        let mut done = Vec::new();
        for _ in 0..2 {
            parts.work_off(|part| {
                done.push(part);
                if part == 3 { Err("third") } else { Ok(()) }
            });
        }
        assert_eq!(done, [0, 1, 2, 3]);
        assert_eq!(parts.error.get(), Some(&"third"));
    }
}
