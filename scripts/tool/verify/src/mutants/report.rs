//! The results of the mutants: the counts, and the table that is printed and kept in the documentation.

use std::fs;
use std::path::Path;
use std::time::Duration;

use comfy_table::{Table, presets};

use super::mutant::Mutant;
use super::suites::Failure;
use emulator::error::ToolError;

/// In a document, the table stands between these two lines.
const BEGIN: &str = "<!-- mutants -->";
const END: &str = "<!-- end of mutants -->";

/// A mutant that was tried.
#[derive(Debug)]
pub struct Judged<'m> {
    /// The mutant.
    pub mutant: &'m Mutant,
    /// Its result.
    pub outcome: Outcome,
    /// How long that took, building included.
    pub time: Duration,
}

/// The result of a mutant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A suite failed, as it has to.
    Caught {
        /// The suite's name.
        suite: &'static str,
        /// How it failed.
        by: Failure,
    },
    /// Every suite passed: a test is missing.
    Survived,
    /// It doesn't compile, so nothing was shown.
    Broken(String),
}

impl Outcome {
    /// In a few words.
    pub fn describe(&self) -> String {
        match self {
            Self::Caught { suite, by } => format!("{suite}: {by}"),
            Self::Survived => "SURVIVED".into(),
            Self::Broken(_) => "DOES NOT COMPILE".into(),
        }
    }
}

/// How many mutants ended in which way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Caught by a test.
    pub caught: u64,
    /// Not caught.
    pub survived: u64,
    /// Not compiled.
    pub broken: u64,
}

impl Tally {
    /// Counts.
    pub fn of(judged: &[Judged<'_>]) -> Self {
        let mut tally = Self::default();
        for Judged { outcome, .. } in judged {
            *match outcome {
                Outcome::Caught { .. } => &mut tally.caught,
                Outcome::Survived => &mut tally.survived,
                Outcome::Broken(_) => &mut tally.broken,
            } += 1;
        }
        tally
    }

    /// Whether every mutant was caught.
    pub fn is_clean(self) -> bool {
        self.survived == 0 && self.broken == 0
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} caught, {} survived", self.caught, self.survived)?;
        if self.broken != 0 {
            write!(f, ", {} not compiled", self.broken)?;
        }
        Ok(())
    }
}

/// The table for the terminal, with the time that each mutant took.
pub fn table(judged: &[Judged<'_>]) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["mutant", "rule", "caught by", "s"]);
    for Judged {
        mutant,
        outcome,
        time,
    } in judged
    {
        table.add_row([
            mutant.name.clone(),
            mutant.rule.to_string(),
            outcome.describe(),
            time.as_secs().to_string(),
        ]);
    }
    table.to_string()
}

/// The table for a document: each mutant with the test that catches it. It has no times, which would change with each run.
fn markdown(judged: &[Judged<'_>]) -> String {
    let mut lines = vec![
        "| rule | mutant | the bug | caught by |".to_string(),
        "|---|---|---|---|".to_string(),
    ];
    for Judged {
        mutant, outcome, ..
    } in judged
    {
        let by = match outcome {
            Outcome::Caught {
                suite,
                by: Failure::Test(test),
            } => format!("{suite}: `{test}`"),
            other => other.describe(),
        };
        let title = mutant.title.replace('|', "\\|");
        lines.push(format!(
            "| {} | `{}` | {title} | {by} |",
            mutant.rule, mutant.name
        ));
    }
    lines.push(format!("\n{}.", Tally::of(judged)));
    lines.join("\n")
}

/// A document that keeps the table.
#[derive(Debug)]
pub struct Document<'p> {
    path: &'p Path,
    before: String,
    after: String,
}

impl<'p> Document<'p> {
    /// Reads the document and finds the table's place.
    ///
    /// # Errors
    ///
    /// If it can't be read, or has no such place.
    pub fn open(path: &'p Path) -> Result<Self, ToolError> {
        let text = fs::read_to_string(path).map_err(|error| in_file(path, &error))?;
        let places = text
            .split_once(BEGIN)
            .and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
        let (before, after) = places.ok_or_else(|| {
            let missing = format!("there is no place for the table between {BEGIN} and {END}");
            in_file(path, &missing)
        })?;
        Ok(Self {
            path,
            before: before.into(),
            after: after.into(),
        })
    }

    /// Writes it with this table.
    ///
    /// # Errors
    ///
    /// If it can't be written.
    pub fn write(&self, judged: &[Judged<'_>]) -> Result<(), ToolError> {
        fs::write(self.path, self.with(&markdown(judged)))
            .map_err(|error| in_file(self.path, &error))
    }

    fn with(&self, table: &str) -> String {
        let Self { before, after, .. } = self;
        format!("{before}{BEGIN}\n{table}\n{END}{after}")
    }
}

fn in_file(path: &Path, error: &dyn std::fmt::Display) -> ToolError {
    ToolError::Io(format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mutants::mutant::tests::mutant;

    fn with_results(check: impl FnOnce(&[Judged<'_>])) {
        let change = "[[change]]\nfind = 'a'\nreplace = 'b'\n";
        let mutants = ["first", "second", "third"].map(|name| mutant(name, change).expect(name));
        let by = Failure::Test("a::test".into());
        let outcomes = [
            Outcome::Caught { suite: "loom", by },
            Outcome::Survived,
            Outcome::Broken("a.rs:1:1: error".into()),
        ];
        let judged = |(mutant, outcome)| Judged {
            mutant,
            outcome,
            time: Duration::from_secs(7),
        };
        let judged: Vec<_> = mutants.iter().zip(outcomes).map(judged).collect();
        check(&judged);
    }

    #[test]
    fn a_clean_tally_is_one_in_which_all_were_caught() {
        with_results(|judged| {
            let tally = Tally::of(judged);
            assert_eq!(tally.to_string(), "1 caught, 1 survived, 1 not compiled");
            assert!(!tally.is_clean());
            assert!(Tally::of(&judged[..1]).is_clean());
            assert_eq!(Tally::of(&judged[..1]).to_string(), "1 caught, 0 survived");
        });
    }

    #[test]
    fn the_tables_name_what_caught_each() {
        with_results(|judged| {
            let table = table(judged);
            let line = |name: &str| {
                let line = table.lines().find(|line| line.contains(name));
                let cells = line.expect("a row").split('|').map(str::trim);
                cells.collect::<Vec<_>>().join("|")
            };
            assert_eq!(line("first"), "|first|2|loom: a::test|7|");
            assert_eq!(line("second"), "|second|2|SURVIVED|7|");
            let markdown = markdown(judged);
            assert!(markdown.contains("| 2 | `first` | a bug | loom: `a::test` |\n"));
            assert!(markdown.ends_with("\n\n1 caught, 1 survived, 1 not compiled."));
        });
    }

    #[test]
    fn in_a_document_only_the_table_changes() {
        let path = std::env::temp_dir().join(format!("parvisor-table-{}", std::process::id()));
        fs::write(&path, format!("# a\n{BEGIN}\nold\n{END}\nb\n")).expect("a document");
        let document = Document::open(&path).expect("it has a place");
        assert_eq!(
            document.with("new"),
            format!("# a\n{BEGIN}\nnew\n{END}\nb\n")
        );
        fs::write(&path, format!("{END}{BEGIN}")).expect("a document");
        let error = Document::open(&path)
            .expect_err("it has no place")
            .to_string();
        assert!(error.contains("no place for the table"), "{error}");
        fs::remove_file(&path).expect("it is there");
    }
}
