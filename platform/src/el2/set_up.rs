//! Sets up EL2's control registers before anything else runs on a CPU.
//!
//! Registers have unknown values after reset, and boot firmware leaves its own. So each one that affects guests, traps or EL2
//! itself is written and none inherited; those of optional features only where the CPU has them (Arm ARM D23.2). The world
//! switch later sets the registers that differ between VMs; [`inherited`] has the registers of EL1, and the table of how guests
//! are kept apart. Every CPU runs this for itself.

use crate::cpu::features::CpuFeatures;
use crate::cpu::register::{read_register, write_register};
use crate::cpu::speculation::OnExit;
use crate::cpu::tlb::CpuInstructions;
use crate::el2::exceptions;
use crate::el2::inherited::{self, CPTR_BOOT};
use crate::el2::pmu;
use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{HCR_EL2, MAIR_EL2, SCTLR_EL2, TCR_EL2};
use stage2::RegimeRegisters;

/// HCR_EL2 while no guest runs: no VHE, EL1 is AArch64, interrupts and SErrors come to EL2, SMC traps.
pub(crate) const HCR_BOOT: u64 = HCR_EL2::RW::EL1IsAarch64.value
    | HCR_EL2::TSC::EnableTrapEl1SmcToEl2.value
    | HCR_EL2::AMO::SET.value
    | HCR_EL2::IMO::EnableVirtualIRQ.value
    | HCR_EL2::FMO::EnableVirtualFIQ.value;

/// CNTHCTL_EL2 without VHE: EL1 reads the physical counter (EL1PCTEN), and has no timer of its own.
pub(crate) const CNTHCTL_COUNTER: u64 = 1;

/// The bits of SCTLR_EL2 that are RES1 without VHE (Arm ARM D23.2.168).
const SCTLR_RES1: u64 = 0x30c5_0830;
/// SCTLR_EL2 with MMU and caches off.
pub(crate) const SCTLR_OFF: u64 = SCTLR_RES1;
/// SCTLR_EL2 on the early tables, which map the image writable and executable.
pub(crate) const SCTLR_EARLY: u64 = SCTLR_RES1
    | SCTLR_EL2::M::Enable.value
    | SCTLR_EL2::C::Cacheable.value
    | SCTLR_EL2::I::Cacheable.value
    | SCTLR_EL2::SA::Enable.value;
/// SCTLR_EL2 for good: also, what is writable is never executable, and where the CPU can, errors are told from each
/// other at each exception and exception return: one of the guest's is known to be before EL2 has used anything.
pub(crate) const fn sctlr_final(features: &CpuFeatures) -> u64 {
    const IESB: u64 = 1 << 21;
    let iesb = if features.iesb { IESB } else { 0 };
    SCTLR_EARLY | SCTLR_EL2::WXN::Enable.value | iesb
}

/// MAIR_EL2: attribute 0 is Device-nGnRE, attribute 1 normal write-back memory.
pub(crate) const MAIR: u64 = MAIR_EL2::Attr0_Device::nonGathering_nonReordering_EarlyWriteAck.value
    | MAIR_EL2::Attr1_Normal_Outer::WriteBack_NonTransient_ReadWriteAlloc.value
    | MAIR_EL2::Attr1_Normal_Inner::WriteBack_NonTransient_ReadWriteAlloc.value;

/// TCR_EL2: 48-bit addresses, 4 KiB granule, walks inner shareable and write-back.
pub(crate) fn tcr(pa_range: u8) -> u64 {
    const RES1: u64 = 1 << 31 | 1 << 23;
    const T0SZ: u64 = 64 - 48;
    const MOST_PS: u8 = 5;
    let tcr = TCR_EL2::TG0::KiB_4
        + TCR_EL2::SH0::Inner
        + TCR_EL2::ORGN0::WriteBack_ReadAlloc_WriteAlloc_Cacheable
        + TCR_EL2::IRGN0::WriteBack_ReadAlloc_WriteAlloc_Cacheable;
    RES1 | T0SZ | tcr.value | u64::from(pa_range.min(MOST_PS)) << 16
}

/// Sets this CPU's EL2 registers, its exception vectors among them.
pub(crate) fn set_registers(features: &CpuFeatures) {
    inherited::write(features);
    let midr = read_register!("midr_el1");
    let mpidr = read_register!("mpidr_el1");
    // SAFETY: traps and controls of EL1 and EL0, where nothing runs yet; EL2's own translation isn't touched.
    unsafe {
        write_register!("vbar_el2", exceptions::vectors(OnExit::Nothing));
        write_register!("hcr_el2", HCR_BOOT);
        write_register!("hstr_el2", 0);
        write_register!("hacr_el2", 0);
        write_register!("actlr_el2", 0);
        write_register!("cptr_el2", CPTR_BOOT);
        write_register!("mdcr_el2", debug_traps(features));
        write_register!("vpidr_el2", midr);
        write_register!("vmpidr_el2", mpidr);
    }
    RegimeRegisters::NONE.load(&CpuInstructions::new());
    set_timer_registers(features);
    set_optional_registers(features);
    barrier::isb(barrier::SY);
}

/// MDCR_EL2: debug, OS lock, PMU, profiling and trace-filter accesses of guests trap; nothing is counted at EL2.
fn debug_traps(features: &CpuFeatures) -> u64 {
    const TDA_TDOSA_TDRA: u64 = 0b111 << 9;
    let profiling = u64::from(features.spe) << 14; // TPMS
    let trace_filter = u64::from(features.trace_filter) << 19; // TTRF
    TDA_TDOSA_TDRA | profiling | trace_filter | pmu::traps(features)
}

fn set_timer_registers(features: &CpuFeatures) {
    // SAFETY: the counter's offset and the traps of EL1; EL2's own timer is switched off.
    unsafe {
        // Its physical timer traps.
        write_register!("cnthctl_el2", CNTHCTL_COUNTER);
        write_register!("cntvoff_el2", 0);
        write_register!("cnthp_ctl_el2", 0);
        if features.ecv >= 2 {
            write_register!("s3_4_c14_c0_6", 0); // CNTPOFF_EL2
        }
    }
}

fn set_optional_registers(features: &CpuFeatures) {
    /// HCRX_EL2.MSCEn: EL1 and EL0 may copy and set memory by FEAT_MOPS, as its ID register tells them.
    const MSCEN: u64 = 1 << 11;
    let hcrx = if features.mops { MSCEN } else { 0 };
    // SAFETY: each register exists where its feature does, and acts on EL1 and EL0 only.
    unsafe {
        if features.hcx {
            write_register!("s3_4_c1_c2_2", hcrx); // HCRX_EL2
        }
        if features.fgt >= 1 {
            write_register!("s3_4_c1_c1_4", 0); // HFGRTR_EL2
            write_register!("s3_4_c1_c1_5", 0); // HFGWTR_EL2
            write_register!("s3_4_c1_c1_6", 0); // HFGITR_EL2
            write_register!("s3_4_c3_c1_4", 0); // HDFGRTR_EL2
            write_register!("s3_4_c3_c1_5", 0); // HDFGWTR_EL2
            if features.amu != 0 {
                write_register!("s3_4_c3_c1_6", 0); // HAFGRTR_EL2
            }
        }
        if features.fgt >= 2 {
            write_register!("s3_4_c3_c1_0", 0); // HDFGRTR2_EL2
            write_register!("s3_4_c3_c1_1", 0); // HDFGWTR2_EL2
            write_register!("s3_4_c3_c1_2", 0); // HFGRTR2_EL2
            write_register!("s3_4_c3_c1_3", 0); // HFGWTR2_EL2
            write_register!("s3_4_c3_c1_7", 0); // HFGITR2_EL2
        }
        if features.sctlr2 {
            write_register!("s3_4_c1_c0_3", 0); // SCTLR2_EL2
        }
        if features.tcr2 {
            write_register!("s3_4_c2_c0_3", 0); // TCR2_EL2
        }
        if features.mpam != 0 {
            write_register!("s3_4_c10_c5_0", 0b11 << 48); // MPAM2_EL2: EL1's accesses trap
        }
        if features.ras != 0 {
            write_register!("s3_4_c5_c2_3", 0); // VSESR_EL2
        }
    }
}
