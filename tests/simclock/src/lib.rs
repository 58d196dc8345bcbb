//! Simulated parallel time for QEMU's multi-threaded TCG.
//!
//! All CPUs of the machine advance side by side, an instruction per simulated nanosecond, and the emulator's monotonic
//! clock is replaced by the simulated one: CNTVCT_EL0 and every timer show what a machine with that many real cores would
//! show, whatever the host has. Moving a cache line from one CPU to another and a TLB invalidation can cost simulated time,
//! and those that need the same line, or the interconnect, queue behind each other. README.md says what follows from that.
//!
//! [`schedule`] decides who runs, [`clock`] tells the time, [`lines`], [`invalidations`] and [`decode`] say what costs
//! more than an instruction; all of that is tested on the host. [`sleep`] is what threads wait with. `simulation`
//! joins them, `plugin`, `counters` and `interposed` tie it to the emulator; the library must be both preloaded and loaded as a plugin.
//!
//! What runs at the same time: each CPU of the machine is a thread of the emulator and calls in here with its own number;
//! the emulator's other threads only read the clock and wait.

pub mod clock;
pub mod decode;
pub mod invalidations;
pub mod lines;
pub mod options;
pub mod schedule;
pub mod sleep;

// They need the emulator's functions, and take the place of some of libc's.
#[cfg(not(test))]
mod counters;
#[cfg(not(test))]
mod interposed;
#[cfg(not(test))]
mod plugin;
#[cfg(not(test))]
mod simulation;

/// The most CPUs that a machine may have.
pub const MOST_CPUS: usize = 128;
