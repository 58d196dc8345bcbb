//! Memory-mapped registers of a GIC that each CPU has for itself, or that take single bits: nothing of them needs a lock.

use crate::range::PhysicalRange;

/// Some registers.
#[derive(Clone, Copy, Debug)]
pub struct Registers(u64);

impl Registers {
    /// Those at these addresses.
    ///
    /// # Safety
    /// They are a GIC's, and mapped as a device for good.
    pub const unsafe fn new(range: PhysicalRange) -> Self {
        Self(range.start())
    }

    /// Reads the register at `offset`.
    pub fn read(self, offset: u64) -> u32 {
        // SAFETY: `new`'s caller has promised that the registers are there.
        unsafe { ((self.0 + offset) as *const u32).read_volatile() }
    }

    /// Gives `bits` of the register at `offset`, from `shift` on, this value.
    pub fn change(self, offset: u64, shift: u32, bits: u32, value: u32) {
        let others = self.read(offset) & !(bits << shift);
        self.write(offset, others | value << shift);
    }

    /// Writes the register at `offset`.
    pub fn write(self, offset: u64, value: u32) {
        // SAFETY: as above; a GIC's registers touch no memory.
        unsafe { ((self.0 + offset) as *mut u32).write_volatile(value) }
    }
}
