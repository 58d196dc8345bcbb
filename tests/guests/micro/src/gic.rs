//! The interrupt controller, as far as it is needed: a GICv3 that every vCPU sets up for itself.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};
use guest_runtime::{Tree, affinity, read_register};

use crate::wrong;

/// The interrupts that are taken.
pub const CALL: u32 = 3;
pub const VIRTUAL_TIMER: u32 = 27;
/// GICD_IIDR.
pub const DISTRIBUTOR_ID: u64 = 0x8;

const DISTRIBUTOR_CONTROL: u64 = 0;
/// Affinity routing, group 1.
const CONTROL: u32 = 0b1_0010;
/// From the distributor on a `virt` machine.
const REDISTRIBUTORS: u64 = 0xa_0000;
const REDISTRIBUTOR: u64 = 0x2_0000;
const PRIVATE: u64 = 0x1_0000;
const WAKER: u64 = 0x14;
const IS_ASLEEP: u32 = 1 << 2;
const GROUP0: u64 = 0x80;
const SET_ENABLED0: u64 = 0x100;
const PRIORITY0: u64 = 0x400;

static DISTRIBUTOR: AtomicU64 = AtomicU64::new(0);

/// Writes a register.
#[macro_export]
macro_rules! write_register {
    ($name:literal, $value:expr) => {{
        let value: u64 = $value;
        // SAFETY: a register of the GIC, of a timer, or of this program's own exceptions.
        unsafe { core::arch::asm!(concat!("msr ", $name, ", {}"), in(reg) value, options(nostack, preserves_flags)) };
    }};
}

/// Waits until what was written to registers has its effect.
pub fn isb() {
    // SAFETY: a barrier.
    unsafe { asm!("isb", options(nostack, preserves_flags)) };
}

/// Finds it, and switches the distributor on.
pub fn find(tree: Tree) {
    let Some(gic) = tree.registers("arm,gic-v3") else {
        wrong(format_args!("there is no GICv3"));
    };
    DISTRIBUTOR.store(gic, Ordering::Relaxed);
    write(gic, DISTRIBUTOR_CONTROL, CONTROL);
}

/// The distributor's registers.
pub fn distributor() -> u64 {
    DISTRIBUTOR.load(Ordering::Relaxed)
}

/// The registers of a vCPU's redistributor.
pub fn redistributor(vcpu: usize) -> u64 {
    distributor() + REDISTRIBUTORS + vcpu as u64 * REDISTRIBUTOR
}

/// Switches on what this vCPU takes.
pub fn set_up(vcpu: usize) {
    let redistributor = redistributor(vcpu);
    write(redistributor, WAKER, 0);
    while read(redistributor, WAKER) & IS_ASLEEP != 0 {}
    let private = redistributor + PRIVATE;
    write(private, GROUP0, u32::MAX);
    for word in 0..8 {
        write(private, PRIORITY0 + 4 * word, 0xa0a0_a0a0);
    }
    write(private, SET_ENABLED0, 1 << CALL | 1 << VIRTUAL_TIMER);
    // ICC_SRE_EL1, which is 1 for good where EL1 is the highest level that there is for it.
    write_register!("s3_0_c12_c12_5", 0b111);
    isb();
    if read_register!("s3_0_c12_c12_5") & 1 == 0 {
        wrong(format_args!("the GIC has no system registers"));
    }
    write_register!("s3_0_c4_c6_0", 0xf0); // ICC_PMR_EL1
    write_register!("s3_0_c12_c12_7", 1); // ICC_IGRPEN1_EL1
    isb();
}

/// What was written before is seen by whoever is told of it afterwards.
#[inline(always)]
pub fn barrier() {
    // SAFETY: a barrier.
    unsafe { asm!("dsb ishst", options(nostack, preserves_flags)) };
}

/// Interrupts another vCPU. What was written before is seen by it.
#[inline(always)]
pub fn call(target: u64) {
    barrier();
    write_register!("s3_0_c12_c11_5", target); // ICC_SGI1R_EL1
    isb();
}

/// What [`call`] takes for a vCPU.
pub fn target(vcpu: usize) -> u64 {
    let affinity = affinity(vcpu);
    u64::from(CALL) << 24 | (affinity >> 8 & 0xff) << 16 | 1 << (affinity & 0xf)
}

/// Reads a register of a device.
#[inline(always)]
pub fn read(frame: u64, offset: u64) -> u32 {
    let value: u32;
    // SAFETY: a register of a device. Of other forms of a load a hypervisor isn't told which register it is for.
    unsafe {
        asm!("ldr {value:w}, [{address}]", value = out(reg) value, address = in(reg) frame + offset,
            options(nostack, preserves_flags));
    }
    value
}

/// The same, of a register of 64 bits.
pub fn read_wide(frame: u64, offset: u64) -> u64 {
    let value: u64;
    // SAFETY: as above.
    unsafe {
        asm!("ldr {value}, [{address}]", value = out(reg) value, address = in(reg) frame + offset,
            options(nostack, preserves_flags));
    }
    value
}

/// Writes a register of a device.
pub fn write(frame: u64, offset: u64, value: u32) {
    // SAFETY: a register of the GIC, which does nothing to memory. As above.
    unsafe {
        asm!("str {value:w}, [{address}]", value = in(reg) value, address = in(reg) frame + offset,
            options(nostack, preserves_flags));
    }
}

/// The same, of a register of 64 bits.
#[inline(always)]
pub fn write_wide(frame: u64, offset: u64, value: u64) {
    // SAFETY: as above; the ITS is given memory of its own (`its`).
    unsafe {
        asm!("str {value}, [{address}]", value = in(reg) value, address = in(reg) frame + offset,
            options(nostack, preserves_flags));
    }
}
