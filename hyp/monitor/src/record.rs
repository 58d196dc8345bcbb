//! One measured run: as a record for programs, and as lines for people.
//!
//! The record is what a `@record` line carries and what the host tool writes into its JSON file. The lines are those of
//! `dirty_log_perf_test` of the Linux KVM selftests.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use serde::{Deserialize, Serialize};

/// Counters by name.
pub type CounterMap = BTreeMap<String, u64>;

/// The result of the dirty-log benchmark in one mode.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Record {
    /// How stage-2 operations exclude each other: `parallel`, `rwlock` or `mutex`.
    pub mode: String,
    /// vCPUs.
    pub vcpus: u64,
    /// The memory that each of them accessed, in bytes.
    pub bytes_per_vcpu: u64,
    /// What the memory is made of: `4K`, `2M` or `1G`.
    pub backing: String,
    /// How often it was dirtied and harvested.
    pub iterations: u64,
    /// How many of 100 accesses wrote.
    pub write_percent: u64,
    /// The CPU model.
    pub cpu: String,
    /// The version of the interrupt controller's architecture.
    pub gic: u64,
    /// What the times were measured with.
    pub clock: String,
    /// What of the architecture the VM's tables used.
    #[serde(default)]
    pub stage2: String,
    /// The most instructions that one TLB invalidation was made of, as measured at boot.
    #[serde(default)]
    pub most_tlbi: u64,
    /// What was done, in the order in which it was done.
    pub phases: Vec<Phase>,
    /// What was counted from the VM's start to its end.
    pub counters: CounterMap,
    /// Whether exactly the pages that the guest wrote were harvested, with the right contents.
    pub verified: bool,
}

/// One phase of a run.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Phase {
    /// What was done.
    pub name: PhaseName,
    /// In which iteration, from 1; 0 outside the iterations.
    pub iteration: u64,
    /// How long it took, in nanoseconds.
    pub ns: u64,
    /// What was counted during it; what is missing is 0.
    #[serde(default)]
    pub counters: CounterMap,
}

/// What a phase does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PhaseName {
    /// Every page is written for the first time.
    Populate,
    /// Logging is switched on.
    Enable,
    /// All vCPUs access their pages.
    Dirty,
    /// The log is copied.
    Get,
    /// The log is taken, and the pages are write-protected.
    Clear,
    /// Logging is switched off.
    Disable,
}

/// The phase's result line.
impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let iteration = self.iteration;
        match self.name {
            PhaseName::Populate => f.write_str("Populate memory")?,
            PhaseName::Enable => f.write_str("Enabling dirty logging")?,
            PhaseName::Dirty => write!(f, "Iteration {iteration} dirty memory")?,
            PhaseName::Get => write!(f, "Iteration {iteration} get dirty log")?,
            PhaseName::Clear => write!(f, "Iteration {iteration} clear dirty log")?,
            PhaseName::Disable => f.write_str("Disabling dirty logging")?,
        }
        write!(f, " time: {}", Seconds(self.ns))
    }
}

/// Nanoseconds, shown as seconds with all nine decimals.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seconds(pub u64);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SECOND: u64 = 1_000_000_000;
        write!(f, "{}.{:09}s", self.0 / SECOND, self.0 % SECOND)
    }
}

/// How far a run has come, as a `@progress` line carries it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Progress {
    /// The mode that runs.
    pub mode: String,
    /// How many of its steps are done.
    pub step: u64,
    /// How many steps it has.
    pub steps: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use alloc::vec;

    fn phase(name: PhaseName, iteration: u64) -> Phase {
        Phase {
            name,
            iteration,
            ns: 123_456_789,
            counters: CounterMap::new(),
        }
    }

    #[test]
    fn phases_print_as_the_selftest_does() {
        assert_eq!(
            phase(PhaseName::Populate, 0).to_string(),
            "Populate memory time: 0.123456789s"
        );
        assert_eq!(
            phase(PhaseName::Enable, 0).to_string(),
            "Enabling dirty logging time: 0.123456789s"
        );
        assert_eq!(
            phase(PhaseName::Dirty, 1).to_string(),
            "Iteration 1 dirty memory time: 0.123456789s"
        );
        assert_eq!(
            phase(PhaseName::Get, 2).to_string(),
            "Iteration 2 get dirty log time: 0.123456789s"
        );
        assert_eq!(
            phase(PhaseName::Clear, 3).to_string(),
            "Iteration 3 clear dirty log time: 0.123456789s"
        );
        assert_eq!(
            phase(PhaseName::Disable, 0).to_string(),
            "Disabling dirty logging time: 0.123456789s"
        );
        assert_eq!(Seconds(61_000_000_001).to_string(), "61.000000001s");
    }

    #[test]
    fn a_record_is_one_line_of_json_and_comes_back() {
        let record = Record {
            mode: "parallel".into(),
            vcpus: 4,
            bytes_per_vcpu: 64 << 20,
            backing: "2M".into(),
            iterations: 1,
            write_percent: 100,
            cpu: "neoverse-n1".into(),
            gic: 3,
            clock: "CNTPCT".into(),
            stage2: "40-bit IPA, 4K pages".into(),
            most_tlbi: 16,
            phases: vec![Phase {
                counters: [("faults_mapped".into(), 3)].into(),
                ..phase(PhaseName::Populate, 0)
            }],
            counters: [("faults_mapped".into(), 3)].into(),
            verified: true,
        };
        let json = serde_json::to_string(&record).unwrap();
        assert!(!json.contains('\n'));
        assert!(
            json.starts_with(
                r#"{"mode":"parallel","vcpus":4,"bytes_per_vcpu":67108864,"backing":"2M","#
            ),
            "{json}"
        );
        assert!(
            json.contains(r#""phases":[{"name":"populate","iteration":0,"ns":123456789,"#),
            "{json}"
        );
        assert_eq!(serde_json::from_str::<Record>(&json).unwrap(), record);
    }
}
