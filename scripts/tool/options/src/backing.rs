//! The options of workloads that change a guest's backing memory while it runs: the lists that one boot compares, and the values
//! of each of its runs. Overcommitted memory and merging go with the benchmark too.

use std::fmt::{self, Display};

use clap::Args;
use records::record::Record;

use super::merging::MergingOptions;
use super::words::{Change, Changing, Tracker, list};
use super::{distinct, usage};
use emulator::error::ToolError;

/// The workload and its lists.
#[derive(Args, Clone, Debug)]
pub struct BackingOptions {
    /// Instead of the benchmark, change the guests' backing memory while they run, and compare each mechanism with a baseline
    /// that has it off. Runs in --mode parallel, with --backing 4K, unless others are chosen.
    #[arg(
        long,
        value_name = "KIND",
        value_enum,
        conflicts_with_all = [
            "write_percent", "random", "split", "tracking", "granularity", "harvest", "harvesters", "ring_entries",
            "enable", "clear", "restore", "split_chunk", "split_reserve", "slots"
        ]
    )]
    pub workload: Option<Changing>,

    /// Which faults an invalidation makes try again: those in its range, or all of its VM as in KVM on arm64. A list is
    /// compared. [default: ranges; both for --workload invalidate]
    #[arg(
        long = "tracker",
        value_name = "KIND",
        value_enum,
        value_delimiter = ',',
        requires = "workload"
    )]
    pub trackers: Vec<Tracker>,

    /// How a page that is mapped gets another frame: in its entries, or by being unmapped and faulted in again. A list is
    /// compared. [default: direct; both for --workload cow]
    #[arg(
        long = "change",
        value_name = "KIND",
        value_enum,
        value_delimiter = ',',
        requires = "workload"
    )]
    pub changes: Vec<Change>,

    /// How many CPUs work on the memory beside the vCPUs: invalidate, merge, or populate. A list is compared; 0 is without.
    /// [default: 0,1,4,16 for --workload invalidate, without --simulated only as many as the host has CPUs for; 0,1 for merge,
    /// 0,1,8 for prefault, else 0]
    #[arg(long, value_name = "N", value_delimiter = ',', requires = "workload", value_parser = clap::value_parser!(u32).range(0..=126))]
    pub workers: Vec<u32>,

    /// The memory that the guest uses, in percent of its limit. A list is compared, but not by scripts/run for the benchmark.
    /// [default: 100,150 for --workload reclaim, else 100]
    #[arg(long = "overcommit", value_name = "PERCENT", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(100..=1000))]
    pub overcommits: Vec<u32>,

    /// Merging of equal pages.
    #[command(flatten)]
    pub merging: MergingOptions,
}

/// The lists that the runs of one boot compare, with all defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compared {
    /// The workload.
    pub workload: Changing,
    /// Which faults an invalidation makes try again.
    pub trackers: Vec<Tracker>,
    /// How pages get other frames.
    pub changes: Vec<Change>,
    /// The memory that the guest uses, in percent of its limit.
    pub overcommits: Vec<u32>,
    /// How many CPUs work beside the vCPUs.
    pub workers: Vec<u32>,
}

/// The values of one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Case {
    /// The workload.
    pub workload: Changing,
    /// Which faults an invalidation makes try again.
    pub tracker: Tracker,
    /// How pages get other frames.
    pub change: Change,
    /// The memory that the guest uses, in percent of its limit.
    pub overcommit: u32,
    /// How many CPUs work beside the vCPUs.
    pub workers: u32,
}

impl BackingOptions {
    /// The lists to compare, if there is a workload. The host runs `host_cpus` of the machine's CPUs at the same time.
    ///
    /// # Errors
    ///
    /// [`ToolError::Usage`] naming the option that names something twice.
    pub fn compared(&self, vcpus: u32, host_cpus: u32) -> Result<Option<Compared>, ToolError> {
        distinct("--tracker", &self.trackers)?;
        distinct("--change", &self.changes)?;
        distinct("--workers", &self.workers)?;
        distinct("--overcommit", &self.overcommits)?;
        let Some(workload) = self.workload else {
            return Ok(None);
        };
        let trackers: &[Tracker] = match workload {
            Changing::Invalidate => &[Tracker::Ranges, Tracker::Sequence],
            _ => &[Tracker::Ranges],
        };
        let changes: &[Change] = match workload {
            Changing::Cow => &[Change::Direct, Change::Unmap],
            _ => &[Change::Direct],
        };
        let workers: &[u32] = match workload {
            Changing::Invalidate => invalidating(vcpus, host_cpus),
            Changing::Merge => &[0, 1],
            Changing::Prefault => &[0, 1, 8],
            Changing::Cow | Changing::Reclaim => &[0],
        };
        let overcommits: &[u32] = match workload {
            Changing::Reclaim => &[100, 150],
            _ => &[100],
        };
        Ok(Some(Compared {
            workload,
            trackers: given(&self.trackers, trackers),
            changes: given(&self.changes, changes),
            overcommits: given(&self.overcommits, overcommits),
            workers: given(&self.workers, workers),
        }))
    }

    /// Checks that the benchmark is given one overcommit for all of its runs.
    ///
    /// # Errors
    ///
    /// [`ToolError::Usage`] naming the option.
    pub fn check_one_overcommit(&self) -> Result<(), ToolError> {
        if self.workload.is_none() && self.overcommits.len() > 1 {
            return usage("--overcommit: the benchmark takes one value, a list needs --workload");
        }
        Ok(())
    }
}

/// The numbers of CPUs that invalidate, for the host's number of CPUs. If more invalidate than the host runs at the same time,
/// an invalidation is always going on. Then no fault ever ends with the tracker that makes all faults of a VM try again.
fn invalidating(vcpus: u32, host_cpus: u32) -> &'static [u32] {
    match host_cpus.saturating_sub(vcpus + 1) {
        0..4 => &[0, 1],
        4..16 => &[0, 1, 4],
        _ => &[0, 1, 4, 16],
    }
}

/// The given values, or else the usual ones.
fn given<T: Clone>(given: &[T], usual: &[T]) -> Vec<T> {
    let chosen = if given.is_empty() { usual } else { given };
    chosen.to_vec()
}

impl Compared {
    /// How many VMs run at the same time.
    pub fn vms(&self) -> u32 {
        match self.workload {
            Changing::Cow | Changing::Merge => 2,
            _ => 1,
        }
    }

    /// The most CPUs that work beside the vCPUs.
    pub fn most_workers(&self) -> u32 {
        self.workers.iter().max().copied().unwrap_or(0)
    }

    /// The values of each run, in the order of the runs.
    pub fn each(&self) -> Vec<Case> {
        let mut cases = Vec::new();
        for &tracker in &self.trackers {
            for &change in &self.changes {
                for &overcommit in &self.overcommits {
                    cases.extend(self.workers.iter().map(|&workers| Case {
                        workload: self.workload,
                        tracker,
                        change,
                        overcommit,
                        workers,
                    }));
                }
            }
        }
        cases
    }

    /// The hypervisor's options.
    pub fn words(&self) -> String {
        format!(
            "guest=backing workload={} tracker={} change={} overcommit={} workers={}",
            self.workload,
            list(&self.trackers),
            list(&self.changes),
            list(&self.overcommits),
            list(&self.workers)
        )
    }
}

impl Case {
    /// Whether `record` is the result of this run.
    pub fn is(&self, record: &Record) -> bool {
        record.workload == self.workload.to_string()
            && record.tracker == self.tracker.to_string()
            && record.change == self.change.to_string()
            && record.overcommit == u64::from(self.overcommit)
            && record.workers == u64::from(self.workers)
    }
}

impl Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            workload,
            tracker,
            change,
            overcommit,
            workers,
        } = self;
        write!(
            f,
            "{workload}, tracker {tracker}, change {change}, overcommit {overcommit} %, {workers} workers"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_cpus_invalidate_than_the_host_runs() {
        assert_eq!(invalidating(2, 2), [0, 1]);
        assert_eq!(invalidating(2, 8), [0, 1, 4]);
        assert_eq!(invalidating(2, 18), [0, 1, 4]);
        assert_eq!(invalidating(2, 19), [0, 1, 4, 16]);
        assert_eq!(invalidating(127, u32::MAX), [0, 1, 4, 16]);
    }
}
