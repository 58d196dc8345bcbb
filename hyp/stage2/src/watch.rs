//! Hooks for an external protocol checker in tests and debug firmware: report every change of an entry that other CPUs can see.
//!
//! Only with the feature `watch`; without it nothing of this is compiled. There is one watcher per process, installed once;
//! until then entries behave as always. Tables that are built off-line aren't reported: a watcher reads them when a change
//! links them.

use crate::address::{Level, Pa};
use crate::entry::Entry;
use crate::layout::Layout;
use spin::Once;

/// Sees every change of a shared entry. Called by all CPUs at once.
pub trait Watcher: Sync {
    /// Called before every access to a shared entry, and in loops that wait for another CPU: a moment in which others may
    /// run.
    fn pause(&self);

    /// Runs `access`, which tries to change `entry` of a table of `level` and says from what to what it did, in one step
    /// with what the watcher notes of it.
    fn change(&self, entry: &Entry, level: Level, access: &mut dyn FnMut() -> Option<(u64, u64)>);

    /// A tree with this root has been made; or is about to be given up, nothing of it being in any TLB.
    fn root(&self, root: Pa, layout: &Layout, created: bool);
}

static WATCHER: Once<&'static dyn Watcher> = Once::new();

/// Has every change reported to `watcher` from now on. Only the first call counts.
pub fn install(watcher: &'static dyn Watcher) {
    WATCHER.call_once(|| watcher);
}

pub(crate) fn watcher() -> Option<&'static dyn Watcher> {
    WATCHER.get().copied()
}
