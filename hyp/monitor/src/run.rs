//! What the user wants, from the command line to the result.

use crate::error::RunError;
use crate::guest::Host;
use crate::machine::Machine;
use crate::options::{EarlyOptions, OptionError, Options};
use crate::policy::{Choice, choices};
use crate::{backing, dirty_log, program, stress};
use core::fmt;
use memory::frames::MAX_VMS;
use memory::{MmuLock, Mutexed, Parallel, RwLocked, VmId};
use records::image::{GuestImage, ImageError};
use records::options::{BOOT_OPTIONS, EARLY_OPTIONS};
use records::words::{GuestKind, Mode, Tracking};

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

/// The exit status of options that can't be used, and that of a run that failed.
const BAD_OPTIONS: u8 = 2;
const FAILED: u8 = 1;

impl Error<'_> {
    /// The exit status that it is the reason of.
    pub fn status(&self) -> u8 {
        match self {
            Self::Options(_) => BAD_OPTIONS,
            Self::Run(error) if error.is_bad_option() => BAD_OPTIONS,
            Self::Run(_) => FAILED,
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

/// Runs what `bootargs` ask for: the guest in `module`, in each mode with each policy. Stops at the first failure. With the
/// word `help` among them, only says what they can be.
///
/// # Errors
/// Bad options, no guest, or a run that failed: to be printed, and to be the reason of a failing status
/// ([`Error::status`]).
pub fn run<'t, M: Machine>(
    host: &mut Host<'_, M>,
    bootargs: &'t str,
    module: Option<Module<'_>>,
) -> Result<(), Error<'t>> {
    let early = EarlyOptions::parse(bootargs).map_err(Error::Options)?;
    if early.help {
        print_options(host.machine);
        return Ok(());
    }
    let options = Options::parse(bootargs).map_err(Error::Options)?;
    log::set_max_level(options.log);
    run_all(host, &options, module).map_err(Error::Run)
}

/// What there is to choose, one line each.
fn print_options<M: Machine>(machine: &M) {
    machine.write_line(format_args!(
        "Boot options, the words of the hypervisor's bootargs: KEY=VALUE, lists with commas, or the word alone"
    ));
    for option in BOOT_OPTIONS.iter().chain(&EARLY_OPTIONS) {
        machine.write_line(format_args!("{option}"));
    }
}

fn run_all<M: Machine>(
    host: &mut Host<'_, M>,
    options: &Options,
    module: Option<Module<'_>>,
) -> Result<(), RunError> {
    host.check_cpus(options)?;
    check_tracking(host, options)?;
    let module = module.ok_or(ImageError::Missing)?;
    let image = GuestImage::check(module.bytes, options.guest != GuestKind::Program)?;
    for (number, choice) in choices(options).enumerate() {
        let Some(vm) = VmId::new(number % MAX_VMS) else {
            continue;
        };
        let run = match choice.mode {
            Mode::Mutex => run_one::<M, Mutexed>,
            Mode::RwLock => run_one::<M, RwLocked>,
            Mode::Parallel => run_one::<M, Parallel>,
        };
        run(host, options, choice, vm, image, module.bootargs)?;
    }
    Ok(())
}

/// Refuses hardware tracking where there is none, before anything runs.
fn check_tracking<M: Machine>(host: &Host<'_, M>, options: &Options) -> Result<(), RunError> {
    let facts = host.machine.facts();
    if options.trackings.contains(&Tracking::Hardware) && !facts.stage2.hardware_dirty {
        let cpu = facts.cpu_model;
        return Err(RunError::NoHardwareDirty { cpu });
    }
    Ok(())
}

fn run_one<M: Machine, L: MmuLock + 'static>(
    host: &mut Host<'_, M>,
    options: &Options,
    choice: Choice,
    vm: VmId,
    image: GuestImage<'_>,
    bootargs: &str,
) -> Result<(), RunError> {
    match options.guest {
        GuestKind::DirtyLog => dirty_log::run::<M, L>(host, options, choice, vm, image, bootargs),
        GuestKind::Stress => stress::run::<M, L>(host, options, choice, vm, image, bootargs),
        GuestKind::Backing => backing::run::<M, L>(host, options, choice.mode, image, bootargs),
        GuestKind::Program => program::run::<M, L>(host, options, vm, image, bootargs),
    }
}
