//! SVE's registers keep their values through exits and while a vCPU sleeps, and nothing of one life of a vCPU is there in its
//! next, on the same CPU. The program itself is compiled not to use them.

use crate::interrupts;
use crate::smp::TwoLives;
use crate::wrong;
use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use guest_runtime::{Tree, expect_exception, println, read_register};
use smccc::Hvc;

const CALLS: usize = 500;
const SLEEPS: usize = 10;
/// The most words of all registers: 32 vectors, 16 predicates and FFR of 2048 bits.
const WORDS: usize = 34 * 256 / 8 + 32;
const UNKNOWN: u64 = 0;
/// CPACR_EL1.FPEN and ZEN: nothing traps.
const ENABLED: u64 = 0b11 << 20 | 0b11 << 16;

global_asm!(
    ".arch_extension sve",
    ".macro vectors operation",
    ".irp number, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "\\operation z\\number, [x0, #\\number, mul vl]",
    ".endr",
    "addvl x1, x0, #31",
    "addvl x1, x1, #1",
    ".irp number, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "\\operation p\\number, [x1, #\\number, mul vl]",
    ".endr",
    ".endm",
    // fill_vectors(values); all of FFR is set.
    "fill_vectors:",
    "setffr",
    "vectors ldr",
    "ret",
    // read_vectors(values), FFR last.
    "read_vectors:",
    "vectors str",
    "rdffr p0.b",
    "str p0, [x1, #16, mul vl]",
    "ldr p0, [x1, #0, mul vl]",
    "ret",
    ".arch_extension nosve",
);

#[repr(C, align(16))]
struct Values(UnsafeCell<[u64; WORDS]>);

// SAFETY: each vCPU uses its own.
unsafe impl Sync for Values {}

static FILLED: [Values; 2] = [const { Values(UnsafeCell::new([0; WORDS])) }; 2];
static FOUND: [Values; 2] = [const { Values(UnsafeCell::new([0; WORDS])) }; 2];

pub static LIVES: TwoLives = TwoLives::new(check);

unsafe extern "C" {
    fn fill_vectors(values: *const u64);
    fn read_vectors(values: *mut u64);
}

/// Checks it on two vCPUs, the second in two lives.
pub fn probe(tree: Tree) {
    interrupts::begin(tree);
    if read_register!("id_aa64pfr0_el1") >> 32 & 0xf == 0 {
        hidden();
        println!("sve: hidden");
        guest_runtime::power_off()
    }
    LIVES.run();
    println!("sve: {} bytes, all as it should be", vector_bytes());
    guest_runtime::power_off()
}

fn enable() {
    // SAFETY: gives access to registers that nothing else here uses.
    unsafe { asm!("msr cpacr_el1, {}", "isb", in(reg) ENABLED, options(nostack, preserves_flags)) };
}

/// SVE is undefined, whatever the guest sets.
fn hidden() {
    enable();
    // ZCR_EL1 too.
    let attempts: [fn() -> usize; 2] = [vector_bytes, || read_register!("s3_0_c1_c2_0") as usize];
    for attempt in attempts {
        let exception = expect_exception(|| {
            core::hint::black_box(attempt());
        });
        if exception.is_none_or(|taken| taken.class() != UNKNOWN) {
            wrong(format_args!("SVE isn't shown, but: {exception:x?}"));
        }
    }
}

fn vector_bytes() -> usize {
    let bytes: usize;
    // SAFETY: it reads the length of a vector.
    unsafe { asm!(".inst 0x04bf5020", out("x0") bytes, options(nomem, nostack)) }; // rdvl x0, #1
    bytes
}

fn check(own: usize) {
    enable();
    // SAFETY: ZCR_EL1.LEN: the longest vectors.
    unsafe {
        asm!("msr s3_0_c1_c2_0, {}", "isb", in(reg) 0xf_u64, options(nostack, preserves_flags))
    };
    let bytes = vector_bytes();
    let words = (34 * bytes + bytes / 8) / 8;
    let (filled, found) = (FILLED[own].0.get(), FOUND[own].0.get());
    // SAFETY: this vCPU's own memory, with room for all registers, which compiled code doesn't use.
    let found = unsafe {
        read_vectors(found.cast());
        &*found
    };
    if let Some(at) = found[..words].iter().position(|word| *word != 0) {
        wrong(format_args!(
            "vCPU {own} starts with {:#x} in word {at} of its vectors",
            found[at]
        ));
    }
    // SAFETY: as above; the reference isn't used any more.
    let filled = unsafe {
        let filled = &mut *filled;
        for (number, word) in filled.iter_mut().enumerate() {
            *word = (((own as u64 + 1) << 32) | (number as u64 + 1))
                .wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
        fill_vectors(filled.as_ptr());
        &*filled
    };
    for _ in 0..CALLS {
        let _ = smccc::psci::version::<Hvc>();
    }
    for _ in 0..SLEEPS {
        interrupts::sleep();
    }
    // SAFETY: as above.
    let found = unsafe {
        read_vectors(FOUND[own].0.get().cast());
        &*FOUND[own].0.get()
    };
    // FFR is another.
    let kept = 34 * bytes / 8;
    if let Some(at) = (0..kept).find(|at| found[*at] != filled[*at]) {
        wrong(format_args!(
            "vCPU {own}: word {at} of its vectors is {:#x}",
            found[at]
        ));
    }
    let ffr = found[kept..words].iter().all(|word| *word == u64::MAX);
    if bytes >= 64 && !ffr {
        wrong(format_args!(
            "vCPU {own}: FFR is {:x?}",
            &found[kept..words]
        ));
    }
}
