//! What Parvisor's test guests have in common: the way from boot to Rust on every vCPU, an identity map of all their
//! memory, exceptions, the device tree, a console, and the end.
//!
//! A guest names its two entries by [`entry!`]. Everything here may be used by all vCPUs at once.

#![no_std]

pub mod console;
pub mod exceptions;
mod start;
mod tree;

use core::panic::PanicInfo;
use smccc::Hvc;

pub use exceptions::{Exception, expect_exception};
pub use start::{MAX_VCPUS, TABLE_ENTRIES, affinity, entry_point, identity_map, index, start_vcpu};
pub use tree::Tree;

/// The codes by which a guest reports that it failed, beside those that a probe has for itself.
pub mod code {
    /// The image isn't whole.
    pub const TRUNCATED: u64 = 1;
    /// An exception that wasn't expected; details: ESR, ELR.
    pub const EXCEPTION: u64 = 2;
    /// A panic; detail: the line.
    pub const PANIC: u64 = 3;
}

/// Calls one of the functions of [`abi`] with up to three arguments. Returns x0 to x3.
pub fn call(function: u32, arguments: [u64; 3]) -> [u64; 4] {
    let mut registers = [0; 17];
    registers[..3].copy_from_slice(&arguments);
    let results = smccc::hvc64(function, registers);
    [results[0], results[1], results[2], results[3]]
}

/// Ends the VM with a verdict: 0 is passed.
pub fn report(code: u64, detail: u64, more: u64) -> ! {
    call(abi::REPORT, [code, detail, more]);
    // A hypervisor that doesn't know the call.
    power_off()
}

/// Turns the VM off.
pub fn power_off() -> ! {
    let _ = smccc::psci::system_off::<Hvc>();
    rest()
}

/// Turns the calling vCPU off.
pub fn turn_off() -> ! {
    let _ = smccc::psci::cpu_off::<Hvc>();
    rest()
}

/// Waits for ever.
pub fn rest() -> ! {
    loop {
        // SAFETY: waiting changes nothing.
        unsafe { core::arch::asm!("wfi", "wfe", options(nomem, nostack, preserves_flags)) };
    }
}

/// Reads a system register by its name.
#[macro_export]
macro_rules! read_register {
    ($name:literal) => {{
        let value: u64;
        // SAFETY: reading a register changes nothing.
        unsafe { core::arch::asm!(concat!("mrs {}, ", $name), out(reg) value, options(nomem, nostack, preserves_flags)) };
        value
    }};
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    println!("{info}");
    report(
        code::PANIC,
        info.location().map_or(0, |location| location.line().into()),
        0,
    )
}
