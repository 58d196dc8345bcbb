//! Random numbers for guests of CPUs that have no generator of their own.
//!
//! All of them follow from one secret, which the machine's firmware has left for its operating system. The seeds of VMs follow
//! from it, and those of their vCPUs from these, each by another stream of ChaCha20 under the former as key: who knows one
//! learns nothing of those above or beside it. A vCPU's generator is its own, so that there is nothing to lock. It replaces its
//! key by each request's first output, so that who learns its state learns nothing of what it has given before, and mixes in the
//! time of the request.

use core::fmt;

use chacha20::ChaCha20Rng;
use chacha20::rand_core::{Rng, SeedableRng};

/// A secret from which random numbers follow.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Seed([u8; Self::BYTES]);

impl Seed {
    /// How long it is: as many bits as ChaCha20's key has.
    pub const BYTES: usize = 32;

    /// A seed of these bytes, all of whose bits are random.
    pub const fn new(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    pub const fn bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }

    /// One of the seeds that follow from this one.
    #[must_use]
    pub fn child(&self, index: u64) -> Self {
        let mut stream = ChaCha20Rng::from_seed(self.0);
        stream.set_stream(index);
        let mut child = Self([0; Self::BYTES]);
        stream.fill_bytes(&mut child.0);
        child
    }
}

/// It is a secret.
impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seed(..)")
    }
}

/// The generator of one vCPU. No two may have the same state, so it has no `Clone`.
#[derive(Debug)]
pub(crate) struct Generator {
    key: Seed,
}

impl Generator {
    /// A generator that nobody else has with this seed.
    pub(crate) const fn new(seed: Seed) -> Self {
        Self { key: seed }
    }

    /// The next 192 bits. `noise` is mixed in, and counts for nothing.
    pub(crate) fn next(&mut self, noise: u64) -> [u64; 3] {
        for (byte, noise) in self.key.0.iter_mut().zip(noise.to_le_bytes()) {
            *byte ^= noise;
        }
        let mut stream = ChaCha20Rng::from_seed(self.key.0);
        stream.fill_bytes(&mut self.key.0);
        core::array::from_fn(|_| stream.next_u64())
    }

    /// A generator for the same vCPU of a fork.
    pub(crate) fn fork(&mut self) -> Self {
        let mut stream = ChaCha20Rng::from_seed(self.key.0);
        stream.fill_bytes(&mut self.key.0);
        let mut fork = Self::new(self.key);
        stream.fill_bytes(&mut fork.key.0);
        fork
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::vec::Vec;

    const SEED: Seed = Seed::new([7; 32]);

    #[test]
    fn a_seed_is_not_printed() {
        assert_eq!(
            std::format!("{:?}", Generator::new(SEED)),
            "Generator { key: Seed(..) }"
        );
    }

    /// Streams of the same key (RFC 8439's block function): the first 32 bytes of stream 0 and block 0 of a key of zeros.
    #[test]
    fn a_child_is_the_beginning_of_a_stream() {
        let child = Seed::new([0; 32]).child(0);
        assert_eq!(
            child.bytes()[..16],
            [
                0x76, 0xb8, 0xe0, 0xad, 0xa0, 0xf1, 0x3d, 0x90, 0x40, 0x5d, 0x6a, 0xe5, 0x53, 0x86,
                0xbd, 0x28
            ]
        );
    }

    #[test]
    fn no_two_vcpus_and_no_two_requests_get_the_same() {
        let mut seen = BTreeSet::new();
        for vm in 0..4 {
            for vcpu in 0..4 {
                let mut generator = Generator::new(SEED.child(vm).child(vcpu));
                let mut fork = generator.fork();
                for _ in 0..8 {
                    seen.extend(generator.next(5));
                    seen.extend(fork.next(5));
                }
            }
        }
        assert_eq!(seen.len(), 4 * 4 * 8 * 2 * 3);
    }

    #[test]
    fn what_a_generator_gives_does_not_hold_its_next_key() {
        let mut generator = Generator::new(SEED);
        let given: Vec<u8> = generator
            .next(0)
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect();
        assert!(
            given
                .windows(8)
                .all(|part| generator.key.0.windows(8).all(|key| key != part))
        );
    }

    proptest! {
        #[test]
        fn noise_changes_what_follows_and_never_repeats_it(one: u64, other: u64) {
            let [mut first, mut second] = [SEED, SEED].map(Generator::new);
            let (first, second) = (first.next(one), second.next(other));
            prop_assert_eq!(one == other, first == second);
        }

        /// Ones and zeros are as many, within six standard deviations.
        #[test]
        fn bits_are_even(seed: [u8; 32]) {
            let mut generator = Generator::new(Seed::new(seed));
            let ones: u32 = (0..100).flat_map(|_| generator.next(0)).map(u64::count_ones).sum();
            prop_assert!((9600i32 - ones as i32).abs() < 6 * 70, "{ones}");
        }
    }
}
