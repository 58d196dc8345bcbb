//! What stands behind `scripts/run`, `scripts/bench`, `scripts/test` and `scripts/mutate`: installs what is missing, builds the images,
//! starts the emulator, reads the console, runs the tests, and shows the results. The system tests under `tests/qemu`
//! boot machines with the same parts.

pub mod bench;
pub mod boot;
pub mod cargo;
pub mod checks;
pub mod console;
pub mod effort;
pub mod error;
pub mod files;
pub mod flat;
pub mod images;
pub mod instructions;
pub mod linux;
pub mod mutants;
pub mod options;
pub mod process;
pub mod qemu;
pub mod refusal;
pub mod repository;
pub mod run;
pub mod setup;
pub mod simclock;
pub mod size;
pub mod table;
