//! Memory that looks like that of several machines with the same kernel and much the same files: most pages are the same in
//! all of them, some are zero, the others are each machine's own.
//!
//! Pure functions of a page's number, the machine's seed and how often it was filled anew, for the guest that fills it and for
//! whoever checks it.

/// How many of 100 pages hold the same in every machine.
pub const EQUAL_PERCENT: u64 = 64;
/// How many of 100 pages are zero.
pub const ZERO_PERCENT: u64 = 10;
/// What the words of a page that isn't zero differ by, from one to the next.
pub const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// After so many words a page begins again with the first, so that it can be compressed to about a third, as most memory can.
pub const PERIOD: u64 = 176;

/// What a page is to other machines.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// The page of this number is the same in all of them.
    Equal,
    /// It holds zeros.
    Zero,
    /// No other page is the same.
    Private,
}

/// What the page of this number is. Which pages are of a kind follows no pattern, but is the same in every machine.
pub const fn kind(page: u64) -> Kind {
    let draw = mixed(page) % 100;
    if draw < EQUAL_PERCENT {
        Kind::Equal
    } else if draw < EQUAL_PERCENT + ZERO_PERCENT {
        Kind::Zero
    } else {
        Kind::Private
    }
}

/// The first word of a page and what the next ones add to it, in the machine with this seed, filled for the `count`th time:
/// the first time with what others have too, later with what is its own.
pub const fn words(page: u64, seed: u64, count: u64) -> (u64, u64) {
    match kind(page) {
        Kind::Zero if count == 0 => (0, 0),
        Kind::Equal if count == 0 => (mixed(!page), STEP),
        _ => (mixed(mixed(page).wrapping_add(mixed(seed)) ^ count), STEP),
    }
}

/// Spreads a number over 64 bits (splitmix64).
const fn mixed(number: u64) -> u64 {
    let mut word = number.wrapping_add(STEP);
    word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGES: u64 = 20_000;

    fn share(of: Kind) -> u64 {
        (0..PAGES).filter(|page| kind(*page) == of).count() as u64 * 100 / PAGES
    }

    #[test]
    fn most_pages_are_the_same_in_two_machines() {
        assert!(share(Kind::Equal).abs_diff(EQUAL_PERCENT) <= 1);
        assert!(share(Kind::Zero).abs_diff(ZERO_PERCENT) <= 1);
        let same = (0..PAGES).filter(|page| words(*page, 1, 0) == words(*page, 2, 0));
        let expected = PAGES * (EQUAL_PERCENT + ZERO_PERCENT) / 100;
        assert!((same.count() as u64).abs_diff(expected) < PAGES / 100);
    }

    #[test]
    fn what_is_filled_anew_is_nobody_elses() {
        for page in 0..PAGES {
            let own = words(page, 1, 1);
            assert!(
                own != words(page, 2, 1) && own != words(page, 1, 0) && own != words(page, 1, 2)
            );
            assert_ne!(own, words(page + 1, 1, 1));
        }
    }
}
