//! What the user wants run: the guest of the options, or a VM, of the options or of the machine's device tree.

use crate::board::Places;
use crate::error::RunError;
use crate::modules::{Domain, FileUse, Module, Modules};
use crate::options::{Options, VmOptions};
use records::image::{GuestImage, ImageError};
use records::kernel::{FIRMWARE_KERNEL, check_firmware, check_kernel};
use records::words::GuestKind;

/// A request to run a guest.
#[derive(Debug)]
pub struct Request<'m> {
    /// The VM's name, if it is one of several.
    pub name: Option<&'m str>,
    /// The options.
    pub options: Options,
    /// The guest's image. With firmware that has no kernel to boot, it is empty.
    pub image: GuestImage<'m>,
    /// The firmware that starts in the image's place, if there is some, and may boot it.
    pub firmware: Option<&'m [u8]>,
    /// The guest's initial ramdisk, if it has one.
    pub ramdisk: Option<&'m [u8]>,
    /// The guest's command line.
    pub bootargs: &'m str,
}

impl<'m> Request<'m> {
    /// The guest of the options: its kernel and its ramdisk are the ones that are free. A guest of the benchmark's has the first
    /// kernel.
    ///
    /// # Errors
    /// They can't be used, or the user's guest could have others.
    pub(crate) fn of_options(
        options: &Options,
        modules: &Modules<'m>,
        is_free: impl Fn(&Module<'m>) -> bool,
    ) -> Result<Self, RunError> {
        let only = |kind| {
            let free = |file: &&Module<'m>| file.kind == kind && is_free(file);
            let mut files = modules.files.iter().filter(free);
            let first = files.next();
            match (first, files.next()) {
                (Some(first), Some(second)) if options.guest.is_foreign() => {
                    Err(RunError::TwoFiles {
                        kind,
                        addresses: [first.address, second.address],
                    })
                }
                _ => Ok(first),
            }
        };
        let (kernel, ramdisk) = (only(FileUse::Kernel)?, only(FileUse::Ramdisk)?);
        let firmware = file(modules, options.firmware)?;
        Ok(Self {
            name: None,
            image: match options.guest {
                GuestKind::Linux => started(kernel, firmware)?,
                guest => {
                    let kernel = kernel.ok_or(ImageError::Missing)?;
                    GuestImage::check(kernel.bytes, guest != GuestKind::Program)?
                }
            },
            options: options.clone(),
            firmware: firmware.map(|file| file.bytes),
            ramdisk: ramdisk.map(|file| file.bytes),
            bootargs: kernel.map_or("", |file| file.bootargs),
        })
    }

    /// A VM of the options.
    pub(crate) fn of_vm<'t: 'm>(
        options: &Options,
        vm: &VmOptions<'t>,
        modules: &Modules<'m>,
    ) -> Result<Self, RunError> {
        let in_vm = |error| RunError::in_vm(vm.name, error);
        let file = |address| file(modules, address).map_err(in_vm);
        let kernel = file(vm.kernel)?;
        let of_kernel = kernel.map_or("", |kernel| kernel.bootargs);
        let files = Files {
            kernel,
            firmware: file(vm.firmware)?,
            ramdisk: file(vm.ramdisk)?,
        };
        let bootargs = vm.bootargs.unwrap_or(of_kernel);
        let options = options.of_vm(vm).map_err(|_| in_vm(RunError::Heap))?;
        Self::new(vm.name, options, &files, bootargs).map_err(in_vm)
    }

    /// A VM of the device tree.
    pub(crate) fn of_domain(options: &Options, domain: &Domain<'m>) -> Result<Self, RunError> {
        let in_vm = |error| RunError::in_vm(domain.name, error);
        let (vm, kernel) = domain.check().map_err(RunError::Domain).map_err(in_vm)?;
        let files = Files {
            kernel: Some(kernel),
            firmware: None,
            ramdisk: domain.ramdisk(),
        };
        let options = options.of_vm(&vm).map_err(|_| in_vm(RunError::Heap))?;
        Self::new(domain.name, options, &files, kernel.bootargs).map_err(in_vm)
    }

    /// An error of its guest, with its name if it has one.
    pub(crate) fn named(&self, error: RunError) -> RunError {
        match self.name {
            Some(name) => RunError::in_vm(name, error),
            None => error,
        }
    }

    /// The files of which its guest finds copies in its memory.
    pub(crate) fn files(&self) -> impl Iterator<Item = &'m [u8]> {
        let files = [Some(self.image.bytes), self.ramdisk];
        files.into_iter().flatten().filter(|file| !file.is_empty())
    }

    fn new(
        name: &'m str,
        options: Options,
        files: &Files<'_, 'm>,
        bootargs: &'m str,
    ) -> Result<Self, RunError> {
        let image = started(files.kernel, files.firmware)?;
        let bytes = |file: Option<&Module<'m>>| file.map(|file| file.bytes);
        let (firmware, ramdisk) = (bytes(files.firmware), bytes(files.ramdisk));
        // That it fits is seen before any VM starts.
        let ram = options.program_bytes().unwrap_or(0);
        Places::of(&image, firmware, ramdisk, ram)?;
        Ok(Self {
            name: Some(name),
            options,
            image,
            firmware,
            ramdisk,
            bootargs,
        })
    }
}

/// The file at an address, if one is given.
fn file<'f, 'm>(
    modules: &'f Modules<'m>,
    address: Option<u64>,
) -> Result<Option<&'f Module<'m>>, RunError> {
    let Some(address) = address else {
        return Ok(None);
    };
    let file = modules.file(address);
    file.map(Some).ok_or(RunError::NoFile { address })
}

/// The files of a VM.
struct Files<'f, 'm> {
    kernel: Option<&'f Module<'m>>,
    firmware: Option<&'f Module<'m>>,
    ramdisk: Option<&'f Module<'m>>,
}

/// The kernel that starts, or that lies where the firmware looks for one. Firmware may have none.
fn started<'m>(
    kernel: Option<&Module<'m>>,
    firmware: Option<&Module<'m>>,
) -> Result<GuestImage<'m>, RunError> {
    let Some(firmware) = firmware else {
        let kernel = kernel.ok_or(ImageError::Missing)?;
        return Ok(check_kernel(kernel.bytes)?);
    };
    check_firmware(firmware.bytes)?;
    let image = match kernel {
        Some(kernel) => check_kernel(kernel.bytes)?,
        None => GuestImage {
            bytes: &[],
            offset: 0,
            size: 0,
        },
    };
    Ok(GuestImage {
        offset: FIRMWARE_KERNEL,
        ..image
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use alloc::vec;
    use alloc::vec::Vec;

    fn refused(
        guest: &str,
        kinds: &[FileUse],
        is_free: fn(&Module<'_>) -> bool,
    ) -> Option<RunError> {
        let mut image: Vec<u8> = vec![0; 4096];
        image[16..24].copy_from_slice(&4096u64.to_le_bytes());
        image[56..60].copy_from_slice(b"ARM\x64");
        let files = kinds.iter().zip(1..).map(|(kind, number)| Module {
            kind: *kind,
            address: number << 28,
            bytes: &image,
            bootargs: "",
        });
        let modules = Modules {
            files: files.collect(),
            domains: Vec::new(),
        };
        let options = Options::parse(guest).unwrap();
        Request::of_options(&options, &modules, is_free).err()
    }

    #[test]
    fn a_guest_of_the_users_has_no_choice_of_files() {
        use FileUse::{Kernel, Other, Ramdisk};
        let said = |kinds: &[FileUse]| {
            let error = refused("guest=linux", kinds, |_| true).unwrap();
            assert!(error.is_bad_option());
            error.to_string()
        };
        assert_eq!(
            said(&[Kernel, Ramdisk, Kernel]),
            "the guest can have one module that is a kernel, and there are those at 0x10000000 and 0x30000000"
        );
        assert_eq!(
            said(&[Kernel, Ramdisk, Ramdisk]),
            "the guest can have one module that is a ramdisk, and there are those at 0x20000000 and 0x30000000"
        );
        let two = [Kernel, Kernel, Other, Other];
        assert!(refused("guest=program", &two, |_| true).is_some());
        assert!(refused("guest=dirty_log", &two, |_| true).is_none());
        let of_a_vm = |file: &Module<'_>| file.address == 1 << 28;
        assert!(refused("guest=linux", &two, of_a_vm).is_none());
    }
}
