//! The whole encoding space of MRS, MSR, SYS and SYSL (Arm ARM C5.1), executed. Each may do nothing, or be undefined; what
//! would cut off the program's own branch (its translation, its vectors, its stack) is left out.
//!
//! And what a vCPU leaves in its registers: the next that starts on the same CPU finds all of them as the first one did
//! ([`leave_dirty`]).

use crate::wrong;
use core::arch::asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use guest_runtime::{Tree, affinity, expect_exception, println, read_register, start_vcpu};
use smccc::Hvc;
use smccc::psci::{AffinityState, LowestAffinityLevel, affinity_info};

const FIELDS: usize = 16 * 16 * 8;
/// The most instructions that a field takes.
const WORDS: usize = 3;
const RET: u32 = 0xd65f_03c0;
const UNKNOWN: u64 = 0;

/// The instructions to execute: those of one op0, op1 and direction.
#[repr(C, align(4096))]
struct Code(UnsafeCell<[u32; WORDS * FIELDS + 1]>);

// SAFETY: one vCPU at a time uses it.
unsafe impl Sync for Code {}

static CODE: Code = Code(UnsafeCell::new([RET; WORDS * FIELDS + 1]));

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
    // SAFETY: as above.
    unsafe { code.cast::<u32>().add(FIELDS).write_volatile(RET) };
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

/// op0 and op1 of the registers that EL1 may have.
const SPACES: [(u32, u32); 4] = [(2, 0), (2, 3), (3, 0), (3, 3)];
/// What a register that can't be read is noted as.
const UNREADABLE: u64 = 0xdead;

/// What each readable register held when the second vCPU started first.
static FIRST: [[AtomicU64; FIELDS]; SPACES.len()] =
    [const { [const { AtomicU64::new(0) }; FIELDS] }; SPACES.len()];
/// How often the second vCPU has started.
static STARTS: AtomicUsize = AtomicUsize::new(0);
static IS_DIRTYING: AtomicBool = AtomicBool::new(false);

/// Whether this is what vCPUs are started for.
pub fn is_dirtying() -> bool {
    IS_DIRTYING.load(Ordering::Acquire)
}

/// Has the second vCPU write whatever it can to its registers and go off, and start again.
pub fn leave_dirty(tree: Tree) {
    if tree.vcpus() < 2 {
        wrong(format_args!("this probe needs two vCPUs"));
    }
    IS_DIRTYING.store(true, Ordering::Release);
    for _ in 0..2 {
        if let Err(error) = start_vcpu(1) {
            wrong(format_args!("vCPU 1 can't be started: {error}"));
        }
        while affinity_info::<Hvc>(affinity(1), LowestAffinityLevel::All) != Ok(AffinityState::Off)
        {
            core::hint::spin_loop();
        }
    }
    if STARTS.load(Ordering::Acquire) != 2 {
        wrong(format_args!("vCPU 1 didn't start twice"));
    }
    println!("registers that were left dirty: done");
}

/// What the second vCPU does.
pub fn dirtied() -> ! {
    let is_first = STARTS.fetch_add(1, Ordering::AcqRel) == 0;
    let mut changed = 0;
    for (space, first) in SPACES.into_iter().zip(&FIRST) {
        for (fields, (now, first)) in read_all(space).iter().zip(first).enumerate() {
            let now = now.load(Ordering::Relaxed);
            let register = describe(space, fields as u32);
            if is_first {
                first.store(now, Ordering::Relaxed);
            } else if now != first.load(Ordering::Relaxed) && !is_volatile(register) {
                println!("S{register:?} is {now:#x}, {first:?} at first");
                changed += 1;
            }
        }
    }
    if changed != 0 {
        wrong(format_args!("{changed} registers are as they were left"));
    }
    for space in SPACES {
        dirty_all(space);
    }
    let kept = read_register!("tpidr_el0");
    if kept != u64::MAX {
        wrong(format_args!("what is written isn't kept: {kept:#x}"));
    }
    guest_runtime::turn_off()
}

fn describe((op0, op1): (u32, u32), fields: u32) -> (u32, u32, u32, u32, u32) {
    (op0, op1, fields >> 7, fields >> 3 & 15, fields & 7)
}

/// Whether the register tells the time, or what this program has just done.
fn is_volatile(register: (u32, u32, u32, u32, u32)) -> bool {
    matches!(
        register,
        (3, 0, 4, 0, 0 | 1) // SPSR_EL1, ELR_EL1
            | (3, 0, 5, 2, 0) // ESR_EL1
            | (3, 0, 6, 0, 0) // FAR_EL1
            | (3, 3, 2, 4, _) // RNDR, RNDRRS
            | (3, 3, 4, 2, 0) // NZCV
            | (3, 3, 14, 0, 1 | 2 | 5 | 6) // CNTPCT_EL0, CNTVCT_EL0, the self-synchronised ones
            | (3, 3, 14, 3, 0) // CNTV_TVAL_EL0
    )
}

/// Where [`read_all`] leaves what it reads.
static FOUND: [AtomicU64; FIELDS] = [const { AtomicU64::new(0) }; FIELDS];

/// Reads all registers of a space.
fn read_all((op0, op1): (u32, u32)) -> &'static [AtomicU64; FIELDS] {
    const MOVZ_X10_DEAD: u32 = 0xd280_0000 | (UNREADABLE as u32) << 5 | 10;
    const STR_X10_X9_8: u32 = 0xf800_852a;
    run_for_each(FOUND.as_ptr() as u64, |fields| {
        let (_, _, crn, crm, op2) = describe((op0, op1), fields);
        let read = encode(Direction::Read, op0, op1, crn, crm, op2);
        [MOVZ_X10_DEAD, read, STR_X10_X9_8]
    });
    &FOUND
}

/// Writes ones to every register of a space, but for those that the program lives on.
fn dirty_all((op0, op1): (u32, u32)) {
    const MOVN_X10_0: u32 = 0x9280_000a;
    run_for_each(0, |fields| {
        let (_, _, crn, crm, op2) = describe((op0, op1), fields);
        let is_left_out = is_vital(op0, op1, crn, crm, op2)
            // PAN would take the memory away that EL0 may use, SCTLR2_EL1 and TCR2_EL1 what the vital ones do.
            || matches!((op0, op1, crn, crm, op2), (3, 0, 4, 2, 3) | (3, 0, 1, 0, 3) | (3, 0, 2, 0, 3));
        // MSR x10.
        let write = encode(Direction::Read, op0, op1, crn, crm, op2) & !(1 << 21);
        let instruction = if is_left_out { NOP } else { write };
        [MOVN_X10_0, instruction, NOP]
    });
}

/// Executes what `instructions` says for each field, with x9 = `x9` at the beginning; they may change x9 and x10.
fn run_for_each(x9: u64, instructions: impl Fn(u32) -> [u32; WORDS]) {
    let code = CODE.0.get();
    for fields in 0..FIELDS {
        for (word, instruction) in instructions(fields as u32).into_iter().enumerate() {
            // SAFETY: within the array, which nobody refers to and no CPU executes now.
            unsafe {
                code.cast::<u32>()
                    .add(WORDS * fields + word)
                    .write_volatile(instruction);
            }
        }
    }
    synchronise(code as u64, size_of::<Code>() as u64);
    expect_exception(|| {
        // SAFETY: the instructions change x9 and x10, what x9 leads to, and nothing that the program depends on.
        unsafe { asm!("blr {}", in(reg) code, in("x9") x9, clobber_abi("C")) };
    });
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
