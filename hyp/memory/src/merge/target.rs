//! The notes that a scan keeps about one object. Its scanners write them at once; all are hints.

use super::MergePolicy;
use super::candidates::MOST_PAGES;
use super::sharing::PageOf;
use crate::frames::FrameSize;
use crate::object::{Backing, Object};
use crate::system::reverse_map::ObjectId;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use stage2::Level;

const PAGES_IN_REGION: usize = FrameSize::Block2M.frames();

/// An object that was registered for merging, by a weak reference.
#[derive(Debug)]
pub(super) struct Target {
    id: ObjectId,
    object: Weak<Object>,
    /// The numbers of its pages among those of all targets.
    ordinals: Range<u32>,
    /// By page: its checksum when it was last scanned, or 0.
    checksums: Vec<AtomicU32>,
    /// By region of 2 MiB.
    regions: Vec<Region>,
}

/// Counts the pages of a region that had partners.
#[derive(Default, Debug)]
struct Region {
    /// In this scan, so far.
    now: AtomicU16,
    /// In the last complete scan.
    before: AtomicU16,
}

impl Target {
    /// A target whose pages are numbered from `first` on; `None` without heap, or numbers.
    pub(super) fn new(object: &Arc<Object>, first: u32) -> Option<Self> {
        let end = u64::from(first).checked_add(object.pages())?;
        if end > MOST_PAGES {
            return None;
        }
        let pages = object.pages() as usize;
        Some(Self {
            id: object.id(),
            object: Arc::downgrade(object),
            ordinals: first..end as u32,
            checksums: defaults(pages)?,
            regions: defaults(pages.div_ceil(PAGES_IN_REGION))?,
        })
    }

    pub(super) fn id(&self) -> ObjectId {
        self.id
    }

    /// The object, unless its last owner has dropped it.
    pub(super) fn object(&self) -> Option<Arc<Object>> {
        self.object.upgrade()
    }

    pub(super) fn ordinals(&self) -> Range<u32> {
        self.ordinals.clone()
    }

    /// Numbers its pages from `first` on, and returns the number at which the next target begins.
    pub(super) fn move_to(&mut self, first: u32) -> u32 {
        self.ordinals = first..first + self.ordinals.len() as u32;
        self.ordinals.end
    }

    /// A page's checksum when it was last scanned; 0 if it never was.
    pub(super) fn checksum(&self, page: u64) -> u32 {
        self.checksums[page as usize].load(Ordering::Relaxed)
    }

    pub(super) fn note(&self, page: u64, checksum: u32) {
        self.checksums[page as usize].store(checksum, Ordering::Relaxed);
    }

    /// Begins to count for the next scan. The last one is complete, or counts for nothing.
    pub(super) fn begin_scan(&self, is_complete: bool) {
        for region in &self.regions {
            let counted = region.now.swap(0, Ordering::Relaxed);
            if is_complete {
                region.before.store(counted, Ordering::Relaxed);
            }
        }
    }

    /// Counts a page that could be merged if its block were split.
    pub(super) fn count_partner(&self, page: u64) {
        self.region(page).now.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether a page may be split off its block, if that is needed.
    pub(super) fn may_be_apart(&self, page: PageOf<'_>, policy: &MergePolicy) -> bool {
        let look = page.object.look(page.page);
        look.extent().level == Level::L3
            || matches!(look.backing(), Backing::Shared(_))
            || self.region(page.page).before.load(Ordering::Relaxed) >= policy.pages_of_block
    }

    fn region(&self, page: u64) -> &Region {
        &self.regions[page as usize / PAGES_IN_REGION]
    }
}

fn defaults<V: Default>(count: usize) -> Option<Vec<V>> {
    let mut values = Vec::new();
    values.try_reserve_exact(count).ok()?;
    values.resize_with(count, V::default);
    Some(values)
}

#[cfg(all(test, not(loom), not(miri)))]
mod tests {
    use super::super::PageMerging;
    use super::*;
    use crate::frames::{FramePool, arena};
    use crate::{CpuMemory, MemorySystem, Owner};
    use stage2::{NoTlb, PAGE_SIZE};
    use std::boxed::Box;

    const PAGES: u64 = 3;

    fn objects<const N: usize>() -> [Arc<Object>; N] {
        let pool: &FramePool = Box::leak(Box::new(FramePool::new()));
        // SAFETY: the arena is leaked, and added once.
        unsafe { pool.add(arena::leak(256)) };
        let system: &MemorySystem = Box::leak(Box::new(MemorySystem::new(pool, 1, 8).unwrap()));
        let cpu = CpuMemory::new(system, 0, NoTlb, Box::leak(Box::default()));
        let bytes = PAGES * PAGE_SIZE;
        [0; N].map(|_| Object::anonymous(&cpu, Owner::Shared, bytes, Level::L3).unwrap())
    }

    #[test]
    fn pages_have_numbers_below_the_largest_or_their_object_is_none_of_the_targets() {
        let [object] = objects();
        let last = (MOST_PAGES - PAGES) as u32;
        let ordinals = |first| Target::new(&object, first).map(|target| target.ordinals());
        assert_eq!(ordinals(last), Some(last..MOST_PAGES as u32));
        assert_eq!(ordinals(last + 1), None);
        assert_eq!(ordinals(u32::MAX), None);
    }

    /// However many objects come and go, only as many numbers are used as there are pages.
    #[test]
    fn the_numbers_of_what_is_withdrawn_are_used_again() {
        let merging = PageMerging::new(MergePolicy::default());
        let mut objects = objects::<3>();
        for object in &objects {
            merging.add(object).unwrap();
        }
        for _ in 0..4 {
            merging.remove(&objects[0]);
            objects.rotate_left(1);
            let numbers = || {
                let registered = merging.registered.read();
                let ordinals = registered
                    .targets
                    .iter()
                    .map(|target| (target.id(), target.ordinals()));
                ordinals.collect::<Vec<_>>()
            };
            let [first, second, third] = objects.each_ref().map(|object| object.id());
            assert_eq!(numbers(), [(first, 0..3), (second, 3..6)]);
            merging.add(&objects[2]).unwrap();
            assert_eq!(numbers()[2], (third, 6..9));
        }
    }
}
