//! The metrics of a record: times of phases, exits per page, the longest exit. The phases of runs in which what backs memory
//! changes are `backing`'s.

mod backing;
mod live;

use std::ops::RangeInclusive;

use super::label::is_of_backing;
use records::record::{Phase, PhaseName, Record, exits};

/// The size of a page, in bytes.
const PAGE: u64 = 4096;
/// The counter of the longest exit, if it was measured.
const LONGEST_EXIT: &str = "longest_exit_ns";
/// The word for logging that begins with all pages set.
const ALL_SET: &str = "all_set";
/// No iteration has a greater number.
const LAST: u64 = u64::MAX;

/// Something that was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Metric {
    /// The first write to every page.
    Populate,
    /// Switching the log on.
    Enable,
    /// The iteration before the first clear, where logging begins with all pages set: nothing is write-protected yet.
    FreeDirty,
    /// The first iteration in which writes are noticed, and blocks split if they weren't before.
    FirstDirty,
    /// Every later iteration.
    LaterDirty,
    /// The same for each page of a vCPU.
    LaterDirtyPerPage,
    /// Copying the log.
    Get,
    /// The first time that the log is cleared.
    FirstClear,
    /// Every later time.
    LaterClear,
    /// Switching the log off.
    Disable,
    /// Splitting blocks ahead.
    Split,
    /// Restoring blocks in the background.
    Restore,
    /// Exits for each page that was accessed in the first iteration in which writes are noticed.
    FirstExits,
    /// The same in every later iteration.
    LaterExits,
    /// The longest exit while memory was dirtied, or while its backing changed.
    LongestExit,
    /// The guests fill their memory.
    Fill,
    /// The VM is forked.
    Fork,
    /// Every page is read for the first time.
    Read,
    /// Every page is written for the first time, which backs it.
    FirstWrite,
    /// Every page is written, in the way that is measured.
    Write,
    /// The same once more, after the measurement.
    WriteAgain,
    /// Every word is checked.
    Check,
    /// Memory is populated ahead, by all workers.
    Ahead,
    /// Memory is populated ahead by the guest's own calls.
    AheadByGuest,
    /// Pages are merged.
    Merge,
    /// The scan of a page for merging.
    ScanPerPage,
    /// Exits for each page that is read.
    ReadExits,
    /// Exits for each page that is written.
    WriteExits,
    /// The same when it is written once more.
    WriteAgainExits,
    /// Exits for each page that is checked.
    CheckExits,
    /// How often a fault was tried again, for each page that is written.
    Retries,
    /// Frames of guest memory after merging, of 100 before.
    FramesLeft,
    /// Pages compressed per second while memory is checked.
    Compressed,
    /// Pages that are brought back in a second while memory is checked.
    BroughtBack,
    /// Pages that share others' frames in the end, where a CPU merges beside the guest.
    Sharing,
    /// How often that CPU has looked at all pages.
    FullScans,
    /// All memory is copied, the guest running.
    CopyAll,
    /// The pages of a round are copied.
    CopyRound,
    /// The guest is stopped for the last round.
    Stop,
    /// Memory is compared with its copy.
    Compare,
    /// Pages that were written in a round.
    DirtyPages,
    /// Getting and clearing the log for each page that was written in a round.
    HarvestPerPage,
}

/// The unit of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantity {
    /// Nanoseconds.
    Time,
    /// A number.
    Number,
}

impl Metric {
    /// All, in the order in which they are shown.
    pub const ALL: [Self; 42] = [
        Self::Populate,
        Self::Enable,
        Self::FreeDirty,
        Self::FirstDirty,
        Self::LaterDirty,
        Self::LaterDirtyPerPage,
        Self::Get,
        Self::FirstClear,
        Self::LaterClear,
        Self::Disable,
        Self::Split,
        Self::Restore,
        Self::FirstExits,
        Self::LaterExits,
        Self::LongestExit,
        Self::CopyAll,
        Self::CopyRound,
        Self::Stop,
        Self::Compare,
        Self::DirtyPages,
        Self::HarvestPerPage,
        Self::Fill,
        Self::Fork,
        Self::Ahead,
        Self::Merge,
        Self::ScanPerPage,
        Self::FramesLeft,
        Self::FirstWrite,
        Self::Read,
        Self::ReadExits,
        Self::Write,
        Self::WriteExits,
        Self::Retries,
        Self::AheadByGuest,
        Self::WriteAgain,
        Self::WriteAgainExits,
        Self::Check,
        Self::CheckExits,
        Self::Compressed,
        Self::BroughtBack,
        Self::Sharing,
        Self::FullScans,
    ];

    /// Its name in tables and plots.
    pub fn name(self) -> &'static str {
        match self {
            Self::Populate => "Populate",
            Self::Enable => "Enable logging",
            Self::FreeDirty => "Dirty iteration before the first clear",
            Self::FirstDirty => "First dirty iteration",
            Self::LaterDirty => "Later dirty iterations",
            Self::LaterDirtyPerPage => "Later dirty iterations, per page and vCPU",
            Self::Get => "Get log",
            Self::FirstClear => "First clear",
            Self::LaterClear => "Later clears",
            Self::Disable => "Disable logging",
            Self::Split => "Split ahead",
            Self::Restore => "Restore blocks",
            Self::FirstExits => "Exits per page, first iteration",
            Self::LaterExits => "Exits per page, later iterations",
            Self::LongestExit => "Longest exit of a vCPU",
            Self::Fill => "Fill, per page and vCPU",
            Self::Fork => "Fork",
            Self::Read => "Read, per page and vCPU",
            Self::FirstWrite => "First write, per page and vCPU",
            Self::Write => "Write, per page and vCPU",
            Self::WriteAgain => "Write once more, per page and vCPU",
            Self::Check => "Check, per page and vCPU",
            Self::Ahead => "Populate ahead, per page",
            Self::AheadByGuest => "Populate ahead by the guest, per page and vCPU",
            Self::Merge => "Merge",
            Self::ScanPerPage => "Scan and merge, per page",
            Self::ReadExits => "Exits per page read",
            Self::WriteExits => "Exits per page written",
            Self::WriteAgainExits => "Exits per page written once more",
            Self::CheckExits => "Exits per page checked",
            Self::Retries => "Retries per page written",
            Self::FramesLeft => "Frames after merging, % of those before",
            Self::Compressed => "Pages compressed per second of checking",
            Self::BroughtBack => "Pages brought back per second of checking",
            Self::Sharing => "Pages that share others' frames",
            Self::FullScans => "Full scans",
            Self::CopyAll => "Copy all",
            Self::CopyRound => "Copy, per round",
            Self::Stop => "Guest stopped for the last round",
            Self::Compare => "Compare",
            Self::DirtyPages => "Pages written, per round",
            Self::HarvestPerPage => "Get and clear, per page written",
        }
    }

    /// Its name in file names.
    pub fn slug(self) -> &'static str {
        match self {
            Self::Populate => "populate",
            Self::Enable => "enable",
            Self::FreeDirty => "dirty-free",
            Self::FirstDirty => "dirty-first",
            Self::LaterDirty => "dirty-later",
            Self::LaterDirtyPerPage => "dirty-per-page",
            Self::Get => "get",
            Self::FirstClear => "clear-first",
            Self::LaterClear => "clear-later",
            Self::Disable => "disable",
            Self::Split => "split",
            Self::Restore => "restore",
            Self::FirstExits => "exits-first",
            Self::LaterExits => "exits-later",
            Self::LongestExit => "longest-exit",
            Self::Fill => "fill",
            Self::Fork => "fork",
            Self::Read => "read",
            Self::FirstWrite => "write-first",
            Self::Write => "write",
            Self::WriteAgain => "write-again",
            Self::Check => "check",
            Self::Ahead => "ahead",
            Self::AheadByGuest => "ahead-by-guest",
            Self::Merge => "merge",
            Self::ScanPerPage => "scan-per-page",
            Self::ReadExits => "exits-read",
            Self::WriteExits => "exits-write",
            Self::WriteAgainExits => "exits-write-again",
            Self::CheckExits => "exits-check",
            Self::Retries => "retries",
            Self::FramesLeft => "frames-left",
            Self::Compressed => "compressed",
            Self::BroughtBack => "brought-back",
            Self::Sharing => "sharing",
            Self::FullScans => "full-scans",
            Self::CopyAll => "copy-all",
            Self::CopyRound => "copy-round",
            Self::Stop => "stop",
            Self::Compare => "compare",
            Self::DirtyPages => "pages-round",
            Self::HarvestPerPage => "harvest-per-page",
        }
    }

    /// Its unit.
    pub fn quantity(self) -> Quantity {
        match self {
            Self::FirstExits
            | Self::LaterExits
            | Self::ReadExits
            | Self::WriteExits
            | Self::WriteAgainExits
            | Self::CheckExits
            | Self::Retries
            | Self::FramesLeft
            | Self::Compressed
            | Self::BroughtBack
            | Self::Sharing
            | Self::FullScans
            | Self::DirtyPages => Quantity::Number,
            _ => Quantity::Time,
        }
    }

    /// The measurements of a record: one for each iteration that counts; none if the metric wasn't measured.
    pub fn samples(self, record: &Record) -> Vec<f64> {
        let first = first_noticed(record);
        let times = |name, from, to| phases(record, name, from..=to).map(time).collect();
        if live::excludes(self, record) {
            return Vec::new();
        }
        match self {
            Self::CopyAll
            | Self::CopyRound
            | Self::Stop
            | Self::Compare
            | Self::DirtyPages
            | Self::HarvestPerPage => live::samples(self, record),
            Self::Populate => times(PhaseName::Populate, 0, LAST),
            Self::Enable => times(PhaseName::Enable, 0, LAST),
            Self::FreeDirty => times(PhaseName::Dirty, 1, first - 1),
            Self::FirstDirty => times(PhaseName::Dirty, first, first),
            Self::LaterDirty => times(PhaseName::Dirty, first + 1, LAST),
            Self::LaterDirtyPerPage => {
                let later = phases(record, PhaseName::Dirty, first + 1..=LAST);
                later.map(|phase| time(phase) / share(record)).collect()
            }
            Self::Get => times(PhaseName::Get, 0, LAST),
            Self::FirstClear => times(PhaseName::Clear, 1, 1),
            Self::LaterClear => times(PhaseName::Clear, 2, LAST),
            Self::Disable => times(PhaseName::Disable, 0, LAST),
            Self::Split => times(PhaseName::Split, 0, LAST),
            Self::Restore => times(PhaseName::Restore, 0, LAST),
            Self::FirstExits => exits_per_page(record, PhaseName::Dirty, first..=first),
            Self::LaterExits => exits_per_page(record, PhaseName::Dirty, first + 1..=LAST),
            Self::LongestExit => longest_exit(record).into_iter().collect(),
            _ => backing::samples(self, record),
        }
    }
}

/// The first iteration in which writes are noticed.
fn first_noticed(record: &Record) -> u64 {
    if record.enable == ALL_SET { 2 } else { 1 }
}

fn time(phase: &Phase) -> f64 {
    phase.ns as f64
}

/// The phases called `name` of these iterations.
fn phases(
    record: &Record,
    name: PhaseName,
    iterations: RangeInclusive<u64>,
) -> impl Iterator<Item = &Phase> {
    let phases = record.phases.iter();
    phases.filter(move |phase| phase.name == name && iterations.contains(&phase.iteration))
}

/// The exits of each of these iterations; nothing where exits weren't counted.
fn exits_per_page(record: &Record, name: PhaseName, iterations: RangeInclusive<u64>) -> Vec<f64> {
    let counted = phases(record, name, iterations);
    let counted = counted.filter(|phase| !phase.counters.is_empty());
    counted
        .map(|phase| exits(&phase.counters) as f64 / pages(record))
        .collect()
}

/// The pages of all vCPUs.
fn pages(record: &Record) -> f64 {
    let pages = record.vcpus.saturating_mul(record.bytes_per_vcpu / PAGE);
    pages.max(1) as f64
}

/// The pages of one vCPU.
fn share(record: &Record) -> f64 {
    (record.bytes_per_vcpu / PAGE).max(1) as f64
}

/// The longest exit of all iterations, in nanoseconds.
fn longest_exit(record: &Record) -> Option<f64> {
    let is_meant = |phase: &&Phase| is_of_backing(record) || phase.name == PhaseName::Dirty;
    let meant = record.phases.iter().filter(is_meant);
    let longest = meant
        .filter_map(|phase| phase.counters.get(LONGEST_EXIT))
        .max();
    longest.map(|nanoseconds| *nanoseconds as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phase(name: PhaseName, iteration: u64, ns: u64, counters: &[(&str, u64)]) -> Phase {
        Phase {
            name,
            iteration,
            ns,
            counters: counters
                .iter()
                .map(|(name, count)| (name.to_string(), *count))
                .collect(),
        }
    }

    #[test]
    fn the_first_iteration_is_kept_apart() {
        let record = Record {
            vcpus: 2,
            bytes_per_vcpu: 8 * PAGE,
            phases: vec![
                phase(PhaseName::Populate, 0, 7, &[]),
                phase(
                    PhaseName::Dirty,
                    1,
                    800,
                    &[("exits_permission_fault", 16), ("longest_exit_ns", 90)],
                ),
                phase(
                    PhaseName::Dirty,
                    2,
                    400,
                    &[("exits_lost_translation", 3), ("faults", 5)],
                ),
                phase(
                    PhaseName::Dirty,
                    3,
                    480,
                    &[("exits_hypercall", 4), ("longest_exit_ns", 30)],
                ),
            ],
            ..Record::default()
        };
        assert_eq!(Metric::FirstDirty.samples(&record), [800.0]);
        assert_eq!(Metric::LaterDirty.samples(&record), [400.0, 480.0]);
        assert_eq!(Metric::LaterDirtyPerPage.samples(&record), [50.0, 60.0]);
        assert_eq!(Metric::FirstExits.samples(&record), [1.0]);
        assert_eq!(Metric::LaterExits.samples(&record), [0.0, 0.25]);
        assert_eq!(Metric::LongestExit.samples(&record), [90.0]);
        assert!(Metric::Get.samples(&record).is_empty());
    }

    #[test]
    fn with_all_pages_set_the_second_iteration_is_the_first_that_is_noticed() {
        let dirty = |iteration| {
            phase(
                PhaseName::Dirty,
                iteration,
                iteration * 100,
                &[("exits_hypercall", 2)],
            )
        };
        let record = Record {
            enable: "all_set".into(),
            vcpus: 1,
            bytes_per_vcpu: 4 * PAGE,
            phases: (1..=4).map(dirty).collect(),
            ..Record::default()
        };
        assert_eq!(Metric::FreeDirty.samples(&record), [100.0]);
        assert_eq!(Metric::FirstDirty.samples(&record), [200.0]);
        assert_eq!(Metric::LaterDirty.samples(&record), [300.0, 400.0]);
        assert_eq!(Metric::FirstExits.samples(&record), [0.5]);
        assert_eq!(Metric::LaterExits.samples(&record), [0.5, 0.5]);
        let protect = Record {
            enable: "protect".into(),
            ..record
        };
        assert!(Metric::FreeDirty.samples(&protect).is_empty());
        assert_eq!(Metric::FirstDirty.samples(&protect), [100.0]);
    }
}
