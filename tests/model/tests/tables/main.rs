//! The operations on page tables, on a machine whose TLBs may hold whatever the architecture lets them: one at a time against a
//! plain map, several at once, with failing allocations.
#![cfg(not(loom))]

mod against_a_map;
mod bounds;
mod collapse_race;
mod concurrently;
mod failing_allocations;
mod found;
mod isolate;
mod last_frames;
mod litmus;
mod livelock;
mod marks;
mod operations;
mod pairs;
mod replace;
