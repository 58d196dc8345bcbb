//! What the hypervisor and the tools on the host must agree on: the records of runs, the options and the words that they can
//! have, sizes, and the images of guests. Data only: a crate of its own, so that tools need nothing else of the hypervisor.

#![cfg_attr(not(test), no_std)]

extern crate alloc;
// What clap derives names it.
#[cfg(all(feature = "clap", not(test)))]
extern crate std;

pub mod image;
pub mod options;
pub mod record;
pub mod size;
pub mod words;
