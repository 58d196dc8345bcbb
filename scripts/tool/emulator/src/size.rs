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
/// What a size looks like, or that this is too much.
pub fn parse(text: &str) -> Result<Size, SizeError> {
    Size::parse(text)
}
