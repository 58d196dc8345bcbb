//! What the user wants run: the guest of the options, or several VMs, by the options or by the machine's device tree, or both
//! side by side.

use crate::board::Places;
use crate::error::RunError;
use crate::guest::Host;
use crate::linux;
use crate::machine::Machine;
use crate::modules::{Domain, FileKind, Module, Modules};
use crate::options::{EarlyOptions, Options, VmOptions};
use crate::run::{Error, print_options};
use alloc::vec::Vec;
use memory::{Mutexed, Parallel, RwLocked};
use records::image::{GuestImage, ImageError};
use records::kernel::check_kernel;
use records::words::{GuestKind, Mode};

/// A request to run a guest.
#[derive(Debug)]
pub struct Request<'m> {
    /// The VM's name, if it is one of several.
    pub name: Option<&'m str>,
    /// The options.
    pub options: Options,
    /// The guest's image.
    pub image: GuestImage<'m>,
    /// The guest's initial ramdisk, if it has one.
    pub ramdisk: Option<&'m [u8]>,
    /// The guest's command line.
    pub bootargs: &'m str,
}

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
                    let mut addresses = of_vms.flat_map(|vm| [Some(vm.kernel), vm.ramdisk]);
                    addresses.all(|address| address != Some(file.address))
                };
                Some(Request::of_options(options, modules, is_free).map_err(Error::Run)?)
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

impl<'m> Request<'m> {
    /// The guest of the options: its kernel and its ramdisk are the first ones that are free.
    fn of_options(
        options: Options,
        modules: &Modules<'m>,
        is_free: impl Fn(&Module<'m>) -> bool,
    ) -> Result<Self, RunError> {
        let first = |kind| {
            let mut files = modules.files.iter();
            files.find(|file| file.kind == kind && is_free(file))
        };
        let kernel = first(FileKind::Kernel).ok_or(ImageError::Missing)?;
        let ramdisk = first(FileKind::Ramdisk);
        Ok(Self {
            name: None,
            image: match options.guest {
                GuestKind::Linux => check_kernel(kernel.bytes)?,
                guest => GuestImage::check(kernel.bytes, guest != GuestKind::Program)?,
            },
            options,
            ramdisk: ramdisk.map(|file| file.bytes),
            bootargs: kernel.bootargs,
        })
    }

    /// A VM of the options.
    fn of_vm<'t: 'm>(
        options: &Options,
        vm: &VmOptions<'t>,
        modules: &Modules<'m>,
    ) -> Result<Self, RunError> {
        let in_vm = |error| RunError::in_vm(vm.name, error);
        let file = |address| {
            let mut files = modules.files.iter();
            let file = files.find(|file: &&Module<'m>| file.address == address);
            file.ok_or(in_vm(RunError::NoFile { address }))
        };
        let kernel = file(vm.kernel)?;
        let ramdisk = vm.ramdisk.map(file).transpose()?;
        Self::new(
            vm.name,
            options.of_vm(vm),
            kernel,
            ramdisk.map(|file| file.bytes),
            vm.bootargs.unwrap_or(kernel.bootargs),
        )
        .map_err(in_vm)
    }

    /// A VM of the device tree.
    fn of_domain(options: &Options, domain: &Domain<'m>) -> Result<Self, RunError> {
        let in_vm = |error| RunError::in_vm(domain.name, error);
        let (vm, kernel) = domain.check().map_err(RunError::Domain).map_err(in_vm)?;
        let ramdisk = domain.ramdisk().map(|file| file.bytes);
        Self::new(
            domain.name,
            options.of_vm(&vm),
            kernel,
            ramdisk,
            kernel.bootargs,
        )
        .map_err(in_vm)
    }

    fn new(
        name: &'m str,
        options: Options,
        kernel: &Module<'m>,
        ramdisk: Option<&'m [u8]>,
        bootargs: &'m str,
    ) -> Result<Self, RunError> {
        let image = check_kernel(kernel.bytes)?;
        // That it fits is seen before any VM starts.
        Places::of(&image, ramdisk, options.program_bytes().unwrap_or(0))?;
        Ok(Self {
            name: Some(name),
            options,
            image,
            ramdisk,
            bootargs,
        })
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
            let name = vm.name.unwrap_or_default();
            let error = RunError::NoCpusLeft { vcpus, cpus, left };
            return Err(RunError::in_vm(name, error));
        }
        used += vcpus;
    }
    Ok(())
}
