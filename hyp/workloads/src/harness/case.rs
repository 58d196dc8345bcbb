//! One run of a workload that changes backing memory.

use memory::{BackingPolicy, TrackerMode};
use records::words::{Change, Mode, Tracker};

/// What one run takes of the options' lists.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Case {
    /// How operations exclude each other.
    pub mode: Mode,
    /// Which faults an invalidation makes try again.
    pub tracker: Tracker,
    /// How pages get other frames.
    pub change: Change,
    /// How much memory the guest uses where it has 100.
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
