//! Contents of memory as in several machines with the same kernel and similar files: most pages are equal in all machines, some
//! are zero, the others differ.
//!
//! Pure functions of the page's number, the machine's seed and the number of refills. The guest fills its memory by them, and
//! the hypervisor checks it by them.

/// The percentage of pages that are equal in all machines.
pub const EQUAL_PERCENT: u64 = 64;
/// The percentage of pages that are zero.
pub const ZERO_PERCENT: u64 = 10;
/// The difference between a word and the next, in a page that isn't zero.
pub const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// A page repeats itself after so many words. So it compresses to about a third, as most memory does.
pub const PERIOD: u64 = 176;

/// The kind of a page: how it compares with the same page of other machines.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// It is equal in all machines.
    Equal,
    /// It is zero.
    Zero,
    /// It differs from every other page.
    Private,
}

/// The kind of a page, by its number. The kinds follow no pattern, but are the same in every machine.
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

/// The first word of a page, and the difference between a word and the next, in the machine with this seed after `count`
/// refills. Only before the first refill are pages equal or zero.
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
