//! The atomics that the protocol runs on: the machine's, or the model checker's. Crates that carry rules of the protocol
//! use them too, so that the checker sees all of it.

#[cfg(not(all(loom, feature = "loom")))]
pub use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering, fence};
#[cfg(all(loom, feature = "loom"))]
pub use loom::sync::atomic::{AtomicPtr, AtomicU64, Ordering, fence};

/// Tells the CPU (or the model checker) that this is a wait for another one.
pub fn relax() {
    #[cfg(feature = "watch")]
    if let Some(watcher) = crate::watch::watcher() {
        return watcher.pause();
    }
    #[cfg(not(all(loom, feature = "loom")))]
    core::hint::spin_loop();
    #[cfg(all(loom, feature = "loom"))]
    checked::relax();
}

/// Orders everything before it against everything after it, for all CPUs (DMB ISH): the barrier of rule 8.
pub fn full_barrier() {
    fence(Ordering::SeqCst);
}

/// Whether `key` is asked about for the first time in this execution. The model checker's atomics have to be made anew in each,
/// also where they lie in memory that outlasts it.
#[cfg(all(loom, feature = "loom"))]
pub fn is_first(key: u64) -> bool {
    checked::is_first(key)
}

#[cfg(all(loom, feature = "loom"))]
mod checked {
    // The model checker runs on a host.
    extern crate std;

    use core::cell::Cell;
    use std::collections::HashSet;
    use std::sync::{Mutex, PoisonError};

    /// How often each CPU may wait in an execution before that is only run to its end, without being varied any further: two
    /// that wait for a third could take turns for ever, and the checker would try every number of turns.
    const WAITS_VARIED: u32 = 2;

    loom::lazy_static! {
        static ref ASKED: Mutex<HashSet<u64>> = Mutex::default();
    }

    pub(super) fn is_first(key: u64) -> bool {
        let asked = ASKED.lock();
        asked.unwrap_or_else(PoisonError::into_inner).insert(key)
    }

    loom::thread_local! {
        static WAITS: Cell<u32> = Cell::new(0);
    }

    pub(super) fn relax() {
        let waits = WAITS.with(|waits| waits.replace(waits.get() + 1));
        if waits >= WAITS_VARIED {
            loom::skip_branch();
        }
        loom::thread::yield_now();
    }
}
