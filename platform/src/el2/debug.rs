//! The debug registers of the loaded guest, while a debug exception of it is on.

use crate::cpu::register::write_register;
use vm::{DebugPoints, DebugState};

/// Writes registers `$name`, one for each number below `$count`.
macro_rules! write_points {
    ($points:expr, $count:expr; $($number:literal $value:literal $control:literal),* $(,)?) => {
        // SAFETY: exceptions of EL1 and EL0, which are EL1's to take; the CPU has the registers.
        unsafe {$(
            if $number < $count {
                write_register!($value, $points[$number].value);
                write_register!($control, $points[$number].control);
            }
        )*}
    };
}

/// Writes all of them.
pub(super) fn load(state: &DebugState, points: DebugPoints) {
    // Nothing is on meanwhile.
    switch_off();
    write_points!(state.breakpoints, points.breakpoints;
        0 "s2_0_c0_c0_4" "s2_0_c0_c0_5", 1 "s2_0_c0_c1_4" "s2_0_c0_c1_5",
        2 "s2_0_c0_c2_4" "s2_0_c0_c2_5", 3 "s2_0_c0_c3_4" "s2_0_c0_c3_5",
        4 "s2_0_c0_c4_4" "s2_0_c0_c4_5", 5 "s2_0_c0_c5_4" "s2_0_c0_c5_5",
        6 "s2_0_c0_c6_4" "s2_0_c0_c6_5", 7 "s2_0_c0_c7_4" "s2_0_c0_c7_5",
        8 "s2_0_c0_c8_4" "s2_0_c0_c8_5", 9 "s2_0_c0_c9_4" "s2_0_c0_c9_5",
        10 "s2_0_c0_c10_4" "s2_0_c0_c10_5", 11 "s2_0_c0_c11_4" "s2_0_c0_c11_5",
        12 "s2_0_c0_c12_4" "s2_0_c0_c12_5", 13 "s2_0_c0_c13_4" "s2_0_c0_c13_5",
        14 "s2_0_c0_c14_4" "s2_0_c0_c14_5", 15 "s2_0_c0_c15_4" "s2_0_c0_c15_5");
    write_points!(state.watchpoints, points.watchpoints;
        0 "s2_0_c0_c0_6" "s2_0_c0_c0_7", 1 "s2_0_c0_c1_6" "s2_0_c0_c1_7",
        2 "s2_0_c0_c2_6" "s2_0_c0_c2_7", 3 "s2_0_c0_c3_6" "s2_0_c0_c3_7",
        4 "s2_0_c0_c4_6" "s2_0_c0_c4_7", 5 "s2_0_c0_c5_6" "s2_0_c0_c5_7",
        6 "s2_0_c0_c6_6" "s2_0_c0_c6_7", 7 "s2_0_c0_c7_6" "s2_0_c0_c7_7",
        8 "s2_0_c0_c8_6" "s2_0_c0_c8_7", 9 "s2_0_c0_c9_6" "s2_0_c0_c9_7",
        10 "s2_0_c0_c10_6" "s2_0_c0_c10_7", 11 "s2_0_c0_c11_6" "s2_0_c0_c11_7",
        12 "s2_0_c0_c12_6" "s2_0_c0_c12_7", 13 "s2_0_c0_c13_6" "s2_0_c0_c13_7",
        14 "s2_0_c0_c14_6" "s2_0_c0_c14_7", 15 "s2_0_c0_c15_6" "s2_0_c0_c15_7");
    write(state.mdscr());
}

/// Switches the guest's debug exceptions off, but for BRK.
pub(super) fn switch_off() {
    write(0);
}

fn write(mdscr: u64) {
    // SAFETY: as above. MDCR_EL2.TDE is clear, and an exception of EL1's can't be taken while EL2 runs (D2.4).
    unsafe { write_register!("mdscr_el1", mdscr) };
}
