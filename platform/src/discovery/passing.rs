//! Devices that a guest may be given: what the tree says of one, and whether somebody else has its registers.

use super::tree::{Place, is_enabled};
use super::{Gic, Machine};
use crate::range::PhysicalRange;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use dtoolkit::fdt::Fdt;
use dtoolkit::{Node, Property};

/// A device as its node describes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Device {
    /// The node's name, with its unit address.
    pub name: String,
    /// What it is compatible with, as the property has it: strings, each with a NUL.
    pub compatible: Vec<u8>,
    /// Its registers, as CPU addresses; none if the node doesn't say, or says what can't be.
    pub registers: Vec<PhysicalRange>,
}

/// The device at a path ("/pl011@9000000"). `None` if there is no such node, or it is switched off.
pub fn device(tree: Fdt<'_>, path: &str) -> Option<Device> {
    let path = path.strip_prefix('/')?;
    Place::root(tree).at_path(path, &mut |place| {
        let count = match place.node.reg() {
            Ok(Some(registers)) => registers.count(),
            _ => 0,
        };
        let registers: Option<Vec<_>> = (0..count).map(|index| place.registers(index)).collect();
        let compatible = place.node.property("compatible");
        is_enabled(&place.node).then(|| Device {
            name: place.node.name().to_string(),
            compatible: compatible.map_or_else(Vec::new, |property| property.value().to_vec()),
            registers: registers.unwrap_or_default(),
        })
    })
}

impl Machine {
    /// Who has some of these addresses, so that no guest may: memory, or a device that the hypervisor uses.
    pub fn user_of(&self, range: PhysicalRange) -> Option<&'static str> {
        let reserved = |reserved: &super::Reservation| reserved.range.overlaps(range);
        if self.memory.overlaps(range) || self.reservations.iter().any(reserved) {
            return Some("memory");
        }
        // With them a guest could interrupt others.
        let virtual_gic = match &self.gic {
            Gic::V2 {
                virtual_control,
                virtual_cpu_interface,
                ..
            } => [*virtual_control, *virtual_cpu_interface],
            Gic::V3 { .. } => [None; 2],
        };
        let virtual_gic = virtual_gic.into_iter().flatten();
        let mut used = self.devices();
        used.extend(virtual_gic.map(|registers| ("GIC virtualization", registers)));
        let overlapping = used.iter().find(|(_, registers)| registers.overlaps(range));
        overlapping.map(|(name, _)| *name)
    }
}
