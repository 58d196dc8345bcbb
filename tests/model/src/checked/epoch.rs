//! The epoch: who is inside, and what waits for whom. Frees as early as rule 7 allows.

use std::cell::RefCell;

use super::{CPUS, Tables};
use loom::sync::atomic::{AtomicU64, Ordering};
use stage2::sync::{full_barrier, relax};
use stage2::{Epoch, TableFrame, Unlinked};

/// Who is inside: an odd count is a CPU's stay.
#[derive(Debug)]
pub struct Stays([AtomicU64; CPUS]);

impl Default for Stays {
    fn default() -> Self {
        Self([const { 0 }; CPUS].map(AtomicU64::new))
    }
}

/// A CPU's stay in the epoch.
#[derive(Debug)]
pub struct Stay<'m> {
    stays: &'m Stays,
    tables: &'m Tables,
    cpu: usize,
    /// What this CPU has retired, with the stays that were seen then.
    retired: RefCell<Vec<(TableFrame, [u64; CPUS])>>,
}

impl Stays {
    /// Lets `cpu` in. What was unlinked before is out of its reach: the barrier pairs with the one in `retire`.
    pub(super) fn enter<'m>(&'m self, cpu: usize, tables: &'m Tables) -> Stay<'m> {
        let count = self.0[cpu].load(Ordering::Relaxed);
        assert!(count.is_multiple_of(2), "a CPU enters its epoch once");
        self.0[cpu].store(count + 1, Ordering::Relaxed);
        full_barrier();
        Stay {
            stays: self,
            tables,
            cpu,
            retired: RefCell::default(),
        }
    }

    /// The stays of the CPUs but `me`; an even count is none.
    fn seen(&self, me: usize) -> [u64; CPUS] {
        std::array::from_fn(|cpu| match cpu {
            _ if cpu == me => 0,
            _ => self.0[cpu].load(Ordering::Acquire),
        })
    }
}

// SAFETY: a stay is one CPU's, for one operation; when it ends, what it has retired is freed after the stays of others that
// were seen then. (Mutants break this; poison is what they are found by.)
unsafe impl Epoch for Stay<'_> {
    fn retire(&self, unlinked: Unlinked) {
        let frame = unlinked.into_frame();
        self.tables.retire(&frame);
        full_barrier();
        let seen = self.stays.seen(self.cpu);
        self.retired.borrow_mut().push((frame, seen));
    }
}

impl Drop for Stay<'_> {
    /// Leaves, waits for those that were inside when something was retired here, and frees it. In a machine another CPU's
    /// idle loop would wait; no operation does.
    fn drop(&mut self) {
        let count = self.stays.0[self.cpu].load(Ordering::Relaxed);
        self.stays.0[self.cpu].store(count + 1, Ordering::Release);
        if std::thread::panicking() {
            return;
        }
        for (frame, seen) in self.retired.take() {
            for (cpu, stay) in seen.into_iter().enumerate() {
                while stay % 2 == 1 && self.stays.0[cpu].load(Ordering::Acquire) == stay {
                    relax();
                }
            }
            self.tables.free_retired(&frame);
        }
    }
}
