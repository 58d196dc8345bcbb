//! The list of an object's mappings. An object doesn't know VMs: each mapper puts its own value on the list
//! ([`Mapping`](crate::space::mapping::Mapping)).
//!
//! Changes of a page's backing read the list without a lock. A mapping is published before its slot, and removed after the
//! slot's range was unmapped, so no entry leads to an object whose list lacks the mapping.

use crate::epoch::published::try_box;
use alloc::boxed::Box;
use core::any::Any;
use core::fmt;
use core::ptr;
use crossbeam_epoch::{Guard, Shared};
use spin::Mutex;
use stage2::sync::{AtomicPtr, Ordering, full_barrier};

/// A mapper's value on the list.
pub(crate) type Entered = dyn Any + Send + Sync;

/// The mappings of an object, as a chain, so that removing one needs no heap.
///
/// New ones are added in front. A removed one keeps its link, so that a reader at it continues from there. A reader finds all
/// that were on the list when it began and weren't removed since.
pub(crate) struct Mappings {
    first: Link,
    /// Held by whoever changes the list.
    changes: Mutex<()>,
}

/// The next mapping of a chain, from a box; null after the last.
type Link = AtomicPtr<Linked>;

struct Linked {
    mapping: Box<Entered>,
    next: Link,
}

impl Mappings {
    /// None yet.
    pub(crate) fn new() -> Self {
        Self {
            first: Link::new(ptr::null_mut()),
            changes: Mutex::new(()),
        }
    }

    /// The current mappings.
    #[inline]
    pub(crate) fn all<'g>(&'g self, guard: &'g Guard) -> impl Iterator<Item = &'g Entered> {
        let mut at = follow(&self.first, guard);
        core::iter::from_fn(move || {
            let linked = at?;
            at = follow(&linked.next, guard);
            Some(&*linked.mapping)
        })
    }

    /// Adds a mapping. False without heap.
    pub(crate) fn add(&self, mapping: Box<Entered>) -> bool {
        let _changes = self.changes.lock();
        // Relaxed: of what was changed under the lock.
        let first = self.first.load(Ordering::Relaxed);
        let next = Link::new(first);
        let Some(linked) = try_box(Linked { mapping, next }) else {
            return false;
        };
        // Release: pairs with the acquire of `follow`.
        self.first.store(Box::into_raw(linked), Ordering::Release);
        full_barrier();
        true
    }

    /// Removes the first mapping for which `is_gone` returns true. The caller waits for the epoch: until then the mapping keeps
    /// what it refers to.
    pub(crate) fn remove(&self, is_gone: impl Fn(&Entered) -> bool, guard: &Guard) {
        let changes = self.changes.lock();
        let mut link = &self.first;
        let gone = loop {
            let Some(linked) = follow(link, guard) else {
                return;
            };
            if is_gone(&*linked.mapping) {
                break linked;
            }
            link = &linked.next;
        };
        // Release: whoever finds the next one by this link finds it as `add` left it.
        link.store(gone.next.load(Ordering::Relaxed), Ordering::Release);
        full_barrier();
        drop(changes);
        // SAFETY: it was a box, nothing leads to it any more, and only CPUs that are in an epoch now can still be using it.
        unsafe { guard.defer_destroy(Shared::from(ptr::from_ref(gone))) };
    }
}

/// The target of a link. Acquire: pairs with the releases of changes.
#[inline]
fn follow<'g>(link: &Link, _: &'g Guard) -> Option<&'g Linked> {
    // SAFETY: the link is null or that of a box which is handed to the epoch after it was unlinked; the caller's stay in the
    // epoch began before.
    unsafe { link.load(Ordering::Acquire).as_ref() }
}

impl Drop for Mappings {
    fn drop(&mut self) {
        // The model checker doesn't see that whatever another owner did came before it let go.
        #[cfg(loom)]
        full_barrier();
        let mut next = self.first.load(Ordering::Relaxed);
        while !next.is_null() {
            // SAFETY: the pointer was a box's; the chain is owned here, so nobody else can reach it.
            let linked = unsafe { Box::from_raw(next) };
            next = linked.next.load(Ordering::Relaxed);
        }
    }
}

impl fmt::Debug for Mappings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mappings").finish_non_exhaustive()
    }
}
