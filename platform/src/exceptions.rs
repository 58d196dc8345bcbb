//! Exceptions taken at EL2. Those of guests go to the world switch; of all others only those of instructions that
//! [`crate::recover`] names aren't fatal, and end in [`crate::fatal`].

use crate::fatal;
use crate::percpu::PerCpu;
use core::arch::global_asm;
use core::mem::offset_of;

global_asm!(
    include_str!("exceptions.S"),
    frame = const offset_of!(PerCpu, frame),
    depth = const offset_of!(PerCpu, fatal_depth),
    emergency_top = const offset_of!(PerCpu, emergency_top),
    data_abort = const DATA_ABORT,
    report = sym fatal::report_exception,
);

/// The class of a data abort that is taken without a change of the exception level (Arm ARM D24.2.40).
const DATA_ABORT: u64 = 0x25;

/// The vectors' address, for VBAR_EL2.
pub(crate) fn vectors() -> u64 {
    unsafe extern "C" {
        safe static el2_vectors: u8;
    }
    (&raw const el2_vectors) as u64
}
