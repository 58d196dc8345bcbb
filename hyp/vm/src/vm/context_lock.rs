//! The lock of a vCPU's registers: a spin lock, which is free or held by a slice that will be over soon. In the tests that the
//! model checker runs, a lock that it knows.

use crate::registers::state::Context;

#[cfg(not(all(test, loom)))]
pub(crate) type ContextLock = spin::Mutex<Context>;

#[cfg(all(test, loom))]
#[derive(Debug)]
pub(crate) struct ContextLock(loom::sync::Mutex<Context>);

#[cfg(all(test, loom))]
impl ContextLock {
    pub(crate) fn new(context: Context) -> Self {
        Self(loom::sync::Mutex::new(context))
    }

    pub(crate) fn lock(&self) -> loom::sync::MutexGuard<'_, Context> {
        self.0.lock().unwrap()
    }

    pub(crate) fn try_lock(&self) -> Option<loom::sync::MutexGuard<'_, Context>> {
        self.0.try_lock().ok()
    }
}
