//! Deferred reclamation: frees an object only when no CPU can still be using it.

pub(crate) mod gate;
pub mod heap_reserve;
pub(crate) mod published;
