//! One CPU: its registers and optional features, its TLB and caches, its per-CPU data. Nothing here depends on how the
//! hypervisor uses them.

pub mod common;
pub mod features;
pub mod speculation;
pub mod syndrome;

#[cfg(target_os = "none")]
pub(crate) mod caches;
#[cfg(target_os = "none")]
pub(crate) mod percpu;
#[cfg(target_os = "none")]
pub(crate) mod random;
#[cfg(target_os = "none")]
pub(crate) mod recover;
#[cfg(target_os = "none")]
pub(crate) mod register;
#[cfg(target_os = "none")]
pub mod tlb;
