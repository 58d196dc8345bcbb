//! The control plane's interface to the machine. The firmware implements it with the platform, tests with threads.
//!
//! One value for the whole machine; every CPU calls at any time.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use memory::{Caches, CpuMemory, Object, ObjectError};
use stage2::{Features, Tlb};
use vgic::Version;
use vm::{Cpu, CpuId, Moment, Seed};

/// A machine with CPUs that run guests.
pub trait Machine: Sync + 'static {
    /// A CPU's world switch.
    type Cpu: Cpu;
    /// A CPU's TLB and cache instructions.
    type Hardware: Tlb + Caches;

    /// The facts about the machine.
    fn facts(&self) -> &Facts;

    /// Nanoseconds since some fixed moment, the same for all CPUs.
    fn now_ns(&self) -> u64;

    /// A secret for one VM, to make its random numbers of: each call returns another. `None` if the machine has no entropy that
    /// it knows of.
    fn seed(&self) -> Option<Seed> {
        None
    }

    /// The counter that guests see, less their offset, in ticks.
    fn counter(&self) -> u64;

    /// Now, by both clocks.
    fn moment(&self) -> Moment {
        Moment {
            counter: self.counter(),
            ns: self.now_ns(),
        }
    }

    /// Prints one line on the console.
    fn write_line(&self, line: fmt::Arguments<'_>);

    /// Writes bytes on the console as they are, as many as it has room for now. Returns their number.
    fn write_console(&self, bytes: &[u8]) -> usize;

    /// Writes bytes of one of several speakers on the console, as many as it has room for now. Returns their number. Each of its
    /// lines begins with its [mark](Speaker), and if it has been interrupted within a line, so does the rest of that.
    fn write_console_as(&self, speaker: &Speaker<'_>, bytes: &[u8]) -> usize;

    /// Reads what has been typed on the console. Returns the number of bytes.
    fn read_console(&self, bytes: &mut [u8]) -> usize;

    /// Makes CPU `cpu` leave its guest or its wait, now or at its next attempt.
    fn kick(&self, cpu: CpuId);

    /// The calling CPU.
    fn here(&self) -> CpuId;

    /// As [`Self::kick`], for several CPUs. A machine that can kick many at once does.
    fn kick_each(&self, cpus: impl Iterator<Item = CpuId>) {
        cpus.for_each(|cpu| self.kick(cpu));
    }

    /// The device at a path of the machine's device tree, for a guest that gets sole use of it.
    ///
    /// # Errors
    /// There is none, another guest has it, or no guest may have it.
    fn device(&self, memory: &CpuMemory<Self::Hardware>, path: &str)
    -> Result<Device, DeviceError>;

    /// Has `cpu` take a device's interrupt, once it is [unmasked](Self::unmask).
    fn forward(&self, interrupt: &DeviceInterrupt, cpu: CpuId);

    /// Unmasks a device's interrupt. From now on the CPU that takes it runs a vCPU of the VM that has the device.
    fn unmask(&self, interrupt: &DeviceInterrupt);

    /// Masks a device's interrupt, and then ends it if it is active. No vCPU of the VM that it was forwarded to runs.
    fn mask(&self, interrupt: &DeviceInterrupt);

    /// The registers of the virtual CPU interface, which guests with a GICv2 access themselves.
    ///
    /// # Errors
    /// There are none that can be mapped.
    fn virtual_cpu_interface(
        &self,
        memory: &CpuMemory<Self::Hardware>,
    ) -> Result<Registers, DeviceError>;

    /// Waits on the calling CPU until it is kicked (or was, since it last waited), or until [`Self::now_ns`] reaches
    /// `deadline_ns`. May return early.
    fn wait(&self, deadline_ns: u64);
}

/// One of several whose lines are on the console.
///
/// Its mark at the beginning of a line is `[name] `, or `[name]+` where the line goes on that another has interrupted; the line
/// end before that isn't its own. So every byte is known to be its own or not, whatever the speakers say: no name has a bracket,
/// and none begins like the time of a line of the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Speaker<'n> {
    /// Its number.
    pub number: usize,
    /// Its name.
    pub name: &'n str,
    /// Whether it is within a line.
    pub is_within: bool,
}

/// Facts about a machine.
#[derive(Clone, Debug)]
pub struct Facts {
    /// CPUs, all of them up. CPU 0 runs the control plane.
    pub cpus: usize,
    /// All stage-2 features available with pages of 4 KiB and the largest address space.
    pub stage2: Features,
    /// The most instructions in one TLB invalidation; with more, all of a VM's entries are invalidated.
    pub most_tlbi: u32,
    /// The CPUs' model.
    pub cpu_model: &'static str,
    /// The version of the interrupt controller's architecture.
    pub gic: u64,
    /// The version of the virtual GICs that its CPUs can give to guests, if they can.
    pub guest_gic: Option<Version>,
    /// The bytes of a vector of SVE, 0 without it.
    pub vector_bytes: usize,
    /// Whether guests can have the CPUs' performance monitors; if not, why.
    pub pmu: Result<(), &'static str>,
    /// The clock that [`Machine::now_ns`] reads.
    pub clock: &'static str,
    /// Whether CPU 0 is kicked when somebody types on the console; else it has to look.
    pub wakes_for_input: bool,
}

/// A device of the machine for a guest.
#[derive(Clone, Debug)]
pub struct Device {
    /// Its node's name, with its unit address.
    pub name: &'static str,
    /// Its compatible strings, as in a device tree: each with a NUL.
    pub compatible: &'static [u8],
    /// Its registers, in whole pages.
    pub registers: Vec<Registers>,
    /// Its interrupts, or `None` if one of them can't be forwarded.
    pub interrupts: Option<Vec<DeviceInterrupt>>,
    /// The names of its clocks, as in a device tree: each with a NUL.
    pub clock_names: &'static [u8],
    /// While somebody has it, nobody else gets the device.
    pub lease: Arc<()>,
}

/// An interrupt of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceInterrupt {
    /// Its number among all interrupts of the machine (INTID).
    pub intid: u32,
    /// Whether it is an edge.
    pub is_edge: bool,
}

/// Some registers of a device.
#[derive(Clone, Debug)]
pub struct Registers {
    /// Their address, the same for CPUs and for the guest.
    pub start: u64,
    /// Their object.
    pub object: Arc<Object>,
}

/// A device can't be assigned to a guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeviceError {
    /// The device tree has no enabled node there.
    Unknown,
    /// The node names no registers, or none that CPUs can reach.
    NoRegisters,
    /// The registers aren't whole pages.
    Unaligned {
        /// Their start.
        start: u64,
        /// Their size in bytes.
        bytes: u64,
    },
    /// The addresses are used otherwise.
    Taken {
        /// The start of the registers.
        start: u64,
        /// The other user.
        by: &'static str,
    },
    /// Another guest has it.
    Given,
    /// One of its interrupts can't be forwarded.
    Interrupts,
    /// One of its interrupts is another device's too.
    SharedInterrupt {
        /// Its number.
        intid: u32,
    },
    /// The guest's own board has something at these addresses.
    OnBoard {
        /// The start of the registers.
        start: u64,
        /// What that is.
        by: &'static str,
    },
    /// The guest's interrupt controller has no number left for an interrupt of the device.
    TooManyInterrupts,
    /// There is no memory for their description.
    Object(ObjectError),
}

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => {
                f.write_str("the machine's device tree has no such node that is enabled")
            }
            Self::NoRegisters => f.write_str("its node names no registers that CPUs reach"),
            Self::Unaligned { start, bytes } => write!(
                f,
                "its registers at {start:#x}, {bytes:#x} bytes, aren't whole pages"
            ),
            Self::Taken { start, by } => write!(
                f,
                "its registers at {start:#x} overlap {by}, which the hypervisor keeps"
            ),
            Self::Given => f.write_str("another guest has it"),
            Self::Interrupts => f.write_str(
                "it has an interrupt that isn't one of the GIC's, shared by all CPUs, an edge or a level",
            ),
            Self::SharedInterrupt { intid } => write!(
                f,
                "its interrupt {intid} is also that of a device which another guest or the hypervisor has"
            ),
            Self::OnBoard { start, by } => write!(
                f,
                "its registers at {start:#x} are where the guest has {by}"
            ),
            Self::TooManyInterrupts => {
                f.write_str("the guest's interrupt controller has no room for its interrupts")
            }
            Self::Object(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for DeviceError {}

/// One CPU's own state.
pub struct OwnCpu<M: Machine> {
    /// Its number.
    pub id: CpuId,
    /// Its world switch.
    pub cpu: M::Cpu,
    /// Its state for working on the memory of VMs.
    pub memory: CpuMemory<M::Hardware>,
}
