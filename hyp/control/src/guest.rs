//! One guest's life cycle: its plan ([`GuestPlan`]), its start on the machine ([`Host`]), and the handle to it while it runs
//! ([`RunningGuest`]).

pub mod common_calls;
pub mod console;
pub mod counters;
pub(crate) mod device_tree;
mod ending;
mod host;
mod launch;
mod patience;
mod plan;
mod running;
mod shared_work;
mod stage2_use;

pub use device_tree::TreeError;
pub use ending::FinalState;
pub(crate) use ending::ReservedCpus;
pub use host::Host;
pub use plan::{GuestPlan, RAM, RAM_SLOT, TestSlot, UNSEEN_SLOT};
pub use running::{Attended, BackgroundWork, RunningGuest};
pub use stage2_use::Stage2Use;
