//! Virtual machines and their vCPUs: run loop, exit decoding, PSCI, system registers.
//!
//! A guest is hostile: whatever it does ends in emulation, an exception at its own EL1, an error code, or its VM stopped
//! with a reason. Nothing here touches a CPU's registers: the world switch comes in through [`Cpu`], memory through
//! [`GuestMemory`], the control plane through [`Service`]; so all of it runs on a host.
//!
//! One vCPU runs on one physical CPU, by the one thread there ([`Vcpu::run`]); what vCPUs share is in [`Vm`]. A running VM
//! can be paused from outside ([`Vm::pause`]), and a paused one forked ([`Pause::fork`]).

#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod cpu;
mod exits;
mod glance;
mod holds;
mod id;
mod life;
mod nospec;
mod pause;
mod power;
mod protection;
mod psci;
mod pstate;
mod service;
mod space;
mod state;
mod stop;
mod syndrome;
mod sysreg;
mod vcpu;
mod vm;

pub use cpu::{
    Cpu, CpuId, ExceptionControls, ExceptionRecord, ExitReason, RawExit, Stage2Registers, Syndrome,
    VcpuControls, WriteServer, forbidden_write, is_forbidden_write,
};
pub use exits::{ExitCounts, ExitKind};
pub use glance::{Glance, Seen};
pub use life::Starvation;
pub use pause::Pause;
pub use power::{PowerState, Start};
pub use protection::{Protection, Protections};
pub use service::{Service, ServiceReply};
pub use space::{GuestMemory, Refusal};
pub use state::{El1State, FpState, GuestRegs, PacKeys, VcpuState};
pub use stop::StopReason;
pub use sysreg::{Direction, SystemRegister};
pub use vcpu::Vcpu;
pub use vm::{MAX_VCPUS, VcpuId, Vm, VmConfig, VmError};
