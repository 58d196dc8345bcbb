//! Sizes in bytes, read as the hypervisor reads them.

pub use records::size::{Size, SizeError};

/// `count` MiB.
pub const fn mib(count: u64) -> Size {
    Size(count << 20)
}

/// Reads an option's value.
///
/// # Errors
///
/// The expected form of a size, or that this one is too large.
pub fn parse(text: &str) -> Result<Size, SizeError> {
    Size::parse(text)
}
