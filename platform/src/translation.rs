//! What a CPU's stage 2 can do, in the engine's terms: which granules, which address sizes, which of the optional features.
//!
//! Decoded from ID registers, as all [features](crate::features) are; plain arithmetic, tested on the host. FEAT_BBM is claimed
//! only for CPUs that are known to raise no TLB conflict abort, as no stage-2 code could tell one that its own size
//! change has caused from one that it has not.

use crate::features::CpuFeatures;
use stage2::{Atomics, Bbm, Features, Granule};

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

/// The support for [`Granule::ALL`] by ID_AA64MMFR0_EL1 (Arm ARM D23.2.75): stage 2 has fields of its own, which may
/// refer to those of stage 1.
pub(crate) const fn granules(aa64mmfr0: u64) -> [GranuleSupport; 3] {
    use GranuleSupport::{Missing, Present, Wide};
    const fn field(register: u64, low_bit: u32) -> u64 {
        register >> low_bit & 0xf
    }
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

/// Whether a CPU promises never to raise a TLB conflict abort at a size change: by its FEAT_BBM level, or known by name.
pub(crate) const fn never_conflicts(midr: u64, bbm: u8) -> bool {
    const PROMISED: u8 = 3;
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

impl CpuFeatures {
    /// All that stage 2 can use with pages of this size, with the largest guest address space; or `None` without such pages.
    pub fn stage2(&self, granule: Granule) -> Option<Features> {
        let support = self.granules[granule as usize];
        let lpa2 = support == GranuleSupport::Wide;
        let pa_bits = u32::from(self.pa_bits);
        let wide = lpa2 || granule == Granule::Size64K;
        let ipa_bits = if wide { pa_bits } else { pa_bits.min(48) };
        let bbm = match self.bbm {
            _ if !self.no_conflict_abort => Bbm::Level0,
            0 => Bbm::Level0,
            1 => Bbm::Level1,
            _ => Bbm::Level2,
        };
        (support != GranuleSupport::Missing).then_some(Features {
            granule,
            ipa_bits,
            pa_bits,
            lpa2,
            fwb: self.fwb,
            xnx: self.xnx,
            bbm,
            hardware_access: self.hafdbs >= 1,
            hardware_dirty: self.hafdbs >= 2,
            contiguous: true,
            atomics: if self.lse {
                // SAFETY: these are what boot has found all CPUs to have (`missing_on`). Made-up ones (a host's tests) have no
                // CPU, and so nobody works on tables with them.
                unsafe { Atomics::everywhere() }
            } else {
                Atomics::NONE
            },
            wide_vmids: self.vmid_bits == 16,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::IdRegisters;
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
            let features = CpuFeatures::from_registers(&id).stage2(Granule::Size4K);
            features.map(|features| features.bbm)
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
            let features = CpuFeatures::from_registers(&id);
            Granule::ALL.map(|granule| Some(features.stage2(granule)?.ipa_bits))
        };
        assert_eq!(sizes(0x0000_1124), [Some(44), None, Some(44)]);
        assert_eq!(sizes(0x0010_1126), [Some(48), Some(48), Some(52)]);
        assert_eq!(sizes(0x1020_1126), [Some(52), Some(52), Some(52)]);
    }
}
