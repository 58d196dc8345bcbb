//! Every field that a guest sees, with why it does; and that it sees no other.

use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::vec::Vec;

/// A VM with all there is, and one with nothing.
const RICH: Offer = Offer {
    ipa_bits: 52,
    gic_registers: true,
    debug: true,
    sve: true,
    pmu: true,
};
const POOR: Offer = Offer {
    ipa_bits: 32,
    gic_registers: false,
    debug: false,
    sve: false,
    pmu: false,
};

/// CRm and op2 of a register, with its name.
type Name = ((u8, u8), &'static str);
const PFR0: Name = ((4, 0), "ID_AA64PFR0_EL1");
const PFR1: Name = ((4, 1), "ID_AA64PFR1_EL1");
const ZFR0: Name = ((4, 4), "ID_AA64ZFR0_EL1");
const DFR0: Name = ((5, 0), "ID_AA64DFR0_EL1");
const ISAR0: Name = ((6, 0), "ID_AA64ISAR0_EL1");
const ISAR1: Name = ((6, 1), "ID_AA64ISAR1_EL1");
const ISAR2: Name = ((6, 2), "ID_AA64ISAR2_EL1");
const MMFR0: Name = ((7, 0), "ID_AA64MMFR0_EL1");
const MMFR1: Name = ((7, 1), "ID_AA64MMFR1_EL1");
const MMFR2: Name = ((7, 2), "ID_AA64MMFR2_EL1");

/// Why a guest may see a field.
#[derive(Clone, Copy, Debug)]
enum Why {
    /// Instructions of EL0 and EL1 without state of their own and without a control at EL2.
    Instructions,
    /// What it adds is in registers that are switched with the vCPU.
    Switched,
    /// It only describes how the CPU executes or protects what is there anyway.
    Description,
    /// Stage 1 alone, by fields of registers that are switched.
    Stage1,
    /// EL2 has let EL1 and EL0 have it, where the CPU has the control.
    Enabled,
    /// The VM says so, whatever the CPU has.
    Virtual,
    /// Its registers are switched with the vCPU where the VM offers them, and trap elsewhere.
    Offered,
}

use Why::{Description, Enabled, Instructions, Offered, Stage1, Switched, Virtual};

/// Register, field, its lowest bit, the values seen at most, and why: all of them, by Arm ARM D23.2.
const SHOWN: &[(Name, &str, u32, &[u64], Why)] = &[
    (PFR0, "EL0", 0, &[1], Virtual),
    (PFR0, "EL1", 4, &[1], Virtual),
    (PFR0, "EL3", 12, &[1], Virtual),
    (PFR0, "FP", 16, ANY, Switched),
    (PFR0, "AdvSIMD", 20, ANY, Switched),
    (PFR0, "GIC", 24, &[0, 1], Virtual),
    (PFR0, "SVE", 32, &[0, 1], Offered),
    (PFR0, "DIT", 48, ANY, Instructions),
    // 2 and 3 have SCXTNUM_ELx, which traps.
    (PFR0, "CSV2", 56, &[0, 1], Description),
    (PFR0, "CSV3", 60, ANY, Description),
    (PFR1, "BT", 0, ANY, Stage1),
    (PFR1, "SSBS", 4, ANY, Instructions),
    // SVE's are there where it is offered.
    (ZFR0, "SVEver", 0, ANY, Offered),
    (ZFR0, "AES", 4, ANY, Offered),
    (ZFR0, "EltPerm", 12, ANY, Offered),
    (ZFR0, "BitPerm", 16, ANY, Offered),
    (ZFR0, "BF16", 20, ANY, Offered),
    (ZFR0, "B16B16", 24, ANY, Offered),
    (ZFR0, "SHA3", 32, ANY, Offered),
    (ZFR0, "SM4", 40, ANY, Offered),
    (ZFR0, "I8MM", 44, ANY, Offered),
    (ZFR0, "F32MM", 52, ANY, Offered),
    (ZFR0, "F64MM", 56, ANY, Offered),
    // Armv8.0's; the registers read 0, unless they are offered.
    (DFR0, "DebugVer", 0, &[6], Virtual),
    // 8 and later have registers that nobody switches; 15 is none of the architecture's.
    (DFR0, "PMUVer", 8, &[0, 1, 2, 3, 4, 5, 6, 7], Offered),
    (DFR0, "BRPs", 12, ANY, Virtual),
    (DFR0, "WRPs", 20, ANY, Virtual),
    (DFR0, "CTX_CMPs", 28, ANY, Offered),
    (ISAR0, "AES", 4, ANY, Instructions),
    (ISAR0, "SHA1", 8, ANY, Instructions),
    (ISAR0, "SHA2", 12, ANY, Instructions),
    (ISAR0, "CRC32", 16, ANY, Instructions),
    (ISAR0, "Atomic", 20, ANY, Instructions),
    (ISAR0, "RDM", 28, ANY, Instructions),
    (ISAR0, "SHA3", 32, ANY, Instructions),
    (ISAR0, "SM3", 36, ANY, Instructions),
    (ISAR0, "SM4", 40, ANY, Instructions),
    (ISAR0, "DP", 44, ANY, Instructions),
    (ISAR0, "FHM", 48, ANY, Instructions),
    (ISAR0, "TS", 52, ANY, Instructions),
    (ISAR0, "TLB", 56, ANY, Instructions),
    (ISAR0, "RNDR", 60, ANY, Instructions),
    (ISAR1, "DPB", 0, ANY, Instructions),
    (ISAR1, "APA", 4, ANY, Switched),
    (ISAR1, "API", 8, ANY, Switched),
    (ISAR1, "JSCVT", 12, ANY, Instructions),
    (ISAR1, "FCMA", 16, ANY, Instructions),
    (ISAR1, "LRCPC", 20, ANY, Instructions),
    (ISAR1, "GPA", 24, ANY, Switched),
    (ISAR1, "GPI", 28, ANY, Switched),
    (ISAR1, "FRINTTS", 32, ANY, Instructions),
    (ISAR1, "SB", 36, ANY, Instructions),
    (ISAR1, "SPECRES", 40, ANY, Instructions),
    (ISAR1, "BF16", 44, ANY, Instructions),
    (ISAR1, "DGH", 48, ANY, Instructions),
    (ISAR1, "I8MM", 52, ANY, Instructions),
    (ISAR2, "RPRES", 4, ANY, Instructions),
    (ISAR2, "GPA3", 8, ANY, Switched),
    (ISAR2, "APA3", 12, ANY, Switched),
    (ISAR2, "MOPS", 16, &[0, 1], Enabled),
    (ISAR2, "BC", 20, ANY, Instructions),
    (ISAR2, "PAC_frac", 24, ANY, Description),
    (ISAR2, "CLRBHB", 28, ANY, Instructions),
    (ISAR2, "RPRFM", 48, ANY, Instructions),
    (ISAR2, "CSSC", 52, ANY, Instructions),
    (MMFR0, "PARange", 0, &[0, 1, 2, 3, 4, 5, 6], Virtual),
    (MMFR0, "ASIDBits", 4, ANY, Stage1),
    (MMFR0, "BigEnd", 8, ANY, Stage1),
    (MMFR0, "SNSMem", 12, &[1], Virtual),
    (MMFR0, "BigEndEL0", 16, ANY, Stage1),
    // 2 is 52-bit addresses, as is 1 in TGran4.
    (MMFR0, "TGran16", 20, &[0, 1], Stage1),
    (MMFR0, "TGran64", 24, ANY, Stage1),
    (MMFR0, "TGran4", 28, &[0, 15], Stage1),
    // 2 is CNTPOFF_EL2.
    (MMFR0, "ECV", 60, &[0, 1], Switched),
    // 3 is the access flag of tables.
    (MMFR1, "HAFDBS", 0, &[0, 1, 2], Stage1),
    (MMFR1, "HPDS", 12, ANY, Stage1),
    (MMFR1, "PAN", 20, ANY, Stage1),
    (MMFR1, "ETS", 36, ANY, Description),
    (MMFR1, "AFP", 44, ANY, Switched),
    (MMFR1, "nTLBPA", 48, ANY, Description),
    (MMFR1, "ECBHB", 60, ANY, Description),
    (MMFR2, "CnP", 0, ANY, Stage1),
    (MMFR2, "UAO", 4, ANY, Stage1),
    (MMFR2, "VARange", 16, ANY, Stage1),
    (MMFR2, "CCIDX", 20, ANY, Description),
    (MMFR2, "ST", 28, ANY, Stage1),
    (MMFR2, "AT", 32, ANY, Description),
    (MMFR2, "TTL", 48, ANY, Instructions),
    (MMFR2, "BBM", 52, ANY, Stage1),
    (MMFR2, "E0PD", 60, ANY, Stage1),
];
const ANY: &[u64] = &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

const fn id(crm: u8, op2: u8) -> SystemRegister {
    SystemRegister::new(3, 0, 0, crm, op2)
}

/// The view of a register on a CPU all of whose ID registers have this value.
fn view(register: SystemRegister, offer: &Offer, own: u64) -> u64 {
    guest_view(register, offer, |_| own)
}

/// Every register that traps, and every value of each of its fields: what isn't 0 is in the table, all that is in the table is
/// seen by some guest, and none sees another value.
#[test]
fn a_guest_sees_the_fields_of_the_table_and_no_others() {
    let mut seen: BTreeMap<(u8, u8, u32), BTreeSet<u64>> = BTreeMap::new();
    for (crm, op2) in (1..8).flat_map(|crm| (0..8).map(move |op2| (crm, op2))) {
        for offer in [RICH, POOR] {
            for value in 0..16 {
                let found = view(id(crm, op2), &offer, 0x1111_1111_1111_1111 * value);
                for bit in (0..64).step_by(4) {
                    let values = seen.entry((crm, op2, bit)).or_default();
                    values.insert(found >> bit & FIELD);
                }
            }
        }
    }
    seen.retain(|_, values| *values != BTreeSet::from([0]));
    let table: BTreeMap<_, BTreeSet<u64>> = SHOWN
        .iter()
        .map(|&(((crm, op2), _), _, bit, values, _)| {
            ((crm, op2, bit), values.iter().copied().collect())
        })
        .collect();
    assert_eq!(table.len(), SHOWN.len(), "a field is listed twice");
    assert_eq!(seen, table);
}

/// Whoever reads of a field that it is switched or enabled finds it in this list, with what does it.
#[test]
fn each_feature_with_state_or_a_control_has_somebody_who_looks_after_it() {
    let who = |register: Name, name: &str| match name {
        "FP" | "AdvSIMD" => "FpState",
        "AFP" => "FpState (FPCR)",
        "APA" | "API" | "GPA" | "GPI" | "GPA3" | "APA3" => "PacKeys; HCR_EL2.APK and API",
        "ECV" => "El1State (CNTKCTL_EL1)",
        "MOPS" => "HCRX_EL2.MSCEn",
        _ if register == ZFR0 => "SveState; CPTR_EL2.TZ",
        "SVE" => "SveState; CPTR_EL2.TZ",
        "PMUVer" => "PmuState; MDCR_EL2.TPM",
        "CTX_CMPs" => "DebugState; MDCR_EL2.TDA",
        _ => "",
    };
    let without: Vec<_> = SHOWN
        .iter()
        .filter(|(register, name, _, _, why)| {
            matches!(why, Switched | Enabled | Offered) != !who(*register, name).is_empty()
        })
        .collect();
    assert!(without.is_empty(), "{without:?}");
}

/// What Linux, Zephyr and others stumble over, on a CPU that has everything.
#[test]
fn features_without_traps_or_state_are_hidden() {
    let offer = Offer {
        debug: false,
        sve: false,
        pmu: false,
        ..RICH
    };
    let all = |crm, op2| view(id(crm, op2), &offer, u64::MAX);
    let pfr0 = view(id(4, 0), &offer, 0x1201_1120_2111_1112);
    assert_eq!(pfr0 >> 32 & 0xf, 0, "SVE");
    assert_eq!(pfr0 >> 28 & 0xf, 0, "RAS");
    assert_eq!(pfr0 >> 40 & 0xff, 0, "MPAM and AMU");
    assert_eq!(pfr0 >> 56 & 0xf, 1, "CSV2 without SCXTNUM");
    assert_eq!(all(4, 1), 0xff, "only BTI and SSBS: no MTE, no SME");
    assert_eq!(all(5, 0), 0x10_1006, "no PMU, trace, SPE or TRBE");
    assert_eq!(all(6, 2) & 0xf, 0, "WFxT");
    for (name, (crm, op2)) in [
        ("ID_PFR0_EL1", (1, 0)),
        ("ID_AA64PFR2_EL1", (4, 2)),
        ("ID_AA64ZFR0_EL1", (4, 4)),
        ("ID_AA64SMFR0_EL1", (4, 5)),
        ("ID_AA64DFR1_EL1", (5, 1)),
        ("ID_AA64MMFR3_EL1", (7, 3)),
        ("ID_AA64MMFR4_EL1", (7, 4)),
    ] {
        assert_eq!(all(crm, op2), 0, "{name}");
    }
}

/// Zephyr takes the highest level that has a field other than 0 for the highest there is.
#[test]
fn el1_is_not_the_highest_level_and_el2_is_nobodys() {
    for own in [0x11, 0x1111, u64::MAX] {
        let levels = view(id(4, 0), &POOR, own) & 0xffff;
        assert_eq!(levels, 0x1011);
    }
}

#[test]
fn the_performance_monitors_are_shown_where_they_are_the_architectures() {
    let shown = |offer: &Offer, own: u64| view(id(5, 0), offer, own << 8) >> 8 & 0xf;
    let without_debug = Offer {
        debug: false,
        ..RICH
    };
    for (own, seen) in [(0, 0), (4, 4), (6, 6), (7, 7), (8, 7), (9, 7), (15, 0)] {
        assert_eq!(shown(&RICH, own), seen);
        assert_eq!(shown(&without_debug, own), seen);
        assert_eq!(shown(&POOR, own), 0);
    }
}

#[test]
fn a_gic_is_shown_where_its_registers_are() {
    let gic = |offer: &Offer, own: u64| view(id(4, 0), offer, own << 24) >> 24 & 0xf;
    assert_eq!(gic(&RICH, 1), 1);
    assert_eq!(gic(&RICH, 3), 1, "GICv4.1 is the hypervisor's");
    assert_eq!(gic(&POOR, 1), 0);
}

#[test]
fn mops_is_shown_where_el2_can_enable_it() {
    let mops = |hcx: u64, own: u64| {
        let registers = |register| match register {
            ID_AA64MMFR1_EL1 => hcx << 40,
            _ => own << 16,
        };
        guest_view(id(6, 2), &POOR, registers) >> 16 & 0xf
    };
    assert_eq!((mops(1, 1), mops(0, 1), mops(1, 0)), (1, 0, 0));
}

#[test]
fn a_cpu_without_fp_stays_without() {
    assert_eq!(view(id(4, 0), &POOR, 0xff_0011) >> 16 & 0xff, 0xff);
}

#[test]
fn the_physical_address_size_is_the_smaller_one() {
    let range = |own, ipa_bits| {
        let offer = Offer { ipa_bits, ..POOR };
        view(id(7, 0), &offer, own) & 0xf
    };
    assert_eq!(range(6, 40), 2);
    assert_eq!(range(2, 48), 2);
    assert_eq!(range(5, 39), 1);
    assert_eq!(range(5, 32), 0);
    assert_eq!(range(0, 20), 0);
}

#[test]
fn a_guest_gets_small_pages_but_not_the_52_bit_format() {
    let granule = |own: u64| view(id(7, 0), &POOR, own << 28) >> 28 & 0xf;
    assert_eq!(granule(0), 0);
    assert_eq!(granule(1), 0);
    assert_eq!(granule(0xf), 0xf);
}

proptest! {
    /// Fields that the VM doesn't make up say no more than the CPU does.
    #[test]
    fn no_view_shows_a_feature_that_the_cpu_lacks(own: u64, gic_registers: bool, ipa_bits in 32u32..=52) {
        let offer = Offer { ipa_bits, gic_registers, ..RICH };
        for &(((crm, op2), register), field, bit, _, why) in SHOWN {
            let (view, own) = (view(id(crm, op2), &offer, own) >> bit & FIELD, own >> bit & FIELD);
            // TGran4's 52 bits are 1, none of it 15.
            if !matches!(why, Virtual) && field != "TGran4" {
                prop_assert!(view <= own, "{register}.{field}: {view} of {own}");
            }
        }
    }
}
