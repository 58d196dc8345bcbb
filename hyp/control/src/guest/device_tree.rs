//! The device tree for a guest without a board: memory, vCPUs, PSCI, assigned devices, and arguments.

use crate::machine::Device;
use alloc::format;
use alloc::vec::Vec;
use core::fmt;
use stage2::IpaRange;
use vm_fdt::{Error, FdtWriter};

/// The contents of a guest's device tree.
#[derive(Clone, Debug)]
pub struct GuestDescription<'d> {
    /// Its memory.
    pub memory: &'d [IpaRange],
    /// The affinity of each vCPU.
    pub affinities: &'d [u64],
    /// Its devices.
    pub devices: &'d [Device],
    /// Its command line.
    pub bootargs: &'d str,
}

impl GuestDescription<'_> {
    /// The flattened tree.
    ///
    /// # Errors
    /// A value that a tree can't hold: `bootargs` with a NUL in it. Or there is no heap: the tree's builder can't report that,
    /// so a sufficient amount is first allocated and freed again.
    pub fn to_tree(&self) -> Result<Vec<u8>, TreeError> {
        check_room(self.bootargs, self.most_bytes())?;
        self.write().map_err(TreeError::Value)
    }

    /// The most heap for building the tree.
    fn most_bytes(&self) -> usize {
        /// For a vCPU's node, for a range of memory, for all else.
        const NODE: usize = 256;
        const REST: usize = 4096;
        let device = most_device_bytes(self.devices.iter());
        let nodes = (self.affinities.len() + self.memory.len()).saturating_mul(NODE);
        let all = self.bootargs.len().saturating_add(device);
        // Its buffer is copied into one twice as large when it grows.
        all.saturating_add(nodes + REST).saturating_mul(4)
    }

    fn write(&self) -> Result<Vec<u8>, Error> {
        let mut tree = FdtWriter::new()?;
        let root = tree.begin_node("")?;
        tree.property_u32("#address-cells", 2)?;
        tree.property_u32("#size-cells", 2)?;
        tree.property_string("compatible", "parvisor,guest")?;
        tree.property_string("model", "Parvisor guest")?;
        node(&mut tree, "chosen", &[("bootargs", self.bootargs)])?;
        node(
            &mut tree,
            "psci",
            &[("compatible", "arm,psci-1.0"), ("method", "hvc")],
        )?;
        write_cpus(&mut tree, self.affinities)?;
        for range in self.memory {
            write_memory(&mut tree, range)?;
        }
        for device in self.devices {
            write_device(&mut tree, device, |_| Ok(()))?;
        }
        tree.end_node(root)?;
        tree.finish()
    }
}

/// Checks that there is heap for building a tree: its builder can't report that there is none.
pub(crate) fn check_room(bootargs: &str, bytes: usize) -> Result<(), TreeError> {
    let mut room = Vec::<u8>::new();
    let reserved = room.try_reserve_exact(bytes);
    reserved.map_err(|_| TreeError::NoRoom {
        bootargs: bootargs.len(),
        bytes,
    })
}

/// Writes the node of the vCPUs with these affinities.
pub(crate) fn write_cpus(tree: &mut FdtWriter, affinities: &[u64]) -> Result<(), Error> {
    let cpus = tree.begin_node("cpus")?;
    tree.property_u32("#address-cells", 2)?;
    tree.property_u32("#size-cells", 0)?;
    for affinity in affinities {
        let cpu = tree.begin_node(&format!("cpu@{affinity:x}"))?;
        tree.property_string("device_type", "cpu")?;
        tree.property_string("compatible", "arm,armv8")?;
        tree.property_string("enable-method", "psci")?;
        tree.property_u64("reg", *affinity)?;
        tree.end_node(cpu)?;
    }
    tree.end_node(cpus)
}

/// Writes the node of a range of memory.
pub(crate) fn write_memory(tree: &mut FdtWriter, range: &IpaRange) -> Result<(), Error> {
    let (start, size) = (
        range.start.get(),
        range.end.get().saturating_sub(range.start.get()),
    );
    let memory = tree.begin_node(&format!("memory@{start:x}"))?;
    tree.property_string("device_type", "memory")?;
    tree.property_array_u64("reg", &[start, size])?;
    tree.end_node(memory)
}

/// The most heap for the nodes of these devices.
pub(crate) fn most_device_bytes<'d>(devices: impl Iterator<Item = &'d Device>) -> usize {
    const NODE: usize = 256;
    let bytes = |device: &Device| {
        let interrupts = device.interrupts.as_ref().map_or(0, Vec::len);
        let ranges = device.registers.len().saturating_add(interrupts);
        let strings = device.compatible.len() + device.name.len() + 5 * device.clock_names.len();
        NODE + strings.saturating_add(ranges.saturating_mul(2 * size_of::<u64>()))
    };
    devices.map(bytes).fold(0, usize::saturating_add)
}

/// Writes the node of a device of the machine's, with further properties.
pub(crate) fn write_device(
    tree: &mut FdtWriter,
    device: &Device,
    more: impl FnOnce(&mut FdtWriter) -> Result<(), Error>,
) -> Result<(), Error> {
    let registers = device.registers.iter();
    let registers = registers.flat_map(|part| [part.start, part.object.bytes()]);
    let node = tree.begin_node(device.name)?;
    if !device.compatible.is_empty() {
        tree.property("compatible", device.compatible)?;
    }
    tree.property_array_u64("reg", &registers.collect::<Vec<_>>())?;
    more(tree)?;
    tree.end_node(node)
}

fn node(tree: &mut FdtWriter, name: &str, properties: &[(&str, &str)]) -> Result<(), Error> {
    let node = tree.begin_node(name)?;
    for (property, value) in properties {
        tree.property_string(property, value)?;
    }
    tree.end_node(node)
}

/// A guest's device tree can't be built.
#[derive(Debug, PartialEq, Eq)]
pub enum TreeError {
    /// A tree can't hold one of the values.
    Value(Error),
    /// There is no heap for it.
    NoRoom {
        /// The length of the guest's command line.
        bootargs: usize,
        /// The bytes that were requested.
        bytes: usize,
    },
}

impl fmt::Display for TreeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(error) => error.fmt(f),
            Self::NoRoom { bootargs, bytes } => write!(
                f,
                "there is no memory of {bytes} bytes for it, with bootargs of {bootargs} bytes"
            ),
        }
    }
}

impl core::error::Error for TreeError {}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::String;
    use dtoolkit::fdt::Fdt;
    use dtoolkit::{Node, Property, ToCellInt};
    use stage2::Ipa;

    #[test]
    fn the_tree_tells_of_memory_cpus_and_arguments() {
        let range = |start, size| Ipa::new(start)..Ipa::new(start + size);
        let blob = GuestDescription {
            memory: &[range(0x4000_0000, 4 << 20), range(0x8000_0000, 5 << 30)],
            affinities: &[0, 1, 0x100],
            devices: &[],
            bootargs: "console=hvc",
        }
        .to_tree()
        .unwrap();
        let tree = Fdt::new(&blob).unwrap();
        let string = |node: &str, property: &str| {
            let node = tree.find_node(node).unwrap();
            String::from(node.property(property).unwrap().value_as::<&str>().unwrap())
        };
        assert_eq!(string("/chosen", "bootargs"), "console=hvc");
        assert_eq!(string("/psci", "method"), "hvc");
        assert_eq!(string("/cpus/cpu@100", "enable-method"), "psci");
        let regs: Vec<(u64, u64)> = tree
            .find_node("/memory@80000000")
            .unwrap()
            .reg()
            .unwrap()
            .unwrap()
            .map(|reg| (reg.address.to_int().unwrap(), reg.size.to_int().unwrap()))
            .collect();
        assert_eq!(regs, [(0x8000_0000, 5 << 30)]);
        let cpus = tree.find_node("/cpus").unwrap();
        assert_eq!(cpus.children().count(), 3);
        let last = tree.find_node("/cpus/cpu@100").unwrap();
        assert_eq!(
            last.property("reg").unwrap().value(),
            0x100u64.to_be_bytes()
        );
    }

    /// The amount tested in advance suffices for a tree and for the buffer that it grew out of.
    #[test]
    fn no_tree_takes_more_than_is_asked_for() {
        let affinities: Vec<u64> = (0..128).collect();
        let memory = [Ipa::new(0x4000_0000)..Ipa::new(0x5000_0000)];
        for (length, vcpus) in [(0, 1), (0, 128), (120_000, 1), (1 << 20, 128)] {
            let bootargs = "x".repeat(length);
            let description = GuestDescription {
                memory: &memory,
                affinities: &affinities[..vcpus],
                devices: &[],
                bootargs: &bootargs,
            };
            let tree = description.to_tree().unwrap();
            assert!(
                3 * tree.len() <= description.most_bytes(),
                "{length}, {vcpus}"
            );
        }
    }
}
