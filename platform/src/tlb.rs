//! Stage-2 TLB maintenance by the architecture's instructions (Arm ARM D8.17).
//!
//! They act on the VMID in the issuing CPU's VTTBR_EL2. A vCPU's CPU has that of its VM; anybody else sets it for the
//! duration and puts back what was there, so that no walk starts from a VM's tables when nobody vouches for them.
//! An invalidation by IPA leaves entries that combine stage 1 and 2, so those of the whole VMID go after it.

use crate::features::CpuFeatures;
use crate::register::{read_register, write_register};
use crate::tlb_operand::{self, RangeOperands};
use aarch64_cpu::asm::barrier::{self, ISH, ISHST, NSH, NSHST, SY};
use core::arch::asm;
use stage2::{Ipa, IpaRange, Level, PAGE_SIZE, Tlb, Vttbr};

/// Most pages that are invalidated one by one: beyond, dropping the whole VMID is cheaper than naming them, since its
/// combined entries go anyway.
const MAX_SINGLE_PAGES: u64 = 16;

/// TLB and cache maintenance by this CPU's instructions. Any CPU may use its own value, or a copy of another's.
#[derive(Clone, Copy, Debug)]
pub struct Maintenance {
    range: bool,
    level_hint: bool,
}

impl Maintenance {
    /// For CPUs that have `features`.
    pub const fn new(features: &CpuFeatures) -> Self {
        Self {
            range: features.tlbi_range,
            level_hint: features.ttl,
        }
    }

    fn operand(&self, ipa: Ipa, level: Level) -> u64 {
        tlb_operand::address(ipa, if self.level_hint { Some(level) } else { None })
    }
}

/// A TLB invalidation instruction, with or without an operand.
macro_rules! tlbi {
    ($operation:literal) => {
        // SAFETY: dropping TLB entries changes no translation.
        unsafe { asm!(concat!("tlbi ", $operation), options(nostack, preserves_flags)) }
    };
    ($operation:literal, $operand:expr) => {
        // SAFETY: dropping TLB entries changes no translation.
        unsafe { asm!(concat!("tlbi ", $operation, ", {}"), in(reg) $operand, options(nostack, preserves_flags)) }
    };
}

/// Runs `operations` with the VMID of `vm` in VTTBR_EL2.
#[inline]
fn with_vmid(vm: Vttbr, operations: impl FnOnce()) {
    let current = read_register!("vttbr_el2");
    if current == vm.bits() {
        return operations();
    }
    set_vttbr(vm.bits());
    operations();
    set_vttbr(current);
}

fn set_vttbr(value: u64) {
    // SAFETY: no guest runs on this CPU until the world switch has set its own value again, or this one is put back.
    unsafe { write_register!("vttbr_el2", value) };
    barrier::isb(SY);
}

/// Drops the VMID's combined entries everywhere, once what was dropped before it is gone.
fn invalidate_combined() {
    barrier::dsb(ISH);
    tlbi!("vmalle1is");
    barrier::dsb(ISH);
    barrier::isb(SY);
}

impl Tlb for Maintenance {
    fn invalidate_leaf(&self, vm: Vttbr, ipa: Ipa, level: Level) {
        barrier::dsb(ISHST);
        with_vmid(vm, || {
            tlbi!("ipas2le1is", self.operand(ipa, level));
            invalidate_combined();
        });
    }

    fn invalidate_range(&self, vm: Vttbr, range: IpaRange, tables: bool) {
        let pages = range.end.get().saturating_sub(range.start.get()) / PAGE_SIZE;
        let singly = pages <= MAX_SINGLE_PAGES;
        if !singly && (!self.range || pages > RangeOperands::MAX_PAGES) {
            return self.invalidate_vmid(vm);
        }
        barrier::dsb(ISHST);
        with_vmid(vm, || {
            if self.range {
                invalidate_by_range(range, tables);
            } else {
                invalidate_pages(range, tables);
            }
            invalidate_combined();
        });
    }

    fn invalidate_vmid(&self, vm: Vttbr) {
        barrier::dsb(ISHST);
        with_vmid(vm, || {
            tlbi!("vmalls12e1is");
            barrier::dsb(ISH);
            barrier::isb(SY);
        });
    }

    fn invalidate_all_vmids(&self) {
        barrier::dsb(ISHST);
        tlbi!("alle1is");
        barrier::dsb(ISH);
        barrier::isb(SY);
    }

    #[inline]
    fn invalidate_local(&self, vm: Vttbr, ipa: Ipa, level: Level, va: Option<u64>) {
        barrier::dsb(NSHST);
        with_vmid(vm, || {
            tlbi!("ipas2le1", self.operand(ipa, level));
            barrier::dsb(NSH);
            match va {
                Some(va) => tlbi!("vaae1", tlb_operand::virtual_address(va)),
                None => tlbi!("vmalle1"),
            }
            barrier::dsb(NSH);
            barrier::isb(SY);
        });
    }

    fn publish_tables(&self) {
        barrier::dsb(ISHST);
    }
}

fn invalidate_pages(range: IpaRange, tables: bool) {
    let mut ipa = range.start;
    while ipa < range.end {
        let operand = tlb_operand::address(ipa, None);
        if tables {
            tlbi!("ipas2e1is", operand);
        } else {
            tlbi!("ipas2le1is", operand);
        }
        ipa = ipa.offset(PAGE_SIZE);
    }
}

/// FEAT_TLBIRANGE's instructions, by encoding: RIPAS2E1IS and RIPAS2LE1IS.
fn invalidate_by_range(range: IpaRange, tables: bool) {
    for operand in RangeOperands::new(range) {
        // SAFETY: the caller has checked that the CPU has them; dropping TLB entries changes no translation.
        unsafe {
            if tables {
                asm!("sys #4, c8, c0, #2, {}", in(reg) operand, options(nostack, preserves_flags));
            } else {
                asm!("sys #4, c8, c0, #6, {}", in(reg) operand, options(nostack, preserves_flags));
            }
        }
    }
}
