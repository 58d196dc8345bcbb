//! Fault latency: for each vCPU the longest time from an exit to the next entry, within a period.
//!
//! Each vCPU's slices write its own word, and only when a delay is longer than any before; whoever watches the VM sets the
//! period. Anybody may read at any time.

use core::sync::atomic::{AtomicU64, Ordering};

/// Bits of the nanoseconds in a [`LongestHold`]: 18 minutes. The period lies above them, so a later period always compares
/// greater.
const NS_BITS: u32 = 40;
const MOST_NS: u64 = (1 << NS_BITS) - 1;

/// The number of the period, in a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct HoldPeriod(AtomicU64);

impl HoldPeriod {
    /// Begins the next period.
    pub(crate) fn begin(&self) {
        self.0.fetch_add(1 << NS_BITS, Ordering::Relaxed);
    }
}

/// The longest fault latency of one vCPU.
#[derive(Debug, Default)]
pub(crate) struct LongestHold(AtomicU64);

impl LongestHold {
    /// Notes a fault latency of the vCPU. Called by its own slice.
    #[inline]
    pub(crate) fn note(&self, period: &HoldPeriod, ns: u64) {
        let hold = period.0.load(Ordering::Relaxed) | ns.min(MOST_NS);
        if hold > self.0.load(Ordering::Relaxed) {
            self.0.store(hold, Ordering::Relaxed);
        }
    }

    /// The longest in this period, in nanoseconds; 0 if there was none.
    pub(crate) fn within(&self, period: &HoldPeriod) -> u64 {
        let hold = self.0.load(Ordering::Relaxed);
        hold.saturating_sub(period.0.load(Ordering::Relaxed)) & MOST_NS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_of_the_period_is_kept() {
        let (period, longest) = (HoldPeriod::default(), LongestHold::default());
        assert_eq!(longest.within(&period), 0);
        for ns in [5, 9, 7] {
            longest.note(&period, ns);
        }
        assert_eq!(longest.within(&period), 9);
        period.begin();
        assert_eq!(longest.within(&period), 0, "a new period");
        longest.note(&period, 3);
        assert_eq!(longest.within(&period), 3);
        longest.note(&period, u64::MAX);
        assert_eq!(longest.within(&period), MOST_NS);
    }
}
