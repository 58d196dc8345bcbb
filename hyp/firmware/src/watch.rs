//! The break-before-make checker on the live tables, in the debug build that has the feature `checker`; in every other build
//! the platform's own world switch and TLB instructions, and nothing else.

#[cfg(feature = "checker")]
mod cpu;
#[cfg(feature = "checker")]
mod inject;
#[cfg(feature = "checker")]
mod live;
#[cfg(not(feature = "checker"))]
mod off;

#[cfg(feature = "checker")]
pub use {
    cpu::GuestCpu, cpu::Hardware, cpu::guest_cpu, cpu::hardware, cpu::use_up_vmids, live::start,
};
#[cfg(not(feature = "checker"))]
pub use {
    off::GuestCpu, off::Hardware, off::guest_cpu, off::hardware, off::start, off::use_up_vmids,
};
