//! Runs the guests that the user's options ask for, from the command line to their end.

use crate::error::RunError;
use crate::guest::Host;
use crate::linux;
use crate::machine::Machine;
use crate::modules::{Module, Modules};
use crate::options::{EarlyOptions, OptionError, Options, VmOptions};
use crate::program;
use crate::request::Request;
use alloc::vec::Vec;
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

/// All that the user wants run at the same time.
#[derive(Debug)]
pub struct Requests<'m> {
    /// The guest of the options. There is none if all guests are VMs with names.
    pub main: Option<Request<'m>>,
    /// The VMs with names.
    vms: Vec<Request<'m>>,
}

impl<'m> Requests<'m> {
    /// The requests in `bootargs` and in the device tree. `None` if the word `help` is among them, which is answered at once.
    ///
    /// # Errors
    /// Bad options, too few CPUs for them, or files that can't be used.
    pub fn take<'t: 'm, M: Machine>(
        host: &Host<'_, M>,
        bootargs: &'t str,
        modules: &Modules<'m>,
    ) -> Result<Option<Self>, Error<'t>> {
        let has_domains = !modules.domains.is_empty();
        let early = EarlyOptions::parse(bootargs, has_domains).map_err(Error::Options)?;
        if early.help {
            print_options(host.machine);
            return Ok(None);
        }
        let options = Options::parse_with(bootargs, has_domains).map_err(Error::Options)?;
        log::set_max_level(options.log);
        let mut vms = Vec::new();
        for vm in VmOptions::each(bootargs) {
            let vm = vm.map_err(Error::Options)?;
            vms.push(Request::of_vm(&options, &vm, modules).map_err(Error::Run)?);
        }
        for domain in &modules.domains {
            vms.push(Request::of_domain(&options, domain).map_err(Error::Run)?);
        }
        let names = vms.iter().filter_map(|vm: &Request<'_>| vm.name);
        for (index, name) in names.clone().enumerate() {
            if names.clone().take(index).any(|other| other == name) {
                return Err(Error::Run(RunError::NameTwice { name: name.into() }));
            }
        }
        let has_main = vms.is_empty() || options.guest != GuestKind::Linux;
        check_cpus(host, has_main.then_some(&options), &vms).map_err(Error::Run)?;
        let main = match has_main {
            true => {
                let is_free = |file: &Module<'_>| {
                    let of_vms = VmOptions::each(bootargs).filter_map(Result::ok);
                    let of_vms = of_vms.flat_map(|vm| [vm.kernel, vm.firmware, vm.ramdisk]);
                    let mut addresses = of_vms.chain([options.firmware]);
                    addresses.all(|address| address != Some(file.address))
                };
                Some(Request::of_options(&options, modules, is_free).map_err(Error::Run)?)
            }
            false => None,
        };
        Ok(Some(Self { main, vms }))
    }

    /// Runs the VMs with names, and meanwhile the guest of the options as `main` does it. Returns when all have ended.
    ///
    /// # Errors
    /// That of `main`, or one of the VMs failed.
    pub fn run<M: Machine, E: From<RunError>>(
        &self,
        host: &Host<'_, M>,
        main: impl FnOnce(&Host<'_, M>, &Request<'m>) -> Result<(), E>,
    ) -> Result<(), E> {
        let main = self
            .main
            .as_ref()
            .map(|request| |host: &Host<'_, M>| main(host, request));
        let Some(first) = self.vms.first() else {
            return main.map_or(Ok(()), |main| main(host));
        };
        match first.options.modes.first() {
            Some(Mode::Mutex) => linux::run_beside::<M, Mutexed, E>(host, &self.vms, main),
            Some(Mode::RwLock) => linux::run_beside::<M, RwLocked, E>(host, &self.vms, main),
            Some(Mode::Parallel) | None => {
                linux::run_beside::<M, Parallel, E>(host, &self.vms, main)
            }
        }
    }
}

/// Checks that there are CPUs for all.
fn check_cpus<M: Machine>(
    host: &Host<'_, M>,
    main: Option<&Options>,
    vms: &[Request<'_>],
) -> Result<(), RunError> {
    if let Some(options) = main {
        host.check_cpus(options)?;
    }
    let scanners = vms.first().map_or(0, |vm| vm.options.merging);
    let cpus = host.machine.facts().cpus;
    // The control plane has one.
    let mut used = 1 + scanners + main.map_or(0, Options::busy_cpus);
    for vm in vms {
        let vcpus = vm.options.vcpus;
        let left = cpus.saturating_sub(used);
        if vcpus > left {
            return Err(vm.named(RunError::NoCpusLeft { vcpus, cpus, left }));
        }
        used += vcpus;
    }
    Ok(())
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
