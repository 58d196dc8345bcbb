//! Dirty logging as an operation on a VM: switched on and off, harvested, and undone where blocks are restored.

pub(crate) mod harvest;
pub(crate) mod restore_blocks;
pub(crate) mod switch;
