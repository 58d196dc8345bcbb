//! A vCPU's registers and what is in them: plain values of the architecture.

pub(crate) mod debug;
pub(crate) mod id;
pub(crate) mod nospec;
pub(crate) mod offer;
pub(crate) mod pmu;
pub(crate) mod pstate;
pub(crate) mod state;
pub(crate) mod sve;
pub(crate) mod syndrome;
pub(crate) mod sysreg;
