//! When a guest that resets or crashes starts again: at once, or if it does so soon after its start again and again, later and
//! later, so that it takes little of CPU 0 from others. A guest that only ever crashes isn't started for ever.

/// A guest that has run for so long started well.
const WELL_NS: u64 = 10_000_000_000;
/// The first delay; each further one is twice as long, up to the longest.
const FIRST_NS: u64 = 100_000_000;
const LONGEST_NS: u64 = 10_000_000_000;
/// Crashes in succession, each soon after a start, after which a guest isn't started any more.
pub(super) const MOST_CRASHES: u32 = 5;

/// The starts of a guest.
#[derive(Debug, Default)]
pub(super) struct Restarts {
    started_ns: u64,
    /// Ends in succession, each soon after a start.
    soon: u32,
    /// The crashes among them.
    crashes: u32,
}

impl Restarts {
    /// The guest starts.
    pub fn start(&mut self, now_ns: u64) {
        self.started_ns = now_ns;
    }

    /// The guest has ended. Returns when it is to start again; `None` if it has crashed too often.
    pub fn end(&mut self, now_ns: u64, has_crashed: bool) -> Option<u64> {
        if now_ns >= self.started_ns.saturating_add(WELL_NS) {
            *self = Self::default();
        }
        self.crashes += u32::from(has_crashed);
        if self.crashes >= MOST_CRASHES {
            return None;
        }
        let delay_ns = match self.soon {
            0 => 0,
            soon => FIRST_NS
                .saturating_mul(1 << (soon - 1).min(20))
                .min(LONGEST_NS),
        };
        self.soon += 1;
        Some(now_ns.saturating_add(delay_ns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    /// The delays of a guest that ends after so long each time, in milliseconds.
    fn delays(after_ns: u64, has_crashed: bool, count: usize) -> Vec<Option<u64>> {
        let (mut restarts, mut now_ns) = (Restarts::default(), 5);
        let mut end = || {
            restarts.start(now_ns);
            now_ns += after_ns;
            let at_ns = restarts.end(now_ns, has_crashed)?;
            let delay_ns = at_ns - now_ns;
            now_ns = at_ns;
            Some(delay_ns / 1_000_000)
        };
        (0..count).map(|_| end()).collect()
    }

    #[test]
    fn a_guest_that_resets_at_once_starts_later_and_later_for_ever() {
        let resets = delays(1, false, 40);
        let first = [0, 100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000];
        assert_eq!(resets[..10], first.map(Some));
        assert_eq!(resets[39], Some(10_000));
    }

    #[test]
    fn a_guest_that_has_run_well_starts_at_once() {
        assert_eq!(delays(WELL_NS, false, 20), [Some(0); 20]);
        assert_eq!(delays(WELL_NS, true, 20), [Some(0); 20]);
    }

    #[test]
    fn a_guest_that_only_crashes_is_left_alone() {
        let crashes = delays(1, true, 5);
        assert_eq!(crashes[3], Some(400));
        assert_eq!(crashes[4], None);
    }
}
