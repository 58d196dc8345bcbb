//! The memory plan: which memory EL2 maps, where its heap and stacks lie, and which memory is left for guests.
//!
//! Computed once from values that come from outside, before anything is mapped; tested on the host.

use crate::discovery::{GuestModule, Machine, short};
use crate::range::{PAGE_SIZE, PhysicalRange, RangeSet};
use alloc::string::String;
use core::fmt;

/// The memory of one CPU's stacks. Each has a page below it that is never mapped.
pub mod stack {
    use crate::range::PAGE_SIZE;

    /// Bytes of a CPU's normal stack. CPU 0 uses most of it in a stress run, where an act runs a fork, beside which another act
    /// ends a fork: some 64 KiB.
    pub const NORMAL: u64 = 128 << 10;
    /// Bytes of the stack for reports of fatal exceptions.
    pub const EMERGENCY: u64 = 16 << 10;
    /// The end of the normal stack, from the start of the CPU's share.
    pub const NORMAL_TOP: u64 = PAGE_SIZE + NORMAL;
    /// The end of the emergency stack, and of the CPU's share.
    pub const TOTAL: u64 = NORMAL_TOP + PAGE_SIZE + EMERGENCY;
    /// The guard pages, from the start of the CPU's share.
    pub const GUARDS: [u64; 2] = [0, NORMAL_TOP];
}

/// Bytes of memory per byte of heap: each 4 KiB of guest memory takes 16 bytes of heap, and the other needs of a VM must fit
/// beside them.
const HEAP_SHARE: u64 = 64;
/// Heap that is needed whatever the size of memory.
const HEAP_BASE: u64 = 16 << 20;
const HEAP_ALIGN: u64 = 2 << 20;
/// Addresses that EL2's tables can map, in bits.
const MAPPABLE_BITS: u8 = 48;

/// The division of memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// The memory that EL2 maps.
    pub mapped: RangeSet,
    /// EL2's heap.
    pub heap: PhysicalRange,
    /// The stacks of all CPUs but the boot CPU, [`stack::TOTAL`] bytes each. `None` with one CPU.
    pub stacks: Option<PhysicalRange>,
    /// Unused whole pages.
    pub free: RangeSet,
}

impl MemoryPlan {
    /// Plans for a machine whose CPUs have `pa_bits` address bits, with the hypervisor's `image` and its device `tree` at their
    /// present addresses.
    ///
    /// # Errors
    /// Something lies at an impossible address, or memory is too small.
    pub fn new(
        machine: &Machine<'_>,
        pa_bits: u8,
        image: PhysicalRange,
        tree: PhysicalRange,
    ) -> Result<Self, PlanError> {
        let mut mapped = mappable(machine, pa_bits);
        if !mapped.contains(image) {
            return Err(PlanError::ImageOutsideMemory(image));
        }
        check_devices(machine, pa_bits)?;
        let mut free = mapped.clone();
        for taken in [image, tree]
            .into_iter()
            .chain(machine.reservations.iter().map(|reserved| reserved.range))
        {
            free.remove(taken.grow_to(PAGE_SIZE));
        }
        for (index, module) in machine.modules.iter().enumerate() {
            check_module(module, &mapped, image, tree)?;
            // Several VMs may have one file.
            let is_shared = |other: &GuestModule<'_>| {
                other.range == module.range && other.kind == module.kind && other.domain.is_some()
            };
            if let Some(other) = machine.modules[..index]
                .iter()
                .find(|other| other.range.overlaps(module.range) && !is_shared(other))
            {
                return Err(PlanError::module(
                    module,
                    ModuleFault::OverlapsModule(short(other.name)),
                ));
            }
            free.remove(module.range.grow_to(PAGE_SIZE));
        }
        free = free.shrink_to(PAGE_SIZE);
        // What was found there is looked at for as long as the machine runs, also where that isn't RAM.
        mapped.insert(tree.grow_to(PAGE_SIZE));

        let wanted = (machine.memory.bytes() / HEAP_SHARE + HEAP_BASE) & !(HEAP_ALIGN - 1);
        let heap = free.take(wanted, HEAP_ALIGN).ok_or(PlanError::NoRoom {
            what: "heap",
            size: wanted,
        })?;
        let stacks = match machine.cpus.len() as u64 - 1 {
            0 => None,
            others => {
                let size = others * stack::TOTAL;
                Some(free.take(size, PAGE_SIZE).ok_or(PlanError::NoRoom {
                    what: "CPUs' stacks",
                    size,
                })?)
            }
        };
        Ok(Self {
            mapped,
            heap,
            stacks,
            free,
        })
    }

    /// The pages below the stacks in [`stacks`](Self::stacks), never to be mapped.
    pub fn guard_pages(&self) -> impl Iterator<Item = PhysicalRange> {
        let shares = self
            .stacks
            .into_iter()
            .flat_map(|all| (all.start()..all.end()).step_by(stack::TOTAL as usize));
        shares.flat_map(|share| {
            stack::GUARDS
                .into_iter()
                .filter_map(move |at| PhysicalRange::sized(share + at, PAGE_SIZE))
        })
    }
}

/// All memory that may be mapped: whole pages, without page 0, so that a null pointer is never valid.
fn mappable(machine: &Machine<'_>, pa_bits: u8) -> RangeSet {
    let mut mapped = machine.memory.shrink_to(PAGE_SIZE);
    let out_of_reach = PhysicalRange::new(reach(pa_bits), u64::MAX);
    let page_0 = PhysicalRange::new(0, PAGE_SIZE);
    let not_to_map = machine
        .reservations
        .iter()
        .filter(|reserved| reserved.no_map);
    for hole in out_of_reach
        .into_iter()
        .chain(page_0)
        .chain(not_to_map.map(|reserved| reserved.range))
    {
        mapped.remove(hole.grow_to(PAGE_SIZE));
    }
    mapped
}

fn reach(pa_bits: u8) -> u64 {
    1 << pa_bits.min(MAPPABLE_BITS)
}

fn check_devices(machine: &Machine<'_>, pa_bits: u8) -> Result<(), PlanError> {
    for (device, registers) in machine.devices() {
        if machine.memory.overlaps(registers.grow_to(PAGE_SIZE)) {
            return Err(PlanError::DeviceInMemory { device, registers });
        }
        if registers.end() > reach(pa_bits) || registers.start() < PAGE_SIZE {
            return Err(PlanError::DeviceOutOfReach { device, registers });
        }
    }
    Ok(())
}

fn check_module(
    module: &GuestModule<'_>,
    mapped: &RangeSet,
    image: PhysicalRange,
    tree: PhysicalRange,
) -> Result<(), PlanError> {
    let fault = if module.range.overlaps(image) {
        ModuleFault::OverlapsHypervisor(image)
    } else if module.range.overlaps(tree) {
        ModuleFault::OverlapsTree(tree)
    } else if !mapped.contains(module.range) {
        ModuleFault::OutsideMemory
    } else {
        return Ok(());
    };
    Err(PlanError::module(module, fault))
}

/// Why memory can't be divided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlanError {
    /// The hypervisor's image lies outside of the usable memory in the device tree.
    ImageOutsideMemory(PhysicalRange),
    /// A guest module lies at an impossible address.
    Module {
        /// The module's node.
        module: String,
        /// Its range.
        range: PhysicalRange,
        /// The reason.
        fault: ModuleFault,
    },
    /// A device's registers overlap memory.
    DeviceInMemory {
        /// The device.
        device: &'static str,
        /// Its registers.
        registers: PhysicalRange,
    },
    /// A device's registers lie beyond the CPU's addresses.
    DeviceOutOfReach {
        /// The device.
        device: &'static str,
        /// Its registers.
        registers: PhysicalRange,
    },
    /// No free memory for a required use.
    NoRoom {
        /// The use.
        what: &'static str,
        /// Its size in bytes.
        size: u64,
    },
}

/// What is wrong with a guest module's range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModuleFault {
    /// It overlaps the hypervisor.
    OverlapsHypervisor(PhysicalRange),
    /// It overlaps the device tree.
    OverlapsTree(PhysicalRange),
    /// It overlaps another module.
    OverlapsModule(String),
    /// It lies outside of usable memory.
    OutsideMemory,
}

impl PlanError {
    fn module(module: &GuestModule<'_>, fault: ModuleFault) -> Self {
        Self::Module {
            module: short(module.name),
            range: module.range,
            fault,
        }
    }
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ImageOutsideMemory(image) => {
                write!(
                    f,
                    "no memory bank in the device tree holds the hypervisor's image at {image}"
                )
            }
            Self::Module {
                module,
                range,
                fault,
            } => {
                write!(f, "guest module {module} at {range} ")?;
                match fault {
                    ModuleFault::OverlapsHypervisor(image) => {
                        write!(f, "overlaps the hypervisor at {image}")
                    }
                    ModuleFault::OverlapsTree(tree) => {
                        write!(f, "overlaps the device tree at {tree}")
                    }
                    ModuleFault::OverlapsModule(other) => {
                        write!(f, "overlaps guest module {other}")
                    }
                    ModuleFault::OutsideMemory => f.write_str("is not in usable memory"),
                }
            }
            Self::DeviceInMemory { device, registers } => {
                write!(
                    f,
                    "the device tree places the {device} at {registers}, where memory is"
                )
            }
            Self::DeviceOutOfReach { device, registers } => {
                write!(
                    f,
                    "the device tree places the {device} at {registers}, where this CPU can't reach it"
                )
            }
            Self::NoRoom { what, size } => {
                write!(f, "not enough memory: no free {size} bytes for the {what}")
            }
        }
    }
}

impl core::error::Error for PlanError {}
