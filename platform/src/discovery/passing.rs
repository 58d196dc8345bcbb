//! Devices that can be assigned to a guest: a device's description in the tree, and whether its registers overlap others' use.
//!
//! Interrupt controllers with all their parts are never assigned, however little the hypervisor uses them: an ITS takes
//! physical addresses of tables that it writes; a GICv2m frame raises anybody's interrupts. Nor are IOMMUs, whose registers
//! hold physical addresses too. They are recognised by the properties that their bindings demand, so that unknown models are
//! found as well, and even if disabled, as their registers exist all the same.

use super::devices::{GICV2, GICV3};
use super::tree::{Place, is_enabled};
use super::{DiscoveryError, Gic, Interrupt, Machine, value_of};
use crate::range::PhysicalRange;
use alloc::vec::Vec;
use core::ops::ControlFlow;
use dtoolkit::Node;
use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::standard::NodeStandard;

/// The cells of an interrupt of a GIC (kind, number, flags): an SPI, of which there are so many; its trigger.
const KIND_SPI: u32 = 0;
const FIRST_SPI: u32 = 32;
const SPIS: u32 = 988;
const TRIGGER: u32 = 0xf;
const EDGE_RISING: u32 = 1;
const LEVEL_HIGH: u32 = 4;

/// The most registers in the list: far more than machines have.
const MOST_GUARDED: usize = 256;

/// Registers that no guest may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GuardedRegisters {
    /// Their device.
    pub device: &'static str,
    /// Their addresses.
    pub registers: PhysicalRange,
}

/// A device as its node describes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Device<'t> {
    /// The node's name, with its unit address.
    pub name: &'t str,
    /// Its compatible strings, as in the property: each with a NUL.
    pub compatible: &'t [u8],
    /// Its registers, as CPU addresses; none if the node has none, or has impossible ones.
    pub registers: Vec<PhysicalRange>,
    /// Its interrupts, or `None` if one isn't shared by all CPUs, or isn't the GIC's.
    pub interrupts: Option<Vec<SharedInterrupt>>,
    /// The names of its clocks, as in the property: each with a NUL.
    pub clock_names: &'t [u8],
}

/// A device's interrupt that any CPU can take (SPI).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SharedInterrupt {
    /// Its number (INTID).
    pub interrupt: Interrupt,
    /// Whether it is an edge.
    pub is_edge: bool,
}

/// There is no memory for a list of a device's registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoRoom {
    /// The length of the list, in ranges.
    pub ranges: usize,
}

/// The device at a path ("/pl011@9000000"). `None` if there is no such node, or it is disabled.
///
/// # Errors
/// There is no memory for its description.
pub fn device<'t>(tree: Fdt<'t>, path: &str) -> Option<Result<Device<'t>, NoRoom>> {
    let path = path.strip_prefix('/')?;
    Place::root(tree).at_path(path, &mut |place| {
        is_enabled(&place.node).then(|| describe(place))
    })
}

fn describe<'t>(place: &Place<'t, '_>) -> Result<Device<'t>, NoRoom> {
    let count = register_count(place);
    let mut registers = Vec::new();
    registers
        .try_reserve_exact(count)
        .map_err(|_| NoRoom { ranges: count })?;
    for range in (0..count).map(|index| place.registers(index)) {
        match range {
            Some(range) => registers.push(range),
            None => {
                registers.clear();
                break;
            }
        }
    }
    let value = |name| {
        let property = place.node.property(name);
        property.map_or(&[][..], |property| value_of(&property))
    };
    Ok(Device {
        name: place.node.name(),
        compatible: value("compatible"),
        registers,
        interrupts: interrupts(place)?,
        clock_names: value("clock-names"),
    })
}

/// The interrupts of a device, as its binding to the GIC has them: cells (kind, number, flags), or (kind, number, flags, CPUs).
fn interrupts(place: &Place<'_, '_>) -> Result<Option<Vec<SharedInterrupt>>, NoRoom> {
    let mut all = Vec::new();
    if place.node.property("interrupts-extended").is_some() {
        return Ok(None);
    }
    let Some(property) = place.node.property("interrupts") else {
        return Ok(Some(all));
    };
    let parent = place.inherited("interrupt-parent");
    let Some(cells) = parent.and_then(|parent| gic_cells(place.tree_root(), parent)) else {
        return Ok(None);
    };
    let (words, rest) = value_of(&property).as_chunks::<4>();
    if !rest.is_empty() || !words.len().is_multiple_of(cells) {
        return Ok(None);
    }
    let count = words.len() / cells;
    all.try_reserve_exact(count)
        .map_err(|_| NoRoom { ranges: count })?;
    for interrupt in words.chunks_exact(cells) {
        let cell = |index: usize| {
            interrupt
                .get(index)
                .map_or(0, |cell| u32::from_be_bytes(*cell))
        };
        let is_edge = match cell(2) & TRIGGER {
            EDGE_RISING => true,
            LEVEL_HIGH => false,
            _ => return Ok(None),
        };
        if cell(0) != KIND_SPI || cell(1) >= SPIS {
            return Ok(None);
        }
        all.push(SharedInterrupt {
            interrupt: Interrupt(FIRST_SPI + cell(1)),
            is_edge,
        });
    }
    Ok(Some(all))
}

/// How many cells the GIC with this phandle, if that is one, has for an interrupt.
fn gic_cells(root: FdtNode<'_>, phandle: u32) -> Option<usize> {
    let root = Place::of_root(root);
    let found = root.walk(&mut |place| {
        let is = |property, value| place.word(property) == Some(value);
        let is_gic = GICV2
            .iter()
            .chain(&GICV3)
            .any(|name| place.node.is_compatible(name));
        match is_gic && is("phandle", phandle) {
            true => ControlFlow::Break(place.word("#interrupt-cells")),
            false => ControlFlow::Continue(()),
        }
    });
    match found {
        ControlFlow::Break(Some(cells @ 3..=4)) => Some(cells as usize),
        _ => None,
    }
}

/// The registers of all interrupt controllers that CPUs or messages are connected to, and of all IOMMUs.
pub fn guarded(tree: Fdt<'_>) -> Result<Vec<GuardedRegisters>, DiscoveryError> {
    let mut all = Vec::new();
    let walk = Place::root(tree).walk(&mut |place| {
        let Some(device) = guarded_kind(place) else {
            return ControlFlow::Continue(());
        };
        let ranges = (0..register_count(place)).filter_map(|index| place.registers(index));
        for registers in ranges {
            if all.len() == MOST_GUARDED {
                return ControlFlow::Break(());
            }
            all.push(GuardedRegisters { device, registers });
        }
        ControlFlow::Continue(())
    });
    match walk {
        ControlFlow::Continue(()) => Ok(all),
        ControlFlow::Break(()) => Err(DiscoveryError::TooMany {
            what: "register ranges of interrupt controllers and IOMMUs",
            most: MOST_GUARDED,
        }),
    }
}

fn guarded_kind(place: &Place<'_, '_>) -> Option<&'static str> {
    let has = |property| place.node.property(property).is_some();
    let is_compatible = |name: &&str| place.node.is_compatible(name);
    if has("#iommu-cells") {
        Some("IOMMU")
    } else if has("msi-controller") {
        Some("MSI controller (ITS)")
    } else if GICV2.iter().chain(&GICV3).any(is_compatible) {
        Some("GIC")
    } else {
        None
    }
}

fn register_count(place: &Place<'_, '_>) -> usize {
    match place.node.reg() {
        Ok(Some(registers)) => registers.count(),
        _ => 0,
    }
}

impl Machine<'_> {
    /// The user of any of these addresses, which excludes guests from them: memory, a device that the hypervisor uses, or one
    /// that is [guarded](Self::guarded).
    pub fn user_of(&self, range: PhysicalRange) -> Option<&'static str> {
        let reserved = |reserved: &super::Reservation| reserved.range.overlaps(range);
        if self.memory.overlaps(range) || self.reservations.iter().any(reserved) {
            return Some("memory");
        }
        // With them a guest could interrupt others.
        let virtual_gic = match &self.gic {
            Gic::V2 {
                virtual_cpu_interface,
                ..
            } => *virtual_cpu_interface,
            Gic::V3 { .. } => None,
        };
        let mut used = self.devices();
        used.extend(virtual_gic.map(|registers| ("GIC virtualization", registers)));
        let guarded = self.guarded.iter();
        used.extend(guarded.map(|guarded| (guarded.device, guarded.registers)));
        let overlapping = used.iter().find(|(_, registers)| registers.overlaps(range));
        overlapping.map(|(name, _)| *name)
    }
}
