//! Released frames on their way back to the pool: a lock-free stack that any CPU may push to at any time. It is only emptied as
//! a whole.
//!
//! The link is the first word of the frame itself, so nothing is allocated for it. A run of frames is pushed as one. There is
//! no pop, and so no ABA problem.

use core::ptr::with_exposed_provenance_mut;
use core::sync::atomic::{AtomicU64, Ordering};
use stage2::{PAGE_SIZE, Pa};

/// Frame 0 is never handed out, so address 0 ends the chain.
const END: u64 = 0;
/// The bits of a link below its page-aligned address: they hold the run's length, as a power of two.
const ORDER: u64 = PAGE_SIZE - 1;

/// The stack.
#[derive(Debug)]
pub(super) struct Released {
    top: AtomicU64,
}

impl Released {
    pub(super) const fn new() -> Self {
        Self {
            top: AtomicU64::new(END),
        }
    }

    /// Pushes a run of frames, whose number is a power of two.
    ///
    /// # Safety
    /// The first frame is mapped at its own address, isn't frame 0, and nobody uses any of them any more.
    pub(super) unsafe fn push(&self, frame: Pa, frames: usize) {
        debug_assert!(frames.is_power_of_two());
        let link = frame.get() | u64::from(frames.trailing_zeros());
        let mut top = self.top.load(Ordering::Relaxed);
        loop {
            // SAFETY: the caller gives the frame up, and it isn't in the chain yet.
            unsafe { with_exposed_provenance_mut::<u64>(frame.get() as usize).write(top) };
            // Release: the link above is written before the frame can be found. Later pushes keep this one's release
            // going, as they are read-modify-writes.
            match self
                .top
                .compare_exchange_weak(top, link, Ordering::Release, Ordering::Relaxed)
            {
                Ok(_) => return,
                Err(now) => top = now,
            }
        }
    }

    /// Whether the stack is empty; may be outdated at once.
    pub(super) fn is_empty(&self) -> bool {
        self.top.load(Ordering::Relaxed) == END
    }

    /// Takes all runs.
    pub(super) fn take(&self) -> Chain {
        // Acquire: pairs with the release of every push in the chain.
        Chain(self.top.swap(END, Ordering::Acquire))
    }
}

/// Runs taken from the stack, each with its number of frames. Must be used up: frames left in it when it is dropped are lost.
#[must_use]
pub(super) struct Chain(u64);

impl Iterator for Chain {
    type Item = (Pa, usize);

    fn next(&mut self) -> Option<(Pa, usize)> {
        if self.0 == END {
            return None;
        }
        let (frame, order) = (Pa::new(self.0 & !ORDER), self.0 & ORDER);
        // SAFETY: `push` left the link in the frame, and the chain owns it until it is handed out here.
        self.0 = unsafe { with_exposed_provenance_mut::<u64>(frame.get() as usize).read() };
        Some((frame, 1 << order))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::arena;
    use std::collections::BTreeSet;
    use std::thread;

    #[test]
    fn runs_pushed_by_many_threads_are_each_taken_once() {
        const THREADS: u64 = 4;
        const RUN: u64 = 2;
        const EACH: u64 = if cfg!(miri) { 8 } else { 2000 };
        let start = arena::leak((THREADS * EACH * RUN) as usize).start;
        let released = Released::new();
        let mut seen = Vec::new();
        thread::scope(|scope| {
            let pushers: Vec<_> = (0..THREADS)
                .map(|thread| {
                    let released = &released;
                    scope.spawn(move || {
                        for run in thread * EACH..(thread + 1) * EACH {
                            let frames = 1 << (run % RUN);
                            // SAFETY: each run of the arena is pushed once.
                            unsafe {
                                released.push(start.offset(run * RUN * PAGE_SIZE), frames as usize)
                            }
                        }
                    })
                })
                .collect();
            while pushers.iter().any(|pusher| !pusher.is_finished()) {
                seen.extend(released.take());
            }
        });
        seen.extend(released.take());
        assert!(released.is_empty());
        assert_eq!(seen.len() as u64, THREADS * EACH);
        assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), seen.len());
        for (frame, frames) in seen {
            let run = (frame.get() - start.get()) / (RUN * PAGE_SIZE);
            assert_eq!(frames, 1 << (run % RUN));
        }
    }
}
