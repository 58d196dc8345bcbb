//! The boot option `selftest=KIND`: deliberate failures, which the hypervisor must report, and the comparison of the engine's
//! tables with this CPU's table walker ([`stage2`]).
//!
//! Each failure must end in a fatal report and status 3; if it doesn't, a protection is missing, and the self-test panics.
//! `stage2` panics at the first difference.

mod stage2;

use core::hint::black_box;

use records::words::SelfTest;

/// Runs a self-test.
pub fn run(test: SelfTest) {
    match test {
        SelfTest::Stage2 => return stage2::run(),
        SelfTest::Panic => panic!("as asked by selftest=panic"),
        SelfTest::Undefined => undefined_instruction(),
        SelfTest::Stack => overflow_stack(0),
        SelfTest::Null => read_null(),
        SelfTest::WriteText => write_text(),
        SelfTest::ExecuteData => execute_data(),
        SelfTest::Nested => panic!("as asked: {}", FaultingText),
    };
    panic!("selftest={}: nothing happened", test.name())
}

fn undefined_instruction() -> u64 {
    // SAFETY: it is undefined by the architecture, so it is reported.
    unsafe { core::arch::asm!("udf #0", options(nomem, nostack)) };
    0
}

#[expect(unconditional_recursion, reason = "to overflow the stack")]
fn overflow_stack(depth: u64) -> u64 {
    let frame = black_box([depth; 64]);
    overflow_stack(depth + 1) + frame[0]
}

fn read_null() -> u64 {
    // SAFETY: page 0 is never mapped, so it is reported.
    unsafe { core::ptr::without_provenance::<u64>(black_box(8)).read_volatile() }
}

fn write_text() -> u64 {
    let text = write_text as fn() -> u64 as usize as *mut u32;
    // SAFETY: instructions aren't writable, so it is reported.
    unsafe { text.write_volatile(0) };
    0
}

fn execute_data() -> u64 {
    const RET: u32 = 0xd65f_03c0;
    let code = black_box([RET; 4]);
    // SAFETY: data isn't executable, so it is reported.
    let function: extern "C" fn() -> u64 = unsafe { core::mem::transmute(code.as_ptr()) };
    function()
}

/// A text that faults when it is printed.
struct FaultingText;

impl core::fmt::Display for FaultingText {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}", read_null())
    }
}
