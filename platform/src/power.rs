//! CPUs and machines switched on and off: by the firmware ([`psci`]), or for ever ([`park`]).

pub(crate) mod park;
pub mod psci;
