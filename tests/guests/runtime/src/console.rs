//! The hypervisor's console, byte by byte. Lines of several vCPUs may mix.

use core::fmt;

/// The console; a value of it is nothing.
#[derive(Clone, Copy, Debug)]
pub struct Console;

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            crate::call(abi::CONSOLE_PUT, [byte.into(), 0, 0]);
        }
        Ok(())
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
