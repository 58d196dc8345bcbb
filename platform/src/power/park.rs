//! Parks a CPU that can't even report an error: it waits for ever, with the reason in x19.

use core::arch::asm;

/// Why a CPU is parked: the low half of x19, with "PARV" in ASCII in the high half.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum ParkCode {
    /// Entered at EL1, with no console to say so.
    EnteredAtEl1 = 1,
    /// Entered at EL3.
    EnteredAtEl3 = 3,
    /// x0 holds no valid device tree.
    NoDeviceTree = 0x10,
    /// An exception before it could be reported, or while it was.
    EarlyFault = 0x11,
    /// The image has a relocation of an unknown type.
    BadRelocation = 0x12,
    /// The CPU has no EL2 without VHE.
    VheOnly = 0x13,
}

/// Parks this CPU for ever.
pub(crate) fn park(code: ParkCode) -> ! {
    const MAGIC: u64 = 0x5041_5256_0000_0000;
    // SAFETY: nothing runs on this CPU after it.
    unsafe { asm!("mov x19, {}", "b boot_park", in(reg) MAGIC | code as u64, options(noreturn)) }
}
