//! System tests: the images of this tree under QEMU, and what comes out.

mod backing;
mod bad_options;
mod bad_trees;
mod benchmark;
mod boots;
mod checker;
mod command;
mod copies;
mod documented;
mod fatal;
mod guests;
mod image;
mod interrupts;
mod linux;
mod matrix;
mod policies;
mod stage2;
mod typed;
