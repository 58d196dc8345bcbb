//! Reads and writes system registers by name or, where the assembler knows the name only with some extension enabled, by
//! encoding (`s3_4_c1_c1_6`), so that the image is assembled for Armv8.0.

/// Reads a system register. The name is a string literal.
macro_rules! read_register {
    ($name:ident) => {
        read_register!(@ stringify!($name))
    };
    ($name:literal) => {
        read_register!(@ $name)
    };
    (@ $($name:tt)+) => {{
        let value: u64;
        // SAFETY: reading this register has no side effect on memory; whoever names one that the CPU lacks gets an
        // undefined-instruction exception, which is reported, not undefined behaviour.
        unsafe { core::arch::asm!(concat!("mrs {}, ", $($name)+), out(reg) value, options(nomem, nostack, preserves_flags)) };
        value
    }};
}

/// Writes a system register; its effect is certain only after an ISB. To be called in an `unsafe` block that says why
/// the value keeps everything running.
macro_rules! write_register {
    ($name:ident, $value:expr) => {
        write_register!(@ $value, stringify!($name))
    };
    ($name:literal, $value:expr) => {
        write_register!(@ $value, $name)
    };
    (@ $value:expr, $($name:tt)+) => {{
        let value: u64 = $value;
        core::arch::asm!(concat!("msr ", $($name)+, ", {}"), in(reg) value, options(nostack, preserves_flags))
    }};
}

pub(crate) use {read_register, write_register};
