//! Accesses outside every slot: each must be taken as an external abort.

use crate::wrong;
use core::arch::asm;
use guest_runtime::{Exception, Tree, expect_exception, read_register};

/// Where the guest's RAM begins.
const RAM: u64 = 0x4000_0000;
const INSTRUCTION_ABORT: u64 = 0x21;
const DATA_ABORT: u64 = 0x25;
const FAULT_STATUS: u64 = 0x3f;
const EXTERNAL: u64 = 0x10;
const WRITE: u64 = 1 << 6;
/// What the identity map of the runtime reaches.
const REACH: u64 = 1 << 39;

/// One instruction that accesses the address in x9.
pub struct Kind {
    pub text: &'static str,
    pub is_write: bool,
    /// Executes it, and returns x9.
    pub execute: fn(u64) -> u64,
}

macro_rules! kind {
    ($text:literal, $is_write:expr) => {
        Kind {
            text: $text,
            is_write: $is_write,
            execute: |mut address| {
                // SAFETY: nothing of the program lies at the addresses that this is used with.
                unsafe {
                    core::arch::asm!($text, inout("x9") address, inout("x10") 0u64 => _, inout("x11") 0u64 => _, options(nostack));
                }
                address
            },
        }
    };
}
pub(crate) use kind;

pub const KINDS: [Kind; 22] = [
    kind!("ldrb w10, [x9]", false),
    kind!("ldrh w10, [x9]", false),
    kind!("ldr w10, [x9]", false),
    kind!("ldr x10, [x9]", false),
    kind!("ldr xzr, [x9]", false),
    kind!("ldrsb x10, [x9]", false),
    kind!("ldrsw x10, [x9]", false),
    kind!("ldp x10, x11, [x9]", false),
    kind!("ldr x10, [x9], #8", false),
    kind!("ldr x10, [x9, #0]!", false),
    kind!("ldp x10, x11, [x9], #16", false),
    kind!("ldar x10, [x9]", false),
    kind!("ldxr x10, [x9]", false),
    kind!("strb w10, [x9]", true),
    kind!("strh w10, [x9]", true),
    kind!("str w10, [x9]", true),
    kind!("str x10, [x9]", true),
    kind!("str xzr, [x9]", true),
    kind!("stp x10, x11, [x9]", true),
    kind!("str x10, [x9], #8", true),
    kind!("stp x10, x11, [x9], #-16", true),
    kind!("stlr x10, [x9]", true),
];

/// Every kind of access to addresses in and between all that a machine might have there.
pub fn outside(tree: Tree) {
    let ram_end = RAM + tree.memory_at(RAM);
    for address in [
        0,
        0x1000,
        0x0900_0000,
        0x3fff_fff0,
        ram_end,
        0x7000_0000,
        0x8000_0000,
        top(),
    ] {
        for kind in &KINDS {
            check(kind, address);
        }
        check_call(address);
    }
    // From the last bytes of the slot into nowhere. FAR may be any address of the part that isn't there.
    let address = ram_end - 4;
    let exception = expect_exception(|| {
        // SAFETY: it only reads, what is the last of the device tree's pages at most.
        unsafe { asm!("ldr {0}, [{0}]", inout(reg) address => _, options(nostack, readonly)) };
    });
    if !exception.is_some_and(|taken| {
        is_external(&taken, DATA_ABORT) && (address..address + 8).contains(&taken.far)
    }) {
        wrong(format_args!("across the end of the slot: {exception:x?}"));
    }
}

/// A call of code that isn't there, some more than once.
pub fn jump() {
    for address in [0x1000, 0x7000_0000, 0x1000, 0, 0x8000_0000, top()] {
        check_call(address);
    }
}

/// Faults for ever.
pub fn storm() {
    loop {
        check(&KINDS[3], 0x7000_0000);
        check(&KINDS[16], 0x7000_0000);
    }
}

/// The last 16 bytes that can be addressed.
fn top() -> u64 {
    let bits = match read_register!("id_aa64mmfr0_el1") & 0xf {
        0 => 32,
        1 => 36,
        _ => 39,
    };
    REACH.min(1 << bits) - 16
}

fn check(kind: &Kind, address: u64) {
    let mut base = 0;
    let exception = expect_exception(|| base = (kind.execute)(address));
    let is_right = exception.is_some_and(|taken| {
        is_external(&taken, DATA_ABORT)
            && taken.far == address
            && (taken.esr & WRITE != 0) == kind.is_write
    });
    if !is_right || base != address {
        wrong(format_args!(
            "{} at {address:#x}: {exception:x?}, x9 = {base:#x}",
            kind.text
        ));
    }
}

fn check_call(address: u64) {
    let exception = expect_exception(|| {
        // SAFETY: there is nothing to execute, so it comes back at once.
        unsafe { asm!("blr {}", in(reg) address, clobber_abi("C")) };
    });
    let is_right = exception.is_some_and(|taken| {
        is_external(&taken, INSTRUCTION_ABORT) && taken.far == address && taken.elr == address
    });
    if !is_right {
        wrong(format_args!("a call of {address:#x}: {exception:x?}"));
    }
}

fn is_external(exception: &Exception, class: u64) -> bool {
    exception.class() == class && exception.esr & FAULT_STATUS == EXTERNAL
}
