//! Reclaim: compresses cold pages when frames run out, and when a VM has more than its limit.

pub(crate) mod balloon;
pub(crate) mod compress;
pub(crate) mod steps;
