//! The whole encoding space of MRS, MSR, SYS and SYSL (Arm ARM C5.1), executed. Each may do nothing, or be undefined; what
//! would cut off the program's own branch (its translation, its vectors, its stack) is left out.

use crate::wrong;
use core::arch::asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering};
use guest_runtime::{expect_exception, println, read_register};

const FIELDS: usize = 16 * 16 * 8;
const RET: u32 = 0xd65f_03c0;
const UNKNOWN: u64 = 0;

/// The instructions to execute: those of one op0, op1 and direction.
#[repr(C, align(4096))]
struct Code(UnsafeCell<[u32; FIELDS + 1]>);

// SAFETY: only the first vCPU uses it.
unsafe impl Sync for Code {}

static CODE: Code = Code(UnsafeCell::new([RET; FIELDS + 1]));

/// What cache instructions may work on.
#[repr(C, align(4096))]
struct Scratch([AtomicU64; 512]);

static SCRATCH: Scratch = Scratch([const { AtomicU64::new(0) }; 512]);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Read,
    Write,
}

/// Executes all of them.
pub fn probe() {
    let before = essentials();
    for op0 in 1..=3 {
        for direction in [Direction::Read, Direction::Write] {
            for op1 in 0..8 {
                execute_all(op0, op1, direction);
            }
        }
    }
    if essentials() != before {
        wrong(format_args!(
            "registers that nobody wrote have changed: {before:x?}, {:x?}",
            essentials()
        ));
    }
    check_undefined();
    // The memory that was maintained is memory still.
    SCRATCH.0[0].store(1, Ordering::Relaxed);
    println!("system registers: done");
}

fn essentials() -> [u64; 5] {
    [
        read_register!("sctlr_el1"),
        read_register!("ttbr0_el1"),
        read_register!("tcr_el1"),
        read_register!("mair_el1"),
        read_register!("vbar_el1"),
    ]
}

/// Registers of EL2 and such as the implementation defines are undefined, with nothing in the syndrome.
fn check_undefined() {
    macro_rules! undefined {
        ($($instruction:literal),*) => {
            $(
                let exception = expect_exception(|| {
                    // SAFETY: it has no effect, being undefined.
                    unsafe { asm!($instruction, out("x10") _, options(nostack)) };
                });
                if !exception.is_some_and(|taken| taken.class() == UNKNOWN) {
                    wrong(format_args!("{} is not undefined: {exception:x?}", $instruction));
                }
            )*
        };
    }
    undefined!(
        "mrs x10, S3_4_C1_C1_0", // HCR_EL2
        "mrs x10, S3_4_C2_C1_0", // VTTBR_EL2
        "msr S3_4_C1_C1_0, xzr",
        "mrs x10, S3_6_C1_C1_0", // SCR_EL3
        "mrs x10, S3_0_C11_C0_0",
        "mrs x10, S3_1_C15_C7_7",
        "sys #4, c8, c7, #4",      // TLBI ALLE1
        "sys #4, c7, c8, #0, xzr"  // AT S1E2R
    );
}

fn execute_all(op0: u32, op1: u32, direction: Direction) {
    let code = CODE.0.get();
    for fields in 0..FIELDS as u32 {
        let (crn, crm, op2) = (fields >> 7, fields >> 3 & 15, fields & 7);
        let is_left_out = direction == Direction::Write && is_vital(op0, op1, crn, crm, op2);
        let instruction = if is_left_out {
            NOP
        } else {
            encode(direction, op0, op1, crn, crm, op2)
        };
        // SAFETY: within the array, which nobody refers to and no CPU executes now.
        unsafe {
            code.cast::<u32>()
                .add(fields as usize)
                .write_volatile(instruction)
        };
    }
    synchronise(code as u64, size_of::<Code>() as u64);
    // Which of them are undefined depends on the CPU.
    expect_exception(|| {
        // SAFETY: the instructions change x9 and x10 at most, and nothing that the program depends on.
        unsafe { asm!("blr {}", in(reg) code, in("x9") &SCRATCH, clobber_abi("C")) };
    });
}

const NOP: u32 = 0xd503_201f;

/// MRS x10 and SYSL x10; MSR of 0; SYS with the scratch memory's address in x9.
fn encode(direction: Direction, op0: u32, op1: u32, crn: u32, crm: u32, op2: u32) -> u32 {
    let (is_read, register) = match direction {
        Direction::Read => (1, 10),
        Direction::Write if op0 == 1 => (0, 9),
        Direction::Write => (0, 31),
    };
    0xd500_0000 | is_read << 21 | op0 << 19 | op1 << 16 | crn << 12 | crm << 8 | op2 << 5 | register
}

/// Whether the program would be lost with 0 in this register.
fn is_vital(op0: u32, op1: u32, crn: u32, crm: u32, op2: u32) -> bool {
    matches!(
        (op0, op1, crn, crm, op2),
        (3, 0, 1, 0, 0) // SCTLR_EL1
            | (3, 0, 2, 0, 0 | 2) // TTBR0_EL1, TCR_EL1
            | (3, 0, 10, 2, 0) // MAIR_EL1
            | (3, 0, 12, 0, 0) // VBAR_EL1
            | (3, 0, 4, 2, 0) // SPSel
            | (3, 3, 4, 2, 1) // DAIF
    )
}

/// Makes instructions that were written be executed (Arm ARM B2.4.4). 16 bytes are the smallest line there is.
fn synchronise(start: u64, bytes: u64) {
    for line in (start..start + bytes).step_by(16) {
        // SAFETY: cache maintenance of own memory.
        unsafe { asm!("dc cvau, {}", in(reg) line, options(nostack, preserves_flags)) };
    }
    // SAFETY: barriers.
    unsafe { asm!("dsb ish", options(nostack, preserves_flags)) };
    for line in (start..start + bytes).step_by(16) {
        // SAFETY: cache maintenance of own memory.
        unsafe { asm!("ic ivau, {}", in(reg) line, options(nostack, preserves_flags)) };
    }
    // SAFETY: barriers.
    unsafe { asm!("dsb ish", "isb", options(nostack, preserves_flags)) };
}
