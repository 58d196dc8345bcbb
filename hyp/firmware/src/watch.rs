//! The break-before-make monitor on the live tables, in the debug build that has the feature `monitor`; in every other build
//! the platform's own world switch and TLB instructions, and nothing else.

#[cfg(feature = "monitor")]
mod cpu;
#[cfg(feature = "monitor")]
mod inject;
#[cfg(feature = "monitor")]
mod live;
#[cfg(not(feature = "monitor"))]
mod off;

#[cfg(feature = "monitor")]
pub use {
    cpu::GuestCpu, cpu::Hardware, cpu::guest_cpu, cpu::hardware, live::start, live::use_up_vmids,
};
#[cfg(not(feature = "monitor"))]
pub use {
    off::GuestCpu, off::Hardware, off::guest_cpu, off::hardware, off::start, off::use_up_vmids,
};
