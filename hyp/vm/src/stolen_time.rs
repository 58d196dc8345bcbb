//! The time that a vCPU would have run and couldn't, in the way of Arm's paravirtualized time (DEN0057).
//!
//! It is the time from when the hypervisor has taken the vCPU's CPU away until its next slice: because its VM was paused or
//! lacked memory, or its dirty ring had to be harvested. A vCPU that waited, for an interrupt or for the answer to a call, has
//! lost nothing, and neither has one whose exits were handled.

use core::ops::Range;

use stage2::{Ipa, PAGE_SIZE};

/// Bytes of a vCPU's structure, and where its time lies; its revision and attributes, which lie before, are 0.
const BYTES: u64 = 64;
const STOLEN_NS: u64 = 8;

/// Where the vCPUs' structures begin in a guest's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StolenTimes(Ipa);

impl StolenTimes {
    /// Structures at `start`, which begins a page of zeros.
    pub const fn new(start: Ipa) -> Self {
        Self(start)
    }

    /// The pages of so many vCPUs' structures.
    pub const fn pages(&self, vcpus: usize) -> Range<Ipa> {
        let bytes = (vcpus as u64 * BYTES).next_multiple_of(PAGE_SIZE);
        self.0..self.0.offset(bytes)
    }

    /// The structure of vCPU number `vcpu`.
    pub(crate) const fn structure(&self, vcpu: usize) -> Ipa {
        self.0.offset(vcpu as u64 * BYTES)
    }

    /// Where its time is.
    pub(crate) const fn time(&self, vcpu: usize) -> Ipa {
        self.structure(vcpu).offset(STOLEN_NS)
    }
}

/// The time stolen from a vCPU.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct StolenTime {
    total_ns: u64,
    since_ns: Option<u64>,
}

impl StolenTime {
    /// From `now_ns` on the vCPU would run, but can't.
    pub(crate) fn begin(&mut self, now_ns: u64) {
        self.since_ns.get_or_insert(now_ns);
    }

    /// Time has stood still for the guest, so none was stolen meanwhile.
    pub(crate) fn skip(&mut self, ns: u64) {
        if let Some(since_ns) = &mut self.since_ns {
            *since_ns = since_ns.saturating_add(ns);
        }
    }

    /// It runs. Returns the time stolen in all, if more has been since the last call.
    pub(crate) fn end(&mut self, now_ns: impl FnOnce() -> u64) -> Option<u64> {
        let since_ns = self.since_ns.take()?;
        self.total_ns += now_ns().saturating_sub(since_ns);
        Some(self.total_ns)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn structures_follow_each_other() {
        let times = StolenTimes::new(Ipa::new(0x90a_0000));
        assert_eq!(times.structure(0), Ipa::new(0x90a_0000));
        assert_eq!(times.time(65), Ipa::new(0x90a_1048));
        assert_eq!(times.pages(64).end, Ipa::new(0x90a_1000));
        assert_eq!(times.pages(65).end, Ipa::new(0x90a_2000));
    }

    #[test]
    fn times_add_up_from_when_the_first_reason_began() {
        let mut stolen = StolenTime::default();
        assert_eq!(stolen.end(|| panic!("nothing was stolen")), None);
        stolen.begin(100);
        stolen.begin(150);
        assert_eq!(stolen.end(|| 170), Some(70));
        stolen.begin(200);
        // No clock goes back, but what if.
        assert_eq!(stolen.end(|| 190), Some(70));
        assert_eq!(stolen.end(|| 1000), None);
    }
}
