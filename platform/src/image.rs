//! The location of the hypervisor's own image, from the linker script's symbols. Constant after relocation.

use crate::range::PhysicalRange;

unsafe extern "C" {
    safe static __image_start: u8;
    safe static __text_end: u8;
    safe static __rodata_end: u8;
    safe static __image_end: u8;
}

fn range(start: &'static u8, end: &'static u8) -> PhysicalRange {
    let address = |symbol: &'static u8| core::ptr::from_ref(symbol) as u64;
    PhysicalRange::new(address(start), address(end))
        .expect("the linker script leaves no part of the image empty")
}

/// All of it, with what isn't in the file.
pub fn whole() -> PhysicalRange {
    range(&__image_start, &__image_end)
}

/// The instructions.
pub fn text() -> PhysicalRange {
    range(&__image_start, &__text_end)
}

/// The constants.
pub fn read_only_data() -> PhysicalRange {
    range(&__text_end, &__rodata_end)
}
