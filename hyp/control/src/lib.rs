//! The control plane: reads the user's options and runs guests as they say.
//!
//! CPU 0 calls [`run()`], or the crate that runs the workloads. Every other CPU calls [`CpuPool::attend`] whenever it is
//! kicked, and gets vCPUs to run. The [`Machine`] trait has all that this crate needs of the machine.

#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod background_merge;
mod board;
mod cpu_pool;
mod error;
pub mod guest;
mod linux;
mod machine;
mod modules;
pub mod options;
mod program;
mod quote;
pub mod report;
mod request;
mod run;
mod schedule;

pub use cpu_pool::{BOOT_CPU, CpuPool, HOUSEKEEPING_NS, Job};
pub use error::RunError;
pub use guest::{FinalState, GuestPlan, Host, RunningGuest};
pub use linux::MAIN_VMS;
pub use machine::{
    Device, DeviceError, DeviceInterrupt, Facts, Machine, OwnCpu, Registers, Speaker,
};
pub use modules::{Domain, DomainFault, FileUse, Module, Modules};
pub use request::Request;
pub use run::{Error, Requests, run, run_foreign};
