//! A machine for tests: its clock stands still until it is told otherwise, and it counts what devices ask of it.

use crate::device::{DeviceHost, IrqLine};
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

#[derive(Debug, Default)]
pub struct TestMachine {
    now_ns: AtomicU64,
    wakes: AtomicU64,
    level: AtomicBool,
}

impl TestMachine {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    pub fn pass(&self, ns: u64) {
        self.now_ns.fetch_add(ns, Ordering::Relaxed);
    }

    /// The number of wake-ups since the last call.
    pub fn wakes(&self) -> u64 {
        self.wakes.swap(0, Ordering::Relaxed)
    }

    pub fn level(&self) -> bool {
        self.level.load(Ordering::Relaxed)
    }
}

impl DeviceHost for TestMachine {
    fn now_ns(&self) -> u64 {
        self.now_ns.load(Ordering::Relaxed)
    }

    fn wake(&self) {
        self.wakes.fetch_add(1, Ordering::Relaxed);
    }
}

impl IrqLine for TestMachine {
    fn set(&self, level: bool) {
        self.level.store(level, Ordering::Relaxed);
    }
}
