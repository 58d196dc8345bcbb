//! The state of reclaim: shortage, page lists, compressed pages. Its policy is in [`reclaim`](crate::reclaim).

use crate::frames::compressed_store::Store;
use crate::frames::watermarks::Levels;
use crate::frames::{FramePool, VmId};
use crate::system::counters::ReclaimCounters;
use crate::system::page_lists::Lists;
use crate::system::reverse_map::Sharer;
use crate::system::scan_cursor::ScanCursor;
use alloc::boxed::Box;
use core::sync::atomic::AtomicU64;
use spin::Mutex;

/// The state of reclaim.
#[derive(Debug)]
pub(crate) struct ReclaimState {
    pub(crate) levels: Levels,
    pub(crate) lists: Mutex<Lists<Sharer>>,
    pub(crate) hand: Mutex<ScanCursor>,
    /// Completed rounds of the scan cursor.
    pub(crate) rounds: AtomicU64,
    pub(crate) store: Store,
    pub(crate) counters: ReclaimCounters,
}

impl ReclaimState {
    /// Not inlined, as it takes so much stack.
    #[inline(never)]
    pub(crate) fn new(pool: &'static FramePool) -> Box<Self> {
        Box::new(Self {
            levels: Levels::default(),
            lists: Mutex::new(Lists::new()),
            hand: Mutex::new(ScanCursor::new()),
            rounds: AtomicU64::new(0),
            store: Store::new(pool),
            counters: ReclaimCounters::default(),
        })
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    pub(crate) fn counters(&self) -> &ReclaimCounters {
        &self.counters
    }

    pub(crate) fn note_ballooned(&self, pages: u64) {
        self.counters.ballooned.add(pages);
    }

    /// Whether frames are few enough to look for cold pages already.
    pub(crate) fn is_near(&self, free: u64) -> bool {
        self.levels.is_near(free)
    }

    /// Notes that many frames were taken, and `free` are left.
    pub(crate) fn note_free(&self, free: u64) {
        if self.levels.is_low(free) {
            self.wake_one();
        }
    }

    /// Notes that a VM got an allowance, and may have `room` more frames.
    pub(crate) fn note_room(&self, pool: &FramePool, vm: VmId, room: u64) {
        if self.levels.is_near_limit(pool, vm, room) {
            self.wake_one();
        }
    }

    #[cold]
    fn wake_one(&self) {
        if self.levels.wake_one() {
            self.counters.wakes.add(1);
        }
    }
}
