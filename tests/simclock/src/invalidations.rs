//! What TLB invalidations cost. Broadcast ones share the interconnect: all of them queue behind each other. Local ones
//! cost a quarter and queue behind nobody.
//!
//! All CPUs may call at once.

use crate::decode::Scope;
use crate::sleep::Lock;

/// The share of a broadcast invalidation's cost that a local one has.
const LOCAL_SHARE: u64 = 4;

/// The interconnect that carries broadcast invalidations.
#[derive(Debug)]
pub struct Interconnect {
    busy_until: Lock<u64>,
    cost: u64,
}

impl Interconnect {
    /// An idle one; a broadcast invalidation costs `cost` simulated nanoseconds.
    pub const fn new(cost: u64) -> Self {
        Self {
            busy_until: Lock::new(0),
            cost,
        }
    }

    /// For how many simulated nanoseconds a CPU waits that invalidates at time `now`.
    pub fn invalidate(&self, scope: Scope, now: u64) -> u64 {
        match scope {
            Scope::Local => self.cost / LOCAL_SHARE,
            Scope::Broadcast => self.busy_until.with(|busy_until| {
                *busy_until = now.max(*busy_until) + self.cost;
                *busy_until - now
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcasts_queue_behind_each_other() {
        let interconnect = Interconnect::new(400);
        let waits = [0, 100, 100, 5000].map(|now| interconnect.invalidate(Scope::Broadcast, now));
        assert_eq!(waits, [400, 700, 1100, 400]);
    }

    #[test]
    fn local_ones_cost_a_quarter_and_queue_behind_nobody() {
        let interconnect = Interconnect::new(400);
        assert_eq!(interconnect.invalidate(Scope::Broadcast, 0), 400);
        assert_eq!(interconnect.invalidate(Scope::Local, 0), 100);
        assert_eq!(interconnect.invalidate(Scope::Broadcast, 0), 800);
    }
}
