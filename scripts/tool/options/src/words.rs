//! The words that options have for what a run can be: those of the hypervisor, which are also those of the records.

pub use records::words::{
    Backing, Change, Clear, Enable, Granularity, Harvest, MergeTarget, Mode, Restore, Split,
    Tracker, Tracking, Workload as Changing,
};
