//! Discovers the machine: reads its device tree once, into plain values.
//!
//! The tree is input from outside: [`Fdt::new`] checks its structure before anything is read, every number is checked here, and
//! contradictions are errors that name the node. Text of any length stays in the tree; copied data has a bounded size. Runs
//! once on the boot CPU; tested on the host.

mod cpus;
mod devices;
mod guests;
mod memory;
mod passing;
pub mod plan;
mod structure;
mod tree;

pub use cpus::{Cpu, Mpidr};
pub use devices::{Conduit, Gic, Interrupt, TimerInterrupts, Uart};
pub use guests::{Domain, GuestModule, ModuleKind};
pub use memory::Reservation;
pub use passing::{Device, GuardedRegisters, NoRoom, SharedInterrupt, device};

use crate::range::{PhysicalRange, RangeSet};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use dtoolkit::error::{FdtErrorKind, FdtParseError};
use dtoolkit::fdt::{Fdt, FdtProperty};
use dtoolkit::{Node, Property};

/// Most CPUs that are brought up.
pub const MAX_CPUS: usize = 512;

/// The machine as its device tree describes it.
#[derive(Clone, Debug)]
pub struct Machine<'t> {
    /// Memory, all banks.
    pub memory: RangeSet,
    /// Memory that is reserved for others.
    pub reservations: Vec<Reservation>,
    /// The CPUs, the one that boots first.
    pub cpus: Vec<Cpu>,
    /// The conduit for firmware calls, if it offers PSCI.
    pub conduit: Option<Conduit>,
    /// The interrupt controller.
    pub gic: Gic,
    /// The generic timer's interrupts.
    pub timer: Option<TimerInterrupts>,
    /// The interrupt by which a GIC with list registers asks for maintenance.
    pub maintenance: Option<Interrupt>,
    /// The interrupt of the CPUs' performance monitors, if it is private to each of them.
    pub pmu: Option<Interrupt>,
    /// The console's UART.
    pub console: Option<Uart>,
    /// The hypervisor's own options.
    pub bootargs: &'t str,
    /// Modules that were loaded to be run as a guest.
    pub modules: Vec<GuestModule<'t>>,
    /// VMs that the tree describes.
    pub domains: Vec<Domain<'t>>,
    /// The secret that firmware has left to make random numbers of, if it is long enough.
    pub seed: Option<vm::Seed>,
    /// Registers with effects on others: no guest may have any of these.
    pub guarded: Vec<GuardedRegisters>,
}

impl<'t> Machine<'t> {
    /// Reads the tree. `boot_cpu` is the affinity of the calling CPU.
    ///
    /// # Errors
    /// The tree lacks something that Parvisor needs, or contradicts itself.
    pub fn discover(tree: Fdt<'t>, boot_cpu: Mpidr) -> Result<Self, DiscoveryError> {
        let (modules, domains) = guests::modules(tree)?;
        Ok(Self {
            memory: memory::banks(tree)?,
            reservations: memory::reservations(tree)?,
            cpus: cpus::cpus(tree, boot_cpu)?,
            conduit: devices::conduit(tree),
            gic: devices::gic(tree)?,
            timer: devices::timer(tree),
            maintenance: devices::maintenance(tree),
            pmu: devices::pmu(tree),
            console: devices::console(tree),
            bootargs: bootargs(tree)?,
            modules,
            domains,
            seed: seed(tree),
            guarded: passing::guarded(tree)?,
        })
    }

    /// The registers that the hypervisor itself uses, each with the device's name.
    pub fn devices(&self) -> Vec<(&'static str, PhysicalRange)> {
        let mut devices = Vec::new();
        devices.extend(self.console.map(|uart| ("console UART", uart.registers)));
        match &self.gic {
            Gic::V2 {
                distributor,
                cpu_interface,
                virtual_control,
                ..
            } => {
                devices.push(("GIC distributor", *distributor));
                devices.push(("GIC CPU interface", *cpu_interface));
                let control = virtual_control.iter();
                devices.extend(control.map(|control| ("GIC virtual interface control", *control)));
            }
            Gic::V3 {
                distributor,
                redistributors,
            } => {
                devices.push(("GIC distributor", *distributor));
                devices.extend(
                    redistributors
                        .iter()
                        .map(|region| ("GIC redistributors", *region)),
                );
            }
        }
        devices
    }
}

/// Checks that `blob` begins with a complete device tree, which can then be read without a panic.
///
/// # Errors
/// It isn't a tree, or its structure is broken.
pub fn parse(blob: &[u8]) -> Result<Fdt<'_>, DiscoveryError> {
    Fdt::new(blob).or_else(|error| match error.kind {
        // Not a reason to refuse a machine; but the rest is then unchecked.
        FdtErrorKind::InvalidNodeName | FdtErrorKind::InvalidPropertyName
            if structure::is_well_formed(blob) =>
        {
            Ok(Fdt::new_unchecked(blob))
        }
        _ => Err(DiscoveryError::Tree(error)),
    })
}

/// The console's UART, for code that can't continue and only reports why. Allocates nothing.
pub fn find_console(tree: Fdt<'_>) -> Option<Uart> {
    devices::console(tree)
}

/// The PSCI conduit, for code that can't continue. Allocates nothing.
pub fn find_conduit(tree: Fdt<'_>) -> Option<Conduit> {
    devices::conduit(tree)
}

fn bootargs(tree: Fdt<'_>) -> Result<&str, DiscoveryError> {
    let chosen = "/chosen";
    let Some(property) = tree
        .find_node(chosen)
        .and_then(|chosen| chosen.property("bootargs"))
    else {
        return Ok("");
    };
    text(value_of(&property)).ok_or_else(|| DiscoveryError::BadProperty {
        node: short(chosen),
        property: "bootargs",
    })
}

/// `rng-seed` of /chosen, every byte of which is random (devicetree schema, chosen.yaml). `kaslr-seed` is too short to be one.
fn seed(tree: Fdt<'_>) -> Option<vm::Seed> {
    let chosen = tree.find_node("/chosen")?;
    let property = chosen.property("rng-seed")?;
    let (parts, _) = value_of(&property).as_chunks::<{ vm::Seed::BYTES }>();
    let bytes = parts
        .iter()
        .copied()
        .reduce(|sum, part| core::array::from_fn(|index| sum[index] ^ part[index]))?;
    Some(vm::Seed::new(bytes))
}

/// A node's name for a message, cut to the longest permitted length (Devicetree Specification 2.2.1).
pub(crate) fn short(name: &str) -> String {
    const LONGEST: usize = 64;
    name.chars().take(LONGEST).collect()
}

/// A property's value, for as long as there is the tree.
fn value_of<'t>(property: &FdtProperty<'t>) -> &'t [u8] {
    property.value_as::<&'t [u8]>().unwrap_or_default()
}

/// A string property's text without its NUL, or `None` if it isn't text.
fn text(value: &[u8]) -> Option<&str> {
    let text = core::str::from_utf8(value.strip_suffix(b"\0").unwrap_or(value)).ok()?;
    (!text.contains('\0')).then_some(text)
}

/// Why a device tree can't be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiscoveryError {
    /// Its structure is broken.
    Tree(FdtParseError),
    /// No memory node with anything in it.
    NoMemory,
    /// A node's property has a wrong value.
    BadProperty {
        /// The node's name.
        node: String,
        /// The property's name.
        property: &'static str,
    },
    /// More of a kind of thing than any machine has.
    TooMany {
        /// The kind.
        what: &'static str,
        /// The most that is possible.
        most: usize,
    },
    /// The CPU that reads the tree isn't in it.
    NoBootCpu(Mpidr),
    /// Two CPUs have the same affinity.
    DuplicateCpu(Mpidr),
    /// A guest module's property has a wrong value.
    BadModule {
        /// The module's node.
        module: String,
        /// The property's name.
        property: &'static str,
    },
    /// No interrupt controller of a known kind.
    NoGic,
}

impl fmt::Display for DiscoveryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tree(error) => write!(f, "the device tree is corrupt: {error}"),
            Self::NoMemory => f.write_str("the device tree describes no memory"),
            Self::BadProperty { node, property } => {
                write!(
                    f,
                    "device tree node {node}: property {property} is malformed"
                )
            }
            Self::TooMany { what, most } => {
                write!(f, "the device tree describes more than {most} {what}")
            }
            Self::NoBootCpu(mpidr) => {
                write!(
                    f,
                    "no node in /cpus of the device tree describes the boot CPU, {mpidr}"
                )
            }
            Self::DuplicateCpu(mpidr) => write!(f, "the device tree describes CPU {mpidr} twice"),
            Self::BadModule { module, property } => {
                write!(
                    f,
                    "guest module {module} in the device tree: property {property} is malformed"
                )
            }
            Self::NoGic => {
                f.write_str("the device tree describes no interrupt controller (GICv2 or GICv3)")
            }
        }
    }
}

impl core::error::Error for DiscoveryError {}

#[cfg(test)]
mod tests;
