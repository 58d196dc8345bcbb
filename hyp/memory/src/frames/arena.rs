//! "Physical memory" on a host: an allocation that is never given back and whose addresses stand for physical ones.

use crate::frames::FrameSize;
use alloc::alloc::{Layout, alloc_zeroed, handle_alloc_error};
use core::ops::Range;
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
