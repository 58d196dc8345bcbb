//! One measured run, as the hypervisor reports it in a `@record` line and `--json` writes it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The result of the dirty-log benchmark in one mode.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// How the stage-2 operations exclude each other: `parallel`, `rwlock` or `mutex`.
    pub mode: String,
    /// How many vCPUs wrote.
    pub vcpus: u64,
    /// The memory that each of them wrote, in bytes.
    pub bytes_per_vcpu: u64,
    /// The page size of the guest's memory: `4K`, `2M` or `1G`.
    pub backing: String,
    /// How often the memory was dirtied and harvested.
    pub iterations: u64,
    /// Which share of the accesses were writes.
    pub write_percent: u64,
    /// The CPU model.
    pub cpu: String,
    /// The version of the interrupt controller's architecture.
    pub gic: u64,
    /// What the times were measured with.
    pub clock: String,
    /// How long each phase took, in the order in which they ran.
    pub phases: Vec<Phase>,
    /// What was counted during the run.
    pub counters: BTreeMap<String, u64>,
    /// Whether exactly the pages that the guest wrote were harvested, with the right contents.
    pub verified: bool,
}

/// One phase of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    /// `populate`, `enable`, `dirty`, `get`, `clear` or `disable`.
    pub name: String,
    /// Which iteration it belongs to, from 1; 0 outside the iterations.
    pub iteration: u64,
    /// How long it took, in nanoseconds.
    pub ns: u64,
}
