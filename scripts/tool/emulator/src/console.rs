//! Reads the hypervisor's console line by line. `control` and `workloads` write these forms: result lines for people, `@record`
//! and `@progress` lines for this tool, errors, and the exit status as the last line.
//!
//! A guest can print whatever it likes, but only in lines that begin with `guest: `, or with its name in brackets if it is one
//! of several; none of the other forms can be forged by it.

use serde::Deserialize;

use records::options::is_name;
use records::record::Record;

/// The longest line that is kept; of a longer one the rest counts as further lines. A record has some 700 bytes for each
/// iteration, of which there are at most 65,535.
pub const LONGEST_LINE: usize = 64 << 20;

/// One line of the console.
#[derive(Clone, Debug, PartialEq)]
pub enum Line {
    /// A measured run.
    Record(Box<Record>),
    /// How far a run has come.
    Progress(Progress),
    /// A line for this tool that it can't read, and why.
    Unreadable(String),
    /// One line of an error.
    Error(String),
    /// The first line of the report on a fatal exception or a panic.
    Fatal(String),
    /// The exit status: nothing follows.
    ExitStatus(i32),
    /// A result of the benchmark, the heading of a run, the account of the frames after it, why it takes longer than it was to,
    /// or where a vCPU is that makes no progress.
    Result(String),
    /// A line that a guest printed.
    Guest(String),
    /// Anything else: log lines, counters, the lines of a report.
    Other(String),
}

/// How far a run has come.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Progress {
    /// The mode that runs.
    pub mode: String,
    /// How many of its steps are done.
    pub step: u64,
    /// How many steps it has.
    pub steps: u64,
}

/// Counts the runs of one boot by the progress that they make: each begins at its first step.
#[derive(Debug, Default)]
pub struct Runs {
    ended: u64,
    last: Option<Progress>,
}

impl Runs {
    /// Takes the next progress; gives how many runs have ended before the one that makes it.
    pub fn take(&mut self, progress: &Progress) -> u64 {
        let is_another = |last: &Progress| last.mode != progress.mode || last.step > progress.step;
        if self.last.as_ref().is_some_and(is_another) {
            self.ended += 1;
        }
        self.last = Some(progress.clone());
        self.ended
    }
}

impl Line {
    /// Reads one line, without its end.
    pub fn parse(text: &str) -> Self {
        if let Some(json) = text.strip_prefix("@record ") {
            return match serde_json::from_str(json) {
                Ok(record) => Self::Record(Box::new(record)),
                Err(error) => Self::Unreadable(format!("a record that can't be read ({error})")),
            };
        }
        if let Some(json) = text.strip_prefix("@progress ") {
            return match serde_json::from_str(json) {
                Ok(progress) => Self::Progress(progress),
                Err(error) => {
                    Self::Unreadable(format!("a progress line that can't be read ({error})"))
                }
            };
        }
        if let Some(error) = text.strip_prefix("parvisor: error: ") {
            return Self::Error(error.to_string());
        }
        if text.starts_with("parvisor: FATAL") {
            return Self::Fatal(text.to_string());
        }
        if let Some(status) = text
            .strip_prefix("parvisor: exit status ")
            .and_then(|status| status.trim().parse().ok())
        {
            return Self::ExitStatus(status);
        }
        if let Some(printed) = text.strip_prefix("guest: ").or_else(|| of_vm(text)) {
            return Self::Guest(printed.to_string());
        }
        let is_account = text.starts_with("frames: ") || text.contains(" after its end: ");
        let is_vcpu = text.starts_with("VM ") && text.contains(", vCPU ");
        let sums = ["== ", "stress: ", "stress counters: ", "merging counters: "];
        let is_heading = sums.iter().any(|start| text.starts_with(start));
        if is_heading || is_account || is_vcpu || is_result(text) {
            return Self::Result(text.to_string());
        }
        Self::Other(text.to_string())
    }
}

/// What one of several VMs has printed.
fn of_vm(text: &str) -> Option<&str> {
    let (name, printed) = text.strip_prefix('[')?.split_once(']')?;
    let printed = printed.strip_prefix([' ', '+'])?;
    is_name(name).then_some(printed)
}

/// Whether this is a result line of `dirty_log_perf_test`: `<what> time: <seconds>s`.
fn is_result(text: &str) -> bool {
    text.split_once(" time: ").is_some_and(|(what, time)| {
        !what.starts_with('[')
            && time
                .strip_suffix('s')
                .is_some_and(|number| number.parse::<f64>().is_ok_and(f64::is_finite))
    })
}

/// Cuts a stream of bytes into lines, whatever it carries: bytes that aren't UTF-8 are replaced, carriage returns
/// dropped, endless lines cut.
#[derive(Debug, Default)]
pub struct Splitter {
    partial: Vec<u8>,
}

impl Splitter {
    /// Takes the next bytes; calls `line` for every line that they complete.
    pub fn push(&mut self, bytes: &[u8], mut line: impl FnMut(&str)) {
        for &byte in bytes {
            if byte == b'\n' || self.partial.len() == LONGEST_LINE {
                self.finish(&mut line);
            }
            if byte != b'\n' {
                self.partial.push(byte);
            }
        }
    }

    /// Gives the last line if the stream ended within it.
    pub fn end(&mut self, mut line: impl FnMut(&str)) {
        if !self.partial.is_empty() {
            self.finish(&mut line);
        }
    }

    fn finish(&mut self, line: &mut impl FnMut(&str)) {
        let text = String::from_utf8_lossy(&self.partial);
        line(text.trim_end_matches('\r'));
        self.partial.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: &str = include_str!("../samples/record.json").trim_ascii();

    #[test]
    fn every_form_of_line_is_told_apart() {
        let record = serde_json::from_str(RECORD).expect("the sample is a record");
        assert_eq!(
            Line::parse(&format!("@record {RECORD}")),
            Line::Record(Box::new(record))
        );
        assert_eq!(
            Line::parse(r#"@progress {"mode":"mutex","step":2,"steps":9}"#),
            Line::Progress(Progress {
                mode: "mutex".into(),
                step: 2,
                steps: 9
            })
        );
        assert_eq!(
            Line::parse("parvisor: error: vcpus=9: x"),
            Line::Error("vcpus=9: x".into())
        );
        assert!(matches!(
            Line::parse("parvisor: FATAL data abort"),
            Line::Fatal(_)
        ));
        assert_eq!(Line::parse("parvisor: exit status 3"), Line::ExitStatus(3));
        assert_eq!(Line::parse("guest: hello"), Line::Guest("hello".into()));
        assert!(matches!(
            Line::parse("== mode parallel: 4 vCPUs x 64 MiB =="),
            Line::Result(_)
        ));
        assert!(matches!(
            Line::parse("Iteration 1 dirty memory time: 0.123456789s"),
            Line::Result(_)
        ));
        assert!(matches!(
            Line::parse("vm1 after its end: table 0 guest 0 pending 0"),
            Line::Result(_)
        ));
        assert!(matches!(
            Line::parse("stress: 5 s beyond its time"),
            Line::Result(_)
        ));
        assert!(matches!(
            Line::parse("VM 0, vCPU 1: runs at EL1, pc 0x40200040"),
            Line::Result(_)
        ));
        assert!(matches!(
            Line::parse("[   0.1 cpu0] INFO boot time: 0.1s"),
            Line::Other(_)
        ));
        assert!(matches!(
            Line::parse("spent some time: a lots"),
            Line::Other(_)
        ));
    }

    #[test]
    fn a_guest_cannot_forge_what_the_tool_believes() {
        for forged in [
            "@record {}",
            "parvisor: exit status 0",
            "parvisor: error: x",
            "VM 0 after its end: none",
        ] {
            assert_eq!(
                Line::parse(&format!("guest: {forged}")),
                Line::Guest(forged.into())
            );
            for tag in ["[a] ", "[vm-2]+"] {
                let line = Line::parse(&format!("{tag}{forged}"));
                assert_eq!(line, Line::Guest(forged.into()));
            }
        }
    }

    #[test]
    fn a_malformed_record_is_unreadable_and_not_lost() {
        assert!(matches!(
            Line::parse("@record {\"mode\":1}"),
            Line::Unreadable(_)
        ));
        assert!(matches!(
            Line::parse("@progress nonsense"),
            Line::Unreadable(_)
        ));
        assert!(matches!(
            Line::parse("parvisor: exit status many"),
            Line::Other(_)
        ));
    }

    #[test]
    fn runs_are_told_apart_by_their_progress() {
        let mut runs = Runs::default();
        let mut take = |mode: &str, step| {
            let mode = mode.into();
            runs.take(&Progress {
                mode,
                step,
                steps: 2,
            })
        };
        assert_eq!((take("mutex", 0), take("mutex", 2)), (0, 0));
        assert_eq!((take("mutex", 0), take("mutex", 1)), (1, 1));
        assert_eq!(take("parallel", 1), 2);
    }

    #[test]
    fn the_splitter_copes_with_any_bytes() {
        let mut lines = Vec::new();
        let mut splitter = Splitter::default();
        for piece in [&b"one\r\ntw"[..], b"o\n\n\xff\xfe", b"\nlast"] {
            splitter.push(piece, |line| lines.push(line.to_string()));
        }
        splitter.end(|line| lines.push(line.to_string()));
        assert_eq!(lines, ["one", "two", "", "\u{fffd}\u{fffd}", "last"]);
    }

    #[test]
    fn an_endless_line_is_cut() {
        let mut lengths = Vec::new();
        let mut splitter = Splitter::default();
        splitter.push(&vec![b'x'; LONGEST_LINE * 2 + 5], |line| {
            lengths.push(line.len())
        });
        splitter.end(|line| lengths.push(line.len()));
        assert_eq!(lengths, [LONGEST_LINE, LONGEST_LINE, 5]);
    }
}
