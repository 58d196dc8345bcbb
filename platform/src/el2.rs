//! EL2 as this CPU runs it: its registers set up, its exceptions, and the switch into guests and out of them.

#[cfg(target_os = "none")]
pub(crate) mod exceptions;
#[cfg(target_os = "none")]
pub(crate) mod fatal;
pub(crate) mod inherited;
#[cfg(target_os = "none")]
pub(crate) mod protect;
#[cfg(target_os = "none")]
pub(crate) mod set_up;
#[cfg(target_os = "none")]
pub mod walker;
#[cfg(target_os = "none")]
pub mod world;
