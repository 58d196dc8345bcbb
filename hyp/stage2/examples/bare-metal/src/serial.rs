//! The PL011 of QEMU's `virt`, to print by.

use core::fmt::{self, Write};

struct Uart;

impl Write for Uart {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        const DATA: *mut u32 = 0x0900_0000 as *mut u32;
        for byte in text.bytes() {
            // SAFETY: its data register. QEMU's takes every byte at once.
            unsafe { DATA.write_volatile(byte.into()) };
        }
        Ok(())
    }
}

/// Prints a line.
pub fn print(text: fmt::Arguments<'_>) {
    // Writing to it never fails.
    let _ = writeln!(Uart, "{text}");
}
