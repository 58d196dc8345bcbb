//! The SVE registers of the loaded guest, once it has used them. Unless one is loaded, they trap, also EL2's own accesses.

use crate::cpu::features::CpuFeatures;
use crate::cpu::register::{read_register, write_register};
use crate::el2::inherited::CPTR_BOOT;
use aarch64_cpu::asm::barrier;
use core::arch::global_asm;
use vm::SveState;

global_asm!(
    ".arch_extension sve",
    // x0 = the registers: z0 to z31, p0 to p15, FFR.
    ".macro sve_registers operation",
    ".irp number, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "\\operation z\\number, [x0, #\\number, mul vl]",
    ".endr",
    "addvl x1, x0, #31",
    "addvl x1, x1, #1",
    ".irp number, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "\\operation p\\number, [x1, #\\number, mul vl]",
    ".endr",
    ".endm",
    "world_save_sve:",
    "sve_registers str",
    "rdffr p0.b",
    "str p0, [x1, #16, mul vl]",
    "ret",
    "world_load_sve:",
    "addvl x1, x0, #31",
    "addvl x1, x1, #1",
    "ldr p0, [x1, #16, mul vl]",
    "wrffr p0.b",
    "sve_registers ldr",
    "ret",
    "world_vector_bytes:",
    "rdvl x0, #1",
    "ret",
    ".arch_extension nosve",
);

unsafe extern "C" {
    fn world_save_sve(registers: *mut u128);
    fn world_load_sve(registers: *const u128);
    fn world_vector_bytes() -> usize;
}

/// CPTR_EL2.TZ: SVE's instructions and registers trap.
const CPTR_TZ: u64 = 1 << 8;
/// The values of ZCR_EL2.LEN.
const LENGTHS: u64 = 16;
const BYTES: usize = 16;

fn set_traps(cptr: u64) {
    // SAFETY: EL2 uses no SVE but here.
    unsafe { write_register!("cptr_el2", cptr) };
    barrier::isb(barrier::SY);
}

fn set_length(zcr_el2: u64) {
    // SAFETY: SVE's registers are the guest's alone; the CPU has them.
    unsafe { write_register!("s3_4_c1_c2_0", zcr_el2) }; // ZCR_EL2
    barrier::isb(barrier::SY);
}

/// The lengths that this CPU's vectors can have: bit n for 16 · (n + 1) bytes. 0 without SVE. No guest is loaded.
pub(crate) fn vector_lengths(features: &CpuFeatures) -> u16 {
    if !features.sve {
        return 0;
    }
    set_traps(CPTR_BOOT & !CPTR_TZ);
    let lengths = (0..LENGTHS).fold(0, |lengths, length| {
        set_length(length);
        // SAFETY: it reads the length, which is the longest that isn't above the one wanted.
        let bytes = unsafe { world_vector_bytes() };
        lengths | 1 << (bytes / BYTES - 1)
    });
    set_traps(CPTR_BOOT);
    lengths
}

/// Gives the CPU to a guest that uses these registers.
pub(super) fn load(state: &SveState) {
    set_traps(CPTR_BOOT & !CPTR_TZ);
    set_length(state.zcr_el2());
    // SAFETY: the registers are the guest's, and so long; the state has room for them.
    unsafe {
        world_load_sve(state.as_ptr());
        write_register!("s3_0_c1_c2_0", state.zcr_el1); // ZCR_EL1
    }
}

/// Takes the CPU from the guest for which it was [loaded](load).
pub(super) fn put(state: &mut SveState) {
    // SAFETY: as above.
    unsafe { world_save_sve(state.as_mut_ptr()) };
    state.zcr_el1 = read_register!("s3_0_c1_c2_0"); // ZCR_EL1
    set_traps(CPTR_BOOT);
}
