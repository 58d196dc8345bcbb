//! Runs the chosen workload in each mode with each policy.

use crate::harness::error::WorkloadError;
use crate::harness::policy::{Choice, choices};
use crate::{backing, dirty_log, stress};
use control::{Host, MAIN_VMS, Machine, Modules, Request, Requests};
use core::fmt;
use memory::{MmuLock, Mutexed, Parallel, RwLocked, VmId};
use records::words::{GuestKind, Mode, Tracking};

/// Why nothing could be run to its end.
#[derive(Debug)]
pub enum Error<'t> {
    /// The request can't be run.
    Control(control::Error<'t>),
    /// A run failed.
    Workload(WorkloadError),
}

impl Error<'_> {
    /// The exit status for this error.
    pub fn status(&self) -> u8 {
        match self {
            Self::Control(error) => error.status(),
            Self::Workload(error) if error.is_bad_option() => control::Error::BAD_OPTIONS,
            Self::Workload(_) => control::Error::FAILED,
        }
    }
}

impl fmt::Display for Error<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Control(error) => error.fmt(f),
            Self::Workload(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for Error<'_> {}

/// Runs the workload or guest program that `bootargs` ask for: the guest in `modules`, in each mode with each policy, beside the
/// VMs that `bootargs` and `modules` name. Stops at the first failure. With the word `help` among them, only prints the options.
///
/// # Errors
/// Bad options, no guest, or a failed run. The caller prints the error and returns its status ([`Error::status`]).
pub fn run<'t, M: Machine>(
    host: &Host<'_, M>,
    bootargs: &'t str,
    modules: &Modules<'_>,
) -> Result<(), Error<'t>> {
    match Requests::take(host, bootargs, modules).map_err(Error::Control)? {
        Some(requests) => requests.run(host, run_all).map_err(Error::Workload),
        None => Ok(()),
    }
}

fn run_all<M: Machine>(host: &Host<'_, M>, request: &Request<'_>) -> Result<(), WorkloadError> {
    if request.options.guest.is_foreign() {
        return Ok(control::run_foreign(host, request)?);
    }
    check_tracking(host, request)?;
    for (number, choice) in choices(&request.options).enumerate() {
        let Some(vm) = VmId::new(number % MAIN_VMS) else {
            continue;
        };
        let run = match choice.mode {
            Mode::Mutex => run_one::<M, Mutexed>,
            Mode::RwLock => run_one::<M, RwLocked>,
            Mode::Parallel => run_one::<M, Parallel>,
        };
        run(host, request, choice, vm)?;
    }
    Ok(())
}

/// Refuses hardware tracking on a machine without it, before anything runs.
fn check_tracking<M: Machine>(
    host: &Host<'_, M>,
    request: &Request<'_>,
) -> Result<(), WorkloadError> {
    let facts = host.machine.facts();
    let wants_hardware = request.options.trackings.contains(&Tracking::Hardware);
    if wants_hardware && !facts.stage2.hardware_dirty {
        let cpu = facts.cpu_model;
        return Err(WorkloadError::NoHardwareDirty { cpu });
    }
    Ok(())
}

fn run_one<M: Machine, L: MmuLock + 'static>(
    host: &Host<'_, M>,
    request: &Request<'_>,
    choice: Choice,
    vm: VmId,
) -> Result<(), WorkloadError> {
    match request.options.guest {
        GuestKind::DirtyLog => dirty_log::run::<M, L>(host, request, choice, vm),
        GuestKind::Stress => stress::run::<M, L>(host, request, choice, vm),
        GuestKind::Backing => backing::run::<M, L>(host, request, choice.mode),
        // One run in each mode: it has no policy.
        GuestKind::Program | GuestKind::Linux => Ok(()),
    }
}
