//! Runs the guest that the user's options ask for, from the command line to the guest's end.

use crate::error::RunError;
use crate::guest::Host;
use crate::linux;
use crate::machine::Machine;
use crate::options::{EarlyOptions, OptionError, Options};
use crate::program;
use crate::request::Request;
use core::fmt;
use memory::frames::MAX_VMS;
use memory::{MmuLock, Mutexed, Parallel, RwLocked, VmId};
use records::image::{GuestImage, ImageError};
use records::kernel::check_kernel;
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

/// What the boot loader has loaded for a guest.
#[derive(Clone, Copy, Default, Debug)]
pub struct Modules<'m> {
    /// Its image.
    pub kernel: Option<Module<'m>>,
    /// Its initial ramdisk.
    pub ramdisk: Option<&'m [u8]>,
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
    /// The request in `bootargs`, with the guest in `modules`. `None` if the word `help` is among them, which is answered at
    /// once.
    ///
    /// # Errors
    /// Bad options, too few CPUs for them, or no guest.
    pub fn take<'t, M: Machine>(
        host: &Host<'_, M>,
        bootargs: &'t str,
        modules: Modules<'m>,
    ) -> Result<Option<Self>, Error<'t>> {
        let early = EarlyOptions::parse(bootargs).map_err(Error::Options)?;
        if early.help {
            print_options(host.machine);
            return Ok(None);
        }
        let options = Options::parse(bootargs).map_err(Error::Options)?;
        log::set_max_level(options.log);
        host.check_cpus(&options).map_err(Error::Run)?;
        let kernel = (modules.kernel).ok_or(Error::Run(ImageError::Missing.into()))?;
        let image = check_image(options.guest, kernel.bytes).map_err(Error::Run)?;
        Ok(Some(Self {
            options,
            image,
            ramdisk: modules.ramdisk,
            bootargs: kernel.bootargs,
        }))
    }
}

/// The image of such a guest.
fn check_image(guest: GuestKind, file: &[u8]) -> Result<GuestImage<'_>, RunError> {
    match guest {
        GuestKind::Linux => Ok(check_kernel(file)?),
        guest => Ok(GuestImage::check(file, guest != GuestKind::Program)?),
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

/// Runs the guest of the user's that `bootargs` ask for, in each mode. Stops at the first failure. With the word `help` among them,
/// only prints the options.
///
/// # Errors
/// Bad options, no guest, a guest of the benchmark's, or a failed run. The caller prints the error and returns its status
/// ([`Error::status`]).
pub fn run<'t, M: Machine>(
    host: &Host<'_, M>,
    bootargs: &'t str,
    modules: Modules<'_>,
) -> Result<(), Error<'t>> {
    let Some(request) = Request::take(host, bootargs, modules)? else {
        return Ok(());
    };
    match request.options.guest {
        guest if guest.is_foreign() => run_foreign(host, &request).map_err(Error::Run),
        guest => Err(Error::Run(RunError::NotBuilt { guest })),
    }
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
