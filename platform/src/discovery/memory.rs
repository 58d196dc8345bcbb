//! Memory banks and their reserved ranges.

use super::tree::is_enabled;
use super::{DiscoveryError, short};
use crate::range::{PhysicalRange, RangeSet};
use alloc::vec::Vec;
use dtoolkit::Property;
use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::{Node, ToCellInt};

const MAX_BANKS: usize = 64;
const MAX_RESERVATIONS: usize = 256;

/// Reserved memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reservation {
    /// Its range.
    pub range: PhysicalRange,
    /// Whether it may not even be mapped: its owner excludes speculative accesses too.
    pub no_map: bool,
}

/// All banks of memory.
pub fn banks(tree: Fdt<'_>) -> Result<RangeSet, DiscoveryError> {
    let root = tree.root();
    let mut banks = Vec::new();
    for node in root
        .children()
        .filter(|node| is_memory(node) && is_enabled(node))
    {
        ranges_of(&node, "memory banks", MAX_BANKS, &mut banks)?;
    }
    if banks.is_empty() {
        return Err(DiscoveryError::NoMemory);
    }
    Ok(banks.into_iter().collect())
}

fn is_memory(node: &FdtNode<'_>) -> bool {
    node.property("device_type")
        .is_some_and(|kind| kind.value() == b"memory\0")
        || node.name_without_address() == "memory"
}

/// The reservation block, the children of /reserved-memory that have a place, and the initial ramdisk.
pub fn reservations(tree: Fdt<'_>) -> Result<Vec<Reservation>, DiscoveryError> {
    const WHAT: &str = "reserved regions";
    let mut found = Vec::new();
    for entry in tree.memory_reservations() {
        // A reservation that runs past the end of 64 bits reserves all up to there.
        let end = entry.address().saturating_add(entry.size());
        push(PhysicalRange::new(entry.address(), end), false, &mut found)?;
    }
    if let Some(parent) = tree.find_node("/reserved-memory") {
        for node in parent.children().filter(is_enabled) {
            let mut ranges = Vec::new();
            ranges_of(&node, WHAT, MAX_RESERVATIONS, &mut ranges)?;
            let no_map = node.property("no-map").is_some();
            for range in ranges {
                push(Some(range), no_map, &mut found)?;
            }
        }
    }
    push(initial_ramdisk(tree), false, &mut found)?;
    Ok(found)
}

fn push(
    range: Option<PhysicalRange>,
    no_map: bool,
    to: &mut Vec<Reservation>,
) -> Result<(), DiscoveryError> {
    if to.len() == MAX_RESERVATIONS {
        return Err(DiscoveryError::TooMany {
            what: "reserved regions",
            most: MAX_RESERVATIONS,
        });
    }
    to.extend(range.map(|range| Reservation { range, no_map }));
    Ok(())
}

fn initial_ramdisk(tree: Fdt<'_>) -> Option<PhysicalRange> {
    let chosen = tree.find_node("/chosen")?;
    let address = |name| {
        let property = chosen.property(name)?;
        match *property.value() {
            [a, b, c, d] => Some(u64::from(u32::from_be_bytes([a, b, c, d]))),
            ref value => Some(u64::from_be_bytes(value.try_into().ok()?)),
        }
    };
    PhysicalRange::new(address("linux,initrd-start")?, address("linux,initrd-end")?)
}

/// Appends the ranges of a node's `reg`; empty ones, which firmware leaves for absent banks, are left out.
fn ranges_of(
    node: &FdtNode<'_>,
    what: &'static str,
    most: usize,
    to: &mut Vec<PhysicalRange>,
) -> Result<(), DiscoveryError> {
    let malformed = || DiscoveryError::BadProperty {
        node: short(node.name()),
        property: "reg",
    };
    let Some(regs) = node.reg().map_err(|_| malformed())? else {
        return Ok(());
    };
    for reg in regs {
        let (Ok(address), Ok(size)) = (reg.address.to_int::<u64>(), reg.size.to_int::<u64>())
        else {
            return Err(malformed());
        };
        if size == 0 {
            continue;
        }
        if to.len() == most {
            return Err(DiscoveryError::TooMany { what, most });
        }
        to.push(PhysicalRange::sized(address, size).ok_or_else(malformed)?);
    }
    Ok(())
}
