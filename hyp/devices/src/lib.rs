//! Devices that the hypervisor emulates: each is a [`Device`] on a VM's [`Bus`], raises its interrupt by an [`IrqLine`], and
//! can save and restore its state.
//!
//! All vCPUs of a VM access its devices at any time, and CPU 0 takes their output and brings their input. A device's registers
//! are behind a lock of its own, held for some tens of instructions and never while anything outside is waited for: a VM that
//! floods a device delays nobody but itself. Interrupt lines are set under this lock, so that the last level set is the
//! device's; setting one takes no lock.

#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod bus;
mod device;
mod identification;
mod pl011;
mod pl031;
mod saved;
#[cfg(test)]
mod testing;

pub use bus::{Bus, BusError};
pub use device::{Device, DeviceHost, IrqLine, Width};
pub use pl011::Pl011;
pub use pl031::Pl031;
pub use saved::RestoreError;
