//! EL2's own address space: all memory that may be mapped, and the registers of the devices in use, each at its own address.
//!
//! Writable and executable exclude each other: text is R-X, constants R--, everything else RW-. Page 0 and a page below
//! every stack are not mapped. Built once by the boot CPU, used by all, never changed afterwards.

use crate::image;
use crate::range::{PAGE_SIZE, PhysicalRange};
use aarch64_paging::MapError;
use aarch64_paging::descriptor::El23Attributes as Attributes;
use aarch64_paging::idmap::IdMap;
use aarch64_paging::paging::{El2, MemoryRegion};

const ROOT_LEVEL: usize = 0;

/// Attribute index 0 of [`crate::el2::set_up::MAIR`].
const DEVICE: Attributes = Attributes::ATTRIBUTE_INDEX_0
    .union(Attributes::VALID)
    .union(Attributes::ACCESSED)
    .union(Attributes::USER_RES1)
    .union(Attributes::XN);
/// Attribute index 1 of [`crate::el2::set_up::MAIR`], executable by default.
const MEMORY: Attributes = Attributes::ATTRIBUTE_INDEX_1
    .union(Attributes::INNER_SHAREABLE)
    .union(Attributes::VALID)
    .union(Attributes::ACCESSED)
    .union(Attributes::USER_RES1);
const READ_WRITE: Attributes = MEMORY.union(Attributes::XN);
const READ_ONLY: Attributes = MEMORY.union(Attributes::XN).union(Attributes::READ_ONLY);
const READ_EXECUTE: Attributes = MEMORY.union(Attributes::READ_ONLY);

/// Tables that map everything EL2 uses.
pub struct AddressSpace(IdMap<El2>);

impl AddressSpace {
    /// Builds the tables for `memory`, in which the image lies, the device registers in `devices`, and stacks with
    /// `guard_pages`.
    ///
    /// # Errors
    /// An address is beyond 48 bits.
    pub fn new(
        memory: &[PhysicalRange],
        devices: impl Iterator<Item = PhysicalRange>,
        guard_pages: impl Iterator<Item = PhysicalRange>,
    ) -> Result<Self, MapError> {
        let mut map = IdMap::new(ROOT_LEVEL, El2);
        for range in memory {
            map.map_range(&region(*range), READ_WRITE)?;
        }
        for registers in devices {
            map.map_range(&region(registers.grow_to(PAGE_SIZE)), DEVICE)?;
        }
        map.map_range(&region(image::text()), READ_EXECUTE)?;
        map.map_range(&region(image::read_only_data()), READ_ONLY)?;
        for page in guard_pages {
            map.map_range(&region(page), Attributes::empty())?;
        }
        Ok(Self(map))
    }

    /// Switches this CPU to the tables, which stay for ever, and sets SCTLR_EL2 to `sctlr`. Returns the value of TTBR0_EL2 for
    /// other CPUs.
    pub fn activate(self, sctlr: u64) -> u64 {
        unsafe extern "C" {
            fn switch_tables(ttbr: u64, sctlr: u64);
        }
        let root = self.0.root_address().0 as u64;
        core::mem::forget(self.0);
        // SAFETY: the tables map the image, the running stack and all else in use at the address it has, and are
        // never freed.
        unsafe { switch_tables(root, sctlr) };
        root
    }
}

fn region(range: PhysicalRange) -> MemoryRegion {
    MemoryRegion::new(range.start() as usize, range.end() as usize)
}
