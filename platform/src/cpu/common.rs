//! What CPUs of one machine may differ in without harm, and what of it all have in common, so that a vCPU can run on any.

use vm::PmuVersion;

/// Why guests can't have performance monitors of their own.
const NONE: &str = "the CPUs don't have it";
const DIFFER: &str = "the CPUs' PMUs differ";
const THREADS: &str =
    "the CPUs are threads of common cores, of which the PMU may count the other's events";

/// What a CPU has of such features.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Own {
    /// The lengths that its SVE vectors can have: bit n for 16 · (n + 1) bytes. 0 without SVE.
    pub vector_lengths: u16,
    /// Its PMU's version.
    pub pmu: PmuVersion,
    /// Its event counters.
    pub event_counters: u8,
    /// It may be a thread of a core (MPIDR_EL1.MT). Then the core is what the affinity says but for its lowest level.
    pub is_thread: bool,
}

/// What several CPUs have in common.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Common {
    /// The vector lengths that each has, and those that any has.
    on_all: u16,
    on_any: u16,
    /// The PMU of all of them.
    pmu: Result<(PmuVersion, u8), &'static str>,
    is_thread: bool,
}

impl Common {
    /// What one CPU has in common with itself.
    pub const fn of(own: &Own) -> Self {
        let pmu = match own.pmu {
            PmuVersion(0) => Err(NONE),
            // MDCR_EL2.HPMN must not be 0 (Arm ARM D24.3.19), and all of them are a guest's.
            _ if own.event_counters == 0 => Err(NONE),
            version => Ok((version, own.event_counters)),
        };
        Self {
            on_all: own.vector_lengths,
            on_any: own.vector_lengths,
            pmu,
            is_thread: own.is_thread,
        }
    }

    /// What these CPUs and those have in common.
    pub fn and(self, other: Self) -> Self {
        let pmu = match (self.pmu, other.pmu) {
            (Ok(one), Ok(another)) if one == another => Ok(one),
            (Err(why), Err(_)) => Err(why),
            _ => Err(DIFFER),
        };
        Self {
            on_all: self.on_all & other.on_all,
            on_any: self.on_any | other.on_any,
            pmu,
            is_thread: self.is_thread || other.is_thread,
        }
    }

    /// The longest SVE vectors, in bytes, that a guest may have: with these and all shorter ones all CPUs do the same. 0 if there
    /// are none.
    pub const fn vector_bytes(&self) -> usize {
        let differing = self.on_all ^ self.on_any;
        let below = (differing & differing.wrapping_neg()).wrapping_sub(1);
        let uniform = self.on_all & below;
        16 * (u16::BITS - uniform.leading_zeros()) as usize
    }

    /// Whether guests can have the performance monitors of these CPUs, which have these affinities.
    ///
    /// # Errors
    /// Why not.
    pub fn pmu(&self, affinities: impl Iterator<Item = u64> + Clone) -> Result<(), &'static str> {
        self.pmu?;
        let core = |affinity: u64| affinity >> 8;
        let mut rest = affinities;
        while self.is_thread
            && let Some(one) = rest.next()
        {
            if rest.clone().any(|other| core(other) == core(one)) {
                return Err(THREADS);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    /// 128, 256, 512 bits; also 384.
    const POWERS: u16 = 0b1011;
    const ALL: u16 = 0b1111;

    fn of(all: &[Own]) -> Common {
        let mut all = all.iter().map(Common::of);
        let first = all.next().expect("one");
        all.fold(first, Common::and)
    }

    #[test]
    fn vectors_are_as_long_as_those_of_which_all_cpus_have_the_same() {
        let bytes = |lengths: &[u16]| {
            let all: Vec<_> = lengths
                .iter()
                .map(|&vector_lengths| Own {
                    vector_lengths,
                    ..Own::default()
                })
                .collect();
            of(&all).vector_bytes()
        };
        assert_eq!(bytes(&[0, 0]), 0, "no SVE");
        assert_eq!(bytes(&[0b1, 0b1]), 16);
        assert_eq!(bytes(&[POWERS, POWERS]), 64);
        assert_eq!(bytes(&[u16::MAX; 3]), 256);
        assert_eq!(bytes(&[0b11, POWERS]), 32, "the boot CPU's is shorter");
        assert_eq!(bytes(&[POWERS, 0b11]), 32, "the boot CPU's is longer");
        // Of vectors of 48 bytes one would make 32.
        assert_eq!(bytes(&[ALL, POWERS]), 32);
        assert_eq!(bytes(&[ALL, POWERS, 0b1]), 16);
        assert_eq!(bytes(&[POWERS, 0]), 0, "one has no SVE");
    }

    #[test]
    fn a_pmu_that_guests_can_have_is_the_same_on_all_cpus() {
        let pmu = |version, event_counters| Own {
            pmu: PmuVersion(version),
            event_counters,
            ..Own::default()
        };
        let found = |all: &[Own]| of(all).pmu([0, 1].into_iter());
        assert_eq!(found(&[pmu(4, 6), pmu(4, 6)]), Ok(()));
        assert_eq!(found(&[pmu(6, 4)]), Ok(()));
        assert_eq!(found(&[pmu(0, 0), pmu(0, 0)]), Err(NONE));
        assert_eq!(found(&[pmu(4, 0)]), Err(NONE));
        assert_eq!(found(&[pmu(1, 6), pmu(1, 6)]), Ok(()));
        for other in [pmu(5, 6), pmu(4, 5), pmu(0, 0), pmu(1, 6)] {
            assert_eq!(found(&[pmu(4, 6), other]), Err(DIFFER));
            assert_eq!(found(&[pmu(4, 6), other, pmu(4, 6)]), Err(DIFFER));
        }
    }

    #[test]
    fn threads_of_one_core_have_no_pmus_for_guests() {
        let pmu = |is_thread| {
            Common::of(&Own {
                pmu: PmuVersion(4),
                event_counters: 6,
                is_thread,
                ..Own::default()
            })
        };
        let found = |common: Common, affinities: &[u64]| common.pmu(affinities.iter().copied());
        // Neoverse N1: MT, and one thread a core.
        assert_eq!(found(pmu(true), &[0, 0x100, 0x1_0000]), Ok(()));
        assert_eq!(found(pmu(true), &[0, 0x100, 0x101]), Err(THREADS));
        assert_eq!(found(pmu(false), &[0, 1, 2]), Ok(()), "cores of a cluster");
        assert_eq!(found(pmu(true).and(pmu(false)), &[0, 1]), Err(THREADS));
    }
}
