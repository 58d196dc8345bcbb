//! The atomics that the protocol runs on: the machine's, or the model checker's. Crates that carry rules of the protocol
//! use them too, so that the checker sees all of it.

#[cfg(not(loom))]
pub use core::sync::atomic::{AtomicU64, Ordering, fence};
#[cfg(loom)]
pub use loom::sync::atomic::{AtomicU64, Ordering, fence};

/// Tells the CPU (or the model checker) that this is a wait for another one.
pub fn relax() {
    #[cfg(not(loom))]
    core::hint::spin_loop();
    #[cfg(loom)]
    loom::thread::yield_now();
}

/// Orders everything before it against everything after it, for all CPUs (DMB ISH): the barrier of rule 8.
pub fn full_barrier() {
    fence(Ordering::SeqCst);
}
