//! Dirty logging as an operation on a VM: enabling, disabling, harvesting, and restoring blocks afterwards.

pub(crate) mod harvest;
pub(crate) mod restore_blocks;
pub(crate) mod switch;
