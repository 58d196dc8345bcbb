//! The workloads' common harness: handles the guests' calls ([`service`]), keeps vCPUs in lock step ([`steps`]), sets up the
//! test memory and its logging, collects measurements, and verifies results ([`verify`]).

pub(crate) mod case;
pub(crate) mod error;
pub(crate) mod low_rings;
pub(crate) mod policy;
pub(crate) mod results;
pub(crate) mod service;
pub(crate) mod steps;
pub(crate) mod test_memory;
pub mod verify;
pub(crate) mod violation;
