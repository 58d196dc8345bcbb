//! Workloads that measure and test Parvisor: the dirty-log benchmark, changes of backing memory, and the stress run. Each runs
//! one or several guests through [`control`]'s handles, leads their vCPUs through steps, and checks the results.

#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod backing;
mod dirty_log;
mod harness;
mod precopy;
mod report;
mod run;
mod stress;

pub use harness::error::WorkloadError;
pub use harness::verify;
pub use harness::violation::GuestViolation;
pub use run::{Error, run};
