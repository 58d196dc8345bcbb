//! Memory-mapped registers of a GIC that each CPU has for itself, or that take single bits: nothing of them needs a lock.

use crate::range::PhysicalRange;

/// Registers of a distributor for interrupts that all CPUs share: bits, two bits, bytes, by interrupt.
const GICD_ISENABLER: u64 = 0x100;
const GICD_ICENABLER: u64 = 0x180;
const GICD_IPRIORITYR: u64 = 0x400;
const GICD_ICFGR: u64 = 0xc00;

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

    /// Writes the register at `offset`.
    pub fn write(self, offset: u64, value: u32) {
        // SAFETY: as above; a GIC's registers touch no memory.
        unsafe { ((self.0 + offset) as *mut u32).write_volatile(value) }
    }
}

/// Switches a shared interrupt on or off.
pub fn set_shared_enabled(distributor: Registers, interrupt: u32, enabled: bool) {
    let register = if enabled {
        GICD_ISENABLER
    } else {
        GICD_ICENABLER
    };
    let (word, bit) = (u64::from(interrupt / 32), interrupt % 32);
    distributor.write(register + word * 4, 1 << bit);
}

/// Makes a shared interrupt level-sensitive, of the highest priority. No other CPU sets up shared interrupts.
pub fn set_up_shared(distributor: Registers, interrupt: u32) {
    set_shared_enabled(distributor, interrupt, false);
    set_field(distributor, GICD_ICFGR, 2, interrupt, 0);
    set_field(distributor, GICD_IPRIORITYR, 8, interrupt, 0);
}

/// Sets an interrupt's field of so many bits.
pub fn set_field(distributor: Registers, first: u64, bits: u32, interrupt: u32, value: u32) {
    let in_word = u32::BITS / bits;
    let register = first + u64::from(interrupt / in_word) * 4;
    let at = interrupt % in_word * bits;
    let mask = ((1 << bits) - 1) << at;
    distributor.write(register, distributor.read(register) & !mask | value << at);
}
