//! The ID registers as a guest sees them: the CPU's own, reduced to the features that a guest may use.
//!
//! The lists name the permitted fields; any other field reads 0, so a future CPU's features stay hidden until their traps and
//! state are handled. Pure functions. Fields: Arm ARM D23.2.

use crate::registers::offer::Offer;
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
    Is(12, 1),   // EL3: AArch64 only; it takes the guest's SMCs
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

/// With the CPU's breakpoints and watchpoints.
const ID_AA64DFR0_DEBUG: &[Field] = &[
    Is(0, 6), // DebugVer: Armv8.0
    As(12),   // BRPs
    As(20),   // WRPs
    As(28),   // CTX_CMPs
];

/// With SVE.
const ID_AA64ZFR0: &[Field] = &[
    As(0),  // SVEver
    As(4),  // AES
    As(12), // EltPerm
    As(16), // BitPerm
    As(20), // BF16
    As(24), // B16B16
    As(32), // SHA3
    As(40), // SM4
    As(44), // I8MM
    As(52), // F32MM
    As(56), // F64MM
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
    Is(12, 1),   // SNSMem: there is an EL3
    As(16),      // BigEndEL0
    UpTo(20, 1), // TGran16: without 52 bits
    As(24),      // TGran64 (signed)
    UpTo(60, 1), // ECV: self-synchronized counters and scaled events, which nothing traps; CNTPOFF_EL2 is EL2's
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
/// That of ID_AA64DFR0_EL1.PMUVer.
const PMUVER: u32 = 8;
/// PMUv3p7: later ones have more registers, none of which a guest has.
const MOST_PMUVER: u64 = 7;
/// Lowest bits of ID_AA64PFR0_EL1.GIC, ID_AA64ISAR2_EL1.MOPS and ID_AA64MMFR1_EL1.HCX.
const GIC: u32 = 24;
/// That of ID_AA64PFR0_EL1.SVE.
const SVE: u32 = 32;
const MOPS: u32 = 16;
const HCX: u32 = 40;
const FIELD: u64 = 0xf;

pub(crate) const ID_AA64DFR0_EL1: SystemRegister = SystemRegister::new(3, 0, 0, 5, 0);
const ID_AA64MMFR1_EL1: SystemRegister = SystemRegister::new(3, 0, 0, 7, 1);

/// What the guest of a VM that offers this reads in ID register `register`. `own` gives the CPU's own registers.
///
/// EL3 is shown as implemented, EL2 isn't. A guest that believed EL1 to be the highest level would write what only that level
/// may (Zephyr writes CNTFRQ_EL0), and its SMCs would be undefined; no guest expects to be let into EL3, but one may expect to
/// have been started at EL2 where there is one.
pub fn guest_view(
    register: SystemRegister,
    offer: &Offer,
    own: impl Fn(SystemRegister) -> u64,
) -> u64 {
    let view = |fields: &[Field]| select(fields, own(register));
    match register.fields() {
        (3, 0, 0, 4, 0) => {
            let sve = if offer.sve { UpTo(SVE, 1) } else { Is(SVE, 0) };
            view(ID_AA64PFR0) | view(&[sve]) | u64::from(offer.gic_registers) << GIC
        }
        (3, 0, 0, 4, 1) => view(ID_AA64PFR1),
        (3, 0, 0, 4, 4) if offer.sve => view(ID_AA64ZFR0),
        (3, 0, 0, 5, 0) => {
            let debug = match offer.debug {
                true => ID_AA64DFR0_DEBUG,
                false => ID_AA64DFR0,
            };
            view(debug) | if offer.pmu { pmu(own(register)) } else { 0 }
        }
        (3, 0, 0, 6, 0) => view(ID_AA64ISAR0),
        (3, 0, 0, 6, 1) => view(ID_AA64ISAR1),
        (3, 0, 0, 6, 2) => view(ID_AA64ISAR2) | mops(own(register), own(ID_AA64MMFR1_EL1)),
        (3, 0, 0, 7, 0) => {
            let own = own(register);
            select(ID_AA64MMFR0, own) | granule_4k(own) | pa_range(own, offer.ipa_bits)
        }
        (3, 0, 0, 7, 1) => view(ID_AA64MMFR1),
        (3, 0, 0, 7, 2) => view(ID_AA64MMFR2),
        // AArch32's, which no guest has, SME's and those not allocated yet.
        _ => 0,
    }
}

/// PMUVer: none of a PMU that isn't the architecture's.
fn pmu(id_aa64dfr0: u64) -> u64 {
    match id_aa64dfr0 >> PMUVER & FIELD {
        FIELD => 0,
        version => version.min(MOST_PMUVER) << PMUVER,
    }
}

/// MOPS: only where HCRX_EL2 can let EL1 and EL0 have it, of the CPU's ID_AA64ISAR2_EL1 and ID_AA64MMFR1_EL1.
fn mops(isar2: u64, mmfr1: u64) -> u64 {
    if mmfr1 >> HCX & FIELD == 0 {
        0
    } else {
        (isar2 >> MOPS & FIELD).min(1) << MOPS
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
mod tests;
