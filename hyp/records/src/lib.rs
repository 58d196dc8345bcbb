//! The data that the hypervisor and the tools on the host share: the records of runs, the options and their words, sizes, and
//! the images of guests. A crate of its own, so that tools need nothing else of the hypervisor.

#![cfg_attr(not(test), no_std)]

extern crate alloc;
// The code that clap derives names it.
#[cfg(all(feature = "clap", not(test)))]
extern crate std;

pub mod image;
pub mod kernel;
pub mod options;
pub mod record;
pub mod size;
pub mod words;
