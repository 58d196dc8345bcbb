//! `scripts/bench`: a matrix of benchmark runs in one command, and its results as tables, JSON, plots and one page.
//!
//! | module | concept |
//! |---|---|
//! | `options` | the user's options |
//! | `matrix`, `beside` | the boots that it takes, of Parvisor and of Linux |
//! | `running` | making them, and how long that takes; Linux as the guest that is measured |
//! | `micro` | what single operations cost a guest |
//! | `results` | the results in files |
//! | `parse`, `capture` | earlier results, and logs of boards |
//! | `metric`, `statistics`, `label`, `section` | their evaluation |
//! | `table`, `plots`, `page` | how that is shown |

mod beside;
mod capture;
mod label;
mod matrix;
mod metric;
mod micro;
mod options;
mod page;
mod parse;
mod plots;
mod results;
mod running;
mod section;
mod statistics;
mod table;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread;

use self::matrix::Matrix;
use self::options::BenchOptions;
use self::results::{Clock, FORMAT, Host, Results};
use self::running::Measurement;
use self::running::guest::LinuxGuest;
use ::options::{one_line, typed, usage};
use emulator::error::{FAILED, ToolError, USAGE};
use emulator::files;
use emulator::front_end::{self, named};
use emulator::images;
use emulator::repository::{repository, target_folder};
use emulator::standard_output::{self, print_line};
use emulator::{qemu, setup, simclock};
use records::words::Profile;

/// How the hypervisor is built that is measured.
const PROFILE: Profile = Profile::Best;

fn main() -> ExitCode {
    front_end::run(|arguments| command(named("scripts/bench", arguments)))
}

/// Runs the command with these arguments, the first of which is its name. Gives the exit status.
fn command(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let options = match BenchOptions::parse_arguments(arguments.clone()) {
        Ok(options) => options,
        Err(error) if !error.use_stderr() => {
            // `--help`.
            standard_output::note(error.print());
            return 0;
        }
        Err(error) => {
            eprintln!("error: {} (see scripts/bench --help)", one_line(&error));
            return USAGE;
        }
    };
    let done = if options.micro {
        micro::measure(&options)
    } else if options.parse.is_empty() {
        measure(&options, &arguments)
    } else {
        render(&options)
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        error.exit_status()
    })
}

/// Shows earlier results again.
fn render(options: &BenchOptions) -> Result<u8, ToolError> {
    options.check_parse()?;
    if let Some(folder) = &options.out {
        prepare_folder(folder, options.force)?;
    }
    check_file(options.json.as_deref())?;
    let results = parse::read(&options.parse, &options.known())?;
    if let Some(json) = &options.json {
        results.write(json)?;
    }
    show(&results, options.out.as_deref())?;
    Ok(verdict(&results))
}

/// Prints the failures; returns the exit status.
fn verdict(results: &Results) -> u8 {
    for failure in grouped(&results.failures) {
        eprintln!("error: {failure}");
    }
    if results.failures.is_empty() {
        0
    } else {
        FAILED
    }
}

/// Measures the matrix, and shows its results even if something failed.
fn measure(options: &BenchOptions, arguments: &[OsString]) -> Result<u8, ToolError> {
    if typed::measures_nothing(options.machine.append.as_deref()) {
        return usage("--append: that is nothing to measure; scripts/run takes it");
    }
    let matrix = Matrix::new(
        &options.workload,
        &options.backing,
        &options.machine,
        options.logged(),
    )?;
    check_file(options.json.as_deref())?;
    let folder = match &options.out {
        Some(folder) => folder.clone(),
        None => new_folder()?,
    };
    prepare_folder(&folder, options.force)?;
    setup::rust_target()?;
    let emulator = setup::emulator()?;
    let linux = match options.linux {
        None => None,
        Some(series) => Some(LinuxGuest::prepare(series, PROFILE)?),
    };
    let images = images::build(PROFILE)?;
    let simulation = match options.machine.costs() {
        None => None,
        Some(costs) => Some((
            simclock::prepare(&emulator, costs)?,
            qemu::hypervisor_text(&images.symbols)?,
        )),
    };
    let kernels = match options.with_kvm.as_slice() {
        [] => Vec::new(),
        wanted => linux::prepare(wanted, |what| eprintln!("setup: {what}"))?,
    };
    let (beside, further) = beside::tests(
        &matrix.boots,
        &kernels,
        &options.machine,
        simulation.as_ref().map(|(simulation, _)| simulation),
    );
    for notice in matrix.notices.iter().chain(&further) {
        eprintln!("note: left out: {notice}");
    }
    let mut results = Results {
        format: FORMAT,
        command: reproducing(arguments),
        version: version(),
        host: Some(host(&emulator)),
        clock: simulation.as_ref().map(|(simulation, _)| Clock {
            simulated: true,
            line_cost_ns: simulation.costs().line_ns,
            tlbi_cost_ns: simulation.costs().tlbi_ns,
            quantum: simulation.quantum_ns(),
        }),
        ..Results::default()
    };
    let measurement = Measurement {
        emulator: &emulator,
        hypervisor: images.hypervisor,
        guest: images.dirty_log,
        linux,
        simulation,
        options: &options.machine,
        boots: &matrix.boots,
        beside: &beside,
        repeat: options.repeat,
        files: std::iter::once(folder.join(page::RESULTS))
            .chain(options.json.clone())
            .collect(),
    };
    measurement.run(&mut results)?;
    show(&results, Some(&folder))?;
    Ok(verdict(&results))
}

/// Prints the tables, and writes the page with its plots if there is a folder for it.
fn show(results: &Results, folder: Option<&Path>) -> Result<(), ToolError> {
    print_line(page::text(results).trim_end_matches('\n'));
    if let Some(folder) = folder {
        page::write(results, folder)?;
        print_line(format_args!(
            "\nPage, plots and results: {}",
            folder.join(page::PAGE).display()
        ));
    }
    Ok(())
}

/// The command that measures the same again: without the places where results went.
fn reproducing(arguments: &[OsString]) -> Vec<String> {
    let mut words = arguments
        .iter()
        .map(|word| word.to_string_lossy().into_owned());
    let mut kept = Vec::new();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--out" | "--json" => {
                words.next();
            }
            "-v" | "--verbose" | "--force" => {}
            other if other.starts_with("--out=") || other.starts_with("--json=") => {}
            _ => kept.push(word),
        }
    }
    kept
}

/// Failures in one line each; those with the same cause are one.
fn grouped(failures: &[String]) -> Vec<String> {
    let mut causes: BTreeMap<&str, (usize, &str)> = BTreeMap::new();
    for failure in failures {
        let cause = failure.split_once(": ").map_or("", |(_, cause)| cause);
        let (count, _) = causes.entry(cause).or_insert((0, failure));
        *count += 1;
    }
    let lines = causes.into_values().map(|(count, first)| match count {
        1 => first.to_string(),
        2 => format!("{first} (and another run)"),
        several => format!("{first} (and {} other runs)", several - 1),
    });
    lines.collect()
}

/// Checks that a file can be written, before anything is measured.
fn check_file(path: Option<&Path>) -> Result<(), ToolError> {
    let Some(path) = path else {
        return Ok(());
    };
    files::check_option("--json", path)
}

/// A new folder among those of earlier measurements.
fn new_folder() -> Result<PathBuf, ToolError> {
    let parent = target_folder().join("bench");
    let failed =
        |path: &Path, error: std::io::Error| ToolError::Io(format!("{}: {error}", path.display()));
    fs::create_dir_all(&parent).map_err(|error| failed(&parent, error))?;
    let mut number = 1_u32;
    loop {
        let folder = parent.join(number.to_string());
        match fs::create_dir(&folder) {
            Ok(()) => return Ok(folder),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => number += 1,
            Err(error) => return Err(failed(&folder, error)),
        }
    }
}

/// Makes the folder if it isn't there, and checks that it can be written to, and holds no results unless the user wants those
/// replaced.
fn prepare_folder(folder: &Path, force: bool) -> Result<(), ToolError> {
    if !force && folder.join(page::RESULTS).exists() {
        return usage(format!(
            "--out {}: there are results already, which only --force replaces",
            folder.display()
        ));
    }
    let refused =
        |error: std::io::Error| ToolError::Usage(format!("--out {}: {error}", folder.display()));
    files::make_folder("--out", folder)?;
    let probe = folder.join(format!(".writable.{}", std::process::id()));
    fs::write(&probe, []).map_err(refused)?;
    fs::remove_file(&probe).map_err(refused)
}

/// The version of Parvisor, as git describes it; empty where there is no git.
fn version() -> String {
    let mut command = Command::new("git");
    command
        .current_dir(repository())
        .args(["describe", "--always", "--dirty", "--abbrev=12"])
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    first_line(&mut command)
}

/// The host of the emulator.
fn host(emulator: &Path) -> Host {
    let line = first_line(Command::new(emulator).arg("--version").stdin(Stdio::null()));
    let version = line.strip_prefix("QEMU emulator version ").unwrap_or("");
    Host {
        cpus: thread::available_parallelism().map_or(0, |count| count.get() as u64),
        emulator: version
            .split_whitespace()
            .next()
            .unwrap_or("unknown")
            .into(),
    }
}

/// The first line that a command prints; empty if it fails.
fn first_line(command: &mut Command) -> String {
    let output = command
        .output()
        .ok()
        .filter(|output| output.status.success());
    let text = output.map_or_else(String::new, |output| {
        String::from_utf8_lossy(&output.stdout).into_owned()
    });
    text.lines().next().unwrap_or_default().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_kept_without_the_places_of_its_results() {
        let arguments = [
            "scripts/bench",
            "--vcpus",
            "1,2",
            "--out",
            "x",
            "--json=y",
            "-v",
            "--repeat",
            "3",
        ];
        let arguments = arguments.map(OsString::from);
        assert_eq!(
            reproducing(&arguments),
            ["scripts/bench", "--vcpus", "1,2", "--repeat", "3"]
        );
    }

    #[test]
    fn failures_of_one_cause_are_one_line() {
        let failures = ["a: broken", "b: lost", "c: broken", "d: broken"].map(String::from);
        assert_eq!(
            grouped(&failures),
            ["a: broken (and 2 other runs)", "b: lost"]
        );
    }
}
