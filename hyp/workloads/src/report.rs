//! Further output of the workloads, besides the results: for the host tool and for people.

use crate::harness::case::Case;
use crate::harness::policy::Choice;
use control::Machine;
use control::guest::counters::Listed;
use control::options::Options;
use core::fmt;
use records::record::{CounterMap, Progress, Record};

/// Announces a benchmark run.
pub(crate) fn heading<M: Machine>(machine: &M, options: &Options, choice: Choice) {
    let mode = choice.mode.name();
    let (vcpus, bytes, iterations) = (options.vcpus, options.bytes, options.iterations);
    let (backing, unusual) = (options.backing.name(), Unusual { options, choice });
    machine.write_line(format_args!(
        "== mode {mode}: {vcpus} vCPUs x {bytes}, backing {backing}, {iterations} iterations{unusual} =="
    ));
}

/// Announces a run with a guest of the user's whose writes are logged.
pub(crate) fn live_heading<M: Machine>(machine: &M, options: &Options, choice: Choice) {
    let (guest, mode) = (options.guest.name(), choice.mode.name());
    let (vcpus, bytes, iterations) = (options.vcpus, options.bytes, options.iterations);
    let (interval, backing) = (options.interval, options.backing.name());
    let unusual = Unusual { options, choice };
    machine.write_line(format_args!(
        "== {guest}, mode {mode}: {vcpus} vCPUs, {bytes}, backing {backing}, {iterations} rounds after {interval} ms each{unusual} =="
    ));
}

/// Announces a stress run.
pub(crate) fn stress_heading<M: Machine>(machine: &M, options: &Options, choice: Choice) {
    let (mode, vcpus, bytes) = (choice.mode.name(), options.vcpus, options.bytes);
    let (backing, slots) = (options.backing.name(), options.slots);
    let (seconds, seed) = (options.seconds, options.seed);
    machine.write_line(format_args!(
        "== stress, mode {mode}: {vcpus} vCPUs x {bytes} in {slots} slots, backing {backing}, {seconds} s, seed {seed} =="
    ));
}

/// Announces a run of a workload that changes backing memory.
pub(crate) fn backing_heading<M: Machine>(machine: &M, options: &Options, case: Case) {
    let Case {
        mode,
        tracker,
        change,
        overcommit,
        workers,
    } = case;
    let (workload, mode) = (options.workload.name(), mode.name());
    let (vcpus, bytes, backing) = (options.vcpus, options.bytes, options.backing.name());
    let (tracker, change, merging) = (tracker.name(), change.name(), Merging(options));
    machine.write_line(format_args!(
        "== {workload}, mode {mode}: {vcpus} vCPUs x {bytes}, backing {backing}, tracker {tracker}, change {change}, \
         {workers} workers, overcommit {overcommit} %{merging} =="
    ));
}

/// Says why a stress run continues after its time: everything must be done a minimum number of times, and vCPUs must finish
/// their round.
pub(crate) fn stress_late<M: Machine>(machine: &M, seconds: u64, done: u64, least: u64) {
    if done < least {
        machine.write_line(format_args!(
            "stress: {seconds} s beyond its time, until everything was done {least} times; so far {done}"
        ));
    } else {
        machine.write_line(format_args!(
            "stress: {seconds} s beyond its time, until the vCPUs have ended their round"
        ));
    }
}

/// Prints the counts of a stress run's actions.
pub(crate) fn stress_done<M: Machine>(machine: &M, done: &CounterMap) {
    machine.write_line(format_args!("stress {}", Listed(done)));
}

/// How equal pages are merged in a run, if they are.
struct Merging<'o>(&'o Options);

impl fmt::Display for Merging<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (options, usual) = (self.0, Options::default().merge);
        if !options.merges_beside() && !options.measures_merging() {
            return Ok(());
        }
        write!(f, ", merging {}", options.merge.target_names())?;
        if options.merging > 1 {
            write!(f, ", scanners {}", options.merging)?;
        }
        let numbers = [
            (
                "pages_to_scan",
                options.merge.pages_to_scan,
                usual.pages_to_scan,
            ),
            (
                "sleep_millisecs",
                options.merge.sleep_millisecs,
                usual.sleep_millisecs,
            ),
            (
                "max_page_sharing",
                options.merge.max_page_sharing,
                usual.max_page_sharing,
            ),
        ];
        for (key, number, _) in numbers.iter().filter(|(_, number, usual)| number != usual) {
            write!(f, ", {key} {number}")?;
        }
        Ok(())
    }
}

/// The policies of a run that differ from the defaults.
struct Unusual<'o> {
    options: &'o Options,
    choice: Choice,
}

impl fmt::Display for Unusual<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (options, usual) = (self.options, Options::default());
        let policies = [
            ("split", self.choice.split.name(), "fault"),
            ("tracking", self.choice.tracking.name(), "writeprotect"),
            (
                "granularity",
                options.granularity.name(),
                usual.granularity.name(),
            ),
            ("harvest", options.harvest.name(), usual.harvest.name()),
            ("enable", options.enable.name(), usual.enable.name()),
            ("clear", options.clear.name(), usual.clear.name()),
            ("restore", options.restore.name(), usual.restore.name()),
        ];
        for (key, word, _) in policies.iter().filter(|(_, word, usual)| word != usual) {
            write!(f, ", {key} {word}")?;
        }
        match options.harvesters {
            1 => {}
            harvesters => write!(f, ", {harvesters} harvesters")?,
        }
        match options.slots {
            1 => {}
            slots => write!(f, ", {slots} slots")?,
        }
        match options.overcommits[0] {
            100 => {}
            percent => write!(f, ", overcommit {percent} %")?,
        }
        Merging(options).fmt(f)
    }
}

/// Prints the progress. If it can't be written as JSON, nothing is printed.
pub(crate) fn progress<M: Machine>(machine: &M, progress: &Progress) {
    if let Ok(json) = serde_json::to_string(progress) {
        machine.write_line(format_args!("@progress {json}"));
    }
}

/// Prints the result for programs.
///
/// # Errors
/// It can't be written as JSON.
pub(crate) fn record<M: Machine>(machine: &M, record: &Record) -> Result<(), serde_json::Error> {
    let json = serde_json::to_string(record)?;
    machine.write_line(format_args!("@record {json}"));
    Ok(())
}
