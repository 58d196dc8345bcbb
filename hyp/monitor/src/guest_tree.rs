//! The device tree that a guest is given: its memory, its vCPUs, PSCI, its arguments.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use dtoolkit::error::ModelError;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};
use stage2::IpaRange;

/// What a guest is told.
#[derive(Clone, Debug)]
pub struct GuestDescription<'d> {
    /// Its memory.
    pub memory: &'d [IpaRange],
    /// The affinity of each vCPU.
    pub affinities: &'d [u64],
    /// Its command line.
    pub bootargs: &'d str,
}

impl GuestDescription<'_> {
    /// The flattened tree.
    ///
    /// # Errors
    /// A name or value that a tree can't hold: `bootargs` with a NUL in it.
    pub fn to_tree(&self) -> Result<Vec<u8>, ModelError> {
        let mut tree = DeviceTree::new();
        let root = &mut tree.root;
        root.add_property(DeviceTreeProperty::new("#address-cells", 2u32)?);
        root.add_property(DeviceTreeProperty::new("#size-cells", 2u32)?);
        root.add_property(DeviceTreeProperty::new("compatible", "parvisor,guest")?);
        root.add_property(DeviceTreeProperty::new("model", "Parvisor guest")?);
        root.add_child(node("chosen", [("bootargs", self.bootargs)])?);
        root.add_child(node(
            "psci",
            [("compatible", "arm,psci-1.0"), ("method", "hvc")],
        )?);
        root.add_child(self.cpus()?);
        for range in self.memory {
            root.add_child(memory(range)?);
        }
        Ok(tree.to_dtb())
    }

    fn cpus(&self) -> Result<DeviceTreeNode, ModelError> {
        let mut cpus = DeviceTreeNode::new("cpus")?;
        cpus.add_property(DeviceTreeProperty::new("#address-cells", 2u32)?);
        cpus.add_property(DeviceTreeProperty::new("#size-cells", 0u32)?);
        for affinity in self.affinities {
            let properties = [
                ("device_type", "cpu"),
                ("compatible", "arm,armv8"),
                ("enable-method", "psci"),
            ];
            let mut cpu = node(format!("cpu@{affinity:x}"), properties)?;
            cpu.add_property(DeviceTreeProperty::new("reg", *affinity)?);
            cpus.add_child(cpu);
        }
        Ok(cpus)
    }
}

fn memory(range: &IpaRange) -> Result<DeviceTreeNode, ModelError> {
    let (start, size) = (
        range.start.get(),
        range.end.get().saturating_sub(range.start.get()),
    );
    let mut memory = node(format!("memory@{start:x}"), [("device_type", "memory")])?;
    let reg: Vec<u8> = [start, size]
        .into_iter()
        .flat_map(u64::to_be_bytes)
        .collect();
    memory.add_property(DeviceTreeProperty::new("reg", reg.as_slice())?);
    Ok(memory)
}

fn node<const N: usize>(
    name: impl Into<String>,
    properties: [(&str, &str); N],
) -> Result<DeviceTreeNode, ModelError> {
    let mut node = DeviceTreeNode::new(name)?;
    for (name, value) in properties {
        node.add_property(DeviceTreeProperty::new(name, value)?);
    }
    Ok(node)
}

#[cfg(test)]
mod tests {
    use super::*;
    use dtoolkit::fdt::Fdt;
    use dtoolkit::{Node, Property, ToCellInt};
    use stage2::Ipa;

    #[test]
    fn the_tree_tells_of_memory_cpus_and_arguments() {
        let range = |start, size| Ipa::new(start)..Ipa::new(start + size);
        let blob = GuestDescription {
            memory: &[range(0x4000_0000, 4 << 20), range(0x8000_0000, 5 << 30)],
            affinities: &[0, 1, 0x100],
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
}
