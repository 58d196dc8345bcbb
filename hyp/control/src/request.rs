//! What the user wants run: the guest of the options, or a VM, of the options or of the machine's device tree.

use crate::board::Places;
use crate::error::RunError;
use crate::modules::{Domain, FileUse, Module, Modules};
use crate::options::{Options, VmOptions};
use records::image::{GuestImage, ImageError};
use records::kernel::check_kernel;
use records::words::GuestKind;

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

impl<'m> Request<'m> {
    /// The guest of the options: its kernel and its ramdisk are the first ones that are free.
    pub(crate) fn of_options(
        options: Options,
        modules: &Modules<'m>,
        is_free: impl Fn(&Module<'m>) -> bool,
    ) -> Result<Self, RunError> {
        let first = |kind| {
            let mut files = modules.files.iter();
            files.find(|file| file.kind == kind && is_free(file))
        };
        let kernel = first(FileUse::Kernel).ok_or(ImageError::Missing)?;
        let ramdisk = first(FileUse::Ramdisk);
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
    pub(crate) fn of_vm<'t: 'm>(
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
    pub(crate) fn of_domain(options: &Options, domain: &Domain<'m>) -> Result<Self, RunError> {
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
