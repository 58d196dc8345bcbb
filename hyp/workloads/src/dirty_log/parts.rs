//! The parts in which several CPUs harvest, split and restore the test memory.
//!
//! Each part belongs to one slot and is cut at whole pieces of backing and whole 2 MiB, so that no block and no table lies in
//! two parts. The CPU that works on a part has its copy of the log alone.

use alloc::sync::Arc;
use alloc::vec::Vec;
use control::guest::TestSlot;
use core::ops::Range;
use memory::SlotId;
use records::words::Backing;
use spin::Mutex;
use stage2::PAGE_SIZE;

use crate::harness::test_memory::bitmap;

/// How many parts each CPU gets on average, so that the last one to finish isn't far behind.
const PARTS_PER_CPU: u64 = 32;

/// A part of a slot.
pub(crate) struct Part {
    /// The slot.
    pub slot: SlotId,
    /// Its pages, by their numbers in the slot.
    pub pages: Range<u64>,
    /// Its first page, counted from the start of the test memory.
    pub first_page: u64,
    /// Its log as copied by get, then as cleared. One CPU at a time has the part, so nobody waits for it.
    pub log: Mutex<Vec<u64>>,
}

/// Cuts the slots into parts for so many CPUs; for one, each slot is a part. `None` without heap.
pub(crate) fn cut(slots: &[TestSlot], backing: Backing, cpus: usize) -> Option<Arc<[Part]>> {
    let pages: u64 = slots.iter().map(|slot| slot.pages).sum();
    let unit = backing.bytes().max(Backing::Block2M.bytes()) / PAGE_SIZE;
    let most = match cpus {
        1 => u64::MAX,
        _ => (pages / (PARTS_PER_CPU * cpus as u64)).next_multiple_of(unit),
    }
    .max(unit);
    let mut parts = Vec::new();
    for slot in slots {
        let mut start = 0;
        while start < slot.pages {
            let end = slot.pages.min(start.saturating_add(most));
            parts.try_reserve(1).ok()?;
            parts.push(Part {
                slot: slot.id,
                pages: start..end,
                first_page: slot.first_page + start,
                log: Mutex::new(bitmap(end - start)?),
            });
            start = end;
        }
    }
    Some(parts.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::test_memory;
    use control::options::Options;
    use proptest::prelude::*;
    use records::size::Size;

    proptest! {
        #[test]
        fn parts_cover_each_slot_once_and_cut_no_block(
            blocks in 1u64..400,
            slots in 1usize..6,
            cpus in 1usize..10,
            backing in prop::sample::select(vec![Backing::Page4K, Backing::Block2M]),
        ) {
            let options = Options { bytes: Size(blocks << 21), vcpus: 1, slots, backing, ..Options::default() };
            prop_assume!(slots as u64 <= blocks);
            let slots = test_memory::slots(&options);
            let parts = cut(&slots, backing, cpus).unwrap();
            let mut next = 0;
            for part in &parts[..] {
                let slot = slots.iter().find(|slot| slot.id == part.slot).unwrap();
                prop_assert_eq!((part.first_page, slot.first_page + part.pages.start), (next, next));
                prop_assert!(part.pages.start < part.pages.end && part.pages.start % 512 == 0);
                prop_assert_eq!(part.log.lock().len() as u64, (part.pages.end - part.pages.start).div_ceil(64));
                next += part.pages.end - part.pages.start;
            }
            prop_assert_eq!(next, blocks * 512);
            if cpus == 1 {
                prop_assert_eq!(parts.len(), slots.len());
            } else {
                prop_assert!(parts.len() as u64 >= blocks.min(4 * cpus as u64));
            }
        }
    }
}
