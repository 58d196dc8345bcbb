//! What one CPU has: its registers and optional features, its TLB and caches, its per-CPU data. Nothing here knows what the
//! hypervisor does with them.

pub mod features;
pub mod speculation;
pub mod syndrome;

#[cfg(target_os = "none")]
pub(crate) mod caches;
#[cfg(target_os = "none")]
pub(crate) mod percpu;
#[cfg(target_os = "none")]
pub(crate) mod recover;
#[cfg(target_os = "none")]
pub(crate) mod register;
#[cfg(target_os = "none")]
pub mod tlb;
