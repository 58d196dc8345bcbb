//! Recovery of EL2 instructions that act on a guest's values and may therefore take an exception: execution continues at a
//! fix-up address.
//!
//! Each such instruction adds an entry to the section `.recovery`: two 32-bit offsets, relative to themselves, of the
//! instruction and of the fix-up. The vectors search the section before they call an exception fatal (`exceptions.S`). An
//! instruction that succeeds costs nothing.
//!
//! EL2 has few of them. Guest memory is accessed, cleaned and invalidated at EL2's own addresses, by EL2's tables, which map
//! memory but no devices of guests; registers with guest values are loaded by MSR, which takes any value; TLB maintenance by a
//! guest's addresses takes no exception. The rest are walks of the guest's own tables.

use core::arch::asm;

/// PAR_EL1.F: the translation failed (Arm ARM D24.2.130).
pub const PAR_FAILED: u64 = 1;

/// Translates `va` by the loaded guest's stage 1, for a read at EL1 (AT S1E1R). The result is in PAR_EL1 afterwards.
///
/// The walk reads the guest's own tables, wherever they are. A stage-2 fault on the way is a result like any other; but an
/// external abort, for instance for tables in a device's registers, is an exception (Arm ARM D8.2.12): the result is then a
/// failure.
#[inline(always)]
pub fn translate_read(va: u64) {
    // SAFETY: all that it changes is PAR_EL1, which is the guest's, and access flags in the guest's memory. What the
    // exception changes of ELR_EL2 and SPSR_EL2 is put back here; ESR_EL2 and FAR_EL2 its caller has read before.
    unsafe {
        asm!(
            "mrs {pc}, elr_el2",
            "mrs {pstate}, spsr_el2",
            "2: at s1e1r, {va}",
            "3: isb",
            ".pushsection .text.recovery, \"ax\"",
            "4: msr elr_el2, {pc}",
            "msr spsr_el2, {pstate}",
            "mov {va}, #{failed}",
            "msr par_el1, {va}",
            "b 3b",
            ".popsection",
            ".pushsection .recovery, \"a\"",
            ".balign 4",
            ".long 2b - ., 4b - .",
            ".popsection",
            va = inout(reg) va => _,
            pc = out(reg) _,
            pstate = out(reg) _,
            failed = const PAR_FAILED,
            options(nostack, preserves_flags)
        );
    }
}
