//! `scripts/mutate`: puts deliberate bugs into a copy of the sources, one at a time, and runs the suites until one fails.
//! A mutant that none of them catches is a missing test.
//!
//! The mutants are data under `tests/model/mutants`. The copy and what is built of it lie in a folder of their own below
//! the target folder; one run at a time has it. Ctrl-C ends whatever runs, and the next run puts the copy right.

mod baseline;
pub mod mutant;
pub mod report;
pub mod suites;
pub mod tree;

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};

use self::baseline::Baseline;
use self::mutant::{BadMutant, Mutant};
use self::report::{Document, Judged, Outcome, Tally};
use self::suites::{SUITES, Verdict};
use self::tree::Tree;
use emulator::error::{FAILED, ToolError, USAGE};
use emulator::repository::{Files, repository, snapshot, target_folder};
use emulator::standard_output::{self, print_line};
use options::one_line;

/// Puts deliberate bugs into a copy of the sources, one at a time, and shows that a test catches each of them.
///
/// The mutants are the files under tests/model/mutants. Every suite has to pass without them first. The last line counts:
/// `N caught, N survived`. Exit status: 0 all were caught; 1 one survived, or doesn't apply or compile; 2 bad options.
#[derive(Debug, Default, Parser)]
#[command(
    bin_name = "scripts/mutate",
    disable_version_flag = true,
    max_term_width = 120
)]
struct MutateOptions {
    /// List the mutants and try none.
    #[arg(long, conflicts_with_all = ["only", "write_table"])]
    list: bool,

    /// Try this mutant alone; may be given several times.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,

    /// Write the table of all mutants into this document, in the place that it marks for it.
    #[arg(long, value_name = "FILE", conflicts_with = "only")]
    write_table: Option<PathBuf>,
}

/// Runs the command with these arguments, the first of which is its name. Gives the exit status.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let options = match MutateOptions::try_parse_from(arguments) {
        Ok(options) => options,
        Err(error) if !error.use_stderr() => {
            // `--help`.
            standard_output::note(error.print());
            return 0;
        }
        Err(error) => {
            eprintln!("error: {} (see scripts/mutate --help)", one_line(&error));
            return USAGE;
        }
    };
    let result = if options.list {
        list().map(|()| 0)
    } else {
        run(&options).map(|tally| {
            print_line(format_args!("\n{tally}"));
            if tally.is_clean() { 0 } else { FAILED }
        })
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        error.exit_status()
    })
}

/// Tries all mutants and shows their results.
///
/// # Errors
///
/// If a mutant is stale or malformed, or the suites don't pass without one.
pub fn run_all() -> Result<Tally, ToolError> {
    run(&MutateOptions::default())
}

fn list() -> Result<(), ToolError> {
    let (mutants, bad) = mutant::load(&repository().join(mutant::FOLDER), SUITES);
    let files = sources()?;
    for mutant in &mutants {
        let stale = mutant.apply(&files).is_err();
        print_line(format_args!(
            "{:32} rule {:2}  {}{}",
            mutant.name,
            mutant.rule,
            mutant.title,
            if stale { " (STALE)" } else { "" }
        ));
    }
    none_bad(&bad)
}

fn run(options: &MutateOptions) -> Result<Tally, ToolError> {
    let (mutants, mut bad) = mutant::load(&repository().join(mutant::FOLDER), SUITES);
    let document = options.write_table.as_deref().map(Document::open);
    let document = document.transpose()?;
    let wanted =
        |name: &str| options.only.is_empty() || options.only.iter().any(|only| only == name);
    bad.retain(|bad| wanted(&bad.name));
    for name in &options.only {
        let is_known = mutants.iter().any(|mutant| mutant.name == *name);
        if !is_known && !bad.iter().any(|bad| bad.name == *name) {
            return Err(ToolError::Usage(format!(
                "--only {name}: there is no such mutant (see --list)"
            )));
        }
    }
    let files = sources()?;
    let mut bugs = Vec::new();
    for mutant in mutants.iter().filter(|mutant| wanted(&mutant.name)) {
        match mutant.apply(&files) {
            Ok(changed) => bugs.push((mutant, changed)),
            Err(error) => bad.push(error),
        }
    }
    none_bad(&bad)?;
    let workshop = Workshop::open(files, bugs.len())?;
    let mut judged = Vec::new();
    for (mutant, changed) in &bugs {
        let result = workshop.judge(mutant, changed)?;
        workshop.show(&result);
        judged.push(result);
    }
    workshop.bar.finish_and_clear();
    print_line(format_args!("\n{}", report::table(&judged)));
    if let Some(document) = document {
        document.write(&judged)?;
    }
    Ok(Tally::of(&judged))
}

/// All that is wrong with mutants, one line each, as one error.
fn none_bad(bad: &[BadMutant]) -> Result<(), ToolError> {
    let Some((last, others)) = bad.split_last() else {
        return Ok(());
    };
    for error in others {
        eprintln!("error: {error}");
    }
    Err(ToolError::Mutants(last.to_string()))
}

fn sources() -> Result<Files, ToolError> {
    snapshot(repository())
        .map_err(|error| ToolError::Io(format!("the sources can't be copied: {error}")))
}

/// The folder of the trials: the copy, its build, and the durations of the suites without a mutant.
struct Workshop {
    tree: Tree,
    build: PathBuf,
    baseline: Baseline,
    bar: ProgressBar,
}

impl Workshop {
    /// Makes the copy and runs every suite on it.
    fn open(files: Files, mutants: usize) -> Result<Self, ToolError> {
        let folder = folder();
        let tree = Tree::open(&folder.join("tree"), files).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => ToolError::Io("another scripts/mutate runs".into()),
            _ => ToolError::Io(format!("{}: {error}", folder.display())),
        })?;
        let build = folder.join("build");
        let bar = progress_bar(mutants);
        let baseline = Baseline::measure(&tree, &build, &folder.join("baseline.json"), |suite| {
            bar.set_message(format!("without a mutant: {suite}"));
        })?;
        bar.suspend(|| print_line(format_args!("without a mutant: {}", baseline.describe())));
        Ok(Self {
            tree,
            build,
            baseline,
            bar,
        })
    }

    /// Runs the suites on the tree with a mutant until one fails.
    fn judge<'m>(&self, mutant: &'m Mutant, changed: &Files) -> Result<Judged<'m>, ToolError> {
        let started = Instant::now();
        let failed = |error| ToolError::Io(format!("the mutant {}: {error}", mutant.name));
        self.tree.hold(changed).map_err(failed)?;
        let mut outcome = Outcome::Survived;
        let first = mutant
            .first
            .as_ref()
            .map(|selection| (mutant.suites[0], Some(selection)));
        let all = mutant.suites.iter().map(|suite| (*suite, None));
        for (suite, selection) in first.into_iter().chain(all) {
            self.bar
                .set_message(format!("{}: {}", mutant.name, suite.name));
            let limit = self.baseline.limit(suite);
            let verdict = suite.run(self.tree.folder(), &self.build, selection, limit);
            let suite = suite.name;
            outcome = match verdict.map_err(failed)? {
                Verdict::Passed(_) => continue,
                Verdict::Failed(by) => Outcome::Caught { suite, by },
                Verdict::NotBuilt(error) => Outcome::Broken(error),
            };
            break;
        }
        self.tree.hold(&Files::new()).map_err(failed)?;
        Ok(Judged {
            mutant,
            outcome,
            time: started.elapsed(),
        })
    }

    /// Shows the result of one mutant.
    fn show(&self, judged: &Judged<'_>) {
        let Judged {
            mutant,
            outcome,
            time,
        } = judged;
        self.bar.inc(1);
        self.bar.suspend(|| {
            print_line(format_args!(
                "{:32} {}, {} s",
                mutant.name,
                outcome.describe(),
                time.as_secs()
            ));
            if let Outcome::Broken(error) = outcome {
                eprintln!(
                    "error: the mutant {} doesn't compile, so it shows nothing: {error}",
                    mutant.name
                );
            }
        });
    }
}

/// Where the copy lies and is built: below the target folder.
fn folder() -> PathBuf {
    target_folder().join("mutants")
}

fn progress_bar(mutants: usize) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(mutants as u64);
    let style =
        ProgressStyle::with_template("[{elapsed_precise}] {bar:40} {pos}/{len}, {eta} left {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.enable_steady_tick(Duration::from_millis(250));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_of_a_few_mutants_is_not_written() {
        let parse = |arguments: &[&str]| {
            let arguments = ["scripts/mutate"].iter().chain(arguments);
            MutateOptions::try_parse_from(arguments)
        };
        assert!(parse(&["--only", "a", "--only", "b"]).is_ok());
        assert!(parse(&["--only", "a", "--write-table", "b"]).is_err());
        assert!(parse(&["--list", "--write-table", "b"]).is_err());
    }

    #[test]
    fn an_unknown_mutant_is_a_bad_option() {
        let only = vec!["no-such-mutant".to_string()];
        let options = MutateOptions {
            only,
            ..MutateOptions::default()
        };
        let error = run(&options).expect_err("there is none");
        assert_eq!(error.exit_status(), USAGE);
    }
}
