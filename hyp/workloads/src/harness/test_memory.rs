//! The benchmark's test memory and its division into slots. Constant for a run; pure functions.

use alloc::vec::Vec;
use control::guest::TestSlot;
use control::options::Options;
use memory::SlotId;
use records::image::GuestImage;
use records::words::Backing;
use stage2::PAGE_SIZE;

/// The first slot of test memory; the others' numbers follow.
const FIRST_SLOT: u32 = 1;

/// RAM besides image and journals: per vCPU for its stack, and once for the guest's tables.
const RAM_PER_VCPU: u64 = 128 << 10;
const RAM_FOR_TABLES: u64 = 2 << 20;

/// The RAM of a guest whose vCPUs have a journal of so many bytes each.
pub(crate) fn guest_ram(options: &Options, image: GuestImage<'_>, journal: u64) -> u64 {
    let per_vcpu = (journal.next_multiple_of(PAGE_SIZE) + RAM_PER_VCPU) * options.vcpus as u64;
    // An image beyond any memory is refused later, when it doesn't fit.
    let image_end = image.end().unwrap_or(0).min(1 << 40);
    (image_end + per_vcpu + RAM_FOR_TABLES).next_multiple_of(Backing::Block2M.bytes())
}

/// The slots of the test memory that `options` ask for, as equal in size as whole pieces of backing permit.
pub fn slots(options: &Options) -> Vec<TestSlot> {
    let piece = options.backing.bytes() / PAGE_SIZE;
    let pieces = options.test_bytes().unwrap_or(0) / options.backing.bytes();
    let count = options.slots as u64;
    let (least, more) = (pieces / count, pieces % count);
    (0..count)
        .map(|index| TestSlot {
            id: SlotId(FIRST_SLOT + index as u32),
            first_page: (index * least + index.min(more)) * piece,
            pages: (least + u64::from(index < more)) * piece,
        })
        .collect()
}

/// A bitmap of `pages` pages, all clear. `None` without heap.
pub fn bitmap(pages: u64) -> Option<Vec<u64>> {
    zeros(usize::try_from(pages.div_ceil(u64::BITS.into())).ok()?)
}

/// `words` words, all 0. `None` without heap.
pub fn zeros(words: usize) -> Option<Vec<u64>> {
    let mut zeros = Vec::new();
    zeros.try_reserve_exact(words).ok()?;
    zeros.resize(words, 0);
    Some(zeros)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use records::size::Size;
    use records::words::Backing;

    proptest! {
        #[test]
        fn slots_cover_the_memory_once_in_whole_pieces(
            pages in 1u64..5000,
            vcpus in 1usize..9,
            slots in 1usize..20,
            backing in prop::sample::select(vec![Backing::Page4K, Backing::Block2M, Backing::Block1G]),
        ) {
            let options = Options { bytes: Size(pages * PAGE_SIZE), vcpus, slots, backing, ..Options::default() };
            let bytes = options.test_bytes().unwrap();
            prop_assume!(slots as u64 <= bytes / backing.bytes());
            let mut next = 0;
            for (index, slot) in super::slots(&options).iter().enumerate() {
                prop_assert_eq!(slot.id, SlotId(1 + index as u32));
                prop_assert_eq!(slot.first_page, next);
                prop_assert!(slot.pages > 0 && (slot.pages * PAGE_SIZE).is_multiple_of(backing.bytes()));
                next += slot.pages;
            }
            prop_assert_eq!(next * PAGE_SIZE, bytes);
        }
    }
}
