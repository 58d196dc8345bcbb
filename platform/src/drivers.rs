//! Drivers of EL2's own devices. A driver gets its registers from [`discovery`](crate::discovery) and knows nothing of how the
//! machine boots.

pub mod gic;
pub mod timer;
