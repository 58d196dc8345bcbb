//! PSTATE as SPSR_EL2 holds it, and the exceptions that Parvisor makes a guest take at EL1 (Arm ARM D1.3, C5.2.20).
//!
//! Pure functions over values; the CPU's registers are read and written by whoever calls.

/// EL1 on its own stack pointer.
pub const EL1H: u64 = 0b0101;
/// The masks of debug exceptions, SError, IRQ and FIQ, all set.
pub const DAIF: u64 = 0b1111 << 6;

const MODE: u64 = 0b1111;
const EL0T: u64 = 0b0000;
const EL1T: u64 = 0b0100;
const AARCH32: u64 = 1 << 4;
const BTYPE: u64 = 0b11 << 10;
const SSBS: u64 = 1 << 12;
const SINGLE_STEP: u64 = 1 << 21;
const PAN: u64 = 1 << 22;
const DIT: u64 = 1 << 24;
const NZCV: u64 = 0b1111 << 28;

const SCTLR_SPAN: u64 = 1 << 23;
const SCTLR_DSSBS: u64 = 1 << 44;

/// Bits of PSTATE after an instruction that EL2 has emulated: as if it had executed (no branch type, step done).
pub const fn after_instruction(pstate: u64) -> u64 {
    if pstate & AARCH32 != 0 {
        pstate
    } else {
        pstate & !(BTYPE | SINGLE_STEP)
    }
}

/// Whether the guest was executing AArch64, the only state that it is offered.
pub const fn is_aarch64(pstate: u64) -> bool {
    pstate & AARCH32 == 0
}

/// Whether the guest was at EL0.
pub const fn is_el0(pstate: u64) -> bool {
    pstate & AARCH32 != 0 || pstate & MODE == EL0T
}

/// PSTATE on entry to an exception taken to EL1, from `pstate` under the guest's SCTLR_EL1 (AArch64.TakeException). SSBS, PAN
/// and DIT change only as on an Armv8.5 CPU; a CPU without them ignores the bits.
pub const fn on_exception(pstate: u64, sctlr_el1: u64) -> u64 {
    let mut new = EL1H | DAIF | pstate & (NZCV | DIT | PAN);
    if pstate & AARCH32 != 0 {
        // DIT lies elsewhere in an AArch32 SPSR, where this bit is 0 or part of the J/IT state.
        new &= !DIT;
    }
    if sctlr_el1 & SCTLR_SPAN == 0 {
        new |= PAN;
    }
    if sctlr_el1 & SCTLR_DSSBS != 0 {
        new |= SSBS;
    }
    new
}

/// The offset of the synchronous exception vector in the guest's vector table, for the exception level and stack in use.
pub const fn synchronous_vector(pstate: u64) -> u64 {
    if pstate & AARCH32 != 0 {
        return 0x600;
    }
    match pstate & MODE {
        EL0T => 0x400,
        EL1T => 0x000,
        _ => 0x200,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vector_follows_what_was_executing() {
        assert_eq!(synchronous_vector(EL1H | DAIF), 0x200);
        assert_eq!(synchronous_vector(EL1T), 0x000);
        assert_eq!(synchronous_vector(EL0T), 0x400);
        assert_eq!(synchronous_vector(AARCH32), 0x600);
    }

    #[test]
    fn taking_an_exception_masks_all_and_keeps_the_flags() {
        let taken = on_exception(NZCV | BTYPE | SINGLE_STEP | EL0T, SCTLR_SPAN);
        assert_eq!(taken, NZCV | DAIF | EL1H);
    }

    #[test]
    fn pan_and_ssbs_follow_the_guests_sctlr() {
        assert_eq!(on_exception(0, 0), PAN | DAIF | EL1H);
        assert_eq!(on_exception(SSBS, SCTLR_SPAN), DAIF | EL1H);
        assert_eq!(
            on_exception(0, SCTLR_SPAN | SCTLR_DSSBS),
            SSBS | DAIF | EL1H
        );
        assert_eq!(on_exception(PAN, SCTLR_SPAN), PAN | DAIF | EL1H);
    }

    #[test]
    fn an_emulated_instruction_leaves_no_branch_type_or_step() {
        assert_eq!(
            after_instruction(BTYPE | SINGLE_STEP | NZCV | EL1H),
            NZCV | EL1H
        );
    }
}
