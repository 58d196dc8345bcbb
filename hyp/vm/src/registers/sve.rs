//! A vCPU's SVE registers, for a VM that offers them.
//!
//! The CPU has them from the guest's first use on, whenever the vCPU is loaded. Until then SVE's instructions trap, and all that
//! goes beyond the FP registers is 0.

use alloc::boxed::Box;
use alloc::vec::Vec;

/// Vector registers; predicate registers, and FFR, each of which has a bit for a byte of a vector.
const VECTORS: usize = 32;
const PREDICATES: usize = 17;
const BYTES: usize = size_of::<u128>();

/// The SVE registers of a vCPU.
#[derive(Debug, PartialEq, Eq)]
pub struct SveState {
    /// Whether the guest has used them.
    pub is_used: bool,
    /// ZCR_EL1.
    pub zcr_el1: u64,
    /// The bytes of a vector.
    vector_bytes: usize,
    /// z0 to z31, p0 to p15, and FFR, each as long as it is.
    registers: Box<[u128]>,
}

impl SveState {
    /// All zero, with vectors of so many bytes, a multiple of 16. `None` if there is no memory for them.
    pub(crate) fn new(vector_bytes: usize) -> Option<Self> {
        let mut registers = Vec::new();
        let length = Self::bytes(vector_bytes) / BYTES;
        registers.try_reserve_exact(length).ok()?;
        registers.resize(length, 0);
        Some(Self {
            is_used: false,
            zcr_el1: 0,
            vector_bytes,
            registers: registers.into_boxed_slice(),
        })
    }

    /// A copy. `None` if there is no memory for it.
    pub(crate) fn try_clone(&self) -> Option<Self> {
        let mut copy = Self::new(self.vector_bytes)?;
        copy.is_used = self.is_used;
        copy.zcr_el1 = self.zcr_el1;
        copy.registers.copy_from_slice(&self.registers);
        Some(copy)
    }

    /// The bytes of all registers.
    const fn bytes(vector_bytes: usize) -> usize {
        let predicates = PREDICATES * vector_bytes / 8;
        (VECTORS * vector_bytes + predicates).next_multiple_of(BYTES)
    }

    /// As [`Self::new`], in the same memory.
    pub(crate) fn reset(mut self) -> Self {
        self.is_used = false;
        self.zcr_el1 = 0;
        self.registers.fill(0);
        self
    }

    /// From now on the guest uses them. The low 128 bits of each vector are an FP register.
    pub fn begin(&mut self, fp: &[u128; VECTORS]) {
        self.is_used = true;
        self.registers.fill(0);
        let vectors = self.registers.chunks_exact_mut(self.vector_bytes / BYTES);
        for (vector, q) in vectors.zip(fp) {
            vector[0] = *q;
        }
    }

    /// ZCR_EL2 with which the vectors are this long: LEN.
    pub const fn zcr_el2(&self) -> u64 {
        (self.vector_bytes / BYTES) as u64 - 1
    }

    /// Where they lie.
    pub fn as_ptr(&self) -> *const u128 {
        self.registers.as_ptr()
    }

    /// Where they lie, to be written.
    pub fn as_mut_ptr(&mut self) -> *mut u128 {
        self.registers.as_mut_ptr()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_use_finds_the_fp_registers_and_zeros() {
        for vector_bytes in [16, 32, 48, 256] {
            let mut state = SveState::new(vector_bytes).unwrap();
            assert!(!state.is_used);
            state.registers.fill(7);
            state.begin(&core::array::from_fn(|index| index as u128 + 1));
            assert!(state.is_used);
            let words = vector_bytes / 16;
            assert_eq!(state.zcr_el2(), words as u64 - 1);
            for (at, value) in state.registers.iter().enumerate() {
                let expected = match (at / words, at % words) {
                    (vector @ 0..32, 0) => vector as u128 + 1,
                    _ => 0,
                };
                assert_eq!(*value, expected, "{vector_bytes}, {at}");
            }
            let length = state.registers.len() * 16;
            assert!(length >= 34 * vector_bytes + vector_bytes / 8);
            let mut copy = state.try_clone().unwrap();
            assert_eq!(copy, state);
            copy.registers[0] += 1;
            assert_ne!(copy, state, "it has registers of its own");
            let fresh = SveState::new(vector_bytes).unwrap();
            assert_eq!(state.reset(), fresh);
        }
    }
}
