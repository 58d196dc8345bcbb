//! Cache maintenance by address (Arm ARM D7.5.9), for CPUs and guests that access memory with their caches off.
//!
//! Any CPU may call at any time; the cost grows with the number of bytes.

use crate::cpu::register::read_register;
use crate::cpu::tlb::CpuInstructions;
use aarch64_cpu::asm::barrier::{self, ISH, SY};
use core::arch::asm;
use stage2::Pa;

/// The smallest data cache line of any cache level, in bytes (CTR_EL0.DminLine).
fn line_size() -> u64 {
    4 << ((read_register!("ctr_el0") >> 16) & 0xf)
}

/// Calls `each` with the address of every line of `bytes` from `start` on.
#[inline(always)]
fn for_each_line(start: u64, bytes: u64, each: impl Fn(u64)) {
    /// Lines in a round, as of whole pages there are many.
    const ROUND: u64 = 4;
    let line = line_size();
    let end = start.saturating_add(bytes);
    let mut address = start & !(line - 1);
    while end.saturating_sub(address) >= ROUND * line {
        for _ in 0..ROUND {
            each(address);
            address += line;
        }
    }
    while address < end {
        each(address);
        address += line;
    }
}

/// Writes the lines of `bytes` from `start` back to memory and drops them.
fn clean_and_invalidate(start: u64, bytes: u64) {
    for_each_line(start, bytes, |address| {
        // SAFETY: writing a line back changes no value.
        unsafe { asm!("dc civac, {}", in(reg) address, options(nostack, preserves_flags)) };
    });
}

/// Makes a value visible to CPUs that read it with their caches off.
pub(crate) fn clean_value<T>(value: &T) {
    clean_and_invalidate(core::ptr::from_ref(value) as u64, size_of::<T>() as u64);
    barrier::dsb(SY);
}

/// Drops all instruction cache lines of all CPUs.
fn invalidate_instructions() {
    barrier::dsb(ISH);
    // SAFETY: dropping instruction cache lines changes no instruction.
    unsafe { asm!("ic ialluis", options(nostack, preserves_flags)) };
    barrier::dsb(ISH);
    barrier::isb(SY);
}

impl memory::Caches for CpuInstructions {
    fn clean_for_guest(&self, pa: Pa, bytes: u64) {
        clean_and_invalidate(pa.get(), bytes);
        invalidate_instructions();
    }

    fn clean_for_hypervisor(&self, pa: Pa, bytes: u64) {
        clean_and_invalidate(pa.get(), bytes);
        barrier::dsb(ISH);
    }

    fn clean_for_fetches(&self, pa: Pa, bytes: u64) {
        // CTR_EL0: no cleaning, or no invalidation, is needed for instructions to be coherent with data (FEAT_IDC, FEAT_DIC).
        const IDC: u64 = 1 << 28;
        const DIC: u64 = 1 << 29;
        let cache_type = read_register!("ctr_el0");
        if cache_type & IDC == 0 {
            for_each_line(pa.get(), bytes, |address| {
                // SAFETY: writing a line back changes no value.
                unsafe { asm!("dc cvau, {}", in(reg) address, options(nostack, preserves_flags)) };
            });
        }
        if cache_type & DIC == 0 {
            invalidate_instructions();
        } else {
            barrier::dsb(ISH);
        }
    }
}
