//! Exceptions that a vCPU takes to its own EL1. One that nobody expects ends the VM.
//!
//! Each vCPU has its own expectation, which only code that runs on it touches.

use crate::start::{MAX_VCPUS, index};
use crate::{code, println, read_register, report};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The vector that synchronous exceptions from EL1 with its own stack take.
const SYNC_EL1H: u64 = 4;
const CLASS_SHIFT: u32 = 26;
const CLASS_INSTRUCTION_ABORT: u64 = 0x21;
const CLASS_PC_ALIGNMENT: u64 = 0x22;

/// The interrupted context, as start.S saves it.
#[repr(C, align(16))]
#[derive(Debug)]
pub(crate) struct Frame {
    x: [u64; 31],
    elr: u64,
    spsr: u64,
}

/// A synchronous exception that was taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exception {
    /// ESR_EL1.
    pub esr: u64,
    /// FAR_EL1.
    pub far: u64,
    /// ELR_EL1 as it was taken.
    pub elr: u64,
}

impl Exception {
    /// The exception class.
    pub fn class(&self) -> u64 {
        self.esr >> CLASS_SHIFT & 0x3f
    }
}

#[derive(Debug)]
struct Expectation {
    is_armed: AtomicBool,
    is_taken: AtomicBool,
    esr: AtomicU64,
    far: AtomicU64,
    elr: AtomicU64,
}

static EXPECTATIONS: [Expectation; MAX_VCPUS] = [const {
    Expectation {
        is_armed: AtomicBool::new(false),
        is_taken: AtomicBool::new(false),
        esr: AtomicU64::new(0),
        far: AtomicU64::new(0),
        elr: AtomicU64::new(0),
    }
}; MAX_VCPUS];

/// Does something that may take synchronous exceptions, and returns the last of them. Instructions that do are skipped; of
/// a jump to nowhere the call is, so it must be made by BLR.
pub fn expect_exception(action: impl FnOnce()) -> Option<Exception> {
    let own = &EXPECTATIONS[index()];
    own.is_taken.store(false, Ordering::Relaxed);
    own.is_armed.store(true, Ordering::SeqCst);
    action();
    own.is_armed.store(false, Ordering::SeqCst);
    own.is_taken.load(Ordering::Relaxed).then(|| Exception {
        esr: own.esr.load(Ordering::Relaxed),
        far: own.far.load(Ordering::Relaxed),
        elr: own.elr.load(Ordering::Relaxed),
    })
}

/// Where every exception ends up, with the number of its vector.
pub(crate) extern "C" fn exception(frame: &mut Frame, vector: u64) {
    let exception = Exception {
        esr: read_register!("esr_el1"),
        far: read_register!("far_el1"),
        elr: frame.elr,
    };
    let own = &EXPECTATIONS[index()];
    // Taken away while this runs, so that a fault in here isn't skipped.
    if vector != SYNC_EL1H || !own.is_armed.swap(false, Ordering::SeqCst) {
        println!(
            "vCPU {}: vector {vector}, {exception:x?}, SPSR {:#x}",
            index(),
            frame.spsr
        );
        report(code::EXCEPTION, exception.esr, exception.elr);
    }
    own.esr.store(exception.esr, Ordering::Relaxed);
    own.far.store(exception.far, Ordering::Relaxed);
    own.elr.store(exception.elr, Ordering::Relaxed);
    own.is_taken.store(true, Ordering::Relaxed);
    frame.elr = match exception.class() {
        CLASS_INSTRUCTION_ABORT | CLASS_PC_ALIGNMENT => frame.x[30],
        _ => frame.elr.wrapping_add(4),
    };
    own.is_armed.store(true, Ordering::SeqCst);
}
