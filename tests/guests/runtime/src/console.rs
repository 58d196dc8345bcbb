//! The hypervisor's console, or a UART, byte by byte. Lines of several vCPUs may mix.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

/// Where the UART is that everything is printed on, if not 0.
static UART: AtomicU64 = AtomicU64::new(0);

/// Prints everything on a PL011 from here on.
///
/// # Safety
/// Its registers lie at this address.
pub unsafe fn use_uart(registers: u64) {
    UART.store(registers, Ordering::Relaxed);
}

/// The console; a value of it is nothing.
#[derive(Clone, Copy, Debug)]
pub struct Console;

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let uart = UART.load(Ordering::Relaxed) as *mut u32;
        for byte in text.bytes() {
            if uart.is_null() {
                crate::call(abi::CONSOLE_PUT, [byte.into(), 0, 0]);
            } else {
                put(uart, byte);
            }
        }
        Ok(())
    }
}

/// Sends a byte, once there is room.
fn put(uart: *mut u32, byte: u8) {
    const FLAGS: usize = 0x18 / 4;
    const IS_FULL: u32 = 1 << 5;
    // SAFETY: as whoever called `use_uart` has promised.
    unsafe {
        while uart.add(FLAGS).read_volatile() & IS_FULL != 0 {
            core::hint::spin_loop();
        }
        uart.write_volatile(byte.into());
    }
}

/// Prints a line.
#[macro_export]
macro_rules! println {
    ($($argument:tt)*) => {{
        use core::fmt::Write;
        // Writing to the console can't fail.
        let _ = writeln!($crate::console::Console, $($argument)*);
    }};
}
