//! Changes of a guest's backing memory, carried to every table that maps it.

pub(crate) mod access_flags;
pub(crate) mod copy_on_write;
pub(crate) mod fork;
pub(crate) mod invalidate;
pub(crate) mod propagate;
