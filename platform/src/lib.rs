//! The parts that differ between boards and CPUs: entry code, EL2's own address space, exceptions, per-CPU data, interrupt
//! controller, timer, console, firmware calls, and their discovery from the device tree.
//!
//! The other crates don't know this one: they declare what they need of a machine as traits, and this crate implements them. On
//! a host only the parts without hardware exist: [`discovery`], [`range`], [`calibration`], and of [`cpu`] its features, its
//! speculation and its syndromes.
//!
//! Boot order: the boot loader enters `boot/boot.S`, which calls `boot`. That calls the function named by `entry!` with a
//! `boot::Boot`, whose `take_over` returns a `boot::System`. `boot::cpus::start_secondaries` starts the other CPUs.

#![no_std]

extern crate alloc;

pub mod calibration;
pub mod cpu;
pub mod discovery;
#[cfg(any(test, target_os = "none"))]
pub mod el2;
pub mod range;

#[cfg(target_os = "none")]
pub mod boot;
#[cfg(target_os = "none")]
pub mod console;
#[cfg(target_os = "none")]
pub mod drivers;
#[cfg(target_os = "none")]
pub mod image;
#[cfg(target_os = "none")]
pub mod power;

#[cfg(target_os = "none")]
pub use cpu::percpu::CpuId;
