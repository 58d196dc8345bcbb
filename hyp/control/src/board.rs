//! The board of a guest that expects QEMU's virt machine: its interrupt controller and devices ([`GuestBoard`]), where its files
//! lie in memory ([`Places`]), and the device tree that describes it ([`BoardDescription`]).

mod assigned;
mod guest_board;
mod map;
mod places;
mod tree;

pub(crate) use assigned::all as assigned;
pub use guest_board::GuestBoard;
pub(crate) use map::STOLEN_TIMES;
pub use places::PlaceError;
pub(crate) use places::Places;
pub(crate) use tree::BoardDescription;
