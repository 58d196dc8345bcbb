//! The ID registers as a guest sees them: the CPU's own, reduced to the features that a guest may use.
//!
//! The lists name the permitted fields; any other field reads 0, so a future CPU's features stay hidden until their traps and
//! state are handled. Pure functions. Fields: Arm ARM D23.2.

use crate::registers::sysreg::{DEBUG_POINTS, SystemRegister};

/// A field of an ID register that a guest sees: its lowest bit, and the largest value shown. Fields are unsigned unless noted.
#[derive(Clone, Copy)]
enum Field {
    /// The CPU's value, but no more than this.
    UpTo(u32, u64),
    /// The CPU's value as it is.
    As(u32),
    /// This value, whatever the CPU has.
    Is(u32, u64),
}

use Field::{As, Is, UpTo};

const ID_AA64PFR0: &[Field] = &[
    Is(0, 1),    // EL0: AArch64 only
    Is(4, 1),    // EL1: AArch64 only
    As(16),      // FP (signed: 0xf is none)
    As(20),      // AdvSIMD (signed)
    As(48),      // DIT
    UpTo(56, 1), // CSV2: without SCXTNUM
    As(60),      // CSV3
];

const ID_AA64PFR1: &[Field] = &[
    As(0), // BT
    As(4), // SSBS
];

const ID_AA64DFR0: &[Field] = &[
    Is(0, 6), // DebugVer: Armv8.0
    Is(12, DEBUG_POINTS as u64 - 1),
    Is(20, DEBUG_POINTS as u64 - 1),
];

const ID_AA64ISAR0: &[Field] = &[
    As(4),  // AES
    As(8),  // SHA1
    As(12), // SHA2
    As(16), // CRC32
    As(20), // Atomic
    As(28), // RDM
    As(32), // SHA3
    As(36), // SM3
    As(40), // SM4
    As(44), // DP
    As(48), // FHM
    As(52), // TS
    As(56), // TLB
    As(60), // RNDR
];

const ID_AA64ISAR1: &[Field] = &[
    As(0),  // DPB
    As(4),  // APA
    As(8),  // API
    As(12), // JSCVT
    As(16), // FCMA
    As(20), // LRCPC
    As(24), // GPA
    As(28), // GPI
    As(32), // FRINTTS
    As(36), // SB
    As(40), // SPECRES
    As(44), // BF16
    As(48), // DGH
    As(52), // I8MM
];

const ID_AA64ISAR2: &[Field] = &[
    As(4),  // RPRES
    As(8),  // GPA3
    As(12), // APA3
    As(20), // BC
    As(24), // PAC_frac
    As(28), // CLRBHB
    As(48), // RPRFM
    As(52), // CSSC
];

const ID_AA64MMFR0: &[Field] = &[
    As(4),       // ASIDBits
    As(8),       // BigEnd
    As(16),      // BigEndEL0
    UpTo(20, 1), // TGran16: without 52 bits
    As(24),      // TGran64 (signed)
];

const ID_AA64MMFR1: &[Field] = &[
    UpTo(0, 2), // HAFDBS: access flag and dirty state of blocks and pages
    As(12),     // HPDS
    As(20),     // PAN
    As(36),     // ETS
    As(44),     // AFP
    As(48),     // nTLBPA
    As(60),     // ECBHB
];

const ID_AA64MMFR2: &[Field] = &[
    As(0),  // CnP
    As(4),  // UAO
    As(16), // VARange
    As(20), // CCIDX
    As(28), // ST
    As(32), // AT
    As(48), // TTL
    As(52), // BBM
    As(60), // E0PD
];

/// Lowest bit of the signed field TGran4 of ID_AA64MMFR0_EL1: 0 is 4 KiB granules, 0xf none, 1 with 52 bits.
const TGRAN4: u32 = 28;
const FIELD: u64 = 0xf;

/// The guest's view of ID register `register`, with `ipa_bits` bits of guest physical address space and the CPU's own value
/// `own`.
pub fn guest_view(register: SystemRegister, own: u64, ipa_bits: u32) -> u64 {
    match register.fields() {
        (3, 0, 0, 4, 0) => select(ID_AA64PFR0, own),
        (3, 0, 0, 4, 1) => select(ID_AA64PFR1, own),
        (3, 0, 0, 5, 0) => select(ID_AA64DFR0, own),
        (3, 0, 0, 6, 0) => select(ID_AA64ISAR0, own),
        (3, 0, 0, 6, 1) => select(ID_AA64ISAR1, own),
        (3, 0, 0, 6, 2) => select(ID_AA64ISAR2, own),
        (3, 0, 0, 7, 0) => select(ID_AA64MMFR0, own) | granule_4k(own) | pa_range(own, ipa_bits),
        (3, 0, 0, 7, 1) => select(ID_AA64MMFR1, own),
        (3, 0, 0, 7, 2) => select(ID_AA64MMFR2, own),
        // AArch32's, which no guest has, SVE's, SME's and those not allocated yet.
        _ => 0,
    }
}

fn select(fields: &[Field], own: u64) -> u64 {
    fields.iter().fold(0, |view, field| {
        view | match *field {
            As(shift) => own & FIELD << shift,
            UpTo(shift, most) => (own >> shift & FIELD).min(most) << shift,
            Is(shift, value) => value << shift,
        }
    })
}

fn granule_4k(own: u64) -> u64 {
    match own >> TGRAN4 & FIELD {
        FIELD => FIELD << TGRAN4,
        _ => 0,
    }
}

/// PARange: the largest size that neither the CPU nor the VM's address space exceeds, at least the smallest encoding.
fn pa_range(own: u64, ipa_bits: u32) -> u64 {
    const SIZES: [u32; 7] = [32, 36, 40, 42, 44, 48, 52];
    let fitting = SIZES
        .iter()
        .rposition(|&bits| bits <= ipa_bits)
        .unwrap_or(0) as u64;
    fitting.min(own & FIELD)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn id(crm: u8, op2: u8) -> SystemRegister {
        SystemRegister::new(3, 0, 0, crm, op2)
    }

    #[test]
    fn features_without_traps_or_state_are_hidden() {
        let pfr0 = guest_view(id(4, 0), 0x1201_1120_2111_1112, 40);
        assert_eq!(pfr0 >> 32 & 0xf, 0, "SVE");
        assert_eq!(pfr0 >> 24 & 0xf, 0, "GIC");
        assert_eq!(pfr0 >> 28 & 0xf, 0, "RAS");
        assert_eq!(pfr0 >> 8 & 0xff, 0, "EL2 and EL3");
        assert_eq!(pfr0 & 0xff, 0x11, "AArch64 only");
        assert_eq!(pfr0 >> 56 & 0xf, 1, "CSV2 without SCXTNUM");
        let pfr1 = guest_view(id(4, 1), u64::MAX, 40);
        assert_eq!(pfr1, 0xff, "only BTI and SSBS");
        assert_eq!(
            guest_view(id(5, 0), u64::MAX, 40),
            0x10_1006,
            "no PMU, trace, SPE or TRBE"
        );
        assert_eq!(guest_view(id(4, 4), u64::MAX, 40), 0, "ID_AA64ZFR0_EL1");
        assert_eq!(guest_view(id(4, 5), u64::MAX, 40), 0, "ID_AA64SMFR0_EL1");
        assert_eq!(guest_view(id(6, 2), u64::MAX, 40) >> 16 & 0xf, 0, "MOPS");
        assert_eq!(guest_view(id(1, 0), u64::MAX, 40), 0, "ID_PFR0_EL1");
    }

    #[test]
    fn a_cpu_without_fp_stays_without() {
        assert_eq!(guest_view(id(4, 0), 0xff_0011, 40) >> 16 & 0xff, 0xff);
    }

    #[test]
    fn the_physical_address_size_is_the_smaller_one() {
        let range = |own, bits| guest_view(id(7, 0), own, bits) & 0xf;
        assert_eq!(range(6, 40), 2);
        assert_eq!(range(2, 48), 2);
        assert_eq!(range(5, 39), 1);
        assert_eq!(range(5, 32), 0);
        assert_eq!(range(0, 20), 0);
    }

    #[test]
    fn a_guest_gets_small_pages_but_not_the_52_bit_format() {
        let granule = |own: u64| guest_view(id(7, 0), own << 28, 40) >> 28 & 0xf;
        assert_eq!(granule(0), 0);
        assert_eq!(granule(1), 0);
        assert_eq!(granule(0xf), 0xf);
    }

    proptest! {
        #[test]
        fn no_view_shows_a_feature_that_the_cpu_lacks(crm in 4u8..8, op2 in 0u8..8, own: u64) {
            let view = guest_view(id(crm, op2), own, 48);
            // Pure "as it is" registers are subsets of the CPU's bits.
            if crm == 6 || (crm, op2) == (7, 2) {
                prop_assert_eq!(view & !own, 0);
            }
        }
    }
}
