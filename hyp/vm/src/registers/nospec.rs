//! Bounds guest-chosen indices under speculation too, before the CPU has resolved the bounds check.

use core::hint::black_box;

/// `index`, which was checked to be below `bound`; 0 if the CPU speculates past that check although it failed (CVE-2017-5753,
/// Spectre variant 1). Neither is above half the address space. Computed without a branch, from a value that the compiler knows
/// nothing of.
#[inline]
pub fn within(index: usize, bound: usize) -> usize {
    let index = black_box(index);
    let mask = index.wrapping_sub(bound) as isize >> (isize::BITS - 1);
    index & mask as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_out_of_bounds_becomes_0() {
        for index in 0..5 {
            assert_eq!(within(index, 5), index);
        }
        for index in [5, 6, 1 << 40, isize::MAX as usize] {
            assert_eq!(within(index, 5), 0);
        }
        assert_eq!(within(0, 0), 0);
    }
}
