//! What is counted of a VM, and how long its faults take.

pub(crate) mod exits;
pub(crate) mod fault_latency;
