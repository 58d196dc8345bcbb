//! The lock that orders changes of a VM's slots and dirty logs against work that relies on them. No fault takes it.
//!
//! Changes exclude everything. Work on the pages of a logged slot (harvests, splitting ahead, restoring blocks) only excludes
//! changes: any number of CPUs do it at once. A CPU that wants to make a change holds back newcomers, so it waits only for
//! those that are at work.

use core::sync::atomic::{AtomicUsize, Ordering};
use spin::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use stage2::sync::relax;

/// The lock.
#[derive(Debug, Default)]
pub(crate) struct Control {
    lock: RwLock<()>,
    /// How many CPUs make a change or wait to. Relaxed: it only holds back newcomers, who would otherwise write to the lock's
    /// word again and again, so that a CPU that wants it alone might never find it free.
    changes: AtomicUsize,
}

/// The lock while it is held for a change.
pub(crate) struct Alone<'c> {
    // Dropped in this order.
    _lock: RwLockWriteGuard<'c, ()>,
    _change: Change<'c>,
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

impl Control {
    /// For a change: excludes everybody.
    pub(crate) fn lock(&self) -> Alone<'_> {
        self.changes.fetch_add(1, Ordering::Relaxed);
        let change = Change(&self.changes);
        Alone {
            _lock: self.lock.write(),
            _change: change,
        }
    }

    /// For work on a part of a slot's pages: excludes changes only.
    pub(crate) fn share(&self) -> RwLockReadGuard<'_, ()> {
        loop {
            if self.changes.load(Ordering::Relaxed) == 0
                && let Some(shared) = self.lock.try_read()
            {
                return shared;
            }
            relax();
        }
    }

    /// For work on a part of a slot's pages that may have to exclude other such work. `must_exclude` decides, with the lock
    /// shared; slots and logs may change between its answer and the return.
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
        let control = Control::default();
        let is_shared = || control.lock.try_read().is_some();
        let is_free = || control.lock.try_write().is_some();
        let excludes = |must: bool| control.hold(|| Ok::<_, ()>(must)).unwrap();
        {
            let _first = control.share();
            let _second = excludes(false);
            assert!(is_shared() && !is_free());
        }
        {
            let _alone = excludes(true);
            assert!(!is_shared());
        }
        {
            let _alone = control.lock();
            assert!(!is_shared());
        }
        assert!(control.hold(|| Err(())).is_err());
        assert!(is_free());
    }

    /// However many CPUs share the lock again and again, a change comes about.
    #[test]
    fn a_change_holds_back_newcomers() {
        let control = Control::default();
        let changed = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while changed.load(Ordering::Relaxed) < 100 {
                        let _shared = control.share();
                    }
                });
            }
            for _ in 0..100 {
                let _alone = control.lock();
                assert!(control.lock.try_read().is_none());
                changed.fetch_add(1, Ordering::Relaxed);
            }
        });
        assert_eq!(control.changes.load(Ordering::Relaxed), 0);
    }
}
