//! The lock that orders changes of a VM's slots and dirty logs against work that relies on them. No fault takes it.
//!
//! Changes exclude everything. Work on the pages of a logged slot (harvests, splitting ahead, restoring blocks) only excludes
//! changes: any number of CPUs do it at once. A CPU that wants to make a change holds back newcomers, so it waits only for
//! those that are at work.

use spin::{RwLock, RwLockReadGuard, RwLockWriteGuard};

/// The lock.
#[derive(Debug, Default)]
pub(crate) struct Control(RwLock<()>);

/// The lock while it is held either way.
pub(crate) struct Held<'c> {
    _shared: Option<RwLockReadGuard<'c, ()>>,
    _alone: Option<RwLockWriteGuard<'c, ()>>,
}

impl Control {
    /// For a change: excludes everybody.
    pub(crate) fn lock(&self) -> RwLockWriteGuard<'_, ()> {
        self.0.upgradeable_read().upgrade()
    }

    /// For work on a part of a slot's pages: excludes changes only.
    pub(crate) fn share(&self) -> RwLockReadGuard<'_, ()> {
        self.0.read()
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

    #[test]
    fn work_on_parts_excludes_changes_and_no_other_work_unless_it_must() {
        let control = Control::default();
        let is_shared = || control.0.try_read().is_some();
        let is_free = || control.0.try_write().is_some();
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
        let _waiting = control.0.upgradeable_read();
        assert!(
            !is_shared(),
            "a change that is about to be made holds back newcomers"
        );
    }
}
