//! System tests: the images of this tree under QEMU, and what comes out.

mod backing;
mod bad_options;
mod bad_trees;
mod benchmark;
mod boots;
mod checker;
mod command;
mod copies;
mod debian;
mod dirty_linux;
mod documented;
mod fatal;
mod guests;
mod image;
mod interrupts;
mod kernels;
mod linux;
mod matrix;
mod policies;
mod several;
mod stage2;
mod typed;
