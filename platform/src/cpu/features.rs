//! The CPU's features beyond Armv8.0, probed once from the ID registers (Arm ARM D23.2) into one struct.
//!
//! Code asks this struct, never an ID register, and never a control register's read-back: VTCR_EL2 shows bits of features that
//! Cortex-A53 and A72 lack. Decoding is plain arithmetic and tested on the host.

use core::fmt;
use stage2::{Atomics, Features, Granule, GranuleSupport};
use vm::PmuVersion;

/// The ID registers that features are decoded from.
#[derive(Clone, Copy, Default, Debug)]
#[allow(missing_docs, reason = "each is the register of that name")]
pub struct IdRegisters {
    pub midr: u64,
    pub aa64pfr0: u64,
    pub aa64pfr1: u64,
    pub aa64dfr0: u64,
    pub aa64isar0: u64,
    pub aa64isar1: u64,
    pub aa64isar2: u64,
    pub aa64mmfr0: u64,
    pub aa64mmfr1: u64,
    pub aa64mmfr2: u64,
    pub aa64mmfr3: u64,
}

impl IdRegisters {
    /// The registers about stage 2.
    const fn translation(&self) -> stage2::IdRegisters {
        stage2::IdRegisters {
            midr: self.midr,
            aa64mmfr0: self.aa64mmfr0,
            aa64mmfr1: self.aa64mmfr1,
            aa64mmfr2: self.aa64mmfr2,
        }
    }
}

/// The model of a CPU by its MIDR_EL1 (implementer and part number), as QEMU and Linux call it.
pub const fn model_name(midr: u64) -> &'static str {
    match (midr >> 24 & 0xff, midr >> 4 & 0xfff) {
        (0x41, 0xd03) => "cortex-a53",
        (0x41, 0xd04) => "cortex-a35",
        (0x41, 0xd05) => "cortex-a55",
        (0x41, 0xd07) => "cortex-a57",
        (0x41, 0xd08) => "cortex-a72",
        (0x41, 0xd0b) => "cortex-a76",
        (0x41, 0xd0c) => "neoverse-n1",
        (0x41, 0xd40) => "neoverse-v1",
        (0x41, 0xd47) => "cortex-a710",
        (0x41, 0xd49) => "neoverse-n2",
        (0x46, 0x001) => "a64fx",
        (0x00, 0x051) => "max",
        _ => "unknown",
    }
}

/// A CPU's features. Versions are the ID registers' field values: 0 if the feature is missing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CpuFeatures {
    /// ID_AA64MMFR0_EL1.PARange as it is, for TCR_EL2.PS.
    pub pa_range: u8,
    /// Bits of a physical address, 32 to 52.
    pub pa_bits: u8,
    /// Bits of a VMID: 8 or 16.
    pub vmid_bits: u8,
    /// FEAT_LSE: single-instruction atomics.
    pub lse: bool,
    /// FEAT_TLBIRANGE: TLB invalidation by range.
    pub tlbi_range: bool,
    /// FEAT_VHE: EL2 with the EL2&0 regime.
    pub vhe: bool,
    /// FEAT_BBM level: 0, 1, 2, or more.
    pub bbm: u8,
    /// A change of a mapping's size never ends in a TLB conflict abort.
    pub no_conflict_abort: bool,
    /// Stage 2's support for pages of 4, 16 and 64 KiB.
    pub granules: [GranuleSupport; 3],
    /// FEAT_S2FWB: stage 2 can force write-back cacheability.
    pub fwb: bool,
    /// FEAT_TTL: TLB invalidations take the level as a hint.
    pub ttl: bool,
    /// FEAT_HAFDBS: 1 = hardware sets the access flag, 2 = dirty state too.
    pub hafdbs: u8,
    /// FEAT_XNX: stage 2 tells EL1's execution from EL0's.
    pub xnx: bool,
    /// The ID registers about stage 2.
    translation: stage2::IdRegisters,
    /// FEAT_LOR: limited ordering regions.
    pub lor: bool,
    /// FEAT_PAN version.
    pub pan: u8,
    /// FEAT_PAuth: address authentication by any algorithm.
    pub pauth_address: bool,
    /// FEAT_PAuth: generic authentication by any algorithm.
    pub pauth_generic: bool,
    /// FEAT_SVE.
    pub sve: bool,
    /// FEAT_SME version.
    pub sme: u8,
    /// FEAT_MTE version.
    pub mte: u8,
    /// FEAT_ECV: 1 = counter traps, 2 = CNTPOFF_EL2.
    pub ecv: u8,
    /// FEAT_FGT: 1, or 2 with FEAT_FGT2.
    pub fgt: u8,
    /// FEAT_HCX: HCRX_EL2 exists.
    pub hcx: bool,
    /// FEAT_RNG: a random number generator.
    pub rng: bool,
    /// FEAT_MOPS: memory copy and set instructions.
    pub mops: bool,
    /// FEAT_RAS version.
    pub ras: u8,
    /// FEAT_IESB: error synchronization at every exception and exception return, if SCTLR_EL2 asks for it.
    pub iesb: bool,
    /// FEAT_AMU version.
    pub amu: u8,
    /// FEAT_MPAM: the major version, and 1 for version 0.1.
    pub mpam: u8,
    /// FEAT_NV: 1, or 2 with FEAT_NV2.
    pub nv: u8,
    /// FEAT_TCR2: TCR2_ELx exist.
    pub tcr2: bool,
    /// FEAT_SCTLR2: SCTLR2_ELx exist.
    pub sctlr2: bool,
    /// FEAT_S1PIE or FEAT_S2PIE: permission indirection.
    pub permission_indirection: bool,
    /// The PMU's architecture version.
    pub pmu: PmuVersion,
    /// FEAT_SPE: statistical profiling.
    pub spe: bool,
    /// FEAT_TRF: trace filter controls.
    pub trace_filter: bool,
    /// FEAT_TRBE: trace buffer.
    pub trace_buffer: bool,
    /// FEAT_BRBE: branch record buffer.
    pub branch_record: bool,
    /// System registers of GICv3 or later, if such a GIC is in use: `gic` knows.
    pub gic_registers: bool,
}

const fn field(register: u64, low_bit: u32) -> u8 {
    (register >> low_bit & 0xf) as u8
}

impl CpuFeatures {
    /// Decodes the registers.
    pub const fn from_registers(id: &IdRegisters) -> Self {
        let translation = id.translation();
        let pmu = field(id.aa64dfr0, 8);
        let apa3 = field(id.aa64isar2, 12);
        let gpa3 = field(id.aa64isar2, 8);
        Self {
            pa_range: field(id.aa64mmfr0, 0),
            pa_bits: translation.pa_bits() as u8,
            vmid_bits: translation.vmid_bits() as u8,
            lse: field(id.aa64isar0, 20) >= 2,
            tlbi_range: field(id.aa64isar0, 56) >= 2,
            vhe: field(id.aa64mmfr1, 8) != 0,
            bbm: translation.bbm() as u8,
            no_conflict_abort: translation.never_conflicts(),
            granules: translation.granules(),
            fwb: translation.fwb(),
            ttl: field(id.aa64mmfr2, 48) != 0,
            hafdbs: translation.hafdbs() as u8,
            xnx: translation.xnx(),
            translation,
            lor: field(id.aa64mmfr1, 16) != 0,
            pan: field(id.aa64mmfr1, 20),
            pauth_address: field(id.aa64isar1, 4) != 0 || field(id.aa64isar1, 8) != 0 || apa3 != 0,
            pauth_generic: field(id.aa64isar1, 24) != 0
                || field(id.aa64isar1, 28) != 0
                || gpa3 != 0,
            sve: field(id.aa64pfr0, 32) != 0,
            sme: field(id.aa64pfr1, 24),
            mte: field(id.aa64pfr1, 8),
            ecv: field(id.aa64mmfr0, 60),
            fgt: field(id.aa64mmfr0, 56),
            hcx: field(id.aa64mmfr1, 40) != 0,
            rng: field(id.aa64isar0, 60) != 0,
            mops: field(id.aa64isar2, 16) != 0,
            ras: field(id.aa64pfr0, 28),
            iesb: field(id.aa64mmfr2, 36) != 0,
            amu: field(id.aa64pfr0, 44),
            mpam: match (field(id.aa64pfr0, 40), field(id.aa64pfr1, 16)) {
                (0, fraction) => (fraction != 0) as u8,
                (major, _) => major,
            },
            nv: field(id.aa64mmfr2, 24),
            tcr2: field(id.aa64mmfr3, 0) != 0,
            sctlr2: field(id.aa64mmfr3, 4) != 0,
            permission_indirection: field(id.aa64mmfr3, 8) != 0 || field(id.aa64mmfr3, 12) != 0,
            pmu: PmuVersion(if pmu == 0xf { 0 } else { pmu }),
            spe: field(id.aa64dfr0, 32) != 0,
            trace_filter: field(id.aa64dfr0, 40) != 0,
            trace_buffer: field(id.aa64dfr0, 44) != 0,
            branch_record: field(id.aa64dfr0, 52) != 0,
            gic_registers: field(id.aa64pfr0, 24) != 0,
        }
    }

    /// All stage-2 features with pages of this size, with the largest guest address space; or `None` without such pages.
    pub const fn stage2(&self, granule: Granule) -> Option<Features> {
        let Some(mut features) = self.translation.features(granule) else {
            return None;
        };
        if self.lse {
            // SAFETY: these are what boot has found all CPUs to have (`missing_on`). Made-up ones (a host's tests) have no
            // CPU, and so nobody works on tables with them.
            features.atomics = unsafe { Atomics::everywhere() };
        }
        Some(features)
    }

    /// A feature that this system relies on and that `other`, another of its CPUs, lacks or has differently.
    pub fn missing_on(&self, other: &Self) -> Option<&'static str> {
        let relied_on = [
            ("physical address size", self.pa_range <= other.pa_range),
            ("16-bit VMIDs", self.vmid_bits <= other.vmid_bits),
            ("LSE atomics", self.lse <= other.lse),
            (
                "TLB invalidation by range",
                self.tlbi_range <= other.tlbi_range,
            ),
            ("break-before-make level", self.bbm <= other.bbm),
            (
                "TLB conflict aborts",
                self.no_conflict_abort <= other.no_conflict_abort,
            ),
            (
                "52-bit addresses with 4 KiB pages",
                self.granules[0] <= other.granules[0],
            ),
            ("forced write-back", self.fwb == other.fwb),
            (
                "hardware access flag and dirty state",
                self.hafdbs <= other.hafdbs,
            ),
            ("XNX", self.xnx <= other.xnx),
            (
                "pointer authentication",
                self.pauth_address == other.pauth_address,
            ),
            ("SVE", self.sve == other.sve),
            (
                "GIC system registers",
                self.gic_registers == other.gic_registers,
            ),
        ];
        relied_on
            .iter()
            .find(|(_, present)| !present)
            .map(|(name, _)| *name)
    }

    /// Reads and decodes the ID registers of the CPU that this runs on.
    #[cfg(target_os = "none")]
    pub fn probe() -> Self {
        Self::from_registers(&IdRegisters::read())
    }
}

#[cfg(target_os = "none")]
impl IdRegisters {
    /// Those of the CPU that this runs on.
    pub(crate) fn read() -> Self {
        use crate::cpu::register::read_register;
        Self {
            midr: read_register!("midr_el1"),
            aa64pfr0: read_register!("id_aa64pfr0_el1"),
            aa64pfr1: read_register!("id_aa64pfr1_el1"),
            aa64dfr0: read_register!("id_aa64dfr0_el1"),
            aa64isar0: read_register!("id_aa64isar0_el1"),
            aa64isar1: read_register!("id_aa64isar1_el1"),
            // Newer ones by encoding: the ID space reads as zero where a register isn't defined.
            aa64isar2: read_register!("s3_0_c0_c6_2"),
            aa64mmfr0: read_register!("id_aa64mmfr0_el1"),
            aa64mmfr1: read_register!("id_aa64mmfr1_el1"),
            aa64mmfr2: read_register!("s3_0_c0_c7_2"),
            aa64mmfr3: read_register!("s3_0_c0_c7_3"),
        }
    }
}

impl fmt::Display for CpuFeatures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}-bit physical addresses, {}-bit VMIDs",
            self.pa_bits, self.vmid_bits
        )?;
        let flags = [
            ("LSE", self.lse),
            ("TLBIRANGE", self.tlbi_range),
            ("VHE", self.vhe),
            ("FWB", self.fwb),
            ("TTL", self.ttl),
            ("XNX", self.xnx),
            ("PAuth", self.pauth_address),
            ("SVE", self.sve),
            ("SME", self.sme != 0),
            ("HCX", self.hcx),
            ("MOPS", self.mops),
        ];
        for (name, _) in flags.iter().filter(|(_, present)| *present) {
            write!(f, ", {name}")?;
        }
        for (name, version) in [
            ("HAFDBS", self.hafdbs),
            ("BBM", self.bbm),
            ("NV", self.nv),
            ("ECV", self.ecv),
            ("FGT", self.fgt),
        ] {
            if version != 0 {
                write!(f, ", {name} {version}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cortex-A72's ID registers (its technical reference manual, 4.3).
    const CORTEX_A72: IdRegisters = IdRegisters {
        midr: 0x410f_d083,
        aa64pfr0: 0x0100_2222,
        aa64pfr1: 0,
        aa64dfr0: 0x1030_5106,
        aa64isar0: 0x0001_1120,
        aa64isar1: 0,
        aa64isar2: 0,
        aa64mmfr0: 0x0000_1124,
        aa64mmfr1: 0,
        aa64mmfr2: 0,
        aa64mmfr3: 0,
    };

    #[test]
    fn an_armv8_0_cpu_has_no_optional_feature() {
        let features = CpuFeatures::from_registers(&CORTEX_A72);
        assert_eq!((features.pa_bits, features.vmid_bits), (44, 8));
        assert!(
            !features.lse
                && !features.tlbi_range
                && !features.vhe
                && !features.fwb
                && !features.pauth_address
        );
        assert_eq!(
            (features.hafdbs, features.bbm, features.fgt, features.pmu),
            (0, 0, 0, PmuVersion(1))
        );
        assert!(features.gic_registers);
    }

    #[test]
    fn fields_are_taken_from_their_bits() {
        let features = CpuFeatures::from_registers(&IdRegisters {
            aa64isar0: 2 << 20 | 2 << 56 | 1 << 60,
            aa64isar1: 1 << 8,
            aa64mmfr0: 6 | 1 << 56 | 2 << 60,
            aa64mmfr1: 2 | 2 << 4 | 1 << 8 | 1 << 28 | 1 << 40,
            aa64mmfr2: 1 << 36 | 1 << 40 | 1 << 48 | 2 << 52,
            ..IdRegisters::default()
        });
        assert_eq!(
            (
                features.pa_bits,
                features.vmid_bits,
                features.hafdbs,
                features.bbm
            ),
            (52, 16, 2, 2)
        );
        assert_eq!((features.fgt, features.ecv), (1, 2));
        assert!(features.rng && !CpuFeatures::from_registers(&CORTEX_A72).rng);
        assert!(
            features.lse && features.tlbi_range && features.vhe && features.xnx && features.hcx
        );
        assert!(
            features.iesb
                && features.fwb
                && features.ttl
                && features.pauth_address
                && !features.pauth_generic
        );
    }

    #[test]
    fn a_cpu_that_lacks_what_the_boot_cpu_has_is_named() {
        let boot = CpuFeatures::from_registers(&IdRegisters {
            aa64isar0: 2 << 20,
            ..CORTEX_A72
        });
        let other = CpuFeatures::from_registers(&CORTEX_A72);
        assert_eq!(boot.missing_on(&other), Some("LSE atomics"));
        assert_eq!(other.missing_on(&boot), None);
    }
}
