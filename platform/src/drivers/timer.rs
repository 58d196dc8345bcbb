//! Time since power-on, from the generic timer's physical counter (Arm ARM D12).
//!
//! All CPUs read one counter, so their times compare. Reading takes no lock and no division.

use crate::cpu::register::{read_register, write_register};
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

const NS_PER_SECOND: u64 = 1_000_000_000;
const FRACTION_BITS: u32 = 32;

/// Nanoseconds per tick, as a fixed-point number with [`FRACTION_BITS`].
static NS_PER_TICK: AtomicU64 = AtomicU64::new(0);

/// Firmware gives no counter frequency (CNTFRQ_EL0 is 0), or an impossible one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UnknownFrequency(u64);

impl fmt::Display for UnknownFrequency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the generic timer's frequency, {} Hz by CNTFRQ_EL0, can't be right",
            self.0
        )
    }
}

impl core::error::Error for UnknownFrequency {}

/// Reads the counter's frequency. Until then the time is 0.
///
/// # Errors
/// The frequency isn't known.
pub(crate) fn init() -> Result<(), UnknownFrequency> {
    let frequency = frequency();
    if !(1_000..=1 << 40).contains(&frequency) {
        return Err(UnknownFrequency(frequency));
    }
    let scaled = (u128::from(NS_PER_SECOND) << FRACTION_BITS) / u128::from(frequency);
    NS_PER_TICK.store(scaled as u64, Ordering::Relaxed);
    Ok(())
}

/// The counter's ticks per second.
pub fn frequency() -> u64 {
    read_register!("cntfrq_el0")
}

/// Nanoseconds since the counter started. The read isn't moved before earlier instructions.
pub fn now_ns() -> u64 {
    aarch64_cpu::asm::barrier::isb(aarch64_cpu::asm::barrier::SY);
    let ticks = read_register!("cntpct_el0");
    let scaled = u128::from(ticks) * u128::from(NS_PER_TICK.load(Ordering::Relaxed));
    (scaled >> FRACTION_BITS) as u64
}

/// The raw counter, which guests see minus their VM's offset.
pub fn counter() -> u64 {
    aarch64_cpu::asm::barrier::isb(aarch64_cpu::asm::barrier::SY);
    read_register!("cntpct_el0")
}

/// The counter's value when [`now_ns`] reaches `ns`.
pub(crate) fn ticks(ns: u64) -> u64 {
    let ticks = u128::from(ns) * u128::from(frequency()) / u128::from(NS_PER_SECOND);
    u64::try_from(ticks).unwrap_or(u64::MAX).saturating_add(1)
}

/// Whether what EL1 sees of the physical timer is less CNTPOFF_EL2, for a CPU that has the register. Firmware can keep that off
/// (SCR_EL3.ECVEn), and on a machine without EL3 QEMU 10 does. No guest is loaded.
pub(crate) fn can_offset_physical() -> bool {
    const ECV: u64 = 1 << 12;
    const ENABLE: u64 = 1;
    const IMASK: u64 = 1 << 1;
    const ISTATUS: u64 = 1 << 2;
    const AHEAD: u64 = 1 << 40;
    let (access, at) = (
        read_register!("cnthctl_el2"),
        counter().saturating_add(AHEAD),
    );
    // SAFETY: EL1's timer, whose interrupt stays masked, and the controls of what EL1 sees of it.
    unsafe {
        write_register!("cnthctl_el2", access | ECV);
        // EL1 is twice as far ahead as the timer is set.
        write_register!("s3_4_c14_c0_6", (2 * AHEAD).wrapping_neg()); // CNTPOFF_EL2
        write_register!("cntp_cval_el0", at);
        write_register!("cntp_ctl_el0", ENABLE | IMASK);
    }
    aarch64_cpu::asm::barrier::isb(aarch64_cpu::asm::barrier::SY);
    let is_met = read_register!("cntp_ctl_el0") & ISTATUS != 0;
    // SAFETY: as they were.
    unsafe {
        write_register!("cntp_ctl_el0", 0);
        write_register!("s3_4_c14_c0_6", 0);
        write_register!("cnthctl_el2", access);
    }
    is_met
}

/// Raises this CPU's EL2 timer interrupt when the counter reaches `tick`, or at once if it has.
pub(crate) fn arm(tick: u64) {
    const ENABLE: u64 = 1;
    // SAFETY: EL2's own timer, whose interrupt is never taken: it only ends a wait. The vectors keep a register in
    // CVAL, but go on after that only while a guest is loaded or being put (exceptions.S).
    unsafe {
        write_register!("cnthp_cval_el2", tick);
        write_register!("cnthp_ctl_el2", ENABLE);
    }
}

/// Reverses [`arm`]: the interrupt isn't raised any more.
pub(crate) fn disarm() {
    // SAFETY: as in `arm`.
    unsafe { write_register!("cnthp_ctl_el2", 0) };
    aarch64_cpu::asm::barrier::isb(aarch64_cpu::asm::barrier::SY);
}
