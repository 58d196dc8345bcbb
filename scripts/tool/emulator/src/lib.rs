//! What the commands behind `scripts/run`, `scripts/bench`, `scripts/test` and `scripts/mutate` have in common: installs what
//! is missing, builds the images, starts the emulator and reads the console. The system tests under `tests/qemu` boot machines
//! with the same parts.
//!
//! | crate beside this one | what for |
//! |---|---|
//! | `options` | the options of `scripts/run`, of which `scripts/bench` takes lists, and the boot that they come to |
//! | `run` | `scripts/run` |
//! | `bench`, with `linux` | `scripts/bench` |
//! | `linux` | Linux's files for `scripts/run --linux`, and its own benchmark |
//! | `verify` | `scripts/test` and `scripts/mutate` |
//!
//! Each script builds its own of them only: a first `scripts/run` needs no plots.

pub mod boot;
pub mod cargo;
pub mod console;
pub mod effort;
pub mod error;
pub mod files;
pub mod flat;
pub mod front_end;
pub mod images;
pub mod process;
pub mod qemu;
pub mod repository;
pub mod session;
pub mod setup;
pub mod simclock;
pub mod size;
pub mod standard_output;
