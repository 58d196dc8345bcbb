//! Slots, faults, dirty logs, merging, reclaim and forks on real memory, beside each other and out of frames.
#![cfg(not(any(loom, miri)))]

mod backing;
mod corners;
mod dirty_log;
mod failing_backing;
mod log_reference;
mod meanwhile;
mod merging;
mod merging_together;
mod reclaim;
mod slots;
mod uncached;
