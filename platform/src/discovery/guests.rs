//! Guest images that the boot loader has loaded: the nodes under /chosen that QEMU's `guest-loader` device and Xen-aware boot
//! loaders write.

use super::{DiscoveryError, short, text, value_of};
use crate::range::PhysicalRange;
use alloc::vec::Vec;
use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::standard::NodeStandard;
use dtoolkit::{Node, Property, ToCellInt};

const MAX_MODULES: usize = 16;

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
}

/// All modules, in the tree's order.
pub fn modules(tree: Fdt<'_>) -> Result<Vec<GuestModule<'_>>, DiscoveryError> {
    let mut modules = Vec::new();
    let chosen = tree.find_node("/chosen");
    for node in chosen.iter().flat_map(|chosen| chosen.children()) {
        if !node.is_compatible("multiboot,module") {
            continue;
        }
        if modules.len() == MAX_MODULES {
            return Err(DiscoveryError::TooMany {
                what: "guest modules",
                most: MAX_MODULES,
            });
        }
        modules.push(module(&node)?);
    }
    Ok(modules)
}

fn module<'t>(node: &FdtNode<'t>) -> Result<GuestModule<'t>, DiscoveryError> {
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
