//! The protocol under every interleaving that a model checker finds, within the bounds that each file states.
#![cfg(loom)]

mod bbm;
mod changes;
mod compaction;
mod copies;
mod faults;
mod forks;
mod gigabytes;
mod groups;
mod harvest;
mod harvesters;
mod last_harvest;
mod maps;
mod memory;
mod merge;
mod policies;
mod reclaim;
mod replace;
mod scanners;
mod slots;
mod tables;
mod tracker;
mod tracking;
mod unmaps;
mod vmids;
