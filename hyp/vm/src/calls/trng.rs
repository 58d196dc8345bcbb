//! Random numbers by the True Random Number Generator Firmware Interface 1.0 (Arm DEN0098).
//!
//! The bits of each call come from the CPU's own generator (RNDRRS of FEAT_RNG), which reseeds from its entropy source for each
//! 64 of them. A guest of a CPU without one is served by its vCPU's [`Generator`](crate::random::Generator), if firmware has
//! left a seed of 256 bits: an attacker can't tell its output from entropy, though all of it has no more than these 256 bits, as
//! with Linux's own service for guests. Without both the interface is not supported: counters that jitter are no entropy source
//! that anybody has assessed, and a guest can read them itself.
//!
//! Pure functions; all vCPUs call at once, with any arguments.

/// A function (section 2), as those that follow.
pub const TRNG_VERSION: u32 = 0x8400_0050;
/// See [`TRNG_VERSION`].
pub const TRNG_FEATURES: u32 = 0x8400_0051;
/// See [`TRNG_VERSION`].
pub const TRNG_GET_UUID: u32 = 0x8400_0052;
/// See [`TRNG_VERSION`].
pub const TRNG_RND32: u32 = 0x8400_0053;
/// See [`TRNG_VERSION`].
pub const TRNG_RND64: u32 = 0xc400_0053;

const VERSION: u64 = 1 << 16;
const SUCCESS: u64 = 0;
const NOT_SUPPORTED: u64 = -1i64 as u64;
const INVALID_PARAMETERS: u64 = -2i64 as u64;
const NO_ENTROPY: u64 = -3i64 as u64;
/// The most bits of one call: three registers' worth.
const MOST_BITS_32: u32 = 96;
const MOST_BITS_64: u32 = 192;
/// The identity of what makes the bits, the UUID c7b1f0d4-52a3-4e6e-8d0a-504152565452, in the byte order of SMCCC.
const UUID: [u64; 4] = [0xd4f0_b1c7, 0x6e4e_a352, 0x4150_0a8d, 0x5254_5652];

/// A source of random bits.
pub trait Source {
    /// Whether there is one: else nothing here is supported.
    fn exists(&self) -> bool;

    /// As many words of random bits, at most 3, or `None` if it has none at the moment. The rest is anything.
    fn next(&mut self, words: usize) -> Option<[u64; 3]>;
}

/// What a call returns, in x0 and up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrngReply {
    /// A status alone.
    Status(u64),
    /// All four.
    Words([u64; 4]),
}

/// Whether the function is one of this interface.
pub const fn is_function(function: u32) -> bool {
    matches!(
        function,
        TRNG_VERSION | TRNG_FEATURES | TRNG_GET_UUID | TRNG_RND32 | TRNG_RND64
    )
}

/// Handles a call of a function that [`is_function`] knows, with its first argument.
pub fn call(function: u32, argument: u32, source: &mut impl Source) -> TrngReply {
    if !source.exists() {
        return TrngReply::Status(NOT_SUPPORTED);
    }
    match function {
        TRNG_VERSION => TrngReply::Status(VERSION),
        TRNG_FEATURES if is_function(argument) => TrngReply::Status(SUCCESS),
        TRNG_GET_UUID => TrngReply::Words(UUID),
        TRNG_RND32 => random(argument, MOST_BITS_32, source, |[low, high, _]| {
            [high, low >> 32, low]
        }),
        TRNG_RND64 => random(argument, MOST_BITS_64, source, |[low, middle, high]| {
            [high, middle, low]
        }),
        _ => TrngReply::Status(NOT_SUPPORTED),
    }
}

/// `bits` bits, at most `most`. `arrange` puts 192 bits, the lowest first, into x1 to x3, the highest of them first.
fn random(
    bits: u32,
    most: u32,
    source: &mut impl Source,
    arrange: impl FnOnce([u64; 3]) -> [u64; 3],
) -> TrngReply {
    if bits == 0 || bits > most {
        return TrngReply::Words([INVALID_PARAMETERS, 0, 0, 0]);
    }
    let Some(all) = source.next(bits.div_ceil(u64::BITS) as usize) else {
        return TrngReply::Words([NO_ENTROPY, 0, 0, 0]);
    };
    let mut left = bits;
    let [high, middle, low] = arrange(all.map(|word| {
        let here = left.min(u64::BITS);
        left -= here;
        word & u64::MAX.checked_shr(u64::BITS - here).unwrap_or(0)
    }));
    TrngReply::Words([SUCCESS, high, middle, low])
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Gives ones, as often as it says; nothing at all if it says so.
    struct Ones(Option<usize>);

    impl Source for Ones {
        fn exists(&self) -> bool {
            self.0.is_some()
        }

        fn next(&mut self, words: usize) -> Option<[u64; 3]> {
            assert!((1..=3).contains(&words));
            let left = self.0.as_mut()?;
            *left = left.checked_sub(1)?;
            Some([u64::MAX; 3])
        }
    }

    fn ask(function: u32, argument: u32) -> TrngReply {
        call(function, argument, &mut Ones(Some(1)))
    }

    #[test]
    fn the_interface_tells_its_version_and_functions() {
        assert_eq!(ask(TRNG_VERSION, 0), TrngReply::Status(0x1_0000));
        for function in [
            TRNG_VERSION,
            TRNG_FEATURES,
            TRNG_GET_UUID,
            TRNG_RND32,
            TRNG_RND64,
        ] {
            assert_eq!(ask(TRNG_FEATURES, function), TrngReply::Status(0));
        }
        for function in [0x8400_0054, 0xc400_0050, 0x8400_0000, 0, u32::MAX] {
            assert_eq!(
                ask(TRNG_FEATURES, function),
                TrngReply::Status(NOT_SUPPORTED)
            );
        }
        let TrngReply::Words(uuid) = ask(TRNG_GET_UUID, 0) else {
            panic!("no UUID")
        };
        assert!(uuid.iter().all(|word| word >> 32 == 0));
        assert_ne!(uuid[0] as u32, u32::MAX, "that is NOT_SUPPORTED");
    }

    #[test]
    fn as_many_bits_as_were_asked_for_are_in_the_lowest_places() {
        let words = |function, bits| ask(function, bits);
        let ones = u64::MAX;
        assert_eq!(words(TRNG_RND64, 1), TrngReply::Words([0, 0, 0, 1]));
        assert_eq!(words(TRNG_RND64, 64), TrngReply::Words([0, 0, 0, ones]));
        assert_eq!(words(TRNG_RND64, 65), TrngReply::Words([0, 0, 1, ones]));
        assert_eq!(
            words(TRNG_RND64, 192),
            TrngReply::Words([0, ones, ones, ones])
        );
        // 32-bit registers: what is above them the call's width takes away.
        let narrow = |bits| match words(TRNG_RND32, bits) {
            TrngReply::Words(words) => words.map(|word| word as u32),
            TrngReply::Status(_) => panic!("a status"),
        };
        let ones = u32::MAX;
        assert_eq!(narrow(31), [0, 0, 0, ones >> 1]);
        assert_eq!(narrow(33), [0, 0, 1, ones]);
        assert_eq!(narrow(65), [0, 1, ones, ones]);
        assert_eq!(narrow(96), [0, ones, ones, ones]);
    }

    #[test]
    fn no_bits_too_many_bits_and_an_exhausted_source_are_errors_without_bits() {
        for (function, bits) in [(TRNG_RND32, 97), (TRNG_RND64, 193), (TRNG_RND64, u32::MAX)] {
            let wrong = TrngReply::Words([INVALID_PARAMETERS, 0, 0, 0]);
            assert_eq!(ask(function, bits), wrong);
            assert_eq!(ask(function, 0), wrong);
            let empty = call(function, 32, &mut Ones(Some(0)));
            assert_eq!(empty, TrngReply::Words([NO_ENTROPY, 0, 0, 0]));
        }
    }

    #[test]
    fn without_a_source_nothing_is_supported() {
        for function in [
            TRNG_VERSION,
            TRNG_FEATURES,
            TRNG_GET_UUID,
            TRNG_RND32,
            TRNG_RND64,
        ] {
            let answer = call(function, TRNG_VERSION, &mut Ones(None));
            assert_eq!(answer, TrngReply::Status(NOT_SUPPORTED));
        }
    }

    proptest! {
        #[test]
        fn a_call_gives_exactly_the_bits_that_were_asked_for(wide: bool, bits: u32, few in 0u32..200, is_few: bool) {
            let bits = if is_few { few } else { bits };
            let (function, most, width) = if wide { (TRNG_RND64, 192, 64) } else { (TRNG_RND32, 96, 32) };
            let TrngReply::Words([status, words @ ..]) = ask(function, bits) else {
                panic!("a status")
            };
            let mask = u64::MAX >> (64 - width);
            let given: u32 = words.iter().map(|word| (word & mask).count_ones()).sum();
            prop_assert_eq!(status == SUCCESS, (1..=most).contains(&bits));
            prop_assert_eq!(given, if status == SUCCESS { bits } else { 0 });
        }
    }
}
