//! Published state that faults read without a lock: a pointer to an immutable value. The epoch keeps replaced values until
//! their last reader is done (rules 8 and 10).
//!
//! Any number of CPUs read at once; writers must exclude each other. Under the model checker the pointer is one of its atomics,
//! so that it tries every order, and the older values that a CPU without a barrier may still see.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::marker::PhantomData;
use core::ptr;
use crossbeam_epoch::{Guard, Shared};
use stage2::sync::{AtomicPtr, Ordering, full_barrier};

/// An optional value that is replaced as a whole.
pub(crate) struct Published<T> {
    pointer: AtomicPtr<T>,
    owns: PhantomData<T>,
}

impl<T: Send + Sync> Published<T> {
    /// Without a value.
    pub(crate) fn new() -> Self {
        let owns = PhantomData;
        let pointer = AtomicPtr::new(ptr::null_mut());
        Self { pointer, owns }
    }

    /// The current value. Acquire: pairs with the release of [`Self::replace`].
    #[inline]
    pub(crate) fn load<'g>(&self, _: &'g Guard) -> Option<&'g T> {
        // SAFETY: the pointer is null or that of a value which is handed to the epoch after it was replaced; the caller's
        // stay in the epoch began before.
        unsafe { self.pointer.load(Ordering::Acquire).as_ref() }
    }

    /// Publishes another value; no CPU that reads later sees the old one (the full barrier of rule 8), which goes to the epoch.
    /// Returns whether there was one.
    ///
    /// The old value doesn't go through this CPU's own bag: it may hold a VM's memory, and the bag is handed over only when it
    /// is full. The VM's end would have to wait for a CPU that runs a guest and retires nothing else.
    pub(crate) fn replace(&self, value: Option<Box<T>>, guard: &Guard) -> bool {
        let value = value.map_or(ptr::null_mut(), Box::into_raw);
        let old = self.pointer.swap(value, Ordering::AcqRel);
        full_barrier();
        if !old.is_null() {
            // SAFETY: the old value was a box, and only CPUs that are in an epoch now can still be using it.
            unsafe { guard.defer_destroy(Shared::from(old.cast_const())) };
            hand_over(guard);
        }
        !old.is_null()
    }
}

/// Runs `work` once every CPU that is in the epoch now has left it. It is stored in the CPU's bag itself: a closure of more
/// than three words would be boxed, by an allocation that can't fail gracefully.
#[inline]
pub(crate) fn defer<F: FnOnce() + Send + 'static>(guard: &Guard, work: F) {
    const {
        assert!(size_of::<F>() <= 3 * size_of::<usize>());
        assert!(align_of::<F>() <= align_of::<usize>());
    }
    guard.defer(work);
}

/// A box; `None` without heap.
pub(crate) fn try_box<T>(value: T) -> Option<Box<T>> {
    let mut one = Vec::new();
    one.try_reserve_exact(1).ok()?;
    one.push(value);
    let one = Box::into_raw(one.into_boxed_slice());
    // SAFETY: a slice of one value is laid out as that is, and this owned the box.
    Some(unsafe { Box::from_raw(one.cast()) })
}

/// Hands this CPU's bag to the epoch. Never inlined: a bag of 64 deferred functions passes through the stack, a few KiB of it,
/// which nested callers would add up.
#[inline(never)]
pub(crate) fn hand_over(guard: &Guard) {
    guard.flush();
}

impl<T> Drop for Published<T> {
    fn drop(&mut self) {
        // The model checker doesn't see that whatever another owner did came before it let go.
        #[cfg(loom)]
        stage2::sync::full_barrier();
        #[cfg(not(loom))]
        let last = *self.pointer.get_mut();
        #[cfg(loom)]
        let last = self.pointer.with_mut(|last| *last);
        if !last.is_null() {
            // SAFETY: the pointer was a box's; it is owned here, so nobody else can reach it.
            drop(unsafe { Box::from_raw(last) });
        }
    }
}

impl<T> fmt::Debug for Published<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Published").finish_non_exhaustive()
    }
}
