//! Exceptions taken at EL2. A guest's exceptions go to the world switch. All others are fatal and end in [`crate::el2::fatal`],
//! except for instructions listed in [`crate::cpu::recover`].

use crate::cpu::percpu::PerCpu;
use crate::cpu::speculation::OnExit;
use crate::el2::fatal;
use crate::power::park::ParkCode;
use core::arch::{asm, global_asm};
use core::mem::offset_of;

global_asm!(
    include_str!("exceptions.S"),
    frame = const offset_of!(PerCpu, frame),
    loops = const offset_of!(PerCpu, loops),
    workaround = const offset_of!(PerCpu, workaround),
    depth = const offset_of!(PerCpu, fatal_depth),
    emergency_top = const offset_of!(PerCpu, emergency_top),
    data_abort = const DATA_ABORT,
    serror = const SERROR,
    early_fault = const ParkCode::EarlyFault as u16,
    report = sym fatal::report_exception,
);

/// The classes of a data abort that is taken without a change of the exception level, and of an SError (Arm ARM
/// D24.2.40).
const DATA_ABORT: u64 = 0x25;
const SERROR: u64 = 0x2f;

/// The address of the vectors with this mitigation, for VBAR_EL2.
pub(crate) fn vectors(on_exit: OnExit) -> u64 {
    unsafe extern "C" {
        safe static el2_vectors: u8;
        safe static el2_vectors_clearing: u8;
        safe static el2_vectors_looping: u8;
        safe static el2_vectors_calling: u8;
    }
    let vectors = match on_exit {
        OnExit::Nothing => &raw const el2_vectors,
        OnExit::ClearHistory => &raw const el2_vectors_clearing,
        OnExit::Loop(_) => &raw const el2_vectors_looping,
        OnExit::Firmware(..) => &raw const el2_vectors_calling,
    };
    vectors as u64
}

// SErrors are unmasked at EL2 while no guest is loaded: one that comes then is EL2's own, and fatal at once. While one
// is loaded they are masked, and whatever comes is taken when the guest is entered again, or when it is put: it came of
// what was accessed by the guest, or for it.

/// Has this CPU take SErrors at EL2, to whom they belong.
pub(crate) fn unmask_errors() {
    // SAFETY: the vectors are set; they need nothing of what they interrupt.
    unsafe { asm!("msr daifclr, #4", options(nostack, preserves_flags)) };
}

/// Keeps SErrors that come from here on for the guest that is about to be loaded. One that is EL2's own is taken
/// before.
pub(crate) fn mask_errors() {
    // SAFETY: barriers (the second is ESB, which does nothing without FEAT_RAS), and a mask.
    unsafe {
        asm!(
            "dsb sy",
            "hint #16",
            "isb",
            "msr daifset, #4",
            options(nostack, preserves_flags)
        );
    }
}
