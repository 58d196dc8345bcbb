//! This CPU's EL2: set-up of its registers, its exceptions, and the world switch.

#[cfg(target_os = "none")]
pub(crate) mod debug;
#[cfg(target_os = "none")]
pub(crate) mod exceptions;
#[cfg(target_os = "none")]
pub(crate) mod fatal;
pub(crate) mod inherited;
#[cfg(target_os = "none")]
pub(crate) mod pmu;
#[cfg(target_os = "none")]
pub(crate) mod protect;
#[cfg(target_os = "none")]
pub(crate) mod set_up;
#[cfg(target_os = "none")]
pub(crate) mod sve;
#[cfg(target_os = "none")]
pub mod walker;
#[cfg(target_os = "none")]
pub mod world;
