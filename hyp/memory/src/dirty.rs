//! The data of a slot's dirty log: its [`policy`], its [`bitmap`], and each vCPU's [`ring`].
//!
//! The code that fills and empties them lies above: [`crate::fault`], [`crate::logging`].

pub(crate) mod bitmap;
pub(crate) mod policy;
pub(crate) mod ring;
pub(crate) mod slot_id;
