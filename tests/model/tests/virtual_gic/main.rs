//! The virtual GIC, step by step, on modelled CPU interfaces.
#![cfg(not(loom))]

mod against_a_reference;
mod faults_of_others;
mod hostile;
mod its;
mod overflow;
mod physical;
mod registers;
mod sources;
mod wakes;
mod world;
