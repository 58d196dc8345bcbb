//! What the workloads have in common: the other side of their guests' calls ([`service`]), lock step ([`steps`]), the test memory
//! and how it is logged, what was measured, and what should have been found ([`verify`]).

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
