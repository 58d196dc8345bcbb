//! What the user wants, from the command line to the result.

use crate::error::RunError;
use crate::guest::Host;
use crate::image::{GuestImage, ImageError};
use crate::machine::Machine;
use crate::options::{GuestKind, Mode, OptionError, Options};
use crate::{dirty_log, program};
use core::fmt;
use memory::frames::MAX_VMS;
use memory::{MmuLock, Mutexed, Parallel, RwLocked, VmId};

/// What a boot loader left to be run.
#[derive(Clone, Copy, Debug)]
pub struct Module<'m> {
    /// The file.
    pub bytes: &'m [u8],
    /// The command line that came with it.
    pub bootargs: &'m str,
}

/// Why the machine has nothing to show.
#[derive(Debug)]
pub enum Error<'t> {
    /// The options can't be used.
    Options(OptionError<'t>),
    /// A run failed.
    Run(RunError),
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

/// Runs what `bootargs` ask for: the guest in `module`, in each of the modes. Stops at the first failure.
///
/// # Errors
/// Bad options, no guest, or a run that failed: to be printed, and to be the reason of a failing status.
pub fn run<'t, M: Machine>(
    host: &mut Host<'_, M>,
    bootargs: &'t str,
    module: Option<Module<'_>>,
) -> Result<(), Error<'t>> {
    let options = Options::parse(bootargs).map_err(Error::Options)?;
    log::set_max_level(options.log);
    run_modes(host, &options, module).map_err(Error::Run)
}

fn run_modes<M: Machine>(
    host: &mut Host<'_, M>,
    options: &Options,
    module: Option<Module<'_>>,
) -> Result<(), RunError> {
    host.check_cpus(options)?;
    let module = module.ok_or(ImageError::Missing)?;
    let image = GuestImage::check(module.bytes, options.guest == GuestKind::DirtyLog)?;
    for (number, mode) in options.modes.iter().enumerate() {
        let Some(vm) = VmId::new(number % MAX_VMS) else {
            continue;
        };
        match mode {
            Mode::Mutex => run_mode::<M, Mutexed>(host, options, vm, image, module.bootargs)?,
            Mode::RwLock => run_mode::<M, RwLocked>(host, options, vm, image, module.bootargs)?,
            Mode::Parallel => run_mode::<M, Parallel>(host, options, vm, image, module.bootargs)?,
        }
    }
    Ok(())
}

fn run_mode<M: Machine, L: MmuLock + 'static>(
    host: &mut Host<'_, M>,
    options: &Options,
    vm: VmId,
    image: GuestImage<'_>,
    bootargs: &str,
) -> Result<(), RunError> {
    match options.guest {
        GuestKind::DirtyLog => dirty_log::run::<M, L>(host, options, vm, image, bootargs),
        GuestKind::Program => program::run::<M, L>(host, options, vm, image, bootargs),
    }
}
