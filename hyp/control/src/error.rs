//! Errors that keep a guest from running, or from reaching its end. Each is one line that names the culprit.

use crate::board::PlaceError;
use crate::guest::TreeError;
use crate::machine::DeviceError;
use crate::modules::{DomainFault, FileUse};
use crate::quote::Quoted;
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use devices::RestoreError;
use memory::frames::{Unbalanced, VmCounts};
use memory::{MergeError, NotBacked, RingError, SlotError};
use records::image::ImageError;
use records::kernel::{FirmwareError, KernelError};
use records::size::Size;
use records::words::{CpuFeature, GuestKind};
use stage2::{BadLayout, OutOfFrames};
use vgic::VgicError;
use vm::{ForkError, StopReason, VmError};

/// Why a run failed.
#[derive(Debug)]
pub enum RunError {
    /// The guest's image can't be used.
    Image(ImageError),
    /// The guest's kernel can't be used.
    Kernel(KernelError),
    /// The guest's firmware can't be used.
    Firmware(FirmwareError),
    /// The guest's kernel, device tree and initial ramdisk don't fit into its memory.
    Unplaced(PlaceError),
    /// The machine's CPUs can give no guest a virtual GIC.
    NoGuestGic,
    /// No GIC of the machine's version serves so many vCPUs.
    GicVcpus {
        /// The requested vCPUs.
        vcpus: usize,
        /// The version.
        gic: u64,
        /// The most that it serves.
        most: usize,
    },
    /// The guest's GIC can't be made.
    Vgic(VgicError),
    /// A device of the parent's has saved what the fork's can't be restored from.
    Restore(RestoreError),
    /// There are not enough CPUs.
    TooFewCpus {
        /// The requested vCPUs.
        vcpus: usize,
        /// The CPUs needed.
        needed: usize,
        /// The CPUs present.
        cpus: usize,
        /// How many of them are for merging.
        merging: usize,
        /// How many harvest, the control plane's CPU among them.
        harvesters: usize,
        /// After how many seconds the guest is forked, if it is. The fork has as many vCPUs.
        fork: Option<u64>,
    },
    /// The guest can't have a feature of the CPUs; why not.
    NoCpuFeature(CpuFeature, &'static str),
    /// The VM can't be made.
    Vm(VmError),
    /// The VM can't be forked.
    Fork(ForkError),
    /// The VM has a device of the machine's, so it can't be forked.
    ForkWithDevice,
    /// The guest's address space can't have this size.
    Layout(BadLayout),
    /// There is no frame for the root table.
    Frames(OutOfFrames),
    /// The guest's memory can't be allocated.
    Slot(SlotError),
    /// The machine has too little memory for the guest.
    TooLittleMemory {
        /// The requested size.
        wanted: Size,
        /// The free size.
        free: Size,
    },
    /// The guest can't be given the requested device.
    Device {
        /// Its path.
        path: String,
        /// Why.
        error: DeviceError,
    },
    /// The heap is exhausted.
    Heap,
    /// The guest's memory isn't where it should be.
    NotBacked(NotBacked),
    /// The guest's device tree can't be written.
    Tree(TreeError),
    /// The guest ended before it was done.
    Ended(StopReason),
    /// A guest program ended with a failure.
    Program(StopReason),
    /// The guest made no progress any more.
    TimedOut {
        /// For how long, in seconds.
        seconds: u64,
    },
    /// CPUs don't come back from the guest.
    Stuck,
    /// Dirty rings can't be made.
    Ring(RingError),
    /// Memory can't be merged.
    Merge(MergeError),
    /// The VM was destroyed, and frames of it remain.
    Leak(VmCounts),
    /// The machine's frames don't add up.
    Unbalanced(Unbalanced),
    /// One of several VMs failed.
    InVm {
        /// Its name.
        name: String,
        /// Why.
        error: Box<RunError>,
    },
    /// Several of several VMs failed.
    InVms(Vec<RunError>),
    /// Two VMs have the same name.
    NameTwice {
        /// The name.
        name: String,
    },
    /// No file was loaded at an address.
    NoFile {
        /// The address.
        address: u64,
    },
    /// Two files could be the guest's.
    TwoFiles {
        /// Their use.
        kind: FileUse,
        /// Their addresses.
        addresses: [u64; 2],
    },
    /// No VM can be made of a node of the device tree.
    Domain(DomainFault),
    /// The other guests leave too few CPUs for a VM.
    NoCpusLeft {
        /// Its vCPUs.
        vcpus: usize,
        /// The machine's CPUs.
        cpus: usize,
        /// Those that are left.
        left: usize,
    },
    /// There can't be so many VMs.
    TooManyVms {
        /// The most that there can be.
        most: usize,
    },
    /// A guest did nothing but crash.
    CrashedAgain {
        /// How often in succession.
        times: u32,
        /// The last time.
        error: Box<RunError>,
    },
    /// The hypervisor was built without what logs guests of the user's.
    NoDirtyLog,
    /// The hypervisor was built without support for such guests.
    NotBuilt {
        /// The kind of guest.
        guest: GuestKind,
    },
}

impl RunError {
    /// An error of the VM of this name.
    pub(crate) fn in_vm(name: &str, error: Self) -> Self {
        Self::InVm {
            name: name.into(),
            error: Box::new(error),
        }
    }

    /// Whether the options are at fault, on this machine or with this guest: nothing has run.
    pub fn is_bad_option(&self) -> bool {
        if let Self::InVm { error, .. } = self {
            return error.is_bad_option();
        }
        matches!(
            self,
            Self::Image(_)
                | Self::Kernel(_)
                | Self::Firmware(_)
                | Self::Unplaced(_)
                | Self::NoGuestGic
                | Self::GicVcpus { .. }
                | Self::NoCpuFeature(..)
                | Self::TooFewCpus { .. }
                | Self::Layout(_)
                | Self::TooLittleMemory { .. }
                | Self::Device { .. }
                | Self::NameTwice { .. }
                | Self::NoFile { .. }
                | Self::TwoFiles { .. }
                | Self::Domain(_)
                | Self::NoCpusLeft { .. }
                | Self::TooManyVms { .. }
                | Self::NoDirtyLog
                | Self::NotBuilt { .. }
        )
    }
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image(error) => error.fmt(f),
            Self::Kernel(error) => error.fmt(f),
            Self::Firmware(error) => error.fmt(f),
            Self::Unplaced(error) => error.fmt(f),
            Self::NoGuestGic => f.write_str(
                "guest=linux needs a virtual interrupt controller, for which the machine's lacks something: list registers, or \
                 their interrupt or the timers' in the device tree",
            ),
            Self::GicVcpus { vcpus, gic, most } => {
                write!(
                    f,
                    "vcpus={vcpus} is too many for a GICv{gic}: it serves {most}"
                )
            }
            Self::Vgic(error) => error.fmt(f),
            Self::Restore(error) => error.fmt(f),
            Self::TooFewCpus {
                vcpus,
                needed,
                cpus,
                merging,
                harvesters,
                fork,
            } => {
                write!(f, "vcpus={vcpus}")?;
                if let Some(seconds) = fork {
                    write!(f, " fork={seconds}")?;
                }
                match merging {
                    0 => {}
                    1 => f.write_str(" merging")?,
                    count => write!(f, " merging={count}")?,
                }
                if *harvesters > 1 {
                    write!(f, " harvesters={harvesters}")?;
                }
                write!(f, " needs {needed} CPUs, one of them for the control plane")?;
                if fork.is_some() {
                    write!(f, ", {vcpus} for the fork")?;
                }
                match merging {
                    0 => {}
                    1 => f.write_str(", one to merge")?,
                    count => write!(f, ", {count} to merge")?,
                }
                if *harvesters > 1 {
                    write!(f, ", {} more to harvest", harvesters - 1)?;
                }
                write!(f, ", but there are {cpus}")
            }
            Self::NoCpuFeature(feature, why) => {
                write!(f, "cpu_features={}: {why}", feature.name())
            }
            Self::Vm(error) => error.fmt(f),
            Self::Fork(error) => error.fmt(f),
            Self::ForkWithDevice => {
                f.write_str("a guest with device= can't be forked: there is one of its device")
            }
            Self::Layout(error) => error.fmt(f),
            Self::Frames(error) => error.fmt(f),
            Self::Slot(error) => write!(f, "the guest's memory can't be had: {error}"),
            Self::TooLittleMemory { wanted, free } => write!(
                f,
                "the guest's memory can't be had: it takes {wanted}, and {free} are free"
            ),
            Self::Device { path, error } => {
                write!(
                    f,
                    "device={} can't be given to a guest: {error}",
                    Quoted(path)
                )
            }
            Self::Heap => f.write_str("the heap is too small for this much guest memory"),
            Self::NotBacked(error) => error.fmt(f),
            Self::Tree(error) => write!(f, "the guest's device tree can't be written: {error}"),
            Self::Ended(reason) => write!(f, "the guest ended too early: {reason}"),
            Self::Program(reason) => write!(f, "{reason}"),
            Self::TimedOut { seconds } => write!(
                f,
                "the guest made no progress for {seconds} s and didn't end (timeout={seconds})"
            ),
            Self::Stuck => f.write_str("CPUs don't come back from the guest"),
            Self::Ring(error) => error.fmt(f),
            Self::Merge(error) => error.fmt(f),
            Self::Leak(counts) => write!(f, "the VM was destroyed but has frames: {counts}"),
            Self::Unbalanced(error) => error.fmt(f),
            Self::InVm { name, error } => write!(f, "VM {name}: {error}"),
            Self::InVms(errors) => errors.iter().enumerate().try_for_each(|(index, error)| {
                let between = if index == 0 { "" } else { "; " };
                write!(f, "{between}{error}")
            }),
            Self::NameTwice { name } => write!(f, "VM {name}: its name is given twice"),
            Self::NoFile { address } => {
                write!(f, "no module was loaded at {address:#x}")
            }
            Self::TwoFiles {
                kind,
                addresses: [first, second],
            } => write!(
                f,
                "the guest can have one module that is a {kind}, and there are those at {first:#x} and {second:#x}"
            ),
            Self::Domain(fault) => fault.fmt(f),
            Self::NoCpusLeft { vcpus, cpus, left } => write!(
                f,
                "its {vcpus} vCPUs need as many CPUs, but of {cpus} there are {left} left"
            ),
            Self::TooManyVms { most } => {
                write!(f, "there can't be more than {most} VMs")
            }
            Self::CrashedAgain { times, error } => {
                write!(f, "{error}, {times} times soon after its start")
            }
            Self::NoDirtyLog => {
                f.write_str("dirty_log isn't part of this build (feature workloads)")
            }
            Self::NotBuilt { guest } => write!(
                f,
                "guest={} isn't part of this build, which runs guest={} or {} only (feature workloads)",
                guest.name(),
                GuestKind::Program.name(),
                GuestKind::Linux.name()
            ),
        }
    }
}

impl core::error::Error for RunError {}

macro_rules! from {
    ($($error:ty => $variant:ident),* $(,)?) => {
        $(impl From<$error> for RunError {
            fn from(error: $error) -> Self {
                Self::$variant(error)
            }
        })*
    };
}

from! {
    ImageError => Image,
    KernelError => Kernel,
    FirmwareError => Firmware,
    PlaceError => Unplaced,
    VgicError => Vgic,
    VmError => Vm,
    ForkError => Fork,
    BadLayout => Layout,
    OutOfFrames => Frames,
    SlotError => Slot,
    NotBacked => NotBacked,
    TreeError => Tree,
    RingError => Ring,
    MergeError => Merge,
    Unbalanced => Unbalanced,
}
