//! The virtual GIC, step by step, on modelled CPU interfaces.
#![cfg(not(loom))]

mod against_a_reference;
mod drivers;
mod faults_of_others;
mod hostile;
mod its;
mod often_wrong;
mod overflow;
mod physical;
mod registers;
mod sources;
mod wakes;
mod world;
