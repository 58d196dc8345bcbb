//! A lock that orders changes of something against the work that relies on it: of a VM's slots and dirty logs, of the objects
//! that are merged. No fault takes it.
//!
//! A change excludes everything. Work (harvests, splitting ahead, restoring blocks, scans) only excludes changes: any number of
//! CPUs do it at once. A CPU that wants to make a change holds back newcomers, so it waits only for those that are at work.

use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicUsize, Ordering};
use spin::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use stage2::sync::relax;

/// The lock, and what it guards if that is one value.
#[derive(Debug, Default)]
pub(crate) struct ChangeLock<T = ()> {
    lock: RwLock<T>,
    /// How many CPUs make a change or wait to. Relaxed: it only holds back newcomers, who would otherwise write to the lock's
    /// word again and again, so that a CPU that wants it alone might never find it free.
    changes: AtomicUsize,
}

/// The lock while it is held for a change.
pub(crate) struct Alone<'c, T = ()> {
    // Dropped in this order.
    lock: RwLockWriteGuard<'c, T>,
    _change: Change<'c>,
}

impl<T> Deref for Alone<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.lock
    }
}

impl<T> DerefMut for Alone<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.lock
    }
}

/// Holds back newcomers.
struct Change<'c>(&'c AtomicUsize);

impl Drop for Change<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The lock while it is held either way.
pub(crate) struct Held<'c> {
    _shared: Option<RwLockReadGuard<'c, ()>>,
    _alone: Option<Alone<'c>>,
}

impl<T> ChangeLock<T> {
    /// For a change: excludes everybody.
    pub(crate) fn lock(&self) -> Alone<'_, T> {
        self.changes.fetch_add(1, Ordering::Relaxed);
        let change = Change(&self.changes);
        loop {
            if let Some(lock) = self.lock.try_write() {
                return Alone {
                    lock,
                    _change: change,
                };
            }
            relax();
        }
    }

    /// For work: excludes changes only.
    pub(crate) fn share(&self) -> RwLockReadGuard<'_, T> {
        loop {
            if let Some(shared) = self.try_share() {
                return shared;
            }
            relax();
        }
    }

    /// As [`Self::share`]; `None` while a CPU makes a change or waits to.
    pub(crate) fn try_share(&self) -> Option<RwLockReadGuard<'_, T>> {
        let is_wanted_alone = self.changes.load(Ordering::Relaxed) != 0;
        (!is_wanted_alone).then(|| self.lock.try_read())?
    }
}

impl ChangeLock {
    /// For work that may have to exclude other work. `must_exclude` decides, with the lock shared; what the lock orders may change
    /// between its answer and the return.
    pub(crate) fn hold<E>(
        &self,
        must_exclude: impl FnOnce() -> Result<bool, E>,
    ) -> Result<Held<'_>, E> {
        let shared = self.share();
        if !must_exclude()? {
            return Ok(Held {
                _shared: Some(shared),
                _alone: None,
            });
        }
        drop(shared);
        Ok(Held {
            _shared: None,
            _alone: Some(self.lock()),
        })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn work_on_parts_excludes_changes_and_no_other_work_unless_it_must() {
        let lock = ChangeLock::<()>::default();
        let is_shared = || lock.lock.try_read().is_some();
        let is_free = || lock.lock.try_write().is_some();
        let excludes = |must: bool| lock.hold(|| Ok::<_, ()>(must)).unwrap();
        {
            let _first = lock.share();
            let _second = excludes(false);
            assert!(is_shared() && !is_free());
        }
        {
            let _alone = excludes(true);
            assert!(!is_shared());
        }
        {
            let _alone = lock.lock();
            assert!(!is_shared());
        }
        assert!(lock.hold(|| Err(())).is_err());
        assert!(is_free());
    }

    /// However many CPUs share the lock again and again, a change comes about.
    #[test]
    fn a_change_holds_back_newcomers() {
        let lock = ChangeLock::<()>::default();
        let changed = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while changed.load(Ordering::Relaxed) < 100 {
                        let _shared = lock.share();
                    }
                });
            }
            for _ in 0..100 {
                let _alone = lock.lock();
                assert!(lock.lock.try_read().is_none());
                changed.fetch_add(1, Ordering::Relaxed);
            }
        });
        assert_eq!(lock.changes.load(Ordering::Relaxed), 0);
    }
}
