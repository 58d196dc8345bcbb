//! Cache maintenance by address (Arm ARM D7.5.9): for CPUs and guests that look at memory with their caches off.
//!
//! Any CPU may do it at any time; what it costs grows with the bytes.

use crate::register::read_register;
use crate::tlb::Maintenance;
use aarch64_cpu::asm::barrier::{self, ISH, SY};
use core::arch::asm;
use stage2::Pa;

/// The smallest data cache line of any cache level, in bytes (CTR_EL0.DminLine).
fn line_size() -> u64 {
    4 << ((read_register!("ctr_el0") >> 16) & 0xf)
}

/// Writes the lines of `bytes` from `start` back to memory and drops them.
fn clean_and_invalidate(start: u64, bytes: u64) {
    let line = line_size();
    let end = start.saturating_add(bytes);
    let mut address = start & !(line - 1);
    while address < end {
        // SAFETY: writing a line back changes no value.
        unsafe { asm!("dc civac, {}", in(reg) address, options(nostack, preserves_flags)) };
        address += line;
    }
}

/// Makes a value visible to CPUs that read it with their caches off.
pub(crate) fn clean_value<T>(value: &T) {
    clean_and_invalidate(core::ptr::from_ref(value) as u64, size_of::<T>() as u64);
    barrier::dsb(SY);
}

impl memory::Caches for Maintenance {
    fn clean_for_guest(&self, pa: Pa, bytes: u64) {
        clean_and_invalidate(pa.get(), bytes);
        barrier::dsb(ISH);
        // SAFETY: dropping instruction cache lines changes no instruction.
        unsafe { asm!("ic ialluis", options(nostack, preserves_flags)) };
        barrier::dsb(ISH);
        barrier::isb(SY);
    }
}
