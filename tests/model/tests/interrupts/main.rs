//! The protocol of the virtual GIC under every interleaving that a model checker finds, with at most three preemptions.
//!
//! The `vgic` crate is the real one, each CPU's list registers are modelled. A kick is a bit of memory that its CPU acknowledges
//! before it looks, as the physical GIC orders it. A CPU looks only when it is kicked, or when it enters: what comes without a
//! kick is lost.
#![cfg(loom)]

mod by_hand;
mod commands;
mod lpis;
mod presence;
mod raises;
mod routes;
mod sources;
mod withdrawals;
mod world;
