//! Interrupts, by as few instructions as there can be: a count of those taken, for each vCPU.

use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering};
use guest_runtime::{MAX_VCPUS, read_register};

use crate::gic::{VIRTUAL_TIMER, isb};
use crate::{write_register, wrong};

/// How many interrupts a vCPU has taken; on a cache line of its own.
#[repr(align(128))]
struct Taken(AtomicU64);

static TAKEN: [Taken; MAX_VCPUS] = [const { Taken(AtomicU64::new(0)) }; MAX_VCPUS];

global_asm!(
    ".section .text.vectors, \"ax\"",
    ".balign 0x800",
    ".global micro_vectors",
    "micro_vectors:",
    ".rept 5",
    ".balign 0x80",
    "b {unexpected}",
    ".endr",
    ".balign 0x80",
    // An interrupt, on the vCPU's own stack. TPIDR_EL1 has the place of its count.
    "stp x0, x1, [sp, #-32]!",
    "str x2, [sp, #16]",
    "mrs x2, tpidr_el1",
    "mrs x0, s3_0_c12_c12_0", // ICC_IAR1_EL1
    "dsb sy",
    "cmp x0, #{timer}",
    "b.ne 1f",
    "msr cntv_ctl_el0, xzr",
    "isb",
    "1: ldr x1, [x2]",
    "add x1, x1, #1",
    "stlr x1, [x2]",
    "msr s3_0_c12_c12_1, x0", // ICC_EOIR1_EL1
    "ldr x2, [sp, #16]",
    "ldp x0, x1, [sp], #32",
    "eret",
    ".rept 10",
    ".balign 0x80",
    "b {unexpected}",
    ".endr",
    ".previous",
    unexpected = sym unexpected,
    timer = const VIRTUAL_TIMER,
);

extern "C" fn unexpected() -> ! {
    let (esr, elr) = (read_register!("esr_el1"), read_register!("elr_el1"));
    wrong(format_args!("an exception: ESR {esr:#x}, ELR {elr:#x}"))
}

/// Prepares this vCPU for interrupts, which stay masked.
pub fn set_up(vcpu: usize) {
    unsafe extern "C" {
        safe static micro_vectors: u8;
    }
    write_register!("tpidr_el1", &raw const TAKEN[vcpu] as u64);
    write_register!("vbar_el1", &raw const micro_vectors as u64);
    isb();
}

/// Lets interrupts come.
pub fn unmask() {
    // SAFETY: the vectors are set.
    unsafe { core::arch::asm!("msr daifclr, #2", options(nostack)) };
}

/// Keeps them away.
pub fn mask() {
    // SAFETY: nothing is lost, they stay pending.
    unsafe { core::arch::asm!("msr daifset, #2", options(nostack)) };
}

/// How many interrupts a vCPU has taken. What it wrote before is seen.
#[inline(always)]
pub fn taken(vcpu: usize) -> u64 {
    TAKEN[vcpu].0.load(Ordering::Acquire)
}
