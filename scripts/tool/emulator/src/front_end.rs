//! The start of each command behind a script.

use std::env;
use std::ffi::OsString;
use std::process::ExitCode;

use crate::error::{FAILED, USAGE};
use crate::{process, repository, standard_output};

/// Runs a command of this repository with the arguments of this process, the first of which is the executable. `command` gives
/// the exit status; if that is 0 and standard output was lost, it is [`FAILED`].
pub fn run(command: impl FnOnce(&mut dyn Iterator<Item = OsString>) -> u8) -> ExitCode {
    if let Err(error) = process::end_groups_on_signals() {
        eprintln!("error: signals can't be handled: {error}");
        return ExitCode::from(FAILED);
    }
    if repository::find().is_none() {
        eprintln!(
            "error: this isn't run for a clone of Parvisor: use the scripts in its folder scripts"
        );
        return ExitCode::from(USAGE);
    }
    ExitCode::from(standard_output::ended(command(&mut env::args_os().skip(1))))
}

/// The arguments of `script`, the first of which is its name.
pub fn named(
    script: &str,
    arguments: &mut dyn Iterator<Item = OsString>,
) -> impl Iterator<Item = OsString> {
    std::iter::once(OsString::from(script)).chain(arguments)
}
