//! Access to memory by physical address.
//!
//! What a guest can reach is accessed word by word with volatile accesses: its vCPUs may write the same bytes at any
//! moment, and are no threads of this program. The result is then some mixture of old and new words, never more.

use core::ptr::with_exposed_provenance_mut;
use core::slice::ChunksExact;
use stage2::{PAGE_SIZE, Pa};

const WORD: usize = size_of::<u64>();

/// A page's bytes.
const PAGE: usize = PAGE_SIZE as usize;

/// The page at `pa`.
///
/// # Safety
/// The memory is mapped at its own address, and nobody writes it while the reference is used.
pub(crate) unsafe fn page_at<'a>(pa: Pa) -> &'a [u8; PAGE] {
    // SAFETY: as the caller promised; frame 0 is never used.
    unsafe { &*with_exposed_provenance_mut(pa.get() as usize) }
}

/// The page at `pa`, to be written.
///
/// # Safety
/// The memory is mapped at its own address, and nobody else uses it while the reference is used.
pub(crate) unsafe fn page_at_mut<'a>(pa: Pa) -> &'a mut [u8; PAGE] {
    // SAFETY: as the caller promised; frame 0 is never used.
    unsafe { &mut *with_exposed_provenance_mut(pa.get() as usize) }
}

/// Zeroes `bytes` bytes from `pa` on.
///
/// # Safety
/// The memory is mapped at its own address, and nobody else uses it: it was just taken from the pool.
pub unsafe fn zero(pa: Pa, bytes: u64) {
    let start = with_exposed_provenance_mut::<u8>(pa.get() as usize);
    // SAFETY: the caller owns the range.
    unsafe {
        #[cfg(any(test, feature = "arena"))]
        crate::frames::arena::zero(start, bytes as usize);
        #[cfg(not(any(test, feature = "arena")))]
        start.write_bytes(0, bytes as usize);
    }
}

/// Fills memory that nobody uses any more with what no walker may ever meet. In debug builds only.
///
/// # Safety
/// As for [`zero`].
pub(super) unsafe fn poison(pa: Pa, bytes: u64) {
    if cfg!(all(debug_assertions, not(loom))) {
        let start = with_exposed_provenance_mut::<u64>(pa.get() as usize);
        for index in 0..bytes as usize / WORD {
            // SAFETY: the caller owns the range.
            unsafe { start.add(index).write(stage2::POISON) };
        }
    }
}

/// Writes `bytes` from `pa` on.
///
/// # Safety
/// The memory is mapped at its own address and backs a guest: nothing of this program lives there.
pub unsafe fn write_bytes(pa: Pa, bytes: &[u8]) {
    let start = with_exposed_provenance_mut::<u8>(pa.get() as usize);
    let (head, words, tail) = by_words(pa, bytes.len());
    for (index, byte) in bytes[..head].iter().enumerate() {
        // SAFETY: within the caller's range.
        unsafe { start.add(index).write_volatile(*byte) }
    }
    let chunks: ChunksExact<'_, u8> = bytes[head..head + words * WORD].chunks_exact(WORD);
    for (index, chunk) in chunks.enumerate() {
        let mut word = [0; WORD];
        word.copy_from_slice(chunk);
        // SAFETY: within the caller's range, and `head` bytes bring the address to a multiple of a word.
        unsafe {
            start
                .add(head)
                .cast::<u64>()
                .add(index)
                .write_volatile(u64::from_ne_bytes(word))
        }
    }
    for (index, byte) in bytes.iter().enumerate().skip(bytes.len() - tail) {
        // SAFETY: within the caller's range.
        unsafe { start.add(index).write_volatile(*byte) }
    }
}

/// Reads into `bytes` from `pa` on.
///
/// # Safety
/// As for [`write_bytes`].
pub unsafe fn read_bytes(pa: Pa, bytes: &mut [u8]) {
    let start = with_exposed_provenance_mut::<u8>(pa.get() as usize);
    let length = bytes.len();
    let (head, words, tail) = by_words(pa, length);
    for (index, byte) in bytes[..head].iter_mut().enumerate() {
        // SAFETY: within the caller's range.
        *byte = unsafe { start.add(index).read_volatile() };
    }
    for (index, chunk) in bytes[head..head + words * WORD]
        .chunks_exact_mut(WORD)
        .enumerate()
    {
        // SAFETY: within the caller's range, and `head` bytes bring the address to a multiple of a word.
        let word = unsafe { start.add(head).cast::<u64>().add(index).read_volatile() };
        chunk.copy_from_slice(&word.to_ne_bytes());
    }
    for (index, byte) in bytes.iter_mut().enumerate().skip(length - tail) {
        // SAFETY: within the caller's range.
        *byte = unsafe { start.add(index).read_volatile() };
    }
}

/// Copies a frame. Where a guest writes the source meanwhile, the copy is some mixture of old and new words.
///
/// # Safety
/// Both are mapped at their own addresses; `from` backs a guest, and nobody else uses `to`.
pub unsafe fn copy_page(from: Pa, to: Pa) {
    let from = with_exposed_provenance_mut::<u64>(from.get() as usize);
    let to = with_exposed_provenance_mut::<u64>(to.get() as usize);
    for index in 0..PAGE_SIZE as usize / WORD {
        // SAFETY: within the two frames, whose addresses are multiples of a word.
        unsafe { to.add(index).write(from.add(index).read_volatile()) }
    }
}

/// Whether two frames have the same contents.
///
/// # Safety
/// Both are mapped at their own addresses and back guests, or are the hypervisor's.
pub(crate) unsafe fn same_pages(one: Pa, other: Pa) -> bool {
    let one = with_exposed_provenance_mut::<u64>(one.get() as usize);
    let other = with_exposed_provenance_mut::<u64>(other.get() as usize);
    (0..PAGE_SIZE as usize / WORD).all(|index| {
        // SAFETY: within the two frames, whose addresses are multiples of a word.
        unsafe { one.add(index).read_volatile() == other.add(index).read_volatile() }
    })
}

/// Cuts a range of `length` bytes at `pa` into bytes before the first whole word, whole words, and bytes after.
fn by_words(pa: Pa, length: usize) -> (usize, usize, usize) {
    let head = (pa.get().wrapping_neg() as usize % WORD).min(length);
    let rest = length - head;
    (head, rest / WORD, rest % WORD)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::arena;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bytes_come_back_at_any_alignment(offset in 0usize..17, bytes in prop::collection::vec(any::<u8>(), 0..70)) {
            let arena = arena::leak(1);
            // SAFETY: the arena's one page is this test's own.
            let (around, back) = unsafe {
                zero(arena.start, 4096);
                write_bytes(arena.start.offset(offset as u64), &bytes);
                let (mut around, mut back) = ([0; 4096], vec![0; bytes.len()]);
                read_bytes(arena.start, &mut around);
                read_bytes(arena.start.offset(offset as u64), &mut back);
                (around, back)
            };
            prop_assert_eq!(&back, &bytes);
            prop_assert_eq!(&around[offset..offset + bytes.len()], &bytes[..]);
            prop_assert!(around[..offset].iter().chain(&around[offset + bytes.len()..]).all(|byte| *byte == 0));
        }
    }
}
