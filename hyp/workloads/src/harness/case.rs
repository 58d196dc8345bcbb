//! One run of a workload that changes backing memory.

use memory::{BackingPolicy, TrackerMode};
use records::words::{Change, Mode, Tracker};

/// One run's choice from the options' lists.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Case {
    /// How operations exclude each other.
    pub mode: Mode,
    /// The tracker mode, which decides what faults an invalidation makes retry.
    pub tracker: Tracker,
    /// How a changed backing reaches the tables.
    pub change: Change,
    /// The guest's memory use in percent of its limit.
    pub overcommit: u64,
    /// How many CPUs work beside the vCPUs.
    pub workers: u64,
}

impl Case {
    pub fn policy(&self) -> BackingPolicy {
        BackingPolicy {
            tracker: match self.tracker {
                Tracker::Ranges => TrackerMode::Ranges,
                Tracker::Sequence => TrackerMode::Sequence,
            },
            change: match self.change {
                Change::Direct => memory::Change::Direct,
                Change::Unmap => memory::Change::Unmap,
            },
        }
    }
}
