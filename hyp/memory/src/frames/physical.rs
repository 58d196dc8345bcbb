//! Access to memory by physical address.
//!
//! Guest memory is accessed word by word with volatile accesses: vCPUs may write the same bytes at any moment, and are no
//! threads of this program. A concurrent access yields a mixture of old and new words, nothing else.

use core::ptr::with_exposed_provenance_mut;
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

/// Zeroes whole pages from `pa` on.
///
/// # Safety
/// The memory is mapped at its own address as what it is, normal memory, by tables that are in use (DC ZVA is an alignment
/// fault elsewhere), and nobody else uses it: it was just taken from the pool.
pub unsafe fn zero(pa: Pa, bytes: u64) {
    debug_assert!(pa.is_aligned(PAGE_SIZE) && bytes.is_multiple_of(PAGE_SIZE));
    let start = with_exposed_provenance_mut::<u8>(pa.get() as usize);
    // SAFETY: the caller owns the range.
    unsafe {
        #[cfg(any(test, feature = "arena"))]
        crate::frames::arena::zero(start, bytes as usize);
        #[cfg(not(any(test, feature = "arena")))]
        zero_pages(start, bytes as usize);
    }
}

/// # Safety
/// As for [`zero`].
#[cfg(all(
    target_arch = "aarch64",
    target_os = "none",
    not(any(test, feature = "arena"))
))]
unsafe fn zero_pages(start: *mut u8, bytes: usize) {
    use core::arch::asm;

    /// DCZID_EL0 (Arm ARM D24.2.35): DC ZVA is prohibited; the number of words that one zeroes, as a power of two.
    const PROHIBITED: u64 = 1 << 4;
    const WORDS: u64 = 0xf;
    let block: u64;
    // SAFETY: reading it has no effect.
    unsafe {
        asm!("mrs {}, dczid_el0", out(reg) block, options(nomem, nostack, preserves_flags));
    }
    let end = start.wrapping_add(bytes);
    // SAFETY: the caller owns the range. Pages consist of whole blocks, which have 2 KiB at most, and of whole rounds of 64
    // bytes.
    unsafe {
        if block & PROHIBITED == 0 {
            asm!(
                "2: dc zva, {at}",
                "add {at}, {at}, {size}",
                "dc zva, {at}",
                "add {at}, {at}, {size}",
                "cmp {at}, {end}",
                "b.lo 2b",
                at = inout(reg) start => _,
                size = in(reg) 4u64 << (block & WORDS),
                end = in(reg) end,
                options(nostack)
            );
        } else {
            asm!(
                "2: stp xzr, xzr, [{at}]",
                "stp xzr, xzr, [{at}, #16]",
                "stp xzr, xzr, [{at}, #32]",
                "stp xzr, xzr, [{at}, #48]",
                "add {at}, {at}, #64",
                "cmp {at}, {end}",
                "b.lo 2b",
                at = inout(reg) start => _,
                end = in(reg) end,
                options(nostack)
            );
        }
    }
}

/// # Safety
/// As for [`zero`].
#[cfg(not(any(
    all(target_arch = "aarch64", target_os = "none"),
    test,
    feature = "arena"
)))]
unsafe fn zero_pages(start: *mut u8, bytes: usize) {
    // SAFETY: the caller owns the range.
    unsafe { start.write_bytes(0, bytes) };
}

/// Fills unused memory with a pattern that no walker may ever meet. In debug builds only.
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

/// Writes `bytes` at `pa`.
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
    let (chunks, _) = bytes[head..head + words * WORD].as_chunks::<WORD>();
    for (index, word) in chunks.iter().enumerate() {
        // SAFETY: within the caller's range, and `head` bytes bring the address to a multiple of a word.
        unsafe {
            start
                .add(head)
                .cast::<u64>()
                .add(index)
                .write_volatile(u64::from_ne_bytes(*word))
        }
    }
    for (index, byte) in bytes.iter().enumerate().skip(bytes.len() - tail) {
        // SAFETY: within the caller's range.
        unsafe { start.add(index).write_volatile(*byte) }
    }
}

/// Reads `bytes` at `pa`.
///
/// # Safety
/// As for [`write_bytes`].
pub unsafe fn read_bytes(pa: Pa, bytes: &mut [u8]) {
    let start = with_exposed_provenance_mut::<u8>(pa.get() as usize);
    let length = bytes.len();
    // SAFETY: any bytes make a word.
    if let ([], words, []) = unsafe { bytes.align_to_mut::<u64>() }
        && pa.get().is_multiple_of(WORD as u64)
    {
        for (index, word) in words.iter_mut().enumerate() {
            // SAFETY: within the caller's range, and both begin at a multiple of a word.
            *word = unsafe { start.cast::<u64>().add(index).read_volatile() };
        }
        return;
    }
    let (head, words, tail) = by_words(pa, length);
    for (index, byte) in bytes[..head].iter_mut().enumerate() {
        // SAFETY: within the caller's range.
        *byte = unsafe { start.add(index).read_volatile() };
    }
    let (chunks, _) = bytes[head..head + words * WORD].as_chunks_mut::<WORD>();
    for (index, chunk) in chunks.iter_mut().enumerate() {
        // SAFETY: within the caller's range, and `head` bytes bring the address to a multiple of a word.
        let word = unsafe { start.add(head).cast::<u64>().add(index).read_volatile() };
        *chunk = word.to_ne_bytes();
    }
    for (index, byte) in bytes.iter_mut().enumerate().skip(length - tail) {
        // SAFETY: within the caller's range.
        *byte = unsafe { start.add(index).read_volatile() };
    }
}

/// Two words, which a CPU loads or stores by one instruction, each word atomically.
type Pair = u128;
/// Pairs per round of a loop over a page: mostly a cache line.
const ROUND: usize = 4;
const ROUNDS: usize = PAGE / (ROUND * size_of::<Pair>());

/// Reads the pairs of round `round` of a page.
///
/// # Safety
/// The page is mapped at its own address and backs a guest, or is the hypervisor's; there are so many rounds.
#[inline(always)]
unsafe fn read_round(page: *const Pair, round: usize) -> [Pair; ROUND] {
    // SAFETY: within the page, whose address is a multiple of a pair.
    [0, 1, 2, 3].map(|index| unsafe { page.add(round * ROUND + index).read_volatile() })
}

/// Copies a frame. If a guest writes the source meanwhile, the copy is a mixture of old and new words.
///
/// # Safety
/// Both are mapped at their own addresses; `from` backs a guest, and nobody else uses `to`.
pub unsafe fn copy_page(from: Pa, to: Pa) {
    let from = with_exposed_provenance_mut::<Pair>(from.get() as usize);
    let to = with_exposed_provenance_mut::<Pair>(to.get() as usize);
    let copy = |round: usize| {
        // SAFETY: as the caller promised.
        let pairs = unsafe { read_round(from, round) };
        for (index, pair) in pairs.into_iter().enumerate() {
            // SAFETY: within the frame, whose address is a multiple of a pair.
            unsafe { to.add(round * ROUND + index).write(pair) };
        }
    };
    for round in (0..ROUNDS).step_by(2) {
        copy(round);
        copy(round + 1);
    }
}

/// Whether two frames have the same contents.
///
/// # Safety
/// Both are mapped at their own addresses and back guests, or are the hypervisor's.
pub(crate) unsafe fn same_pages(one: Pa, other: Pa) -> bool {
    let one = with_exposed_provenance_mut::<Pair>(one.get() as usize);
    let other = with_exposed_provenance_mut::<Pair>(other.get() as usize);
    (0..ROUNDS).all(|round| {
        // SAFETY: as the caller promised.
        let (one, other) = unsafe { (read_round(one, round), read_round(other, round)) };
        let differences = one.into_iter().zip(other).map(|(one, other)| one ^ other);
        differences.fold(0, |all, difference| all | difference) == 0
    })
}

/// A checksum of a frame's contents, used only to select frames worth comparing: a polynomial in the words of each of eight
/// lanes, one instruction per word. If a guest writes meanwhile, it is that of a mixture of old and new words.
///
/// # Safety
/// The frame is mapped at its own address and backs a guest, or is the hypervisor's.
pub(crate) unsafe fn checksum_page(pa: Pa) -> u64 {
    let page = with_exposed_provenance_mut::<Pair>(pa.get() as usize);
    // SAFETY: as the caller promised.
    checksum_of_rounds(|round| unsafe { read_round(page, round) })
}

/// [`checksum_page`] of a page of zeros.
pub(crate) fn checksum_of_zeros() -> u64 {
    checksum_of_rounds(|_| [0; ROUND])
}

#[inline(always)]
fn checksum_of_rounds(read: impl Fn(usize) -> [Pair; ROUND]) -> u64 {
    /// Odd, so that multiplying loses no bit of a word, except through the words behind it.
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    /// Rounds after which high bits go where low ones are: products carry only upwards.
    const TURN: usize = 8;
    let add = |sum: u64, word: u64| sum.wrapping_mul(FACTOR).wrapping_add(word);
    let mut lanes = [1u64; 2 * ROUND];
    for turn in (0..ROUNDS).step_by(TURN) {
        for round in turn..turn + TURN {
            for (lanes, pair) in lanes.chunks_exact_mut(2).zip(read(round)) {
                lanes[0] = add(lanes[0], pair as u64);
                lanes[1] = add(lanes[1], (pair >> u64::BITS) as u64);
            }
        }
        lanes = lanes.map(|lane| lane.rotate_left(29));
    }
    lanes.into_iter().fold(0, |sum, lane| {
        let sum = (sum ^ lane).wrapping_mul(FACTOR);
        sum ^ sum >> (u64::BITS / 2)
    })
}

/// Splits a range of `length` bytes at `pa` into the bytes before the first whole word, whole words, and the bytes after.
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

    /// Two pages of a test's own, with these contents.
    fn pages(one: &[u8; PAGE], other: &[u8; PAGE]) -> (Pa, Pa) {
        let arena = arena::leak(2);
        let second = arena.start.offset(PAGE_SIZE);
        // SAFETY: the arena's pages are this test's own.
        unsafe {
            write_bytes(arena.start, one);
            write_bytes(second, other);
        }
        (arena.start, second)
    }

    fn contents(pa: Pa) -> [u8; PAGE] {
        let mut bytes = [0; PAGE];
        // SAFETY: the pages are this test's own.
        unsafe { read_bytes(pa, &mut bytes) };
        bytes
    }

    fn checksum(pa: Pa) -> u64 {
        // SAFETY: the pages are this test's own.
        unsafe { checksum_page(pa) }
    }

    #[test]
    fn a_page_that_is_zeroed_holds_zeros_and_the_next_one_what_it_did() {
        let (one, other) = pages(&[7; PAGE], &[8; PAGE]);
        // SAFETY: the pages are this test's own.
        unsafe { zero(one, PAGE_SIZE) };
        assert!(contents(one) == [0; PAGE] && contents(other) == [8; PAGE]);
        assert_eq!(checksum(one), checksum_of_zeros());
    }

    #[test]
    fn words_that_change_places_change_the_checksum() {
        let mut page = [0; PAGE];
        for (index, byte) in page.iter_mut().enumerate() {
            *byte = (index / 8 % 251) as u8;
        }
        let (one, other) = pages(&page, &page);
        assert_eq!(checksum(one), checksum(other));
        for distance in [1, 2, 8, 16, 64, 256] {
            let mut moved = page;
            for byte in 0..8 {
                moved.swap(80 + byte, 80 + distance * 8 + byte);
            }
            let (moved, _) = pages(&moved, &page);
            assert_ne!(checksum(one), checksum(moved), "{distance} words");
        }
    }

    proptest! {
        #[test]
        fn a_copy_is_equal_until_a_bit_of_it_changes(seed: u64, byte in 0..PAGE, bit in 0..8u32) {
            let mut page = [0; PAGE];
            let mut word = seed;
            for chunk in page.chunks_exact_mut(8) {
                word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                chunk.copy_from_slice(&word.to_ne_bytes());
            }
            let (one, other) = pages(&page, &[0; PAGE]);
            // SAFETY: the pages are this test's own.
            let is_same = || unsafe { same_pages(one, other) };
            prop_assert!(!is_same());
            // SAFETY: as above.
            unsafe { copy_page(one, other) };
            prop_assert!(is_same() && contents(other) == page);
            prop_assert_eq!(checksum(one), checksum(other));
            // As a number, as checksums are kept: of 32 bits.
            let before = checksum(other) as u32;
            // SAFETY: as above.
            unsafe { write_bytes(other.offset(byte as u64), &[page[byte] ^ 1 << bit]) };
            prop_assert!(!is_same());
            prop_assert_ne!(before, checksum(other) as u32);
        }

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
