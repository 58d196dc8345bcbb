//! Runs the guest that the user's options ask for, from the command line to the guest's end.

use crate::error::RunError;
use crate::guest::Host;
use crate::machine::Machine;
use crate::options::{EarlyOptions, OptionError, Options};
use crate::program;
use crate::request::Request;
use core::fmt;
use memory::frames::MAX_VMS;
use memory::{Mutexed, Parallel, RwLocked, VmId};
use records::image::{GuestImage, ImageError};
use records::options::{BOOT_OPTIONS, EARLY_OPTIONS};
use records::words::{GuestKind, Mode};

/// A guest module that the boot loader has loaded.
#[derive(Clone, Copy, Debug)]
pub struct Module<'m> {
    /// The file.
    pub bytes: &'m [u8],
    /// Its command line.
    pub bootargs: &'m str,
}

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

impl<'m> Request<'m> {
    /// The request in `bootargs`, with the guest in `module`. `None` if the word `help` is among them, which is answered at
    /// once.
    ///
    /// # Errors
    /// Bad options, too few CPUs for them, or no guest.
    pub fn take<'t, M: Machine>(
        host: &Host<'_, M>,
        bootargs: &'t str,
        module: Option<Module<'m>>,
    ) -> Result<Option<Self>, Error<'t>> {
        let early = EarlyOptions::parse(bootargs).map_err(Error::Options)?;
        if early.help {
            print_options(host.machine);
            return Ok(None);
        }
        let options = Options::parse(bootargs).map_err(Error::Options)?;
        log::set_max_level(options.log);
        host.check_cpus(&options).map_err(Error::Run)?;
        let found = module.ok_or(ImageError::Missing).and_then(|module| {
            let is_linked = options.guest != GuestKind::Program;
            let image = GuestImage::check(module.bytes, is_linked)?;
            Ok((image, module.bootargs))
        });
        let (image, bootargs) = found.map_err(|error| Error::Run(error.into()))?;
        Ok(Some(Self {
            options,
            image,
            bootargs,
        }))
    }
}

/// Prints the options, one line each.
fn print_options<M: Machine>(machine: &M) {
    machine.write_line(format_args!(
        "Boot options, the words of the hypervisor's bootargs: KEY=VALUE, lists with commas, or the word alone"
    ));
    for option in BOOT_OPTIONS.iter().chain(&EARLY_OPTIONS) {
        machine.write_line(format_args!("{option}"));
    }
}

/// Runs the guest program that `bootargs` ask for, in each mode. Stops at the first failure. With the word `help` among them,
/// only prints the options.
///
/// # Errors
/// Bad options, no guest, a guest that isn't a program, or a failed run. The caller prints the error and returns its status
/// ([`Error::status`]).
pub fn run<'t, M: Machine>(
    host: &Host<'_, M>,
    bootargs: &'t str,
    module: Option<Module<'_>>,
) -> Result<(), Error<'t>> {
    let Some(request) = Request::take(host, bootargs, module)? else {
        return Ok(());
    };
    match request.options.guest {
        GuestKind::Program => run_program(host, &request).map_err(Error::Run),
        guest => Err(Error::Run(RunError::NotBuilt { guest })),
    }
}

/// Runs a guest program in each mode.
///
/// # Errors
/// It couldn't be started, or it ended with a failure.
pub fn run_program<M: Machine>(host: &Host<'_, M>, request: &Request<'_>) -> Result<(), RunError> {
    for (number, mode) in request.options.modes.iter().enumerate() {
        let Some(vm) = VmId::new(number % MAX_VMS) else {
            continue;
        };
        let run = match mode {
            Mode::Mutex => program::run::<M, Mutexed>,
            Mode::RwLock => program::run::<M, RwLocked>,
            Mode::Parallel => program::run::<M, Parallel>,
        };
        run(host, request, vm)?;
    }
    Ok(())
}
