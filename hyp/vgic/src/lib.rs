//! A virtual GIC **without a lock**.

#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod config;
mod door;
mod interface;
mod local;
mod registers;
mod set;
mod settle;
mod sgi;
mod sync;
mod vcpu;
mod vgic;
mod word;

pub use config::{
    AccessSize, Again, Forwarded, Frame, MAX_SPIS, MAX_VCPUS, SgiRegister, Version, VgicConfig,
    VgicError,
};
pub use interface::{
    ActivePriorities, ListRegister, MAX_LIST_REGISTERS, VirtualInterface, hcr, vmcr,
};
pub use vcpu::VcpuInterrupts;
pub use vgic::Vgic;
