//! Sizes in bytes, read as the hypervisor reads them.

pub use monitor::size::Size;

/// `count` MiB.
pub const fn mib(count: u64) -> Size {
    Size(count << 20)
}

/// Reads an option's value.
///
/// # Errors
///
/// What a size looks like.
pub fn parse(text: &str) -> Result<Size, &'static str> {
    Size::parse(text).ok_or("a size is a number of bytes, or a number with K, M or G, as in 64M")
}
