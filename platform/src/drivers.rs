//! Devices that EL2 itself drives. A driver is given its registers by [`discovery`](crate::discovery) and knows nothing of
//! how the machine boots.

pub mod gic;
pub mod timer;
