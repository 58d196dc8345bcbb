//! What is run on Parvisor to measure it and to test it: the dirty-log benchmark, changes of backing memory and the stress run. Each runs one or several guests by the handles
//! that [`control`] gives, leads their vCPUs through steps, and checks what they did.

#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod backing;
mod dirty_log;
mod error;
mod harness;
mod report;
mod run;
mod stress;

pub use error::WorkloadError;
pub use harness::service::GuestViolation;
pub use harness::verify;
pub use run::{Error, run};
