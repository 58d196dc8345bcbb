//! What the boot loader has left for guests: files, and the VMs that the device tree describes.

use crate::options::VmOptions;
use alloc::vec::Vec;
use core::fmt;
use records::options::is_name;
use records::size::Size;
use stage2::PAGE_SIZE;

/// What a file is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileUse {
    /// A guest's kernel or program.
    Kernel,
    /// A guest's initial ramdisk.
    Ramdisk,
    /// Something else.
    Other,
}

impl fmt::Display for FileUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel",
            Self::Ramdisk => "ramdisk",
            Self::Other => "file",
        })
    }
}

/// A file that the boot loader has loaded.
#[derive(Clone, Copy, Debug)]
pub struct Module<'m> {
    /// Its kind.
    pub kind: FileUse,
    /// Its address.
    pub address: u64,
    /// The file.
    pub bytes: &'m [u8],
    /// Its command line.
    pub bootargs: &'m str,
}

/// A VM in the device tree, as Xen's dom0less has them.
#[derive(Clone, Debug, Default)]
pub struct Domain<'m> {
    /// Its node's name.
    pub name: &'m str,
    /// Its vCPUs, if the node says.
    pub cpus: Option<u64>,
    /// Its memory in KiB, if the node says.
    pub kib: Option<u64>,
    /// Its files.
    pub files: Vec<Module<'m>>,
}

/// All that the boot loader has left.
#[derive(Clone, Debug, Default)]
pub struct Modules<'m> {
    /// The files that belong to no VM of the tree.
    pub files: Vec<Module<'m>>,
    /// The VMs of the tree.
    pub domains: Vec<Domain<'m>>,
}

impl<'m> Modules<'m> {
    /// The file at this address that belongs to no VM of the tree.
    pub(crate) fn file(&self, address: u64) -> Option<&Module<'m>> {
        self.files.iter().find(|file| file.address == address)
    }
}

/// Why no VM can be made of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DomainFault {
    /// Its name can't be a VM's.
    Name,
    /// It lacks a property, or that can't be.
    Property(&'static str),
    /// It has no file of a kind.
    NoFile(&'static str),
    /// It has several.
    Files(&'static str),
    /// It has a file that isn't for guests without devices of the machine.
    OtherFile(u64),
}

impl fmt::Display for DomainFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the device tree's node makes no VM: ")?;
        match self {
            Self::Name => f.write_str(
                "its name isn't up to 31 letters, digits, '-', '_', '.' or '@', a letter first",
            ),
            Self::Property(name) => {
                write!(f, "its property '{name}' is missing, or no such number")
            }
            Self::NoFile(kind) => write!(f, "it has no module that is a {kind}"),
            Self::Files(kind) => write!(f, "it has more than one module that is a {kind}"),
            Self::OtherFile(address) => write!(
                f,
                "its module at {address:#x} is neither a kernel nor a ramdisk"
            ),
        }
    }
}

impl<'m> Domain<'m> {
    /// What the node says of the VM, and its kernel.
    ///
    /// # Errors
    /// No VM can be made of it.
    pub(crate) fn check(&self) -> Result<(VmOptions<'m>, &Module<'m>), DomainFault> {
        if !is_name(self.name) {
            return Err(DomainFault::Name);
        }
        let vcpus = self.cpus.and_then(|cpus| usize::try_from(cpus).ok());
        let vcpus = vcpus.filter(|vcpus| (1..=vm::MAX_VCPUS).contains(vcpus));
        let bytes = self.kib.and_then(|kib| kib.checked_mul(1 << 10));
        let bytes = bytes.filter(|bytes| *bytes != 0 && bytes.is_multiple_of(PAGE_SIZE));
        let of_kind = |kind| self.files.iter().filter(move |file| file.kind == kind);
        let mut kernels = of_kind(FileUse::Kernel);
        let kernel = kernels.next().ok_or(DomainFault::NoFile("kernel"))?;
        if kernels.next().is_some() {
            return Err(DomainFault::Files("kernel"));
        }
        if of_kind(FileUse::Ramdisk).nth(1).is_some() {
            return Err(DomainFault::Files("ramdisk"));
        }
        if let Some(other) = of_kind(FileUse::Other).next() {
            return Err(DomainFault::OtherFile(other.address));
        }
        let vm = VmOptions {
            name: self.name,
            vcpus: vcpus.ok_or(DomainFault::Property("cpus"))?,
            bytes: Some(Size(bytes.ok_or(DomainFault::Property("memory"))?)),
            kernel: Some(kernel.address),
            firmware: None,
            ramdisk: self.ramdisk().map(|file| file.address),
            devices: None,
            on_reset: None,
            on_crash: None,
            bootargs: None,
        };
        Ok((vm, kernel))
    }

    /// Its initial ramdisk, if it has one.
    pub(crate) fn ramdisk(&self) -> Option<&Module<'m>> {
        let mut files = self.files.iter();
        files.find(|file| file.kind == FileUse::Ramdisk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    fn file(kind: FileUse, address: u64) -> Module<'static> {
        Module {
            kind,
            address,
            bytes: &[],
            bootargs: "quiet",
        }
    }

    fn domain() -> Domain<'static> {
        Domain {
            name: "domU1",
            cpus: Some(2),
            kib: Some(0x2_0000),
            files: [file(FileUse::Ramdisk, 1), file(FileUse::Kernel, 2)].into(),
        }
    }

    #[test]
    fn a_node_of_dom0less_makes_a_vm() {
        let domain = domain();
        let (vm, kernel) = domain.check().unwrap();
        assert_eq!((vm.name, vm.vcpus), ("domU1", 2));
        assert_eq!(vm.bytes, Some(Size(128 << 20)));
        assert_eq!((kernel.address, vm.ramdisk), (2, Some(1)));
    }

    #[test]
    fn a_node_that_makes_no_vm_says_why() {
        let says = |change: &dyn Fn(&mut Domain<'static>)| {
            let mut domain = domain();
            change(&mut domain);
            domain.check().unwrap_err().to_string()
        };
        assert!(says(&|domain| domain.name = "1").contains("its name"));
        assert!(says(&|domain| domain.cpus = None).contains("'cpus'"));
        assert!(says(&|domain| domain.cpus = Some(0)).contains("'cpus'"));
        assert!(says(&|domain| domain.cpus = Some(1 << 40)).contains("'cpus'"));
        assert!(says(&|domain| domain.kib = None).contains("'memory'"));
        assert!(says(&|domain| domain.kib = Some(0)).contains("'memory'"));
        assert!(says(&|domain| domain.kib = Some(3)).contains("'memory'"));
        assert!(says(&|domain| domain.kib = Some(u64::MAX)).contains("'memory'"));
        let no_kernel = says(&|domain| domain.files.truncate(1));
        assert!(no_kernel.ends_with("it has no module that is a kernel"));
        let kernels = says(&|domain| domain.files.push(file(FileUse::Kernel, 3)));
        assert!(kernels.ends_with("more than one module that is a kernel"));
        let ramdisks = says(&|domain| domain.files.push(file(FileUse::Ramdisk, 3)));
        assert!(ramdisks.ends_with("more than one module that is a ramdisk"));
        let other = says(&|domain| domain.files.push(file(FileUse::Other, 0x30)));
        assert!(other.contains("module at 0x30 is neither"), "{other}");
    }
}
