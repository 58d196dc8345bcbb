//! What differs between boards and CPUs: entry code, EL2's own address space, exceptions, per-CPU data, interrupt
//! controller, timer, console, firmware calls, and the discovery of all this from the device tree.
//!
//! The other crates don't know this one: they name what they need of a machine as traits, and this crate implements them.
//! On a host only the parts without hardware exist: [`discovery`], [`plan`], [`range`], [`features`],
//! [`calibration`], [`speculation`], [`syndrome`].
//!
//! The way through it: the boot loader enters `boot.S`, which ends in `boot`; that calls the function named by `entry!` with a
//! `boot::Boot`, whose `take_over` gives a `boot::System`. `cpus::start_secondaries` brings up the rest.

#![no_std]

extern crate alloc;

pub mod calibration;
pub mod discovery;
pub mod features;
pub mod plan;
pub mod range;
pub mod speculation;
pub mod syndrome;

#[cfg(target_os = "none")]
mod address_space;
#[cfg(target_os = "none")]
pub mod boot;
#[cfg(target_os = "none")]
mod caches;
#[cfg(target_os = "none")]
pub mod console;
#[cfg(target_os = "none")]
pub mod cpus;
#[cfg(target_os = "none")]
mod early_map;
#[cfg(target_os = "none")]
mod el2;
#[cfg(target_os = "none")]
mod exceptions;
#[cfg(target_os = "none")]
mod fatal;
#[cfg(target_os = "none")]
pub mod gic;
#[cfg(target_os = "none")]
pub mod heap;
#[cfg(target_os = "none")]
pub mod image;
#[cfg(any(test, target_os = "none"))]
mod inherited;
#[cfg(target_os = "none")]
mod percpu;
#[cfg(target_os = "none")]
mod protect;
#[cfg(target_os = "none")]
pub mod psci;
#[cfg(target_os = "none")]
mod recover;
#[cfg(target_os = "none")]
mod register;
#[cfg(target_os = "none")]
pub mod timer;
#[cfg(target_os = "none")]
pub mod tlb;
#[cfg(target_os = "none")]
pub mod walker;
#[cfg(target_os = "none")]
pub mod world;

#[cfg(target_os = "none")]
pub use percpu::CpuId;
