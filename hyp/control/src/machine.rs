//! The control plane's interface to the machine. The firmware implements it with the platform, tests with threads.
//!
//! One value for the whole machine; every CPU calls at any time.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use memory::{Caches, CpuMemory, Object, ObjectError};
use stage2::{Features, Tlb};
use vm::{Cpu, CpuId};

/// A machine with CPUs that run guests.
pub trait Machine: Sync + 'static {
    /// A CPU's world switch.
    type Cpu: Cpu;
    /// A CPU's TLB and cache instructions.
    type Hardware: Tlb + Caches;

    /// What it consists of.
    fn facts(&self) -> &Facts;

    /// Nanoseconds since some moment, the same for all CPUs.
    fn now_ns(&self) -> u64;

    /// The counter that guests see, less their offset, in ticks.
    fn counter(&self) -> u64;

    /// Prints one line on the console.
    fn write_line(&self, line: fmt::Arguments<'_>);

    /// Makes CPU `cpu` leave its guest or its wait, now or the next time it tries.
    fn kick(&self, cpu: CpuId);

    /// The device at a path of the machine's device tree, for a guest that gets it to itself.
    ///
    /// # Errors
    /// There is none, or no guest may have it.
    fn device(&self, memory: &CpuMemory<Self::Hardware>, path: &str)
    -> Result<Device, DeviceError>;

    /// Waits on the calling CPU until it is kicked (or was, since it last waited), or until [`Self::now_ns`] reaches
    /// `deadline_ns`. May return early.
    fn wait(&self, deadline_ns: u64);
}

/// What a machine consists of.
#[derive(Clone, Debug)]
pub struct Facts {
    /// CPUs, all of them up. CPU 0 runs the monitor.
    pub cpus: usize,
    /// All that stage 2 can use with pages of 4 KiB, with the largest address space.
    pub stage2: Features,
    /// The most instructions that one TLB invalidation is made of; beyond, all of a VM's entries go.
    pub most_tlbi: u32,
    /// The CPUs' model.
    pub cpu_model: &'static str,
    /// The version of the interrupt controller's architecture.
    pub gic: u64,
    /// What [`Machine::now_ns`] reads.
    pub clock: &'static str,
}

/// A device of the machine that a guest gets.
#[derive(Clone, Debug)]
pub struct Device {
    /// Its node's name, with its unit address.
    pub name: &'static str,
    /// What it is compatible with, as a device tree has it: strings, each with a NUL.
    pub compatible: &'static [u8],
    /// Its registers, in whole pages.
    pub registers: Vec<Registers>,
}

/// Some registers of a device.
#[derive(Clone, Debug)]
pub struct Registers {
    /// Where they are, for CPUs as for the guest.
    pub start: u64,
    /// Them.
    pub object: Arc<Object>,
}

/// A guest can't be given a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeviceError {
    /// The device tree has no node there that isn't switched off.
    Unknown,
    /// The node names no registers, or none that CPUs reach.
    NoRegisters,
    /// The registers aren't whole pages.
    Unaligned {
        /// Where they begin.
        start: u64,
        /// How many bytes they are.
        bytes: u64,
    },
    /// Somebody else has the addresses.
    Taken {
        /// Where the registers begin.
        start: u64,
        /// Who.
        by: &'static str,
    },
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
            Self::Object(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for DeviceError {}

/// What a CPU has for itself.
pub struct OwnCpu<M: Machine> {
    /// Its number.
    pub id: CpuId,
    /// Its world switch.
    pub cpu: M::Cpu,
    /// Its means to work on the memory of VMs.
    pub memory: CpuMemory<M::Hardware>,
}
