//! A vCPU's performance monitors, PMUv3 (Arm ARM D11), for a VM that offers them.
//!
//! The CPU has them from the guest's first access on, whenever the vCPU is loaded; until then each access traps. Nothing is counted
//! while EL2 runs, nor while the vCPU is put. With FEAT_PMUv3p5 the guest then accesses them itself; on older CPUs, where EL2's
//! cycles are counted if a filter says so, its accesses trap on and are executed for it, but for that filter.

/// The most event counters of a PMU.
pub const MOST_EVENT_COUNTERS: usize = 31;

/// PMCR_EL0: E, P and C.
const ENABLE: u64 = 1;
const RESET_EVENTS: u64 = 1 << 1;
const RESET_CYCLES: u64 = 1 << 2;
/// `PMEVTYPER<n>_EL0` and PMCCFILTR_EL0: MT (events of other threads of the core too), NSH (at EL2 too).
const OTHER_THREADS: u64 = 1 << 25;
const AT_EL2: u64 = 1 << 27;

/// An event counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventCounter {
    /// `PMEVCNTR<n>_EL0`.
    pub value: u64,
    /// `PMEVTYPER<n>_EL0`.
    pub kind: u64,
}

/// The performance monitors of a vCPU. After reset all of them are off, and read as 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "each field without a comment is the register of its name, Arm ARM D24.5"
)]
pub struct PmuState {
    /// Whether the guest has used them.
    pub is_used: bool,
    /// PMCR_EL0, without what only acts.
    pub pmcr: u64,
    pub pmselr: u64,
    pub pmuserenr: u64,
    pub pmccntr: u64,
    pub pmccfiltr: u64,
    /// PMCNTENSET_EL0.
    pub enabled: u64,
    /// PMINTENSET_EL1.
    pub interrupting: u64,
    /// PMOVSSET_EL0.
    pub overflowed: u64,
    /// The event counters that the CPU has, from the first on.
    pub events: [EventCounter; MOST_EVENT_COUNTERS],
}

impl PmuState {
    /// Keeps PMCR_EL0, of what the CPU has.
    pub const fn keep_pmcr(&mut self, pmcr: u64) {
        self.pmcr = pmcr & !(RESET_EVENTS | RESET_CYCLES);
    }

    /// Whether an enabled event counter counts a software increment, by PMCR_EL0 and its own `PMEVTYPER<n>_EL0`.
    pub const fn counts_increment(pmcr: u64, kind: u64, at_el0: bool) -> bool {
        const EVENT: u64 = 0xffff;
        const SW_INCR: u64 = 0;
        const NOT_AT_EL1: u64 = 1 << 31;
        const NOT_AT_EL0: u64 = 1 << 30;
        let excluded = if at_el0 { NOT_AT_EL0 } else { NOT_AT_EL1 };
        pmcr & ENABLE != 0 && kind & EVENT == SW_INCR && kind & excluded == 0
    }

    /// The level of the interrupt's line with these registers.
    pub const fn raises(pmcr: u64, overflowed: u64, interrupting: u64) -> bool {
        pmcr & ENABLE != 0 && overflowed & interrupting != 0
    }

    /// The level of the interrupt's line of a vCPU that is put, as it will be when it is loaded.
    pub const fn is_raised(&self) -> bool {
        self.is_used && Self::raises(self.pmcr, self.overflowed, self.interrupting)
    }
}

/// ID_AA64DFR0_EL1.PMUVer of a CPU; 0 without a PMU as the architecture has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PmuVersion(pub u8);

impl PmuVersion {
    /// FEAT_PMUv3p1: MDCR_EL2.HPMD keeps EL2's events from being counted.
    const V3P1: Self = Self(4);
    /// FEAT_PMUv3p5: MDCR_EL2.HCCD keeps EL2's cycles from being counted.
    const V3P5: Self = Self(6);

    /// Whether MDCR_EL2.HPMD exists.
    pub const fn has_hpmd(self) -> bool {
        self.0 >= Self::V3P1.0
    }

    /// Whether it can be told to count nothing at EL2, whatever the filters say. A guest then accesses it itself.
    pub const fn spares_el2(self) -> bool {
        self.0 >= Self::V3P5.0
    }

    /// The filter of a counter, `PMEVTYPER<n>_EL0` or PMCCFILTR_EL0, that an access executed for the guest writes: without EL2, which
    /// the guest doesn't have, and other threads.
    pub const fn filter(written: u64) -> u64 {
        written & !(AT_EL2 | OTHER_THREADS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_acts_is_not_kept() {
        let mut state = PmuState::default();
        for (written, kept) in [(0, 0), (0x20, 0x20), (0xff, 0xf9), (0x47, 0x41)] {
            state.keep_pmcr(written);
            assert_eq!(state.pmcr, kept, "P and C act once");
        }
    }

    #[test]
    fn a_software_increment_is_counted_where_the_filter_lets_it() {
        let (el1, el0) = (1 << 31, 1 << 30);
        for (pmcr, kind, at_el1, at_el0) in [
            (1, 0, true, true),
            (0x46, 0, false, false),
            (1, 8, false, false),
            (1, el1, false, true),
            (1, el0, true, false),
            (1, el1 | el0, false, false),
        ] {
            let counts = |at_el0| PmuState::counts_increment(pmcr, kind, at_el0);
            assert_eq!((counts(false), counts(true)), (at_el1, at_el0), "{kind:#x}");
        }
    }

    #[test]
    fn the_line_is_up_for_an_enabled_overflow_while_the_pmu_is_on() {
        let state = |is_used, pmcr, overflowed, interrupting| PmuState {
            is_used,
            pmcr,
            overflowed,
            interrupting,
            ..PmuState::default()
        };
        assert!(state(true, 1, 1 << 31 | 2, 1 << 31).is_raised());
        assert!(!state(true, 1, 2, 1 << 31).is_raised(), "of another");
        assert!(!state(true, 0x40, 2, 2).is_raised(), "off");
        assert!(!state(false, 1, 2, 2).is_raised(), "never used");
        assert!(!PmuState::default().is_raised());
    }

    #[test]
    fn only_a_pmu_that_spares_el2_whatever_filters_say_is_accessed_by_guests() {
        for (version, has_hpmd, spares) in [
            (0, false, false),
            (1, false, false),
            (4, true, false),
            (5, true, false),
            (6, true, true),
            (8, true, true),
        ] {
            let of = PmuVersion(version);
            assert_eq!(of.has_hpmd(), has_hpmd, "{version}");
            assert_eq!(of.spares_el2(), spares, "{version}");
        }
        let (event, el0, mt_nsh) = (0x11, 1 << 30, 1 << 25 | 1 << 27);
        assert_eq!(PmuVersion::filter(event | el0 | mt_nsh), event | el0);
    }
}
