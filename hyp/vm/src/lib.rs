//! Virtual machines and their vCPUs: run loop, exit decoding, PSCI, system registers.
//!
//! A guest is hostile: whatever it does ends in emulation, an exception at its own EL1, an error code, or its VM stopped
//! with a reason. Nothing here touches a CPU's registers: the world switch comes in through [`Cpu`], memory through
//! [`GuestMemory`], the control plane through [`Service`]; so all of it runs on a host.
//!
//! A vCPU is bound to one physical CPU at a time, which runs it in slices ([`Vcpu::run_slice`]); what vCPUs share is in [`Vm`].
//! What a CPU does between slices is the control plane's to decide. A running VM can be paused from outside ([`Vm::pause`]), and
//! a paused one forked ([`Pause::fork`]).

#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod calls;
mod counts;
mod ids;
mod machine;
mod random;
mod registers;
mod stolen_time;
mod vcpu;
mod vm;

pub use calls::service::{Service, ServiceReply};
pub use counts::exits::{ExitCounts, ExitKind};
pub use ids::{CpuId, MAX_VCPUS, VcpuId};
pub use machine::cpu::{
    Cpu, ExceptionControls, ExceptionRecord, ExitReason, Interrupt, NoInterface, PHYSICAL_TIMER,
    PMU_INTERRUPT, RawExit, Stage2Registers, VIRTUAL_TIMER, VcpuControls, WriteServer,
    forbidden_write, is_forbidden_write,
};
pub use machine::guest_memory::{GuestMemory, Refusal};
pub use machine::protection::{Protection, Protections};
pub use random::Seed;
pub use registers::debug::{DebugPoint, DebugPoints, DebugState, MOST_DEBUG_POINTS};
pub use registers::offer::OfferedFeatures;
pub use registers::pmu::{EventCounter, MOST_EVENT_COUNTERS, PmuState, PmuVersion};
pub use registers::state::{El1State, FpState, GuestRegs, PacKeys, Start, VcpuState};
pub use registers::sve::SveState;
pub use registers::syndrome::Syndrome;
pub use registers::sysreg::{Direction, SystemRegister};
pub use stolen_time::StolenTimes;
pub use vcpu::{SliceEnd, Vcpu};
pub use vm::devices::Devices;
pub use vm::glance::{Glance, Seen};
pub use vm::pause::{ForkError, ForkParts, Moment, Pause};
pub use vm::power::PowerState;
pub use vm::stop_reason::{Starvation, StopReason};
pub use vm::{Vm, VmConfig, VmError};
