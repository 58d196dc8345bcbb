//! What faults decide on, where they read it without a lock: a pointer to an immutable value, whose old values the epoch
//! keeps for whoever is still reading (rules 8 and 10).
//!
//! Any number of CPUs read at once; whoever replaces excludes others that do. Under the model checker the pointer is one of
//! its atomics, so that it tries every order, and the older values that a CPU without a barrier may still see.

use core::fmt;
use core::marker::PhantomData;
use core::ptr;
use crossbeam_epoch::{Guard, Owned, Shared};
use stage2::sync::{AtomicPtr, Ordering, full_barrier};

/// A value, or none, that is replaced as a whole.
pub(crate) struct Published<T> {
    pointer: AtomicPtr<T>,
    owns: PhantomData<T>,
}

impl<T: Send + Sync> Published<T> {
    /// Of `value`.
    pub(crate) fn new(value: Option<T>) -> Self {
        let owns = PhantomData;
        let pointer = AtomicPtr::new(raw(value));
        Self { pointer, owns }
    }

    /// The value at this moment. Acquire: pairs with the release of [`Self::replace`].
    #[inline]
    pub(crate) fn load<'g>(&self, _: &'g Guard) -> Option<&'g T> {
        // SAFETY: the pointer is null or that of a value which is handed to the epoch after it was replaced; the caller's
        // stay in the epoch began before.
        unsafe { self.pointer.load(Ordering::Acquire).as_ref() }
    }

    /// Publishes another value, then lets no CPU that looks later see the old one (the full barrier of rule 8), and gives
    /// that to the epoch. Whether there was one.
    ///
    /// Not by way of what this CPU alone collects: the old value may hold a VM's memory, and whoever waits for that to end
    /// would wait for a CPU that runs a guest and has nothing else to give up.
    pub(crate) fn replace(&self, value: Option<T>, guard: &Guard) -> bool {
        let old = self.pointer.swap(raw(value), Ordering::AcqRel);
        full_barrier();
        if !old.is_null() {
            // SAFETY: the old value came from `raw`, and only CPUs that are in an epoch now can still be using it.
            unsafe { guard.defer_destroy(Shared::from(old.cast_const())) };
            // The model checker's threads have too little stack for it; when what has passed the epoch goes is no part of a rule.
            #[cfg(not(loom))]
            hand_over(guard);
        }
        !old.is_null()
    }
}

/// Hands what this CPU has collected to the epoch. Never inlined: a bag of 64 deferred functions goes by way of the stack, a few
/// KiB of it, which callers that nest would add up.
#[inline(never)]
pub(crate) fn hand_over(guard: &Guard) {
    guard.flush();
}

fn raw<T>(value: Option<T>) -> *mut T {
    // SAFETY: the pointer isn't read before it is published, and then only in an epoch.
    let guard = unsafe { crossbeam_epoch::unprotected() };
    value.map_or(ptr::null_mut(), |value| {
        Owned::new(value).into_shared(guard).as_raw().cast_mut()
    })
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
            // SAFETY: the pointer came from `raw`; it is owned here, so nobody else can reach it.
            drop(unsafe { Owned::from_raw(last) });
        }
    }
}

impl<T> fmt::Debug for Published<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Published").finish_non_exhaustive()
    }
}
