//! The interfaces of devices: towards the guest, and towards the machine.

use crate::saved::RestoreError;
use alloc::collections::TryReserveError;
use alloc::vec::Vec;
pub use arm::Width;

/// A device with registers that guests access. All vCPUs call at any time.
pub trait Device: Send + Sync {
    /// Reads at `offset` from the device's start. The result has no bits beyond `width`.
    fn read(&self, offset: u64, width: Width) -> u64;

    /// Writes at `offset` from the device's start. Bits of `value` beyond `width` are ignored.
    fn write(&self, offset: u64, width: Width, value: u64);

    /// Appends the device's state to `saved`. The VM is paused.
    ///
    /// # Errors
    /// There is no memory for it.
    fn save(&self, saved: &mut Vec<u8>) -> Result<(), TryReserveError>;

    /// Takes over a state that [`Self::save`] wrote, and sets the interrupt's line accordingly. The VM is paused.
    ///
    /// # Errors
    /// `saved` isn't such a state. The device is unchanged then.
    fn restore(&self, saved: &[u8]) -> Result<(), RestoreError>;
}

/// The line of a device's interrupt. For any CPU at any time.
pub trait IrqLine: Send + Sync {
    /// Sets the line's level.
    fn set(&self, level: bool);
}

/// A device's interface to the machine. For any CPU at any time.
pub trait DeviceHost: Send + Sync {
    /// Nanoseconds since some fixed moment.
    fn now_ns(&self) -> u64;

    /// Has CPU 0 look at the devices: one has output, room for input, or a new deadline.
    fn wake(&self);
}

/// Reads 32-bit registers by an access of any width and alignment. Registers lie at multiples of 4; what a narrow access
/// doesn't cover isn't read, except as a part of the same register.
pub(crate) fn read_words(offset: u64, width: Width, mut read: impl FnMut(u64) -> u32) -> u64 {
    let register = offset & !3;
    let shift = 8 * (offset & 3);
    let mut value = u64::from(read(register)) >> shift;
    if offset & 3 == 0 && width == Width::Double {
        value |= u64::from(read(register.wrapping_add(4))) << 32;
    }
    width.of(value)
}

/// Writes 32-bit registers by an access of any width. As on the peripheral bus, which has no byte lanes, a narrow write sets
/// the rest of the register to 0; one that doesn't begin at a register has no effect.
pub(crate) fn write_words(offset: u64, width: Width, value: u64, mut write: impl FnMut(u64, u32)) {
    if offset & 3 != 0 {
        return;
    }
    let value = width.of(value);
    write(offset, value as u32);
    if width == Width::Double {
        write(offset.wrapping_add(4), (value >> 32) as u32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accesses_of_all_widths_reach_their_registers() {
        let registers = |offset: u64| 0x1122_3344 + offset as u32;
        assert_eq!(read_words(8, Width::Word, registers), 0x1122_334c);
        assert_eq!(read_words(9, Width::Byte, registers), 0x33);
        assert_eq!(read_words(10, Width::Half, registers), 0x1122);
        assert_eq!(
            read_words(8, Width::Double, registers),
            0x1122_3350_1122_334c
        );
        assert_eq!(read_words(11, Width::Double, registers), 0x11);

        let written = |offset, width, value| {
            let mut written = Vec::new();
            write_words(offset, width, value, |offset, value| {
                written.push((offset, value));
            });
            written
        };
        assert_eq!(written(0, Width::Byte, 0x1234), [(0, 0x34)]);
        assert_eq!(written(1, Width::Byte, 0x12), []);
        assert_eq!(written(8, Width::Double, 7 << 32 | 5), [(8, 5), (12, 7)]);
    }
}
