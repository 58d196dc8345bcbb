//! The results of a benchmark as a file: everything that tables, plots and page are made of, so that they can be made
//! again from it alone.

use std::path::Path;

use records::record::Record;
use serde::{Deserialize, Serialize};

use emulator::error::ToolError;
use emulator::files;

/// The version of the file's format. A reader refuses others.
pub const FORMAT: u64 = 1;

/// The results of measurements, and their circumstances.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// The version of this format.
    pub format: u64,
    /// The command that measures it again, word by word.
    pub command: Vec<String>,
    /// The version of Parvisor, as git describes it.
    pub version: String,
    /// The machine that the emulator ran on; nothing for a board.
    pub host: Option<Host>,
    /// The clock, unless it is the machine's.
    pub clock: Option<Clock>,
    /// The runs, in their order.
    pub runs: Vec<Run>,
    /// The runs without a result or with a wrong one, and why.
    #[serde(default)]
    pub failures: Vec<String>,
}

/// The host of the emulator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// The CPUs that the emulator could use.
    pub cpus: u64,
    /// The emulator's version.
    pub emulator: String,
}

/// A clock that was simulated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clock {
    /// That it was.
    pub simulated: bool,
    /// The cost of moving a cache line from one CPU to another, in nanoseconds.
    pub line_cost_ns: u64,
    /// The cost of a broadcast TLB invalidation, in nanoseconds.
    pub tlbi_cost_ns: u64,
    /// How many instructions CPUs may be apart.
    #[serde(default)]
    pub quantum: u64,
}

/// One run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Which repetition of the matrix it belongs to, from 1.
    pub repeat: u64,
    /// Its record.
    pub record: Record,
}

impl Results {
    /// Reads results from the text of a file called `name`.
    ///
    /// # Errors
    ///
    /// One line that names the file, and where in it the text can't be understood.
    pub fn parse(name: &Path, text: &str) -> Result<Self, ToolError> {
        let failed = |why: String| Err(ToolError::Io(format!("{}{why}", name.display())));
        let value: serde_json::Value = match serde_json::from_str(text) {
            Ok(value) => value,
            Err(error) => return failed(format!(":{}: {error}", error.line())),
        };
        match value.get("format").map(serde_json::Value::as_u64) {
            Some(Some(FORMAT)) => {}
            Some(Some(other)) => {
                return failed(format!(
                    ": results of format {other}; this version reads format {FORMAT}"
                ));
            }
            _ => {
                return failed(
                    ": no results of scripts/bench: there is no number \"format\"".into(),
                );
            }
        }
        // Read again from the text, as errors then know their line.
        match serde_json::from_str(text) {
            Ok(results) => Ok(results),
            Err(error) => failed(format!(":{}: {error}", error.line())),
        }
    }

    /// Writes the results to `path`, which never holds half of them.
    ///
    /// # Errors
    ///
    /// One line that names the file.
    pub fn write(&self, path: &Path) -> Result<(), ToolError> {
        let failed =
            |error: &dyn std::fmt::Display| ToolError::Io(format!("{}: {error}", path.display()));
        let mut text = serde_json::to_string_pretty(self).map_err(|error| failed(&error))?;
        text.push('\n');
        files::replace(path, text.as_bytes()).map_err(|error| failed(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn refusal(text: &str) -> String {
        let error = Results::parse(Path::new("some.json"), text).expect_err("it isn't sound");
        let line = error.to_string();
        assert!(!line.contains('\n'), "{line}");
        line
    }

    #[test]
    fn results_come_back_from_their_file() {
        let folder = tempfile::TempDir::new().expect("room for a folder");
        let path = folder.path().join("results.json");
        let results = Results {
            format: FORMAT,
            command: vec!["scripts/bench".into()],
            clock: Some(Clock {
                simulated: true,
                line_cost_ns: 100,
                tlbi_cost_ns: 0,
                quantum: 50,
            }),
            runs: vec![Run {
                repeat: 1,
                record: Record::default(),
            }],
            ..Results::default()
        };
        results.write(&path).expect("the folder is ours");
        let text = fs::read_to_string(&path).expect("it was written");
        assert_eq!(Results::parse(&path, &text), Ok(results));
        assert_eq!(fs::read_dir(folder.path()).expect("ours").count(), 1);
    }

    #[test]
    fn what_is_no_result_is_refused_by_file_and_line() {
        assert!(refusal("{\n{").starts_with("some.json:2: "));
        assert!(refusal(r#"{"format":2}"#).contains("format 2"));
        assert!(refusal("{}").contains("\"format\""));
        assert!(refusal("{\"format\":1,\n\"command\":3}").starts_with("some.json:2: "));
    }
}
