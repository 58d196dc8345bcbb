//! What the ID registers tell of is there, and what isn't shown isn't missed.

use crate::wrong;
use core::arch::asm;
use guest_runtime::{expect_exception, println, read_register};

const UNKNOWN: u64 = 0;

/// Looks at the registers that a kernel reads at boot, and executes what some of them offer.
pub fn probe() {
    let levels = read_register!("id_aa64pfr0_el1") & 0xffff;
    if levels != 0x1011 {
        wrong(format_args!("exception levels are {levels:#x}"));
    }
    let field = |register: u64, bit: u32| register >> bit & 0xf;
    let mops = field(read_register!("s3_0_c0_c6_2"), 16) != 0;
    let counters = field(read_register!("id_aa64mmfr0_el1"), 60) != 0;
    let random = field(read_register!("id_aa64isar0_el1"), 60) != 0;
    if mops {
        copy();
    }
    check("SETP", mops, || {
        let (mut to, mut bytes) = (0u64, 0u64);
        // SAFETY: no byte is set.
        unsafe {
            asm!(
                ".inst 0x19df0440", // setp [x0]!, x2!, xzr
                inout("x0") &raw mut to => _,
                inout("x2") bytes => bytes,
            );
        }
        core::hint::black_box((&mut to, bytes));
    });
    check("CNTVCTSS_EL0", counters, || {
        let _ = read_register!("s3_3_c14_c0_6");
    });
    check("RNDR", random, || {
        let _ = read_register!("s3_3_c2_c4_0");
    });
    println!(
        "features: MOPS {}, ECV {}, RNG {}",
        u8::from(mops),
        u8::from(counters),
        u8::from(random)
    );
}

/// Executes an instruction, which is undefined exactly where its ID register doesn't show it.
fn check(name: &str, is_shown: bool, execute: impl FnOnce()) {
    let exception = expect_exception(execute);
    let is_undefined = exception.is_some_and(|taken| taken.class() == UNKNOWN);
    if is_undefined == is_shown || exception.is_some() != is_undefined {
        wrong(format_args!(
            "{name} is shown: {is_shown}, but {exception:x?}"
        ));
    }
}

/// Copies memory by FEAT_MOPS.
fn copy() {
    let from = core::array::from_fn::<u8, 1000, _>(|index| index as u8);
    let mut to = [0u8; 1000];
    // SAFETY: both are arrays of as many bytes.
    unsafe {
        asm!(
            ".inst 0x1d010440", // cpyp [x0]!, [x1]!, x2!
            ".inst 0x1d410440", // cpym [x0]!, [x1]!, x2!
            ".inst 0x1d810440", // cpye [x0]!, [x1]!, x2!
            inout("x0") to.as_mut_ptr() => _,
            inout("x1") from.as_ptr() => _,
            inout("x2") to.len() => _,
        );
    }
    if to != from {
        wrong(format_args!("a copy isn't like what it is of"));
    }
}
