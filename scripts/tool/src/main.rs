//! The commands behind the scripts: `tool run …` is `scripts/run …`, `tool test …` is `scripts/test …`, and so on.

use std::env;
use std::ffi::OsString;
use std::process::ExitCode;

use tool::{bench, checks, error, mutants, process, repository, run};

fn main() -> ExitCode {
    if let Err(error) = process::end_groups_on_signals() {
        eprintln!("error: signals can't be handled: {error}");
        return ExitCode::from(error::FAILED);
    }
    if repository::find().is_none() {
        eprintln!(
            "error: this isn't run for a clone of Parvisor: use the scripts in its folder scripts"
        );
        return ExitCode::from(error::USAGE);
    }
    let mut arguments = env::args_os().skip(1);
    let command = arguments.next().unwrap_or_default();
    let named = |name: &str| std::iter::once(OsString::from(name)).chain(arguments);
    ExitCode::from(match command.to_str() {
        Some("bench") => bench::main(named("scripts/bench")),
        Some("run") => run::main(named("scripts/run")),
        Some("test") => checks::main(named("scripts/test")),
        Some("mutate") => mutants::main(named("scripts/mutate")),
        _ => {
            eprintln!("error: use scripts/run, scripts/bench, scripts/test or scripts/mutate");
            error::USAGE
        }
    })
}
