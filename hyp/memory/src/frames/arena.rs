//! Stands in for physical memory on a host: an allocation that is never freed and whose addresses serve as physical ones.

use crate::frames::FrameSize;
use alloc::alloc::{Layout, alloc_zeroed, handle_alloc_error};
use core::ops::Range;
use core::slice;
use stage2::{PAGE_SIZE, Pa};

/// Leaks `frames` zeroed frames, aligned to their size up to 1 GiB.
pub fn leak(frames: usize) -> Range<Pa> {
    let align = frames.next_power_of_two().min(FrameSize::Block1G.frames()) * PAGE_SIZE as usize;
    let layout = Layout::from_size_align(frames.max(1) * PAGE_SIZE as usize, align)
        .expect("an arena's size is sane");
    // SAFETY: the layout's size isn't zero.
    let start = unsafe { alloc_zeroed(layout) };
    if start.is_null() {
        handle_alloc_error(layout);
    }
    let start = Pa::new(start.expose_provenance() as u64);
    start..start.offset(frames as u64 * PAGE_SIZE)
}

/// Zeroes whole pages of an arena, except those that are already zero: untouched pages take no memory of the host, however
/// large the pieces are that back a test's guests.
///
/// # Safety
/// The memory is an arena's, and the caller's to write.
pub(super) unsafe fn zero(start: *mut u8, bytes: usize) {
    const PAGE: usize = PAGE_SIZE as usize;
    static ZEROS: [u8; PAGE] = [0; PAGE];
    for offset in (0..bytes).step_by(PAGE) {
        // SAFETY: within the caller's range, which an arena has zeroed or somebody written since.
        let page =
            unsafe { slice::from_raw_parts_mut(start.add(offset), PAGE.min(bytes - offset)) };
        if page != &ZEROS[..page.len()] {
            page.fill(0);
        }
    }
}
