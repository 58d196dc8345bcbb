//! The dirty log of a slot, as data: how it is kept ([`policy`]), its bitmap ([`bitmap`]), each vCPU's ring ([`ring`]).
//!
//! What fills them and empties them is above: [`crate::fault`], [`crate::logging`].

pub(crate) mod bitmap;
pub(crate) mod policy;
pub(crate) mod ring;
pub(crate) mod slot_id;
