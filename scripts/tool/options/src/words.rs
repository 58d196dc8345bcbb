//! The words of options: those of the hypervisor, which are also those of the records.

use std::fmt::Display;

pub use records::words::{
    Backing, Change, Clear, Enable, Granularity, Harvest, MergeTarget, Mode, Restore, Split,
    Tracker, Tracking, Workload as Changing,
};

/// A list of values in the hypervisor's form.
pub(super) fn list<T: Display>(values: &[T]) -> String {
    let words: Vec<String> = values.iter().map(T::to_string).collect();
    words.join(",")
}
