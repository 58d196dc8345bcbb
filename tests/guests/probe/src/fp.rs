//! FP and SIMD registers keep their values through exits of all kinds. The program itself is compiled not to use them.

use crate::wrong;
use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use guest_runtime::{Tree, expect_exception, println, start_vcpu};
use smccc::Hvc;

const EXITS: u64 = 3000;
/// CPACR_EL1.FPEN: nothing traps.
const FP_ENABLED: u64 = 0b11 << 20;
const OUTSIDE: u64 = 0x7000_0000;

global_asm!(
    ".arch_extension simd",
    // fill_registers(values)
    "fill_registers:",
    "ldp q0, q1, [x0]",
    "ldp q2, q3, [x0, #32]",
    "ldp q4, q5, [x0, #64]",
    "ldp q6, q7, [x0, #96]",
    "ldp q8, q9, [x0, #128]",
    "ldp q10, q11, [x0, #160]",
    "ldp q12, q13, [x0, #192]",
    "ldp q14, q15, [x0, #224]",
    "ldp q16, q17, [x0, #256]",
    "ldp q18, q19, [x0, #288]",
    "ldp q20, q21, [x0, #320]",
    "ldp q22, q23, [x0, #352]",
    "ldp q24, q25, [x0, #384]",
    "ldp q26, q27, [x0, #416]",
    "ldp q28, q29, [x0, #448]",
    "ldp q30, q31, [x0, #480]",
    "ret",
    // read_registers(values)
    "read_registers:",
    "stp q0, q1, [x0]",
    "stp q2, q3, [x0, #32]",
    "stp q4, q5, [x0, #64]",
    "stp q6, q7, [x0, #96]",
    "stp q8, q9, [x0, #128]",
    "stp q10, q11, [x0, #160]",
    "stp q12, q13, [x0, #192]",
    "stp q14, q15, [x0, #224]",
    "stp q16, q17, [x0, #256]",
    "stp q18, q19, [x0, #288]",
    "stp q20, q21, [x0, #320]",
    "stp q22, q23, [x0, #352]",
    "stp q24, q25, [x0, #384]",
    "stp q26, q27, [x0, #416]",
    "stp q28, q29, [x0, #448]",
    "stp q30, q31, [x0, #480]",
    "ret",
    ".arch_extension nosimd",
);

type Values = [u64; 64];

unsafe extern "C" {
    fn fill_registers(values: &Values);
    fn read_registers(values: &mut Values);
}

static IS_WANTED: AtomicBool = AtomicBool::new(false);
/// vCPUs that have found all well.
static PASSED: AtomicUsize = AtomicUsize::new(0);

/// Whether this is what vCPUs are started for.
pub fn is_wanted() -> bool {
    IS_WANTED.load(Ordering::Acquire)
}

/// Checks it on all vCPUs at once.
pub fn probe(tree: Tree) {
    IS_WANTED.store(true, Ordering::Release);
    let vcpus = tree.vcpus().max(1);
    for vcpu in 1..vcpus {
        if let Err(error) = start_vcpu(vcpu) {
            wrong(format_args!("vCPU {vcpu} can't be started: {error}"));
        }
    }
    check(0);
    while PASSED.load(Ordering::Acquire) < vcpus {
        core::hint::spin_loop();
    }
    println!("FP registers of {vcpus} vCPUs: done");
}

/// What the other vCPUs do.
pub fn secondary(index: usize) -> ! {
    check(index);
    guest_runtime::turn_off()
}

fn check(index: usize) {
    // SAFETY: gives access to registers that nothing else here uses.
    unsafe {
        asm!("msr cpacr_el1, {}", "isb", in(reg) FP_ENABLED, options(nostack, preserves_flags))
    };
    let mut values: Values = [0; 64];
    for (number, value) in values.iter_mut().enumerate() {
        *value = ((index as u64 + 1) << 32 | number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    // SAFETY: compiled code uses none of these registers.
    unsafe { fill_registers(&values) };
    for exit in 0..EXITS {
        if exit % 8 != 0 {
            let _ = smccc::psci::version::<Hvc>();
            continue;
        }
        let exception = expect_exception(|| {
            // SAFETY: there is nothing at this address.
            unsafe { asm!("ldr xzr, [{}]", in(reg) OUTSIDE, options(nostack, readonly)) };
        });
        if exception.is_none() {
            wrong(format_args!("there is memory at {OUTSIDE:#x}"));
        }
    }
    let mut found: Values = [0; 64];
    // SAFETY: as above; it writes the array alone.
    unsafe { read_registers(&mut found) };
    if let Some(number) = (0..64).find(|&number| found[number] != values[number]) {
        wrong(format_args!(
            "vCPU {index}: half {number} of the FP registers is {:#x}",
            found[number]
        ));
    }
    PASSED.fetch_add(1, Ordering::AcqRel);
}
