//! Forks when the heap is exhausted. The heap of these tests can be used up for one thread at a time.

use super::*;
use crate::registers::offer::OfferedFeatures;
use core::alloc::{GlobalAlloc, Layout};
use core::cell::Cell;
use std::alloc::System;

#[global_allocator]
static HEAP: Exhaustible = Exhaustible;

/// The system's heap, with so many requests to be had on a thread.
struct Exhaustible;

std::thread_local! {
    /// Requests that this thread's heap has left.
    static LEFT: Cell<usize> = const { Cell::new(usize::MAX) };
    /// Bytes that this thread has got and not given back.
    static IN_USE: Cell<isize> = const { Cell::new(0) };
}

// SAFETY: the system's, which is asked for less.
unsafe impl GlobalAlloc for Exhaustible {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if LEFT.get() == 0 {
            return core::ptr::null_mut();
        }
        LEFT.set(LEFT.get().saturating_sub(1));
        IN_USE.set(IN_USE.get().wrapping_add(layout.size() as isize));
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        IN_USE.set(IN_USE.get().wrapping_sub(layout.size() as isize));
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(block, layout) }
    }
}

/// Whichever request is refused: the fork is an error, its space comes back, nothing is left of it, and with heap the same call
/// succeeds.
#[test]
fn a_fork_that_the_heap_refuses_is_an_error_and_leaves_nothing() {
    const VCPUS: usize = 3;
    for vector_bytes in [0, 256] {
        let config = VmConfig {
            vcpus: VCPUS,
            ipa_bits: 40,
            counter_offset: 0,
            times_faults: false,
        };
        let mut parent = Vm::new(config, ()).unwrap();
        let offered = OfferedFeatures {
            vector_bytes,
            ..OfferedFeatures::default()
        };
        parent.offer_features(offered).unwrap();
        let pause = parent.pause(|_| {});
        let parts = |space| ForkParts {
            space,
            devices: None,
        };
        let before = IN_USE.get();
        let mut refused = 0;
        let fork = loop {
            LEFT.set(refused);
            let forked = pause.fork(parts(refused), Moment::default());
            LEFT.set(usize::MAX);
            match forked {
                Ok(fork) => break fork,
                Err((error, space)) => {
                    assert_eq!((error, space), (ForkError::OutOfMemory, refused));
                    assert_eq!(IN_USE.get(), before);
                    refused += 1;
                }
            }
        };
        // The vCPUs, and the SVE registers of each.
        let expected = if vector_bytes == 0 { 1 } else { 1 + VCPUS };
        assert_eq!(refused, expected);
        assert_eq!((fork.vcpus().count(), fork.space), (VCPUS, refused));
        drop(fork);
        assert_eq!(IN_USE.get(), before);
    }
}
