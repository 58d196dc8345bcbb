//! Watermarks: decide when memory is short, for all or for a VM with a limit, and wake an idle CPU to reclaim.
//!
//! Any CPU checks them at any time, when it allocates many frames or is idle. Whoever runs the VMs sets the marks. The state of
//! shortage is written only when it changes.

use crate::frames::{FramePool, MAX_VMS, VmId};
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use spin::Once;

/// When reclaim begins and ends, in free frames. A VM with a limit has its own marks, [`of`](Self::of) that limit, in frames
/// that it may still take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Watermarks {
    /// Idle CPUs begin to compress below this. They begin to look for cold pages at twice the high mark.
    pub low: u64,
    /// They end at this.
    pub high: u64,
}

impl Watermarks {
    /// For a machine with `total` frames: a 64th of them, and half as much again.
    pub const fn of(total: u64) -> Self {
        let low = total / 64 + 1;
        Self {
            low,
            high: low + low / 2 + 1,
        }
    }
}

/// The CPUs that may be idle.
pub trait IdleCpus: Sync + fmt::Debug {
    /// Wakes a sleeping CPU, if there is one, to call [`CpuMemory::relieve`](crate::CpuMemory::relieve) until that returns that
    /// nothing is left to do. Called on any CPU, also in a guest's exit, again and again while memory is short, so it must be
    /// quick.
    fn wake_one(&self);
}

/// A shortage: begins below the low watermark, and ends at the high one.
#[derive(Debug, Default)]
struct Short(AtomicBool);

impl Short {
    /// Updates the shortage for `left` frames. Written only on a change, as many CPUs ask.
    fn is_with(&self, left: u64, Watermarks { low, high }: Watermarks) -> bool {
        let before = self.0.load(Ordering::Relaxed);
        let now = left < low || before && left < high;
        if now != before {
            self.0.store(now, Ordering::Relaxed);
        }
        now
    }
}

/// The current shortages.
#[derive(Debug, Default)]
pub(crate) struct Levels {
    /// The watermarks; a low one of 0 stands for none, and for no reclaim.
    low: AtomicU64,
    high: AtomicU64,
    /// Free frames.
    frames: Short,
    /// Frames that each VM may still take.
    vms: [Short; MAX_VMS],
    idle_cpus: Once<&'static dyn IdleCpus>,
}

impl Levels {
    pub(crate) fn set(&self, watermarks: Option<Watermarks>) {
        let Watermarks { low, high } = watermarks.unwrap_or(Watermarks { low: 0, high: 0 });
        self.high.store(high.max(low), Ordering::Relaxed);
        self.low.store(low, Ordering::Relaxed);
    }

    pub(crate) fn set_idle_cpus(&self, cpus: &'static dyn IdleCpus) {
        self.idle_cpus.call_once(|| cpus);
    }

    /// Whether reclaim is enabled.
    pub(crate) fn is_on(&self) -> bool {
        self.low.load(Ordering::Relaxed) != 0
    }

    /// Whether frames are to be reclaimed ahead of need.
    pub(crate) fn is_low(&self, free: u64) -> bool {
        let watermarks = Watermarks {
            low: self.low.load(Ordering::Relaxed),
            high: self.high.load(Ordering::Relaxed),
        };
        self.is_on() && self.frames.is_with(free, watermarks)
    }

    /// Whether to look for pages already, so that the cold ones are known when some must be compressed.
    pub(crate) fn is_near(&self, free: u64) -> bool {
        free < 2 * self.high.load(Ordering::Relaxed)
    }

    /// Whether to compress pages of a VM, which may take `room` more frames, ahead of need.
    pub(crate) fn is_near_limit(&self, pool: &FramePool, vm: VmId, room: u64) -> bool {
        let is_near = |limit| self.vms[vm.number()].is_with(room, Watermarks::of(limit));
        self.is_on() && pool.limit(vm).is_some_and(is_near)
    }

    /// Wakes an idle CPU, if [`IdleCpus`] were registered.
    pub(crate) fn wake_one(&self) -> bool {
        let cpus = self.idle_cpus.get();
        cpus.inspect(|cpus| cpus.wake_one()).is_some()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn memory_is_short_from_below_the_low_watermark_until_the_high_one() {
        let levels = Levels::default();
        assert!(!levels.is_on() && !levels.is_low(0), "there are no marks");
        let marks = |low, high| levels.set(Some(Watermarks { low, high }));
        marks(40, 60);
        let short = [60, 41, 40, 39, 40, 59, 60, 59, 40, 39].map(|free| levels.is_low(free));
        let expected = [
            false, false, false, true, true, true, false, false, false, true,
        ];
        assert_eq!(short, expected);
        assert!(levels.is_near(119) && !levels.is_near(120));
        // A high one below the low one is where that is.
        marks(40, 0);
        let short = [39, 40, 39].map(|free| levels.is_low(free));
        assert_eq!(short, [true, false, true]);
        levels.set(None);
        assert!(!levels.is_on() && !levels.is_low(0) && !levels.is_near(0));
    }

    #[test]
    fn a_vm_is_near_its_limit_by_watermarks_of_its_own() {
        const LIMIT: u64 = 640;
        let (levels, pool) = (Levels::default(), FramePool::new());
        let [vm, other] = [3, 4].map(|vm| VmId::new(vm).unwrap());
        let Watermarks { low, high } = Watermarks::of(LIMIT);
        assert_eq!((low, high), (11, 17));
        let is_near = |vm, room| levels.is_near_limit(&pool, vm, room);
        pool.set_limit(vm, Some(LIMIT));
        assert!(!is_near(vm, 0), "there are no marks");
        levels.set(Some(Watermarks { low: 1, high: 1 }));
        let near = [low, low - 1, high - 1, high, low].map(|room| is_near(vm, room));
        assert_eq!(near, [false, true, true, false, false]);
        assert!(!is_near(other, 0), "it has no limit");
    }
}
