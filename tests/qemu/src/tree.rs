//! Device trees to boot with: QEMU's own, changed in ways that QEMU itself wouldn't.

use std::fs;

use dtoolkit::fdt::Fdt;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};
use emulator::boot;
use tempfile::TempDir;

use crate::{Boot, describe};

/// The tree that QEMU makes for the machine of `boot`.
///
/// # Panics
///
/// If QEMU gives none.
pub fn of_machine(boot: &Boot) -> DeviceTree {
    let folder = TempDir::new().expect("room for a file");
    let file = folder.path().join("tree");
    let mut machine = boot.machine.clone();
    machine.extra.push("-machine".into());
    machine
        .extra
        .push(format!("dumpdtb={}", file.display()).into());
    let outcome = boot::run(
        &mut machine.command(),
        emulator::effort::Limit::total(crate::LIMIT),
        |_, _| {},
        |_| {},
    );
    let bytes = fs::read(file).unwrap_or_else(|error| {
        panic!(
            "no tree ({error}): {}",
            outcome.map_or_else(|error| error.to_string(), |outcome| describe(&outcome))
        )
    });
    DeviceTree::from_fdt(&Fdt::new(&bytes).expect("QEMU's tree is valid"))
}

/// Removes every memory node.
pub fn remove_memory(tree: &mut DeviceTree) {
    let names: Vec<String> = tree
        .root
        .children_mut()
        .map(|node| node_name(node))
        .collect();
    for name in names
        .iter()
        .filter(|name| *name == "memory" || name.starts_with("memory@"))
    {
        tree.root.remove_child(name);
    }
}

/// Replaces the memory nodes by one bank.
pub fn set_memory(tree: &mut DeviceTree, base: u64, size: u64) {
    remove_memory(tree);
    tree.root.add_child(
        node(&format!("memory@{base:x}"))
            .property(property("device_type", "memory"))
            .property(property("reg", cells(&[base, size])))
            .build(),
    );
}

/// Sets a string in `/chosen`.
pub fn set_chosen(tree: &mut DeviceTree, name: &str, value: &str) {
    let chosen = chosen(tree);
    chosen.remove_property(name);
    chosen.add_property(property(name, value));
}

/// Announces a guest, as QEMU's `guest-loader` does.
pub fn add_module(tree: &mut DeviceTree, address: u64, size: u64) {
    chosen(tree).add_child(
        node(&format!("module@{address:#x}"))
            .property(property(
                "compatible",
                &["multiboot,module", "multiboot,kernel"][..],
            ))
            .property(property("reg", cells(&[address, size])))
            .build(),
    );
}

/// Describes a VM as Xen's dom0less has it, with this memory and a kernel at an address, of a size.
pub fn add_domain(
    tree: &mut DeviceTree,
    name: &str,
    cpus: Option<u32>,
    kib: u64,
    (address, size): (u64, u64),
) {
    let mut domain = node(name)
        .property(property("compatible", "xen,domain"))
        .property(property("#address-cells", 2_u32))
        .property(property("#size-cells", 2_u32))
        .property(property("memory", cells(&[kib])));
    if let Some(cpus) = cpus {
        domain = domain.property(property("cpus", cpus));
    }
    let kernel = node(&format!("module@{address:x}"))
        .property(property(
            "compatible",
            &["multiboot,kernel", "multiboot,module"][..],
        ))
        .property(property("reg", cells(&[address, size])))
        .build();
    chosen(tree).add_child(domain.child(kernel).build());
}

/// Says that the registers of a device, one page of them, are somewhere else.
///
/// # Panics
///
/// If there is no such device.
pub fn move_device(tree: &mut DeviceTree, path: &str, address: u64) {
    const PAGE: u64 = 4096;
    let device = tree.find_node_mut(path).expect("there is such a device");
    device.remove_property("reg");
    device.add_property(property("reg", cells(&[address, PAGE])));
}

/// Says that the shared interrupt of a device is an edge.
///
/// # Panics
///
/// If there is no such device.
pub fn make_edge(tree: &mut DeviceTree, path: &str, spi: u32) {
    const SPI: u32 = 0;
    const EDGE_RISING: u32 = 1;
    let device = tree.find_node_mut(path).expect("there is such a device");
    device.remove_property("interrupts");
    let cells = [SPI, spi, EDGE_RISING];
    let cells: Vec<u8> = cells.iter().flat_map(|cell| cell.to_be_bytes()).collect();
    device.add_property(property("interrupts", cells));
}

fn chosen(tree: &mut DeviceTree) -> &mut DeviceTreeNode {
    tree.find_node_mut("/chosen")
        .expect("QEMU's tree has /chosen")
}

fn node_name(node: &DeviceTreeNode) -> String {
    use dtoolkit::Node;
    node.name().to_string()
}

fn node(name: &str) -> dtoolkit::model::DeviceTreeNodeBuilder {
    DeviceTreeNode::builder(name).expect("a sound name")
}

fn property<T: dtoolkit::ToPropertyValue>(name: &str, value: T) -> DeviceTreeProperty {
    DeviceTreeProperty::new(name, value).expect("a sound name")
}

/// Numbers of two cells each.
fn cells(numbers: &[u64]) -> Vec<u8> {
    numbers
        .iter()
        .flat_map(|number| number.to_be_bytes())
        .collect()
}
