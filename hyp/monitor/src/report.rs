//! What the monitor prints for the host tool and for people, beside the results themselves.

use crate::backing::Case;
use crate::counters::Listed;
use crate::guest::Remains;
use crate::machine::Machine;
use crate::options::Options;
use crate::policy::Choice;
use core::fmt;
use memory::VmId;
use records::record::{CounterMap, Progress, Record};
use stage2::{Bbm, Features};

/// What is about to run.
pub(crate) fn heading<M: Machine>(machine: &M, options: &Options, choice: Choice) {
    let mode = choice.mode.name();
    let (vcpus, bytes, iterations) = (options.vcpus, options.bytes, options.iterations);
    let (backing, unusual) = (options.backing.name(), Unusual { options, choice });
    machine.write_line(format_args!(
        "== mode {mode}: {vcpus} vCPUs x {bytes}, backing {backing}, {iterations} iterations{unusual} =="
    ));
}

/// What stress run is about to begin.
pub(crate) fn stress_heading<M: Machine>(machine: &M, options: &Options, choice: Choice) {
    let (mode, vcpus, bytes) = (choice.mode.name(), options.vcpus, options.bytes);
    let (backing, slots) = (options.backing.name(), options.slots);
    let (seconds, seed) = (options.seconds, options.seed);
    machine.write_line(format_args!(
        "== stress, mode {mode}: {vcpus} vCPUs x {bytes} in {slots} slots, backing {backing}, {seconds} s, seed {seed} =="
    ));
}

/// What run is about to begin in which what backs memory changes.
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

/// Why a stress run goes on although its time is over: everything is to be done so often, and vCPUs are to end their round.
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

/// What a stress run has done.
pub(crate) fn stress_done<M: Machine>(machine: &M, done: &CounterMap) {
    machine.write_line(format_args!("stress {}", Listed(done)));
}

/// What merging beside a guest came to, if there was some.
pub(crate) fn merged<M: Machine>(machine: &M, merged: &CounterMap) {
    if !merged.is_empty() {
        machine.write_line(format_args!("merging {}", Listed(merged)));
    }
}

/// How equal pages are merged in a run, if they are.
struct Merging<'o>(&'o Options);

impl fmt::Display for Merging<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (options, usual) = (self.0, Options::default().merge);
        if !options.merging && !options.measures_merging() {
            return Ok(());
        }
        write!(f, ", merging {}", options.merge.target_names())?;
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

/// The policies of a run that aren't those by default.
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

/// How far it has come. What can't be said as JSON isn't said.
pub(crate) fn progress<M: Machine>(machine: &M, progress: &Progress) {
    if let Ok(json) = serde_json::to_string(progress) {
        machine.write_line(format_args!("@progress {json}"));
    }
}

/// The result for programs.
///
/// # Errors
/// It can't be said as JSON.
pub(crate) fn record<M: Machine>(machine: &M, record: &Record) -> Result<(), serde_json::Error> {
    let json = serde_json::to_string(record)?;
    machine.write_line(format_args!("@record {json}"));
    Ok(())
}

/// The counter dump at the end of a run.
pub(crate) fn remains<M: Machine>(machine: &M, vm: VmId, remains: &Remains) {
    machine.write_line(format_args!("{}", Listed(&remains.counters)));
    machine.write_line(format_args!("{vm} after its end: {}", remains.frames));
    machine.write_line(format_args!("{}", remains.machine_frames));
}

/// What of the architecture a VM's tables use, for people.
pub(crate) struct Stage2Use<'f>(pub(crate) &'f Features);

impl fmt::Display for Stage2Use<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let features = self.0;
        let kib = 1u32 << (features.granule.page_shift() - 10);
        write!(f, "{}-bit IPA, {kib}K pages", features.ipa_bits)?;
        let used = [
            (features.lpa2, "LPA2"),
            (features.fwb, "FWB"),
            (features.xnx, "XNX"),
            (features.hardware_access, "hardware access flag"),
            (features.hardware_dirty, "hardware dirty state"),
            (features.contiguous, "contiguous groups"),
            (features.bbm == Bbm::Level1, "BBM level 1"),
            (features.bbm == Bbm::Level2, "BBM level 2"),
        ];
        for (_, name) in used.iter().filter(|(used, _)| *used) {
            write!(f, ", {name}")?;
        }
        Ok(())
    }
}
