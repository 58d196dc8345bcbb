//! What a guest's device tree says.

use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::standard::NodeStandard;
use dtoolkit::{Node, Property, ToCellInt};

/// The device tree, if there is a sound one.
#[derive(Clone, Copy, Debug)]
pub struct Tree(Option<Fdt<'static>>);

impl Tree {
    /// The tree at an address.
    ///
    /// # Safety
    /// It is null, or a tree lies there that nobody changes.
    pub(crate) unsafe fn new(address: *const u8) -> Self {
        if address.is_null() {
            return Self(None);
        }
        // SAFETY: the caller's promise.
        Self(unsafe { Fdt::from_raw(address) }.ok())
    }

    /// The command line; empty if there is none.
    pub fn bootargs(self) -> &'static str {
        let property = self
            .0
            .and_then(|tree| tree.find_node("/chosen")?.property("bootargs"));
        property
            .and_then(|property| property.value_as::<&'static str>().ok())
            .unwrap_or("")
    }

    /// How many vCPUs there are.
    pub fn vcpus(self) -> usize {
        let cpus = self.0.and_then(|tree| tree.find_node("/cpus"));
        cpus.map_or(0, |cpus| {
            cpus.children()
                .filter(|cpu| cpu.name().starts_with("cpu@"))
                .count()
        })
    }

    /// The size of the memory that begins at an address, in bytes; 0 if none does.
    pub fn memory_at(self, address: u64) -> u64 {
        let Some(tree) = self.0 else { return 0 };
        let memory = tree
            .root()
            .children()
            .filter(|node| node.name().starts_with("memory@"));
        memory
            .filter_map(|node| node.reg().ok().flatten())
            .flatten()
            .filter(|reg| reg.address.to_int() == Ok(address))
            .find_map(|reg| reg.size.to_int().ok())
            .unwrap_or(0)
    }

    /// Where the registers of the first device begin that is compatible with `name`.
    pub fn registers(self, name: &str) -> Option<u64> {
        let registers = self.compatible(name)?.reg().ok()??.next()?;
        registers.address.to_int().ok()
    }

    /// The first interrupt of that device, as its number among the SPIs.
    pub fn shared_interrupt(self, name: &str) -> Option<u32> {
        let interrupts = self.compatible(name)?.property("interrupts")?;
        let (cells, _) = interrupts.value().as_chunks::<4>();
        let cell = |index: usize| cells.get(index).map(|cell| u32::from_be_bytes(*cell));
        cell(1).filter(|_| cell(0) == Some(0))
    }

    fn compatible(self, name: &str) -> Option<FdtNode<'static>> {
        let mut devices = self.0?.root().children();
        devices.find(|node| node.is_compatible(name))
    }
}
