//! Guest images that the boot loader has loaded: the nodes under /chosen that QEMU's `guest-loader` device and Xen-aware boot
//! loaders write; and the VMs that Xen's dom0less describes there, each with modules of its own
//! (Xen, docs/misc/arm/device-tree/booting.txt).

use super::{DiscoveryError, short, text, value_of};
use crate::range::PhysicalRange;
use alloc::vec::Vec;
use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::standard::NodeStandard;
use dtoolkit::{Node, Property, ToCellInt};

const MAX_MODULES: usize = 64;
const MAX_DOMAINS: usize = 64;

/// The kind of a module.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ModuleKind {
    /// A guest's kernel.
    Kernel,
    /// A guest's initial ramdisk.
    Ramdisk,
    /// Something else.
    Other,
}

/// A file in memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GuestModule<'t> {
    /// The node's name.
    pub name: &'t str,
    /// Its kind.
    pub kind: ModuleKind,
    /// Its memory.
    pub range: PhysicalRange,
    /// The module's own arguments.
    pub bootargs: Option<&'t str>,
    /// The VM that it is a module of, among the tree's VMs, if it is of one.
    pub domain: Option<usize>,
}

/// A VM that the tree describes. What it lacks is for others to judge.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Domain<'t> {
    /// The node's name.
    pub name: &'t str,
    /// Its CPUs.
    pub cpus: Option<u64>,
    /// Its memory in KiB.
    pub kib: Option<u64>,
}

/// All modules and all VMs, in the tree's order.
pub fn modules(tree: Fdt<'_>) -> Result<(Vec<GuestModule<'_>>, Vec<Domain<'_>>), DiscoveryError> {
    let (mut modules, mut domains) = (Vec::new(), Vec::new());
    let chosen = tree.find_node("/chosen");
    for node in chosen.iter().flat_map(|chosen| chosen.children()) {
        if is_module(&node) {
            push(&node, None, &mut modules)?;
        }
        if !node.is_compatible("xen,domain") {
            continue;
        }
        if domains.len() == MAX_DOMAINS {
            return Err(DiscoveryError::TooMany {
                what: "VMs",
                most: MAX_DOMAINS,
            });
        }
        for module in node.children().filter(is_module) {
            push(&module, Some(domains.len()), &mut modules)?;
        }
        domains.push(Domain {
            name: node.name(),
            cpus: number(&node, "cpus"),
            kib: number(&node, "memory"),
        });
    }
    Ok((modules, domains))
}

fn is_module(node: &FdtNode<'_>) -> bool {
    node.is_compatible("multiboot,module")
}

/// A property of one cell or two.
fn number(node: &FdtNode<'_>, name: &str) -> Option<u64> {
    match *node.property(name)?.value() {
        [a, b, c, d] => Some(u32::from_be_bytes([a, b, c, d]).into()),
        ref value => Some(u64::from_be_bytes(value.try_into().ok()?)),
    }
}

fn push<'t>(
    node: &FdtNode<'t>,
    domain: Option<usize>,
    to: &mut Vec<GuestModule<'t>>,
) -> Result<(), DiscoveryError> {
    if to.len() == MAX_MODULES {
        return Err(DiscoveryError::TooMany {
            what: "guest modules",
            most: MAX_MODULES,
        });
    }
    to.push(module(node, domain)?);
    Ok(())
}

fn module<'t>(
    node: &FdtNode<'t>,
    domain: Option<usize>,
) -> Result<GuestModule<'t>, DiscoveryError> {
    let malformed = |property| DiscoveryError::BadModule {
        module: short(node.name()),
        property,
    };
    let bootargs = match node.property("bootargs") {
        None => None,
        Some(property) => Some(text(value_of(&property)).ok_or_else(|| malformed("bootargs"))?),
    };
    Ok(GuestModule {
        name: node.name(),
        kind: kind(node),
        range: range(node).ok_or_else(|| malformed("reg"))?,
        bootargs,
        domain,
    })
}

/// The range of a module. QEMU writes two 64-bit numbers into /chosen without cell sizes, whose defaults differ.
fn range(node: &FdtNode<'_>) -> Option<PhysicalRange> {
    if let Some(mut regs) = node.reg().ok().flatten() {
        let reg = regs.next()?;
        return PhysicalRange::sized(reg.address.to_int().ok()?, reg.size.to_int().ok()?);
    }
    let property = node.property("reg")?;
    let ([address, size], []) = property.value().as_chunks::<8>() else {
        return None;
    };
    PhysicalRange::sized(u64::from_be_bytes(*address), u64::from_be_bytes(*size))
}

fn kind(node: &FdtNode<'_>) -> ModuleKind {
    if node.is_compatible("multiboot,kernel") {
        ModuleKind::Kernel
    } else if node.is_compatible("multiboot,ramdisk") {
        ModuleKind::Ramdisk
    } else {
        ModuleKind::Other
    }
}
