//! Finds the results in a log that was captured on a serial line: records, or only the result lines for people, as Parvisor and
//! Linux print them. The log may have time stamps, colours and other programs' output, and lines may be cut.
//!
//! A guest's lines are never taken for results: they begin with `guest: `.

use std::collections::BTreeSet;
use std::path::Path;

use clap::ValueEnum;
use records::options::MergeOptions;
use records::record::{PARVISOR, Phase, PhaseName, Record};

use super::label;
use ::options::words::{Changing, Clear, Enable, Granularity, Harvest, Restore, Split, Tracking};
use emulator::error::ToolError;
use emulator::size::Size;

/// The beginning of a record's line.
const RECORD: &str = "@record ";
/// The beginning of a guest's line.
const GUEST: &str = "guest: ";
/// The beginning of Parvisor's headings above the result lines of a run; the mode follows.
const HEADING: &str = "== ";
const MODE: &str = "mode ";
/// A line that Linux prints when it boots.
const LINUX: &str = "Linux version ";
/// The name of the selftest.
const SELFTEST: &str = "dirty_log_perf_test";
/// Parvisor's last line if all runs were verified.
const ALL_WELL: &str = "parvisor: exit status 0";
/// The beginnings of its last line, and of an error's line.
const STATUS: &str = "parvisor: exit status ";
const ERROR: &str = "parvisor: error: ";
/// How result lines begin.
const RESULTS: [&str; 10] = [
    "Populate memory time:",
    "Enabling dirty logging time:",
    "Disabling dirty logging time:",
    "Splitting memory time:",
    "Restoring memory time:",
    "Filling memory time:",
    "Forking the VM time:",
    "Populating memory ahead time:",
    "Merging memory time:",
    "Iteration ",
];
/// Into how many lines a terminal may have cut one record.
const MOST_PIECES: usize = 4096;

/// The user's values for results that lack them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// vCPUs.
    pub vcpus: Option<u64>,
    /// The memory of each, in bytes.
    pub bytes: Option<u64>,
    /// The backing of guest memory.
    pub backing: Option<String>,
    /// The percentage of accesses that wrote.
    pub write_percent: Option<u64>,
    /// The CPU.
    pub cpu: Option<String>,
}

impl Known {
    /// The options: by clap's name, and as typed.
    pub const OPTIONS: [(&'static str, &'static str); 5] = [
        ("vcpus", "--vcpus"),
        ("bytes", "--bytes"),
        ("backing", "--backing"),
        ("write_percent", "--write-percent"),
        ("cpu", "--cpu"),
    ];

    /// The options that are given.
    pub fn said(&self) -> BTreeSet<&'static str> {
        let are_said = [
            self.vcpus.is_some(),
            self.bytes.is_some(),
            self.backing.is_some(),
            self.write_percent.is_some(),
            self.cpu.is_some(),
        ];
        let options = Self::OPTIONS.into_iter().zip(are_said);
        let said = options.filter(|(_, is_said)| *is_said);
        said.map(|((_, typed), _)| typed).collect()
    }
}

/// The results of a log.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Capture {
    /// The runs.
    pub records: Vec<Record>,
    /// The failures and gaps of the log, a line each. The result lines replace a record that can't be read.
    pub failures: Vec<String>,
    /// The options of which [`Known`] was needed.
    pub used: BTreeSet<&'static str>,
}

impl Capture {
    /// Reads `text`, captured in the file `path`. Values that the result lines lack are taken from `known`.
    ///
    /// # Errors
    ///
    /// One line that names the file and the line: a record that can't be read, with no result lines before it; result
    /// lines of which it isn't known what they were measured with; or no results at all.
    pub fn read(path: &Path, text: &str, known: &Known) -> Result<Self, ToolError> {
        let mut reader = Reader {
            path,
            known,
            capture: Self::default(),
            run: Pending::default(),
            system: String::new(),
            piece: None,
            is_verified: text.contains(ALL_WELL),
            lacks_status: false,
            error: None,
        };
        let mut count = 0;
        for (index, line) in text.lines().enumerate() {
            count = index + 1;
            let plain = anstream::adapter::strip_str(line).to_string();
            reader.line(count, plain.trim_end())?;
        }
        reader.end()?;
        if reader.lacks_status {
            let name = path.display();
            reader.capture.failures.push(format!(
                "{name}: the log ends after {count} lines, before the hypervisor's exit status"
            ));
        }
        if reader.capture.records.is_empty() {
            return Err(ToolError::Io(format!(
                "{}: no results in {count} lines: neither {RECORD}lines nor result lines of the benchmark",
                path.display()
            )));
        }
        Ok(reader.capture)
    }
}

struct Reader<'r> {
    path: &'r Path,
    known: &'r Known,
    capture: Capture,
    /// The result lines since the last record.
    run: Pending,
    /// The system that boots, if the log shows it.
    system: String,
    /// The beginning of a record, whose end may be on the next lines.
    piece: Option<Piece>,
    is_verified: bool,
    /// Whether the hypervisor has begun a run, and hasn't printed its exit status yet.
    lacks_status: bool,
    /// The hypervisor's last error.
    error: Option<String>,
}

/// A run without a record so far: its result lines.
#[derive(Debug, Default)]
struct Pending {
    /// The values of its heading or command.
    facts: Record,
    phases: Vec<Phase>,
    /// The line of the first phase.
    line: usize,
}

struct Piece {
    line: usize,
    lines: usize,
    json: String,
    error: String,
}

impl Reader<'_> {
    fn line(&mut self, number: usize, text: &str) -> Result<(), ToolError> {
        if let Some(piece) = self.piece.take() {
            let begins_anew =
                text.contains(RECORD) || text.contains("@progress ") || heading(text).is_some();
            if begins_anew || piece.lines == MOST_PIECES {
                self.unreadable(&piece)?;
            } else {
                let json = piece.json + text;
                return self.record(piece.line, piece.lines + 1, json);
            }
        }
        let end = text.find(GUEST).unwrap_or(text.len());
        let own = &text[..end];
        // The rest of a record's line is the record's, even if it has the beginning of a guest's line.
        if let Some(at) = own.find(RECORD) {
            return self.record(number, 1, text[at + RECORD.len()..].to_string());
        }
        if let Some(facts) = heading(own) {
            self.end_run()?;
            self.run.facts = facts;
            self.lacks_status = true;
        } else if let Some(at) = own.find(STATUS) {
            self.status(number, own[at + STATUS.len()..].trim_end());
        } else if let Some(at) = own.find(ERROR) {
            self.error = Some(own[at + ERROR.len()..].to_string());
        } else if let Some(at) = own.find(LINUX) {
            let version = own[at + LINUX.len()..].split(['-', ' ', '+']).next();
            self.system = format!("linux {}", version.unwrap_or_default());
        } else if let Some(at) = own.find(SELFTEST) {
            self.end_run()?;
            self.run.facts = command(&own[at + SELFTEST.len()..]);
        } else if let Some(phase) = result(own) {
            let is_next = phase.name == PhaseName::Populate && !self.run.phases.is_empty();
            if is_next {
                self.end_run()?;
            }
            if self.run.phases.is_empty() {
                self.run.line = number;
            }
            self.run.phases.push(phase);
        }
        Ok(())
    }

    /// The hypervisor says how all ended.
    fn status(&mut self, line: usize, status: &str) {
        self.lacks_status = false;
        let error = self.error.take();
        if status != "0" {
            let why = error.unwrap_or_else(|| format!("the hypervisor ended with status {status}"));
            let name = self.path.display();
            self.capture.failures.push(format!("{name}:{line}: {why}"));
        }
    }

    /// Takes a record, or its first pieces.
    fn record(&mut self, line: usize, lines: usize, json: String) -> Result<(), ToolError> {
        let mut values = serde_json::Deserializer::from_str(&json).into_iter::<Record>();
        match values.next() {
            Some(Ok(record)) => {
                self.capture.records.push(record);
                self.run = Pending::default();
                Ok(())
            }
            Some(Err(error)) if !error.is_eof() => self.unreadable(&Piece {
                line,
                lines,
                json: String::new(),
                error: error.to_string(),
            }),
            _ => {
                self.piece = Some(Piece {
                    line,
                    lines,
                    json,
                    error: "it is cut".into(),
                });
                Ok(())
            }
        }
    }

    /// A record can't be read. The result lines before it have most of its values.
    fn unreadable(&mut self, piece: &Piece) -> Result<(), ToolError> {
        let what = format!(
            "{}:{}: a record that can't be read ({})",
            self.path.display(),
            piece.line,
            piece.error
        );
        if self.run.phases.is_empty() {
            return Err(ToolError::Io(what));
        }
        self.capture
            .failures
            .push(format!("{what}; its result lines are taken"));
        self.end_run()
    }

    fn end(&mut self) -> Result<(), ToolError> {
        if let Some(piece) = self.piece.take() {
            self.unreadable(&piece)?;
        }
        self.end_run()
    }

    /// Makes a record of the result lines, if there are any.
    fn end_run(&mut self) -> Result<(), ToolError> {
        let Pending {
            facts,
            phases,
            line,
        } = std::mem::take(&mut self.run);
        if phases.is_empty() {
            return Ok(());
        }
        let failed = |what: &str, option: &str| {
            Err(ToolError::Io(format!(
                "{}:{line}: result lines that don't say {what}: say it by {option}",
                self.path.display()
            )))
        };
        let used = &mut self.capture.used;
        let mut or = |said: u64, known: Option<u64>, option| {
            let said = Some(said).filter(|said| *said != 0);
            if said.is_none() {
                used.insert(option);
            }
            said.or(known)
        };
        let Some(vcpus) = or(facts.vcpus, self.known.vcpus, "--vcpus") else {
            return failed("how many vCPUs there were", "--vcpus N");
        };
        let Some(bytes_per_vcpu) = or(facts.bytes_per_vcpu, self.known.bytes, "--bytes") else {
            return failed("how much memory each vCPU had", "--bytes SIZE");
        };
        let is_parvisor = facts.system == PARVISOR;
        let system = match (facts.system.as_str(), self.system.as_str()) {
            ("linux" | "", "") => "linux".into(),
            ("linux" | "", booted) => booted.to_string(),
            (said, _) => said.to_string(),
        };
        let iterations = phases
            .iter()
            .map(|phase| phase.iteration)
            .max()
            .unwrap_or(0);
        let write_percent = match label::is_of_backing(&facts) {
            true => 0,
            false => {
                let said = or(
                    facts.write_percent,
                    self.known.write_percent,
                    "--write-percent",
                );
                said.unwrap_or(100)
            }
        };
        let known_backing = self.known.backing.clone().unwrap_or_else(|| "2M".into());
        if facts.backing.is_empty() {
            used.insert("--backing");
        }
        used.insert("--cpu");
        let ends_well = is_parvisor && self.is_verified;
        let is_whole = ends_well
            || label::is_of_backing(&facts)
            || phases.iter().any(|phase| phase.name == PhaseName::Disable);
        if !is_whole {
            self.capture.failures.push(format!(
                "{}:{line}: the log ends in the middle of a run",
                self.path.display()
            ));
        }
        self.capture.records.push(Record {
            system,
            mode: if is_parvisor {
                facts.mode
            } else {
                "kvm".into()
            },
            vcpus,
            bytes_per_vcpu,
            iterations,
            backing: if facts.backing.is_empty() {
                known_backing
            } else {
                facts.backing
            },
            write_percent,
            cpu: self.known.cpu.clone().unwrap_or_default(),
            phases,
            verified: is_parvisor && self.is_verified,
            ..facts
        });
        Ok(())
    }
}

/// A result line, wherever in the line it begins.
fn result(text: &str) -> Option<Phase> {
    let beginnings = RESULTS
        .into_iter()
        .filter_map(|beginning| text.find(beginning));
    beginnings
        .min()
        .and_then(|at| Phase::parse(text[at..].trim_end()))
}

/// The values of a heading of Parvisor, wherever in the line it begins:
/// `== mode parallel: 4 vCPUs x 64 MiB, backing 2M, 3 iterations, split eager ==`, or
/// `== cow, mode parallel: 4 vCPUs x 64 MiB, backing 4K, tracker ranges, change direct, 0 workers, overcommit 100 % ==`. Of the
/// benchmark's policies it names those that the hypervisor hasn't by default.
fn heading(text: &str) -> Option<Record> {
    let begun = &text[text.find(HEADING)? + HEADING.len()..];
    let (workload, begun) = match begun.split_once(", ") {
        Some((workload, rest)) if Changing::from_str(workload, false).is_ok() => (workload, rest),
        _ => ("", begun),
    };
    let (mode, rest) = begun.strip_prefix(MODE)?.split_once(": ")?;
    let common = Record {
        system: PARVISOR.into(),
        mode: mode.trim().into(),
        workload: workload.into(),
        ..Record::default()
    };
    let mut record = if label::is_of_backing(&common) {
        common
    } else {
        as_by_default(common)
    };
    for part in rest.trim_end_matches(['=', ' ']).split(", ") {
        policy(&mut record, part);
    }
    Some(record)
}

/// A record of the benchmark with the policies that the hypervisor has by default.
fn as_by_default(record: Record) -> Record {
    Record {
        split: Split::Fault.to_string(),
        tracking: Tracking::WriteProtect.to_string(),
        granularity: Granularity::Page4K.to_string(),
        harvest: Harvest::Bitmap.to_string(),
        harvesters: 1,
        enable: Enable::Protect.to_string(),
        clear: Clear::Manual.to_string(),
        restore: Restore::AtOnce.to_string(),
        slots: 1,
        ..record
    }
}

/// Takes the value of one part of a heading.
fn policy(record: &mut Record, part: &str) {
    let (first, second) = part.split_once(' ').unwrap_or((part, ""));
    let number = |text: &str| text.parse().unwrap_or(0);
    match (first, second) {
        ("split", word) => record.split = word.into(),
        ("tracking", word) => record.tracking = word.into(),
        ("backing", word) => record.backing = word.into(),
        ("harvest", word) => record.harvest = word.into(),
        ("enable", word) => record.enable = word.into(),
        ("clear", word) => record.clear = word.into(),
        ("restore", word) => record.restore = word.into(),
        ("granularity", word) => record.granularity = word.into(),
        ("tracker", word) => record.tracker = word.into(),
        ("change", word) => record.change = word.into(),
        ("overcommit", percent) => record.overcommit = number(percent.trim_end_matches(" %")),
        ("merging", word) => {
            let usual = MergeOptions::default();
            record.merge_targets = word.into();
            record.scanners = u64::from(record.workload != Changing::Merge.to_string());
            record.pages_to_scan = usual.pages_to_scan;
            record.max_page_sharing = usual.max_page_sharing;
        }
        ("scanners", count) => record.scanners = number(count),
        ("pages_to_scan", count) => record.pages_to_scan = number(count),
        ("sleep_millisecs", count) => record.sleep_millisecs = number(count),
        ("max_page_sharing", count) => record.max_page_sharing = number(count),
        (count, "slots") => record.slots = count.parse().unwrap_or(1),
        (count, "harvesters") => record.harvesters = number(count),
        (count, "workers") => record.workers = number(count),
        (count, rest) if rest.starts_with("vCPU") => {
            record.vcpus = number(count);
            let size = rest.split_once(" x ").and_then(|(_, size)| bytes(size));
            record.bytes_per_vcpu = size.unwrap_or(0);
        }
        _ => {}
    }
}

/// A size as it is printed: `64 MiB`, `4096 bytes`.
fn bytes(text: &str) -> Option<u64> {
    let (count, unit) = text.trim().split_once(' ')?;
    let suffix = match unit {
        "bytes" => "",
        unit => unit.strip_suffix("iB")?,
    };
    let size = Size::parse(&format!("{count}{suffix}"));
    size.ok().map(|Size(bytes)| bytes)
}

/// The values of the selftest's command line. Without manual clearing (`-g`) memory is write-protected at first.
fn command(options: &str) -> Record {
    let mut record = Record {
        system: "linux".into(),
        enable: "all_set".into(),
        clear: "manual".into(),
        ..Record::default()
    };
    let mut words = options.split_whitespace().peekable();
    while let Some(word) = words.next() {
        if !word.starts_with('-') {
            continue;
        }
        let value = words.peek().copied().unwrap_or_default();
        match word {
            "-v" => record.vcpus = value.parse().unwrap_or(0),
            "-b" => record.bytes_per_vcpu = Size::parse(value).map_or(0, |Size(bytes)| bytes),
            "-w" => record.write_percent = value.parse().unwrap_or(0),
            "-x" => record.slots = value.parse().unwrap_or(0),
            "-s" if value.contains("thp") || value.contains("2mb") => record.backing = "2M".into(),
            "-s" if value.contains("1gb") => record.backing = "1G".into(),
            "-s" => record.backing = "4K".into(),
            "-a" => record.random = true,
            "-g" => {
                record.enable = "protect".into();
                record.clear = "with_get".into();
            }
            _ => {}
        }
    }
    record
}

#[cfg(test)]
mod tests;
