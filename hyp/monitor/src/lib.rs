//! The control plane: what the user wants, and the guests that are run for it.
//!
//! CPU 0 runs [`run()`]; every other CPU calls [`Crew::attend`] whenever it is kicked, and is given vCPUs to run. What this
//! crate needs of the machine is the [`Machine`] trait.

#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod backing;
mod bench;
mod counters;
mod crew;
mod dirty_log;
mod error;
mod guest;
mod guest_console;
pub mod guest_tree;
mod low_rings;
mod machine;
mod merging;
pub mod options;
mod patience;
mod policy;
mod program;
mod quote;
mod report;
mod results;
mod run;
mod steps;
mod stress;
mod test_memory;
pub mod verify;

pub use bench::Complaint;
pub use crew::{BOOT_CPU, Crew, HOUSEKEEPING_NS, Job};
pub use error::RunError;
pub use guest::Host;
pub use machine::{Device, DeviceError, Facts, Machine, OwnCpu, Registers};
pub use run::{Error, Module, run};
