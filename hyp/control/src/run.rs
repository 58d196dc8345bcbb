//! Runs the guests that the user's options ask for, from the command line to their end.

use crate::error::RunError;
use crate::guest::Host;
use crate::linux;
use crate::machine::Machine;
use crate::modules::Modules;
use crate::options::OptionError;
use crate::program;
use crate::request::{Request, Requests};
use core::fmt;
use memory::frames::MAX_VMS;
use memory::{MmuLock, Mutexed, Parallel, RwLocked, VmId};
use records::options::{BOOT_OPTIONS, EARLY_OPTIONS};
use records::words::{GuestKind, Mode};

/// Why nothing could be run to its end.
#[derive(Debug)]
pub enum Error<'t> {
    /// The options can't be used.
    Options(OptionError<'t>),
    /// A run failed.
    Run(RunError),
}

impl Error<'_> {
    /// The exit status of options that can't be used.
    pub const BAD_OPTIONS: u8 = 2;
    /// The exit status of a run that failed.
    pub const FAILED: u8 = 1;

    /// The exit status for this error.
    pub fn status(&self) -> u8 {
        match self {
            Self::Options(_) => Self::BAD_OPTIONS,
            Self::Run(error) if error.is_bad_option() => Self::BAD_OPTIONS,
            Self::Run(_) => Self::FAILED,
        }
    }
}

impl fmt::Display for Error<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Options(error) => error.fmt(f),
            Self::Run(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for Error<'_> {}

/// Prints the options, one line each.
pub(crate) fn print_options<M: Machine>(machine: &M) {
    machine.write_line(format_args!(
        "Boot options, the words of the hypervisor's bootargs: KEY=VALUE, lists with commas, or the word alone"
    ));
    for option in BOOT_OPTIONS.iter().chain(&EARLY_OPTIONS) {
        machine.write_line(format_args!("{option}"));
    }
}

/// Runs the guests of the user's that `bootargs` and the device tree ask for, in each mode. Stops at the first failure. With the word `help` among them,
/// only prints the options.
///
/// # Errors
/// Bad options, no guest, a guest of the benchmark's, or a failed run. The caller prints the error and returns its status
/// ([`Error::status`]).
pub fn run<'t, M: Machine>(
    host: &Host<'_, M>,
    bootargs: &'t str,
    modules: &Modules<'_>,
) -> Result<(), Error<'t>> {
    let Some(requests) = Requests::take(host, bootargs, modules)? else {
        return Ok(());
    };
    let main = requests.main.as_ref().map(|main| main.options.guest);
    if let Some(guest) = main.filter(|guest| !guest.is_foreign()) {
        return Err(Error::Run(RunError::NotBuilt { guest }));
    }
    if requests
        .main
        .as_ref()
        .is_some_and(|main| main.options.dirty_log)
    {
        return Err(Error::Run(RunError::NoDirtyLog));
    }
    requests.run(host, run_foreign).map_err(Error::Run)
}

/// Runs a guest of the user's, in the one mode that it has.
///
/// # Errors
/// It couldn't be started, or it ended with a failure.
pub fn run_foreign<M: Machine>(host: &Host<'_, M>, request: &Request<'_>) -> Result<(), RunError> {
    for (number, mode) in request.options.modes.iter().enumerate() {
        let Some(vm) = VmId::new(number % MAX_VMS) else {
            continue;
        };
        let run = match mode {
            Mode::Mutex => run_one::<M, Mutexed>,
            Mode::RwLock => run_one::<M, RwLocked>,
            Mode::Parallel => run_one::<M, Parallel>,
        };
        run(host, request, vm)?;
    }
    Ok(())
}

fn run_one<M: Machine, L: MmuLock + 'static>(
    host: &Host<'_, M>,
    request: &Request<'_>,
    vm: VmId,
) -> Result<(), RunError> {
    match request.options.guest {
        GuestKind::Linux => linux::run::<M, L>(host, request),
        _ => program::run::<M, L>(host, request, vm),
    }
}
