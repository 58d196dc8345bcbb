//! The control plane: what the user wants, and the guests that are run for it.

#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod guest_tree;
pub mod image;
pub mod options;
mod quote;
pub mod record;
pub mod size;
pub mod verify;
