//! Switches CPUs and machines on and off by firmware calls ([`psci`]), and parks a failed CPU for ever ([`park`]).

pub mod park;
pub mod psci;
