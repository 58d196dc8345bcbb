//! The vCPUs whose dirty rings need a harvest: vCPUs add themselves, the harness takes the set.
//!
//! Any number of vCPUs add themselves, seldom; one harness takes.

use alloc::boxed::Box;
use core::sync::atomic::{AtomicU64, Ordering};

/// A bit for each vCPU whose ring is nearly full, or full.
#[derive(Debug)]
pub struct LowRings(Box<[AtomicU64]>);

impl LowRings {
    /// None of `vcpus` vCPUs.
    pub fn new(vcpus: usize) -> Self {
        let words = vcpus.div_ceil(u64::BITS as usize);
        Self((0..words).map(|_| AtomicU64::new(0)).collect())
    }

    /// Notes that a vCPU's ring needs a harvest.
    pub fn note(&self, vcpu: usize) {
        if let Some(word) = self.0.get(vcpu / u64::BITS as usize) {
            // Release: what is in the ring comes before.
            word.fetch_or(1 << (vcpu % u64::BITS as usize), Ordering::Release);
        }
    }

    /// Takes the noted vCPUs, and calls `each` for them.
    pub fn take(&self, mut each: impl FnMut(usize)) {
        for (index, word) in self.0.iter().enumerate() {
            if word.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let mut noted = word.swap(0, Ordering::Acquire);
            while noted != 0 {
                each(index * u64::BITS as usize + noted.trailing_zeros() as usize);
                noted &= noted - 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn what_is_noted_is_taken_once() {
        let low = LowRings::new(70);
        for vcpu in [69, 3, 3, 64, 500] {
            low.note(vcpu);
        }
        let mut taken = Vec::new();
        low.take(|vcpu| taken.push(vcpu));
        assert_eq!(taken, [3, 64, 69]);
        low.take(|vcpu| panic!("vCPU {vcpu} was taken before"));
    }
}
