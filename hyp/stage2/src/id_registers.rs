//! The stage-2 capabilities of a CPU, from its ID registers: granules, address sizes, optional features.
//!
//! Plain arithmetic on register values, tested on the host. FEAT_BBM is claimed only for CPUs that are known to raise no TLB
//! conflict abort, as stage-2 code couldn't tell an abort caused by its own size change from another one.

use crate::address::Granule;
use crate::features::{Atomics, Bbm, Features};

/// A CPU's ID registers about stage 2. If CPUs differ, each field must be the least of all.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct IdRegisters {
    /// MIDR_EL1: the CPU's model.
    pub midr: u64,
    /// ID_AA64MMFR0_EL1: physical addresses, granules.
    pub aa64mmfr0: u64,
    /// ID_AA64MMFR1_EL1: access flag and dirty state, VMIDs, XNX.
    pub aa64mmfr1: u64,
    /// ID_AA64MMFR2_EL1: FEAT_BBM, FEAT_S2FWB.
    pub aa64mmfr2: u64,
}

const fn field(register: u64, low_bit: u32) -> u64 {
    register >> low_bit & 0xf
}

impl IdRegisters {
    /// Bits of a physical address (PARange): 32 to 52.
    pub const fn pa_bits(&self) -> u32 {
        match field(self.aa64mmfr0, 0) {
            0 => 32,
            1 => 36,
            2 => 40,
            3 => 42,
            4 => 44,
            5 => 48,
            _ => 52,
        }
    }

    /// Bits of a VMID (FEAT_VMID16): 8 or 16.
    pub const fn vmid_bits(&self) -> u32 {
        if field(self.aa64mmfr1, 4) == 2 { 16 } else { 8 }
    }

    /// FEAT_HAFDBS: 1 = hardware sets the access flag, 2 = dirty state too.
    pub const fn hafdbs(&self) -> u64 {
        field(self.aa64mmfr1, 0)
    }

    /// FEAT_XNX: execution at EL1 and at EL0 are told apart.
    pub const fn xnx(&self) -> bool {
        field(self.aa64mmfr1, 28) != 0
    }

    /// FEAT_S2FWB: stage 2 can force write-back cacheability.
    pub const fn fwb(&self) -> bool {
        field(self.aa64mmfr2, 40) != 0
    }

    /// FEAT_BBM level: 0, 1, 2, or more.
    pub const fn bbm(&self) -> u64 {
        field(self.aa64mmfr2, 52)
    }

    /// The support for [`Granule::ALL`] (Arm ARM D23.2.75): stage 2 has fields of its own, which may refer to those of
    /// stage 1.
    pub const fn granules(&self) -> [GranuleSupport; 3] {
        granules(self.aa64mmfr0)
    }

    /// Whether the CPU is guaranteed never to raise a TLB conflict abort at a size change: by its FEAT_BBM level, or known by
    /// name.
    pub const fn never_conflicts(&self) -> bool {
        never_conflicts(self.midr, self.bbm())
    }

    /// All stage-2 features with pages of this size, with the largest guest address space; or `None` without such pages.
    /// [`Features::atomics`] is left to a caller that knows all CPUs.
    pub const fn features(&self, granule: Granule) -> Option<Features> {
        let support = self.granules()[granule as usize];
        if matches!(support, GranuleSupport::Missing) {
            return None;
        }
        let lpa2 = matches!(support, GranuleSupport::Wide);
        let pa_bits = self.pa_bits();
        let wide = lpa2 || matches!(granule, Granule::Size64K);
        Some(Features {
            granule,
            ipa_bits: if wide || pa_bits < 48 { pa_bits } else { 48 },
            pa_bits,
            lpa2,
            fwb: self.fwb(),
            xnx: self.xnx(),
            bbm: match self.bbm() {
                _ if !self.never_conflicts() => Bbm::Level0,
                0 => Bbm::Level0,
                1 => Bbm::Level1,
                _ => Bbm::Level2,
            },
            hardware_access: self.hafdbs() >= 1,
            hardware_dirty: self.hafdbs() >= 2,
            contiguous: true,
            atomics: Atomics::NONE,
            wide_vmids: self.vmid_bits() == 16,
        })
    }
}

/// Whether, and with what addresses, stage 2 can have pages of one size.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum GranuleSupport {
    /// Not at all.
    Missing,
    /// With addresses of up to 48 bits; of 64 KiB pages, as many as physical addresses have.
    Present,
    /// With 52-bit addresses (FEAT_LPA2).
    Wide,
}

const fn granules(aa64mmfr0: u64) -> [GranuleSupport; 3] {
    use GranuleSupport::{Missing, Present, Wide};
    const fn of_stage2(field: u64, of_stage1: GranuleSupport) -> GranuleSupport {
        match field {
            0 => of_stage1,
            2 => Present,
            3 => Wide,
            _ => Missing,
        }
    }
    let of_4k = match field(aa64mmfr0, 28) {
        0 => Present,
        1 => Wide,
        _ => Missing,
    };
    let of_16k = match field(aa64mmfr0, 20) {
        1 => Present,
        2 => Wide,
        _ => Missing,
    };
    let of_64k = match field(aa64mmfr0, 24) {
        0 => Present,
        _ => Missing,
    };
    [
        of_stage2(field(aa64mmfr0, 40), of_4k),
        of_stage2(field(aa64mmfr0, 32), of_16k),
        of_stage2(field(aa64mmfr0, 36), of_64k),
    ]
}

/// A CPU model by MIDR_EL1, from some revision on.
struct Model {
    implementer: u64,
    part: u64,
    /// Variant and revision: r0p2 is (0, 2).
    since: (u64, u64),
}

const fn model(implementer: u64, part: u64, since: (u64, u64)) -> Model {
    Model {
        implementer,
        part,
        since,
    }
}

/// CPUs whose makers say that a size change without a break never ends in a TLB conflict abort: those that Linux uses
/// FEAT_BBM on (`arch/arm64/kernel/cpufeature.c`). And QEMU's `max`, whose TLB is filled page by page, so that nothing in it
/// can conflict.
const NEVER_CONFLICTING: [Model; 7] = [
    model(0x41, 0xd82, (0, 3)), // Cortex-X4
    model(0x41, 0xd84, (0, 2)), // Neoverse V3
    model(0x41, 0xd83, (0, 2)), // Neoverse V3AE
    model(0x4e, 0x010, (0, 0)), // NVIDIA Olympus
    model(0xc0, 0xac3, (0, 0)), // AmpereOne
    model(0xc0, 0xac4, (0, 0)), // AmpereOne A
    model(0x00, 0x051, (0, 0)), // QEMU's max
];

const fn never_conflicts(midr: u64, bbm: u64) -> bool {
    const PROMISED: u64 = 3;
    if bbm >= PROMISED {
        return true;
    }
    let (implementer, part) = (midr >> 24 & 0xff, midr >> 4 & 0xfff);
    let (variant, revision) = (midr >> 20 & 0xf, midr & 0xf);
    let mut index = 0;
    while index < NEVER_CONFLICTING.len() {
        let known = &NEVER_CONFLICTING[index];
        let recent =
            variant > known.since.0 || variant == known.since.0 && revision >= known.since.1;
        if known.implementer == implementer && known.part == part && recent {
            return true;
        }
        index += 1;
    }
    false
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use GranuleSupport::{Missing, Present, Wide};

    #[test]
    fn granules_of_stage_2_are_those_of_stage_1_unless_it_has_its_own() {
        // Cortex-A72, Neoverse N1, QEMU's max.
        assert_eq!(granules(0x0000_1124), [Present, Missing, Present]);
        assert_eq!(granules(0x0010_1125), [Present, Present, Present]);
        assert_eq!(granules(0x1020_1126), [Wide, Wide, Present]);
        let own = 3 << 40 | 2 << 32 | 1 << 36;
        assert_eq!(granules(0xf0f0_1126 | own), [Wide, Present, Missing]);
        assert_eq!(granules(0xff00_1126), [Missing, Missing, Missing]);
    }

    #[test]
    fn conflict_aborts_are_ruled_out_for_known_revisions_only() {
        let neoverse_v3 = |variant: u64, revision: u64| 0x410f_d840 | variant << 20 | revision;
        assert!(!never_conflicts(neoverse_v3(0, 1), 2));
        assert!(never_conflicts(neoverse_v3(0, 2), 2));
        assert!(never_conflicts(neoverse_v3(1, 0), 2));
        assert!(!never_conflicts(0x410f_d49f, 2), "Neoverse N2");
        assert!(never_conflicts(0x410f_d49f, 3));
    }

    #[test]
    fn bbm_is_claimed_where_both_the_id_register_and_the_list_have_it() {
        let level = |midr, bbm: u64| {
            let id = IdRegisters {
                midr,
                aa64mmfr2: bbm << 52,
                ..IdRegisters::default()
            };
            id.features(Granule::Size4K).map(|features| features.bbm)
        };
        const MAX: u64 = 0x000f_0510;
        assert_eq!(level(MAX, 2), Some(Bbm::Level2));
        assert_eq!(level(MAX, 1), Some(Bbm::Level1));
        assert_eq!(level(MAX, 0), Some(Bbm::Level0));
        assert_eq!(level(0x410f_d0c1, 2), Some(Bbm::Level0));
        assert_eq!(level(0x410f_d0c1, 3), Some(Bbm::Level2));
    }

    #[test]
    fn the_largest_address_space_is_what_granule_and_cpu_allow() {
        let sizes = |aa64mmfr0| {
            let id = IdRegisters {
                aa64mmfr0,
                ..IdRegisters::default()
            };
            Granule::ALL.map(|granule| Some(id.features(granule)?.ipa_bits))
        };
        assert_eq!(sizes(0x0000_1124), [Some(44), None, Some(44)]);
        assert_eq!(sizes(0x0010_1126), [Some(48), Some(48), Some(52)]);
        assert_eq!(sizes(0x1020_1126), [Some(52), Some(52), Some(52)]);
    }
}
