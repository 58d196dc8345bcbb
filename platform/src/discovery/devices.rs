//! The devices that the hypervisor itself uses: GIC, generic timer, console UART, and PSCI.

use super::tree::{Place, is_enabled};
use super::{DiscoveryError, short};
use crate::range::PhysicalRange;
use alloc::vec::Vec;
use core::ops::ControlFlow;
use dtoolkit::fdt::Fdt;
use dtoolkit::{Node, Property};

const MAX_REDISTRIBUTOR_REGIONS: usize = 32;
/// The compatible strings of GICv2.
pub const GICV2: [&str; 6] = [
    "arm,gic-400",
    "arm,cortex-a15-gic",
    "arm,cortex-a7-gic",
    "arm,cortex-a9-gic",
    "arm,pl390",
    "brcm,brahma-b15-gic",
];

/// The compatible strings of GICv3 and v4.
pub const GICV3: [&str; 1] = ["arm,gic-v3"];

/// The compatible strings of PMUs, PMUv3 and later.
const PMUV3: [&str; 19] = [
    "arm,armv8-pmuv3",
    "arm,cortex-a35-pmu",
    "arm,cortex-a53-pmu",
    "arm,cortex-a55-pmu",
    "arm,cortex-a57-pmu",
    "arm,cortex-a65-pmu",
    "arm,cortex-a72-pmu",
    "arm,cortex-a73-pmu",
    "arm,cortex-a75-pmu",
    "arm,cortex-a76-pmu",
    "arm,cortex-a77-pmu",
    "arm,cortex-a78-pmu",
    "arm,cortex-a510-pmu",
    "arm,cortex-a710-pmu",
    "arm,cortex-x1-pmu",
    "arm,cortex-x2-pmu",
    "arm,neoverse-n1-pmu",
    "arm,neoverse-n2-pmu",
    "arm,neoverse-v1-pmu",
];

/// The instruction that calls PSCI.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Conduit {
    /// SMC, to EL3: for a hypervisor.
    Smc,
    /// HVC, to EL2: for a guest of another hypervisor.
    Hvc,
}

/// A PL011 UART.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Uart {
    /// Its registers.
    pub registers: PhysicalRange,
    /// Its interrupt, if it has one that all CPUs share.
    pub interrupt: Option<Interrupt>,
}

/// The interrupt controller's registers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Gic {
    /// GICv2.
    V2 {
        /// GICD.
        distributor: PhysicalRange,
        /// GICC.
        cpu_interface: PhysicalRange,
        /// GICH, if there is one.
        virtual_control: Option<PhysicalRange>,
        /// GICV, to be mapped to guests, if there is one.
        virtual_cpu_interface: Option<PhysicalRange>,
    },
    /// GICv3 or v4 with system registers.
    V3 {
        /// GICD.
        distributor: PhysicalRange,
        /// GICR, in one region or several.
        redistributors: Vec<PhysicalRange>,
    },
}

/// An interrupt's number (INTID).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Interrupt(pub u32);

/// The generic timer's interrupts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TimerInterrupts {
    /// EL1's physical timer, non-secure.
    pub physical: Interrupt,
    /// EL1's virtual timer.
    pub virtual_timer: Interrupt,
    /// EL2's physical timer.
    pub hypervisor: Interrupt,
}

/// The conduit of a PSCI 0.2 or later; older ones have no standard function numbers.
pub fn conduit(tree: Fdt<'_>) -> Option<Conduit> {
    find(tree, &mut |place| {
        if !place.is_enabled_and_compatible(&["arm,psci-1.0", "arm,psci-0.2"]) {
            return None;
        }
        match place.node.property("method")?.value() {
            b"smc\0" => Some(Conduit::Smc),
            b"hvc\0" => Some(Conduit::Hvc),
            _ => None,
        }
    })
}

/// The GIC. A machine with several has the one that CPUs are connected to first.
pub fn gic(tree: Fdt<'_>) -> Result<Gic, DiscoveryError> {
    find(tree, &mut |place| {
        if place.is_enabled_and_compatible(&GICV3) {
            Some(gic_v3(place))
        } else if place.is_enabled_and_compatible(&GICV2) {
            Some(gic_v2(place))
        } else {
            None
        }
    })
    .unwrap_or(Err(DiscoveryError::NoGic))
}

fn gic_v2(place: &Place<'_, '_>) -> Result<Gic, DiscoveryError> {
    Ok(Gic::V2 {
        distributor: required_registers(place, 0)?,
        cpu_interface: adjacent(required_registers(place, 1)?),
        virtual_control: place.registers(2),
        virtual_cpu_interface: place.registers(3).map(adjacent),
    })
}

/// The registers of a CPU interface, 8 KiB. Where each page of 4 KiB fills 64 KiB, for CPUs whose own pages are as large, the
/// last copy of the first page lies before the second.
fn adjacent(registers: PhysicalRange) -> PhysicalRange {
    const PAGE: u64 = 1 << 12;
    const COPIES: u64 = 1 << 16;
    let last = PhysicalRange::sized(registers.start() + COPIES - PAGE, 2 * PAGE);
    last.filter(|_| registers.size() == 2 * COPIES)
        .unwrap_or(registers)
}

fn gic_v3(place: &Place<'_, '_>) -> Result<Gic, DiscoveryError> {
    let count = match place.node.property("#redistributor-regions") {
        None => 1,
        Some(property) => property
            .value_as::<u32>()
            .map_err(|_| malformed(place, "#redistributor-regions"))?
            as usize,
    };
    if count > MAX_REDISTRIBUTOR_REGIONS {
        return Err(DiscoveryError::TooMany {
            what: "redistributor regions",
            most: MAX_REDISTRIBUTOR_REGIONS,
        });
    }
    let redistributors = (1..=count.max(1))
        .map(|index| required_registers(place, index))
        .collect::<Result<_, _>>()?;
    Ok(Gic::V3 {
        distributor: required_registers(place, 0)?,
        redistributors,
    })
}

fn required_registers(
    place: &Place<'_, '_>,
    index: usize,
) -> Result<PhysicalRange, DiscoveryError> {
    place
        .registers(index)
        .ok_or_else(|| malformed(place, "reg"))
}

fn malformed(place: &Place<'_, '_>, property: &'static str) -> DiscoveryError {
    DiscoveryError::BadProperty {
        node: short(place.node.name()),
        property,
    }
}

/// The timer's interrupts: secure, physical, virtual and EL2 timer.
pub fn timer(tree: Fdt<'_>) -> Option<TimerInterrupts> {
    const INTERRUPTS: usize = 4;
    find(tree, &mut |place| {
        if !place.is_enabled_and_compatible(&["arm,armv8-timer", "arm,armv7-timer"]) {
            return None;
        }
        Some(TimerInterrupts {
            physical: private_interrupt(place, 1, INTERRUPTS)?,
            virtual_timer: private_interrupt(place, 2, INTERRUPTS)?,
            hypervisor: private_interrupt(place, 3, INTERRUPTS)?,
        })
    })
}

/// The interrupt by which the GIC asks for maintenance of its list registers.
pub fn maintenance(tree: Fdt<'_>) -> Option<Interrupt> {
    find(tree, &mut |place| {
        let is_gic =
            place.is_enabled_and_compatible(&GICV3) || place.is_enabled_and_compatible(&GICV2);
        is_gic.then(|| private_interrupt(place, 0, 1))
    })
    .flatten()
}

/// The interrupt of the CPUs' performance monitors.
pub fn pmu(tree: Fdt<'_>) -> Option<Interrupt> {
    find(tree, &mut |place| {
        let is_pmu = place.is_enabled_and_compatible(&PMUV3);
        is_pmu.then(|| private_interrupt(place, 0, 1))
    })
    .flatten()
}

/// One of the device's interrupts, of which it has at least `least`: cells (kind, number, flags) or (kind, number, flags, CPUs).
/// `None` if it isn't private to each CPU.
fn private_interrupt(place: &Place<'_, '_>, index: usize, least: usize) -> Option<Interrupt> {
    const KIND_PPI: u32 = 1;
    const FIRST_PPI: u32 = 16;
    const PPIS: u32 = 16;
    let property = place.node.property("interrupts")?;
    let (words, _) = property.value().as_chunks::<4>();
    let cells = if words.len() % 4 == 0 && words.len() >= 4 * least {
        4
    } else {
        3
    };
    let kind = u32::from_be_bytes(*words.get(index * cells)?);
    let number = u32::from_be_bytes(*words.get(index * cells + 1)?);
    (kind == KIND_PPI && number < PPIS).then(|| Interrupt(FIRST_PPI + number))
}

/// A device's first interrupt, if all CPUs share it.
fn shared_interrupt(place: &Place<'_, '_>) -> Option<Interrupt> {
    const KIND_SPI: u32 = 0;
    const FIRST_SPI: u32 = 32;
    const SPIS: u32 = 988;
    let property = place.node.property("interrupts")?;
    let (words, _) = property.value().as_chunks::<4>();
    let kind = u32::from_be_bytes(*words.first()?);
    let number = u32::from_be_bytes(*words.get(1)?);
    (kind == KIND_SPI && number < SPIS).then(|| Interrupt(FIRST_SPI + number))
}

/// The UART that /chosen names, if it is a PL011, or else the first PL011 there is.
pub fn console(tree: Fdt<'_>) -> Option<Uart> {
    chosen_console(tree).or_else(|| find(tree, &mut pl011))
}

fn chosen_console(tree: Fdt<'_>) -> Option<Uart> {
    let chosen = tree.find_node("/chosen")?;
    let property = chosen
        .property("stdout-path")
        .or_else(|| chosen.property("linux,stdout-path"))?;
    // What follows a colon are line settings.
    let name = string(property.value())?.split(':').next()?;
    let root = Place::root(tree);
    if name.starts_with('/') {
        return root.at_path(name, &mut pl011);
    }
    let aliases = tree.find_node("/aliases")?;
    root.at_path(string(aliases.property(name)?.value())?, &mut pl011)
}

fn pl011(place: &Place<'_, '_>) -> Option<Uart> {
    if !is_enabled(&place.node) || !place.is_enabled_and_compatible(&["arm,pl011"]) {
        return None;
    }
    Some(Uart {
        registers: place.registers(0)?,
        interrupt: shared_interrupt(place),
    })
}

fn string(value: &[u8]) -> Option<&str> {
    core::str::from_utf8(value.strip_suffix(b"\0")?).ok()
}

/// The first result of `want` over the nodes.
fn find<R>(tree: Fdt<'_>, want: &mut dyn FnMut(&Place<'_, '_>) -> Option<R>) -> Option<R> {
    let outcome = Place::root(tree).walk(&mut |place| match want(place) {
        Some(found) => ControlFlow::Break(found),
        None => ControlFlow::Continue(()),
    });
    match outcome {
        ControlFlow::Break(found) => Some(found),
        ControlFlow::Continue(()) => None,
    }
}
