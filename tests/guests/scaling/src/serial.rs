//! The serial port of QEMU's `virt`, a PL011 that is ready as it is. Only the first CPU prints.

use core::fmt::{self, Write};

/// Where its data register is.
const DATA: *mut u8 = 0x0900_0000 as *mut u8;

struct Serial;

impl Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // SAFETY: the register is there on this machine, is mapped, and takes any byte.
            unsafe { DATA.write_volatile(byte) };
        }
        Ok(())
    }
}

/// Prints a line.
pub fn print(line: fmt::Arguments<'_>) {
    // Writing to the port can't fail.
    let _ = writeln!(Serial, "{line}");
}
