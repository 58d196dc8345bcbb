//! The break-before-make checker: knows what every CPU's TLB may hold of a stage-2 tree, and says which rule a change of the
//! tree breaks.
//!
//! It is told of every change of an entry, every TLB invalidation, every barrier ([`Checker`]'s methods), and keeps, for
//! each CPU, what that CPU's TLB *may* hold: every value that a walker could see since the last completed invalidation
//! that covers it. Walkers are taken to be as eager as the architecture lets them be: a valid value is in every TLB the
//! moment it is visible, and back in it the moment after an invalidation. So nothing here depends on timing, and one run
//! stands for all that hardware could have done in it.
//!
//! This is a second opinion on the `stage2` crate, so it shares nothing with it: descriptors, operands and the rules
//! themselves are taken from the Arm ARM again (D8.3 descriptors, D8.16 break-before-make, D8.17 TLB maintenance, C5.5
//! operands). It runs under tests on the host and in a debug firmware with all CPUs calling: one lock inside, memory in
//! proportion to the live tables.
//!
//! # What it takes for granted
//! - Stores reach memory when they are reported. Only the issuing CPU's own TLB invalidation may overtake one, until that
//!   CPU's DSB: another CPU's acts after it has seen the store (memory is multi-copy atomic).
//! - A CPU walks the tables that it has loaded only from the moment on at which it enters a guest: at EL2 they are out
//!   of context, so one that loads a VTTBR only to invalidate doesn't walk those tables before it puts the old one
//!   back.
//! - What is written to VTTBR_EL2 and VTCR_EL2 takes effect with an ISB or an exception return; until then a TLB
//!   invalidation may go by the old value or the new one, and counts for what it would do by either.
//! - An entry that a TLB may keep for a whole contiguous group is forgotten entry by entry only.

#![no_std]

extern crate alloc;

mod checker;
mod conflict;
mod cpus;
mod descriptor;
mod dirty;
#[cfg(feature = "stage2")]
mod engine;
mod geometry;
mod input;
mod links;
mod operand;
mod reads;
mod regime;
mod state;
mod tlbs;
mod tree;
mod violation;

pub use checker::Checker;
pub use conflict::Difference;
pub use cpus::{CpuSet, MAX_CPUS};
pub use geometry::{Bbm, Format, Geometry, Granule};
pub use input::{Barrier, Kind, Memory, Promise, Stamp, Tlbi};
pub use reads::Translation;
pub use violation::{Copy, Place, Violation};
