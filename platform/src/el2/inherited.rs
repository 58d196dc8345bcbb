//! EL1 and EL0 registers that are neither switched nor trapped: written once on every CPU, so that no value of boot firmware
//! reaches a guest.
//!
//! The registers that a guest can write, or that act on it (Arm ARM D23.2, D23.3, D23.10), fall into four groups:
//!
//! | registers | how they are kept from the next guest |
//! |---|---|
//! | `vm::El1State`, FP and SIMD registers, FPCR, FPSR, pointer-authentication keys, DISR_EL1 (VDISR_EL2) | switched when a vCPU is loaded and put (`world`) |
//! | general registers, PC, PSTATE | switched at each exit |
//! | VTTBR_EL2, VTCR_EL2, VMPIDR_EL2, CNTVOFF_EL2, HCR_EL2 | written when a vCPU is loaded (`world`) |
//! | CNTHCTL_EL2, CNTPOFF_EL2; ICC_*_EL1 of a guest with a virtual GIC (ICH_*_EL2, GICH_*) | written when a vCPU is loaded (`world`, `vgic`) |
//! | ACTLR_EL1, ID registers, cache maintenance by set and way, implementation-defined registers | trap: HCR_EL2.TACR, TID3, TSW, TIDCP |
//! | LOR*, ER* (RAS), GMID_EL1; RGSR_EL1, GCR_EL1, TFSR*; SCXTNUM_ELx | trap: HCR_EL2.TLOR, TERR, TID5; ATA clear; EnSCXT clear |
//! | SVE's | trap: CPTR_EL2.TZ; switched when a vCPU is loaded and put that has used them (`sve`) |
//! | SME's, trace unit's, activity monitors' | trap: CPTR_EL2.TSM, TTA, TAM |
//! | breakpoints, watchpoints, MDSCR_EL1 | trap: MDCR_EL2.TDA; written when a vCPU is loaded that has debug exceptions on, and MDSCR_EL1 when it is put (`debug`) |
//! | PMU's | trap: MDCR_EL2.TPM; switched when a vCPU is loaded and put that has used them (`pmu`), and PMCR_EL0.E cleared when it is put |
//! | other debug registers, OS lock; SPE's, TRBE's, TRFCR_EL1 | trap: MDCR_EL2.TDA, TDOSA; E2PB and E2TB clear, TPMS, TTRF |
//! | TPIDR2_EL0, SMPRI_EL1, PIR*, POR*, MAIR2_EL1, RCW*, GCS*, ACCDATA_EL1, BRB* | trap: positive bits of the fine-grained traps are clear |
//! | TCR2_EL1, SCTLR2_EL1, FPMR, GCSCR*, 128-bit registers | trap, and act as 0: HCRX_EL2 has nothing but MSCEn |
//! | CNTP_*_EL0, ICC_*_EL1 of guests without a virtual GIC; MPAM* | trap: CNTHCTL_EL2.EL1PCEN; ICC_SRE_EL2.Enable and ICH_HCR_EL2; MPAM2_EL2, MPAMHCR_EL2 |
//! | values of the trapped registers that act without being accessed | written here |
//!
//! EL2's own controls, including the traps, are in `set_up`, those of the GIC in `gic::v3`.
//!
//! A register is written if the ID registers say that the feature exists and firmware lets EL2 access it, as Linux's boot
//! protocol demands (booting.rst) and as PMBIDR_EL1 and TRBIDR_EL1 show.

use crate::cpu::features::CpuFeatures;

/// Which registers exist and may be written, besides the features that all CPUs share.
#[derive(Clone, Copy, Debug, Default)]
pub struct Access {
    /// PMBIDR_EL1.P is clear: EL2 may program the profiling buffer.
    pub profiling_buffer: bool,
    /// TRBIDR_EL1.P is clear: EL2 may program the trace buffer.
    pub trace_buffer: bool,
    /// MPAMIDR_EL1.HAS_HCR: MPAMHCR_EL2 exists.
    pub mpam_hcr: bool,
}

/// A register's name and its value from boot on.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootValue {
    /// Its name in the Arm ARM.
    pub name: &'static str,
    /// Its value.
    pub value: u64,
}

macro_rules! boot_values {
    ($features:ident, $access:ident; $($name:ident $encoding:literal = $value:expr, if $exists:expr;)*) => {
        /// The values for a CPU with these features, in the order of the writes.
        #[cfg(test)]
        fn boot_values(
            $features: &CpuFeatures,
            $access: Access,
        ) -> impl Iterator<Item = BootValue> {
            let values = [$(($exists).then_some(BootValue { name: stringify!($name), value: $value })),*];
            values.into_iter().flatten()
        }

        /// CPTR_EL2 without VHE: RES1 bits (SVE and SME trap), trace and activity monitors trap, FP doesn't.
#[cfg(target_os = "none")]
pub(crate) const CPTR_BOOT: u64 = 0x33ff | 1 << 20 | 1 << 30;
/// CPTR_EL2.TSM: SME's instructions and registers trap, also EL2's own.
#[cfg(target_os = "none")]
const CPTR_TSM: u64 = 1 << 12;

/// Writes all of them on the calling CPU.
        #[cfg(target_os = "none")]
        fn write_boot_values($features: &CpuFeatures, $access: Access) {
            use crate::cpu::register::write_register;
            $(if $exists {
                // SAFETY: the register exists, and acts on EL1 and EL0 only, where nothing runs yet.
                unsafe { write_register!($encoding, $value) };
            })*
        }
    };
}

boot_values! {
    features, access;
    // Software step, breakpoints and traps of the debug channel (D2.3): off before the locks that hold them off are open, as
    // a guest is told that they are (`vm::sysreg`).
    MDSCR_EL1 "mdscr_el1" = 0, if true;
    MDCCINT_EL1 "mdccint_el1" = 0, if true;
    OSDLR_EL1 "osdlr_el1" = 0, if true;
    OSLAR_EL1 "oslar_el1" = 0, if true;
    // Timers that nobody waits for.
    CNTP_CTL_EL0 "cntp_ctl_el0" = 0, if true;
    CNTV_CTL_EL0 "cntv_ctl_el0" = 0, if true;
    CNTHV_CTL_EL2 "s3_4_c14_c3_1" = 0, if features.vhe;
    // EL0's accesses are EL1's to trap first.
    PMUSERENR_EL0 "pmuserenr_el0" = 0, if features.pmu.0 != 0;
    // Nothing is counted, and no overflow raises an interrupt.
    PMCR_EL0 "pmcr_el0" = 0, if features.pmu.0 != 0;
    LORC_EL1 "s3_0_c10_c4_3" = 0, if features.lor;
    // Streaming mode and ZA make what is left of FP undefined.
    SVCR "s3_3_c4_c2_2" = 0, if features.sme != 0;
    // Whoever profiles or traces writes physical memory.
    PMSCR_EL1 "s3_0_c9_c9_0" = 0, if features.spe && access.profiling_buffer;
    PMSCR_EL2 "s3_4_c9_c9_0" = 0, if features.spe && access.profiling_buffer;
    PMBLIMITR_EL1 "s3_0_c9_c10_0" = 0, if features.spe && access.profiling_buffer;
    TRBLIMITR_EL1 "s3_0_c9_c11_0" = 0, if features.trace_buffer && access.trace_buffer;
    TRFCR_EL1 "s3_0_c1_c2_1" = 0, if features.trace_filter;
    TRFCR_EL2 "s3_4_c1_c2_1" = 0, if features.trace_filter;
    BRBCR_EL1 "s2_1_c9_c0_0" = 0, if features.branch_record;
    BRBCR_EL2 "s2_4_c9_c0_0" = 0, if features.branch_record;
    // All guests are in the default partition, none has virtual ones; MPAMIDR_EL1 traps.
    MPAM0_EL1 "s3_0_c10_c5_1" = 0, if features.mpam != 0;
    MPAM1_EL1 "s3_0_c10_c5_0" = 0, if features.mpam != 0;
    MPAMHCR_EL2 "s3_4_c10_c4_0" = 1 << 31, if features.mpam != 0 && access.mpam_hcr;
}

/// Writes all of them on the calling CPU, before CPTR_EL2 has the traps of guests.
#[cfg(target_os = "none")]
pub(crate) fn write(features: &CpuFeatures) {
    use crate::cpu::register::{read_register, write_register};
    use aarch64_cpu::asm::barrier;

    /// PMBIDR_EL1.P, TRBIDR_EL1.P: the buffer is a higher exception level's.
    const NOT_OURS: u64 = 1 << 4;
    const HAS_HCR: u64 = 1 << 17;
    let access = Access {
        profiling_buffer: features.spe && read_register!("s3_0_c9_c10_7") & NOT_OURS == 0,
        trace_buffer: features.trace_buffer && read_register!("s3_0_c9_c11_7") & NOT_OURS == 0,
        mpam_hcr: features.mpam != 0 && read_register!("s3_0_c10_c4_4") & HAS_HCR != 0,
    };
    if features.sme != 0 {
        // SAFETY: SVCR traps to EL2 itself while CPTR_EL2.TSM is set (D23.2.34); EL2 uses no FP.
        unsafe { write_register!("cptr_el2", CPTR_BOOT & !CPTR_TSM) };
        barrier::isb(barrier::SY);
    }
    write_boot_values(features, access);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::features::IdRegisters;
    use alloc::collections::BTreeSet;
    use alloc::vec::Vec;

    const ALL: Access = Access {
        profiling_buffer: true,
        trace_buffer: true,
        mpam_hcr: true,
    };
    const OF_EVERY_CPU: [&str; 6] = [
        "MDSCR_EL1",
        "MDCCINT_EL1",
        "OSDLR_EL1",
        "OSLAR_EL1",
        "CNTP_CTL_EL0",
        "CNTV_CTL_EL0",
    ];

    fn names(id: IdRegisters, access: Access) -> Vec<&'static str> {
        boot_values(&CpuFeatures::from_registers(&id), access)
            .map(|register| register.name)
            .collect()
    }

    #[test]
    fn a_cpu_without_any_feature_gets_what_every_cpu_has() {
        assert_eq!(names(IdRegisters::default(), ALL), OF_EVERY_CPU);
    }

    /// Each feature by the field of the ID register that says it, and no other field.
    #[test]
    fn a_register_is_written_exactly_where_its_feature_exists() {
        let dfr0 = |aa64dfr0| IdRegisters {
            aa64dfr0,
            ..IdRegisters::default()
        };
        let mmfr1 = |aa64mmfr1| IdRegisters {
            aa64mmfr1,
            ..IdRegisters::default()
        };
        let pfr = |aa64pfr0, aa64pfr1| IdRegisters {
            aa64pfr0,
            aa64pfr1,
            ..IdRegisters::default()
        };
        let mpam: &[_] = &["MPAM0_EL1", "MPAM1_EL1", "MPAMHCR_EL2"];
        let cases: [(IdRegisters, &[&str]); 10] = [
            (dfr0(1 << 8), &["PMUSERENR_EL0", "PMCR_EL0"]),
            (dfr0(1 << 32), &["PMSCR_EL1", "PMSCR_EL2", "PMBLIMITR_EL1"]),
            (dfr0(1 << 40), &["TRFCR_EL1", "TRFCR_EL2"]),
            (dfr0(1 << 44), &["TRBLIMITR_EL1"]),
            (dfr0(1 << 52), &["BRBCR_EL1", "BRBCR_EL2"]),
            (mmfr1(1 << 8), &["CNTHV_CTL_EL2"]),
            (mmfr1(1 << 16), &["LORC_EL1"]),
            (pfr(0, 1 << 24), &["SVCR"]),
            (pfr(1 << 40, 0), mpam),
            // MPAM 0.1.
            (pfr(0, 1 << 16), mpam),
        ];
        for (id, expected) in cases {
            let found = names(id, ALL);
            assert_eq!(found[..OF_EVERY_CPU.len()], OF_EVERY_CPU, "{id:?}");
            assert_eq!(&found[OF_EVERY_CPU.len()..], expected, "{id:?}");
        }
    }

    #[test]
    fn what_firmware_keeps_is_left_alone() {
        let id = IdRegisters {
            aa64dfr0: u64::MAX,
            aa64pfr0: u64::MAX,
            aa64pfr1: u64::MAX,
            ..IdRegisters::default()
        };
        let all: BTreeSet<_> = names(id, ALL).into_iter().collect();
        let left: BTreeSet<_> = names(id, Access::default()).into_iter().collect();
        let kept: BTreeSet<_> = all.difference(&left).copied().collect();
        let expected = [
            "PMSCR_EL1",
            "PMSCR_EL2",
            "PMBLIMITR_EL1",
            "TRBLIMITR_EL1",
            "MPAMHCR_EL2",
        ];
        assert_eq!(kept, expected.into_iter().collect());
    }

    /// Nothing is switched on, and debug is off before its locks are open.
    #[test]
    fn the_values_switch_off() {
        let id = IdRegisters {
            aa64dfr0: u64::MAX,
            aa64mmfr1: u64::MAX,
            aa64pfr0: u64::MAX,
            aa64pfr1: u64::MAX,
            ..IdRegisters::default()
        };
        let features = CpuFeatures::from_registers(&id);
        let values: Vec<_> = boot_values(&features, ALL).collect();
        assert!(
            values.iter().all(|register| register.value
                == if register.name == "MPAMHCR_EL2" {
                    1 << 31
                } else {
                    0
                }),
            "{values:?}"
        );
        let at = |name| values.iter().position(|register| register.name == name);
        assert!(at("MDSCR_EL1") < at("OSLAR_EL1"));
        let distinct: BTreeSet<_> = values.iter().map(|register| register.name).collect();
        assert_eq!(distinct.len(), values.len());
    }
}
