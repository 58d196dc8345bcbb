//! One measured run: as a record for programs, and as lines for people.
//!
//! A `@record` line and the host tool's JSON file have the record. The lines are those of `dirty_log_perf_test` of the Linux KVM
//! selftests.

use crate::size::decimal;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use serde::{Deserialize, Serialize};

/// The name of the system in its own records.
pub const PARVISOR: &str = "parvisor";

/// Counters by name.
pub type CounterMap = BTreeMap<String, u64>;

/// Counters named as exits that count no exits of their own.
const NO_EXITS: [&str; 3] = [
    "exits_lost_translation",
    "exits_injected_abort",
    "exits_injected_undefined",
];

/// The exits among some counters.
pub fn exits(counters: &CounterMap) -> u64 {
    let exits = counters
        .iter()
        .filter(|(name, _)| name.starts_with("exits_") && !NO_EXITS.contains(&name.as_str()));
    exits.map(|(_, count)| count).sum()
}

/// The result of one run: of the dirty-log benchmark in one configuration, or of a workload that changes backing memory. Fields
/// that older records lack, and those without a meaning for the run, are empty, 0 or false.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Record {
    /// The system that ran: `parvisor`, or another one with the same benchmark, as in `linux 6.12.117`. Empty in old records,
    /// which are Parvisor's.
    #[serde(default)]
    pub system: String,
    /// How stage-2 operations exclude each other: `parallel`, `rwlock`, `mutex`, or `kvm` for Linux.
    pub mode: String,
    /// The effect of a write fault on a logged block, in the words of the option `split`.
    #[serde(default)]
    pub split: String,
    /// How writes are noticed: `writeprotect` or `hardware`.
    #[serde(default)]
    pub tracking: String,
    /// The granularity of the log: `4K` or `2M`.
    #[serde(default)]
    pub granularity: String,
    /// The form of the log: `bitmap` or `ring`.
    #[serde(default)]
    pub harvest: String,
    /// How the log is enabled: `protect` or `all_set`.
    #[serde(default)]
    pub enable: String,
    /// How the log is cleared: apart (`manual`) or `with_get`.
    #[serde(default)]
    pub clear: String,
    /// How many CPUs harvested the log, split ahead and restored blocks, CPU 0 among them. 0 in old records: one did.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub harvesters: u64,
    /// When blocks that logging has split are restored: `at_once`, `background` or `never`.
    #[serde(default)]
    pub restore: String,
    /// How many slots the memory was cut into.
    #[serde(default)]
    pub slots: u64,
    /// The guest, if it wasn't the benchmark's but one of the user's, in the words of the option `guest`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub guest: String,
    /// How long that guest ran between two rounds, in milliseconds.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub interval: u64,
    /// The workload, in the words of the option `workload`. Empty for the benchmark.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub workload: String,
    /// Which faults an invalidation made try again: `ranges` or `sequence`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub tracker: String,
    /// How pages got other frames: `direct` or `unmap`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub change: String,
    /// How many CPUs worked on the memory beside the vCPUs.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub workers: u64,
    /// The memory that the guest used, in percent of its limit.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub overcommit: u64,
    /// The memory whose equal pages were merged, in the words of the option `merge_targets`. Empty without merging.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub merge_targets: String,
    /// How many CPUs merged them beside the guest. In a workload whose workers merge, these are meant: 0 here.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub scanners: u64,
    /// The number of pages that each of these CPUs visited between two pauses.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub pages_to_scan: u64,
    /// How long each pause was, in milliseconds.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub sleep_millisecs: u64,
    /// How many pages might share a frame.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub max_page_sharing: u64,
    /// vCPUs.
    pub vcpus: u64,
    /// The memory that each of them accessed, in bytes; of a guest of the user's its whole RAM.
    pub bytes_per_vcpu: u64,
    /// The size of its backing pages and blocks: `4K`, `2M` or `1G`.
    pub backing: String,
    /// How often it was dirtied and harvested.
    pub iterations: u64,
    /// The percentage of accesses that wrote.
    pub write_percent: u64,
    /// Whether the pages were chosen at random.
    #[serde(default)]
    pub random: bool,
    /// The seed of the random choice of pages and of writes.
    #[serde(default)]
    pub seed: u64,
    /// The build profile of the hypervisor, in the words of the option `--profile` of `scripts/run`. Empty where it isn't known:
    /// in old records, which had the best one, and in those that a board prints.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub profile: String,
    /// The CPU model.
    pub cpu: String,
    /// The version of the interrupt controller's architecture.
    pub gic: u64,
    /// The clock of the times.
    pub clock: String,
    /// The architecture's features that the VM's tables used.
    #[serde(default)]
    pub stage2: String,
    /// The most instructions of one TLB invalidation, as measured at boot.
    #[serde(default)]
    pub most_tlbi: u64,
    /// The phases, in their order.
    pub phases: Vec<Phase>,
    /// The counters, from the VM's start to its end.
    pub counters: CounterMap,
    /// Whether the harvested pages were exactly those that the guest wrote, with the right contents. Only Parvisor checks it.
    pub verified: bool,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// One phase of a run.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Phase {
    /// Its name.
    pub name: PhaseName,
    /// The iteration, from 1; 0 outside the iterations.
    pub iteration: u64,
    /// Its duration in nanoseconds.
    pub ns: u64,
    /// The counters of its duration; a missing one is 0.
    #[serde(default)]
    pub counters: CounterMap,
}

/// The name of a phase.
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
    /// Written pages are copied; outside the iterations, all there are.
    Copy,
    /// The guest is stopped, from the request until all that it has written is copied.
    Stop,
    /// Guest memory is compared with its copy.
    Compare,
    /// Logging is switched off.
    Disable,
    /// Blocks are split ahead of the faults. Its time is part of that of the phase that splits.
    Split,
    /// Blocks that logging has split are put together again in the background.
    Restore,
    /// All vCPUs of the measured VM write to their pages.
    Write,
    /// All vCPUs read their pages and check the contents.
    Read,
    /// All vCPUs fill their pages.
    Fill,
    /// All vCPUs check every word of their pages.
    Check,
    /// The VM is forked.
    Fork,
    /// Memory is populated ahead of its first access.
    Prefault,
    /// Pages that are equal are merged, while the vCPUs check theirs.
    Merge,
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
            PhaseName::Copy if iteration == 0 => f.write_str("Copying memory")?,
            PhaseName::Copy => write!(f, "Iteration {iteration} copy memory")?,
            PhaseName::Stop => f.write_str("Stopping the guest")?,
            PhaseName::Compare => f.write_str("Comparing memory")?,
            PhaseName::Disable => f.write_str("Disabling dirty logging")?,
            PhaseName::Split if iteration == 0 => f.write_str("Splitting memory")?,
            PhaseName::Split => write!(f, "Iteration {iteration} split memory")?,
            PhaseName::Restore => f.write_str("Restoring memory")?,
            PhaseName::Write => write!(f, "Iteration {iteration} write memory")?,
            PhaseName::Read => write!(f, "Iteration {iteration} read memory")?,
            PhaseName::Check => write!(f, "Iteration {iteration} check memory")?,
            PhaseName::Fill => f.write_str("Filling memory")?,
            PhaseName::Fork => f.write_str("Forking the VM")?,
            PhaseName::Prefault => f.write_str("Populating memory ahead")?,
            PhaseName::Merge => f.write_str("Merging memory")?,
        }
        write!(f, " time: {}", Seconds(self.ns))
    }
}

impl Phase {
    /// Reads a result line of Parvisor or of the selftest, as [`Phase`] prints it; `None` for another line.
    pub fn parse(line: &str) -> Option<Self> {
        let (what, time) = line.split_once(" time: ")?;
        let Seconds(ns) = Seconds::parse(time)?;
        let (name, iteration) = match what {
            "Populate memory" => (PhaseName::Populate, 0),
            "Enabling dirty logging" => (PhaseName::Enable, 0),
            "Disabling dirty logging" => (PhaseName::Disable, 0),
            "Splitting memory" => (PhaseName::Split, 0),
            "Restoring memory" => (PhaseName::Restore, 0),
            "Filling memory" => (PhaseName::Fill, 0),
            "Forking the VM" => (PhaseName::Fork, 0),
            "Populating memory ahead" => (PhaseName::Prefault, 0),
            "Merging memory" => (PhaseName::Merge, 0),
            "Copying memory" => (PhaseName::Copy, 0),
            "Stopping the guest" => (PhaseName::Stop, 0),
            "Comparing memory" => (PhaseName::Compare, 0),
            _ => {
                let (iteration, what) = what.strip_prefix("Iteration ")?.split_once(' ')?;
                let name = match what {
                    "dirty memory" => PhaseName::Dirty,
                    "get dirty log" => PhaseName::Get,
                    "clear dirty log" => PhaseName::Clear,
                    "copy memory" => PhaseName::Copy,
                    "split memory" => PhaseName::Split,
                    "write memory" => PhaseName::Write,
                    "read memory" => PhaseName::Read,
                    "check memory" => PhaseName::Check,
                    _ => return None,
                };
                (name, decimal(iteration)?)
            }
        };
        Some(Self {
            name,
            iteration,
            ns,
            counters: CounterMap::new(),
        })
    }
}

/// Nanoseconds, shown as seconds with all nine decimals.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seconds(pub u64);

/// Nanoseconds in a second.
const SECOND: u64 = 1_000_000_000;
/// Decimals of a second down to nanoseconds.
const DECIMALS: usize = 9;

impl Seconds {
    /// Reads seconds with exactly nine decimals and an `s`.
    pub fn parse(text: &str) -> Option<Self> {
        let (seconds, fraction) = text.strip_suffix('s')?.split_once('.')?;
        if fraction.len() != DECIMALS {
            return None;
        }
        let whole = decimal(seconds)?.checked_mul(SECOND)?;
        whole.checked_add(decimal(fraction)?).map(Self)
    }
}

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:09}s", self.0 / SECOND, self.0 % SECOND)
    }
}

/// The progress of a run, as a `@progress` line has it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Progress {
    /// The mode that runs.
    pub mode: String,
    /// The number of its steps that are done.
    pub step: u64,
    /// The number of its steps.
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
        assert_eq!(
            phase(PhaseName::Split, 0).to_string(),
            "Splitting memory time: 0.123456789s"
        );
        assert_eq!(
            phase(PhaseName::Split, 1).to_string(),
            "Iteration 1 split memory time: 0.123456789s"
        );
        assert_eq!(
            phase(PhaseName::Restore, 0).to_string(),
            "Restoring memory time: 0.123456789s"
        );
        assert_eq!(Seconds(61_000_000_001).to_string(), "61.000000001s");
    }

    #[test]
    fn result_lines_are_read_as_they_were_printed() {
        let outside = [
            PhaseName::Populate,
            PhaseName::Enable,
            PhaseName::Disable,
            PhaseName::Split,
            PhaseName::Restore,
            PhaseName::Fill,
            PhaseName::Fork,
            PhaseName::Prefault,
            PhaseName::Merge,
            PhaseName::Copy,
            PhaseName::Stop,
            PhaseName::Compare,
        ];
        let within = [
            PhaseName::Dirty,
            PhaseName::Get,
            PhaseName::Clear,
            PhaseName::Copy,
            PhaseName::Split,
            PhaseName::Write,
            PhaseName::Read,
            PhaseName::Check,
        ];
        let all = outside.map(|name| phase(name, 0)).into_iter();
        for printed in all.chain(within.map(|name| phase(name, 12))) {
            assert_eq!(Phase::parse(&printed.to_string()), Some(printed));
        }
        for other in [
            "",
            "boot time: 0.123456789s",
            "Populate memory time: 0.12345678s",
            "Populate memory time: 0.123456789",
            "Populate memory time: -1.123456789s",
            "Populate memory time: 0.1234567+9s",
            "Populate memory time: 99999999999999999999.000000000s",
            "Iteration x dirty memory time: 0.123456789s",
            "Iteration 1 Populate memory time: 0.123456789s",
            "Get dirty log over 2 iterations took 0.000040000s. (Avg 0.000020000s/iteration)",
        ] {
            assert_eq!(Phase::parse(other), None, "{other}");
        }
    }

    #[test]
    fn a_record_of_an_earlier_version_can_be_read() {
        let old = r#"{"mode":"mutex","vcpus":1,"bytes_per_vcpu":4096,"backing":"4K","iterations":1,"write_percent":100,
            "cpu":"","gic":3,"clock":"cntpct","phases":[],"counters":{},"verified":true}"#;
        let record: Record = serde_json::from_str(old).unwrap();
        assert_eq!((record.mode.as_str(), record.vcpus), ("mutex", 1));
        assert_eq!((record.system.as_str(), record.slots), ("", 0));
        assert_eq!((record.workload.as_str(), record.workers), ("", 0));
    }

    #[test]
    fn a_record_is_one_line_of_json_and_comes_back() {
        let record = Record {
            system: "parvisor".into(),
            mode: "parallel".into(),
            split: "fault".into(),
            tracking: "writeprotect".into(),
            granularity: "4K".into(),
            harvest: "bitmap".into(),
            enable: "protect".into(),
            clear: "manual".into(),
            harvesters: 2,
            restore: "at_once".into(),
            slots: 1,
            guest: "linux".into(),
            interval: 100,
            workload: "cow".into(),
            tracker: "ranges".into(),
            change: "direct".into(),
            workers: 2,
            overcommit: 150,
            merge_targets: "test".into(),
            scanners: 2,
            pages_to_scan: 100,
            sleep_millisecs: 20,
            max_page_sharing: 256,
            vcpus: 4,
            bytes_per_vcpu: 64 << 20,
            backing: "2M".into(),
            iterations: 1,
            write_percent: 100,
            random: false,
            seed: 1,
            profile: "best".into(),
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
                r#"{"system":"parvisor","mode":"parallel","split":"fault","tracking":"writeprotect","#
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
