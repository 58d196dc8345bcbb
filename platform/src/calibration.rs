//! Calibrates the number of TLB invalidations from which it is cheaper to invalidate the whole VMID.
//!
//! An invalidation of `n` instructions costs `n * instruction + combined`: each instruction by IPA or by range, then the
//! invalidation of combined stage 1 and 2 entries, which is always needed. Invalidating the VMID costs `whole`, and then
//! refills of the stage-2 translations that were still valid: [`KEPT_TRANSLATIONS`] times `refill`, paid by every CPU that runs
//! the VM, by all at the same time. Both cost the same at
//!
//! ```text
//! n = (whole + KEPT_TRANSLATIONS * refill - combined) / instruction
//! ```
//!
//! The four costs are measured at boot, on the machine itself and with all of its CPUs up, as broadcasts have to reach them.
//! The result is bounded below by [`LEAST`], as faults and splits invalidate one page or a few, and above by [`MOST`], as
//! invalidations also delay other CPUs' memory accesses, which one CPU's clock doesn't show. Plain arithmetic, tested on the
//! host.

use core::fmt;

/// The stage-2 translations that a CPU would have used again, if the whole VMID hadn't been invalidated: about the share of
/// them in the second-level TLBs of current CPUs.
pub const KEPT_TRANSLATIONS: u64 = 64;
/// The result if the clock is too coarse to measure.
pub const UNMEASURED: u32 = 16;
/// No fewer instructions than this.
pub const LEAST: u32 = 4;
/// No more instructions than this: the number of entries in a table of 4 KiB.
pub const MOST: u32 = 512;

/// The costs of TLB maintenance on this machine, in picoseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Costs {
    /// One instruction by IPA or by range, including its share of the DSB after many of them.
    pub instruction: u64,
    /// Invalidating a VMID's combined entries (VMALLE1IS), with DSB.
    pub combined: u64,
    /// Invalidating a whole VMID (VMALLS12E1IS), with DSB.
    pub whole: u64,
    /// Refilling an invalidated translation: the cost of a walk less that of a TLB hit.
    pub refill: u64,
}

impl Costs {
    /// The most instructions at which an invalidation costs no more than invalidating the VMID, within the bounds.
    pub fn most_instructions(&self) -> u32 {
        let losses = self.refill.saturating_mul(KEPT_TRANSLATIONS);
        let whole = self.whole.saturating_add(losses);
        let most = whole.saturating_sub(self.combined) / self.instruction.max(1);
        u32::try_from(most).unwrap_or(MOST).clamp(LEAST, MOST)
    }
}

/// The result of the calibration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Calibration(pub Option<Costs>);

impl Calibration {
    /// The most instructions for one invalidation.
    pub fn most_instructions(&self) -> u32 {
        self.0.map_or(UNMEASURED, |costs| costs.most_instructions())
    }
}

impl fmt::Display for Calibration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let most = self.most_instructions();
        match &self.0 {
            Some(costs) => write!(
                f,
                "TLB invalidation: {} ns each, {} ns combined entries, {} ns a whole VMID and {} ns per lost translation; \
                 at most {most} instructions",
                costs.instruction / 1000,
                costs.combined / 1000,
                costs.whole / 1000,
                costs.refill / 1000,
            ),
            None => write!(
                f,
                "TLB invalidation: the clock is too coarse to measure it; at most {most} instructions"
            ),
        }
    }
}

/// Picoseconds of one of `count` operations that together took `ticks` of a counter of `frequency` Hz.
pub fn picoseconds(ticks: u64, count: u64, frequency: u64) -> u64 {
    const PER_SECOND: u128 = 1_000_000_000_000;
    let operations = u128::from(frequency) * u128::from(count);
    let each = u128::from(ticks) * PER_SECOND / operations.max(1);
    u64::try_from(each).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const COSTS: Costs = Costs {
        instruction: 100_000,
        combined: 500_000,
        whole: 800_000,
        refill: 40_000,
    };

    #[test]
    fn both_cost_the_same_at_the_point_between() {
        // 800 ns + 64 * 40 ns - 500 ns, by 100 ns.
        assert_eq!(COSTS.most_instructions(), 28);
    }

    #[test]
    fn the_bounds_hold_whatever_was_measured() {
        let cheap_flush = Costs { refill: 0, ..COSTS };
        assert_eq!(cheap_flush.most_instructions(), LEAST);
        let dear_flush = Costs {
            refill: u64::MAX,
            ..COSTS
        };
        assert_eq!(dear_flush.most_instructions(), MOST);
        let free_instruction = Costs {
            instruction: 0,
            ..COSTS
        };
        assert_eq!(free_instruction.most_instructions(), MOST);
        assert_eq!(Calibration(None).most_instructions(), UNMEASURED);
    }

    #[test]
    fn ticks_become_picoseconds() {
        assert_eq!(picoseconds(625, 10, 62_500_000), 1_000_000);
        assert_eq!(picoseconds(1, 1, 1_000_000_000), 1_000);
        assert_eq!(picoseconds(u64::MAX, 1, 1), u64::MAX);
        assert_eq!(picoseconds(5, 0, 0), 5_000_000_000_000);
    }

    proptest! {
        #[test]
        fn a_dearer_flush_never_makes_it_come_sooner(
            instruction in 1u64..1 << 40,
            combined in 0u64..1 << 40,
            whole in 0u64..1 << 40,
            refill in 0u64..1 << 30,
            more in 0u64..1 << 40,
        ) {
            let costs = Costs { instruction, combined, whole, refill };
            let dearer = Costs { whole: whole + more, ..costs };
            prop_assert!(dearer.most_instructions() >= costs.most_instructions());
            prop_assert!((LEAST..=MOST).contains(&costs.most_instructions()));
        }
    }
}
