//! The CPU's own random numbers (FEAT_RNG; Arm ARM K13.3).

use core::arch::asm;

/// How often it is asked before it counts as exhausted.
const TRIES: usize = 16;

/// 64 bits, for which the generator is reseeded from its entropy source (RNDRRS). `None` if that gives none in reasonable time.
/// The CPU has FEAT_RNG.
pub(crate) fn reseeded() -> Option<u64> {
    (0..TRIES).find_map(|_| {
        let (bits, is_valid): (u64, u64);
        // SAFETY: it changes the two registers and the flags.
        unsafe {
            asm!(
                "mrs {bits}, s3_3_c2_c4_1", // RNDRRS
                "cset {is_valid}, ne",
                bits = out(reg) bits,
                is_valid = out(reg) is_valid,
                options(nomem, nostack)
            );
        }
        (is_valid != 0).then_some(bits)
    })
}
