//! What differs between boards and CPUs: entry code, EL2's own address space, exceptions, per-CPU data, interrupt
//! controller, timer, console, firmware calls, and the discovery of all this from the device tree.
//!
//! The other crates don't know this one: they name what they need of a machine as traits, and this crate implements them.
//! On a host only the parts without hardware exist: [`discovery`], [`plan`], [`range`], [`features`], [`syndrome`].

#![no_std]

extern crate alloc;

pub mod discovery;
pub mod features;
pub mod plan;
pub mod range;
pub mod syndrome;
