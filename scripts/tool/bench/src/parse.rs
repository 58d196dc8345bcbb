//! Reads results from files: those of `scripts/bench` and `scripts/run`, and logs that were captured on a machine's serial line.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use records::record::Record;

use super::capture::{Capture, Known};
use super::results::{FORMAT, Results, Run};
use ::options::usage;
use emulator::error::ToolError;

/// Reads all of these files as one set of results.
///
/// # Errors
///
/// One line that names the file, and its line if known; or the option for a value that no file lacks.
pub fn read(paths: &[PathBuf], known: &Known) -> Result<Results, ToolError> {
    let mut all: Option<Results> = None;
    let mut unused = known.said();
    for path in paths {
        let bytes = fs::read(path)
            .map_err(|error| ToolError::Usage(format!("--parse {}: {error}", path.display())))?;
        let text = String::from_utf8_lossy(&bytes);
        let read = parse(path, &text, known, &mut unused)?;
        all = Some(match all {
            None => read,
            Some(earlier) => joined(earlier, read, path)?,
        });
    }
    if let Some(option) = unused.first() {
        return usage(format!("{option}: all that is parsed says it itself"));
    }
    match all {
        None => usage("--parse: no file is named"),
        Some(mut results) => {
            if paths.len() > 1 || results.command.is_empty() {
                let files = paths.iter().map(|path| path.to_string_lossy().into_owned());
                let command = ["scripts/bench".to_string(), "--parse".to_string()];
                results.command = command.into_iter().chain(files).collect();
            }
            Ok(results)
        }
    }
}

/// Reads the text of one file, whatever form it has.
fn parse(
    path: &Path,
    text: &str,
    known: &Known,
    unused: &mut BTreeSet<&'static str>,
) -> Result<Results, ToolError> {
    let mut failures = Vec::new();
    let mut beginning = text.chars().filter(|c| !c.is_whitespace());
    let records = match (beginning.next(), beginning.next()) {
        (Some('{'), _) => return Results::parse(path, text),
        // A log line may begin with a bracket too, but not in this way.
        (Some('['), Some('{' | ']')) => serde_json::from_str(text).map_err(|error| {
            ToolError::Io(format!("{}:{}: {error}", path.display(), error.line()))
        })?,
        _ => {
            let capture = Capture::read(path, text, known)?;
            failures = capture.failures;
            unused.retain(|option| !capture.used.contains(option));
            capture.records
        }
    };
    if records.is_empty() {
        return Err(ToolError::Io(format!(
            "{}: there are no records",
            path.display()
        )));
    }
    let runs = records.into_iter();
    Ok(Results {
        format: FORMAT,
        runs: runs
            .map(|record: Record| Run { repeat: 1, record })
            .collect(),
        failures,
        ..Results::default()
    })
}

/// Adds the results of another file, if they can be compared.
fn joined(mut earlier: Results, other: Results, path: &Path) -> Result<Results, ToolError> {
    if earlier.clock != other.clock {
        return Err(ToolError::Usage(format!(
            "--parse {}: measured with another clock than the files before, so times can't be compared",
            path.display()
        )));
    }
    earlier.runs.extend(other.runs);
    earlier.failures.extend(other.failures);
    if earlier.version != other.version {
        earlier.version = String::new();
    }
    if earlier.host != other.host {
        earlier.host = None;
    }
    Ok(earlier)
}

#[cfg(test)]
mod tests {
    use super::super::results::Clock;
    use super::super::section::tests::{record, results};
    use super::*;
    use tempfile::TempDir;

    fn file(folder: &TempDir, name: &str, contents: &str) -> PathBuf {
        let path = folder.path().join(name);
        fs::write(&path, contents).expect("the folder is ours");
        path
    }

    fn refusal(paths: &[PathBuf]) -> String {
        let error = read(paths, &Known::default()).expect_err("it can't be read");
        let line = error.to_string();
        assert!(!line.contains('\n'), "{line}");
        line
    }

    #[test]
    fn results_records_and_logs_are_told_apart() {
        let folder = TempDir::new().expect("room for a folder");
        let mutex = record("mutex", 1, 1_000_000);
        let measured = results([mutex.clone()]);
        let json = serde_json::to_string_pretty(&measured).expect("it can be said");
        let bench = file(&folder, "bench.json", &json);
        let json = serde_json::to_string_pretty(&[&mutex]).expect("it can be said");
        let run = file(&folder, "run.json", &json);
        let line = serde_json::to_string(&mutex).expect("it can be said");
        let log = file(
            &folder,
            "log",
            &format!("[ 0.1 cpu0] hello\r\n@record {line}\r\n"),
        );
        for path in [&bench, &run, &log] {
            let read = read(std::slice::from_ref(path), &Known::default()).expect("sound");
            assert_eq!(read.runs, measured.runs, "{}", path.display());
        }
        let all = read(&[bench, run, log], &Known::default()).expect("sound");
        assert_eq!(all.runs.len(), 3);
        assert_eq!(all.command[1], "--parse");
    }

    #[test]
    fn what_the_files_say_themselves_isnt_to_be_said() {
        let folder = TempDir::new().expect("room for a folder");
        let line = serde_json::to_string(&record("mutex", 1, 1_000_000)).expect("it can be said");
        let log = file(&folder, "log", &format!("@record {line}\n"));
        let known = Known {
            vcpus: Some(8),
            ..Known::default()
        };
        let error = read(std::slice::from_ref(&log), &known).expect_err("it says 1 vCPU");
        assert_eq!(
            error.to_string(),
            "--vcpus: all that is parsed says it itself"
        );
        let lines = "Populate memory time: 0.001372000s\nDisabling dirty logging time: 0.001s\n";
        let bare = file(&folder, "bare", lines);
        let known = Known {
            bytes: Some(4096),
            ..known
        };
        let runs = read(&[log, bare], &known).expect("sound").runs;
        assert_eq!(runs[1].record.vcpus, 8);
    }

    #[test]
    fn a_log_that_is_cut_is_a_failure() {
        let folder = TempDir::new().expect("room for a folder");
        let line = serde_json::to_string(&record("mutex", 1, 1_000_000)).expect("it can be said");
        let heading = "== mode mutex: 1 vCPUs x 4 MiB, backing 2M, 1 iterations ==";
        let populate = "Populate memory time: 0.001372000s";
        let disable = "Disabling dirty logging time: 0.001452000s";
        let run = format!("{heading}\n{populate}\n{disable}\n@record {line}\n");
        let failures = |text: &str| {
            let log = file(&folder, "log", text);
            read(&[log], &Known::default())
                .expect("some results")
                .failures
        };
        let end = "parvisor: exit status 0";
        assert!(failures(&format!("{run}{run}{end}\n")).is_empty());
        for (text, why) in [
            (run.clone(), "before the hypervisor's exit status"),
            (
                format!("{run}{heading}\n"),
                "before the hypervisor's exit status",
            ),
            (
                format!("./dirty_log_perf_test -v 4 -b 8M\n{populate}\n"),
                "in the middle of a run",
            ),
            (
                format!("{run}{heading}\n{populate}\n@record {{\"mo"),
                "can't be read",
            ),
            (
                format!("{run}parvisor: error: it broke\nparvisor: exit status 1\n"),
                "it broke",
            ),
        ] {
            let found = failures(&text);
            let named = found
                .iter()
                .any(|failure| failure.contains("log") && failure.contains(why));
            assert!(named, "{text}: {found:?}");
        }
    }

    #[test]
    fn bad_files_are_named() {
        let folder = TempDir::new().expect("room for a folder");
        let missing = folder.path().join("missing");
        assert!(refusal(&[missing]).contains("missing"));
        assert!(refusal(&[folder.path().into()]).contains("directory"));
        let garbage = file(&folder, "garbage", "\u{1}\u{2}\nnothing here\n");
        assert!(refusal(&[garbage]).contains("garbage"));
        let empty = file(&folder, "empty", "");
        assert!(refusal(&[empty]).contains("empty"));
        let cut = file(&folder, "cut.json", "[\n{\"mode\": \"par");
        assert!(refusal(&[cut]).contains("cut.json:2:"));
        let none = file(&folder, "none.json", "[]");
        assert!(refusal(&[none]).contains("no records"));
    }

    #[test]
    fn other_clocks_arent_compared() {
        let folder = TempDir::new().expect("room for a folder");
        let mut simulated = results([record("mutex", 1, 1_000_000)]);
        let real = serde_json::to_string(&simulated).expect("it can be said");
        simulated.clock = Some(Clock {
            simulated: true,
            line_cost_ns: 100,
            tlbi_cost_ns: 0,
            quantum: 0,
        });
        let simulated = serde_json::to_string(&simulated).expect("it can be said");
        let paths = [
            file(&folder, "real", &real),
            file(&folder, "simulated", &simulated),
        ];
        assert!(refusal(&paths).contains("another clock"));
    }
}
