//! A PL011 UART (Arm DDI 0183, r1: FIFOs of 16) as Linux, FreeBSD, Zephyr and U-Boot drive it.
//!
//! Output is sent at once into a ring, which CPU 0 drains to the console. While the ring has room the transmit FIFO is empty,
//! as on a line of any speed. With a full ring the FIFO fills: FR.TXFF and the transmit interrupt make the guest wait, and
//! nothing is lost. Input is taken only while the receiver is enabled and its FIFO has room.
//!
//! Unlike hardware, a transmitter that isn't enabled sends too, as early consoles expect that know the UART from QEMU;
//! switching the FIFOs off loses nothing; and the receive timeout comes with the end of the input, as no more of it is here.

#[cfg(test)]
mod driver_tests;
mod registers;
#[cfg(test)]
mod tests;

use crate::device::{Device, DeviceHost, IrqLine, Width, read_words, write_words};
use crate::saved::{Reader, RestoreError, Writer};
use alloc::collections::TryReserveError;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use registers::State;
use spin::mutex::TicketMutex;

/// The kind and version of a saved state.
const SAVED: u32 = 0x0011_0001;

/// A UART of a VM.
pub struct Pl011 {
    state: TicketMutex<State>,
    host: Arc<dyn DeviceHost>,
    irq: Arc<dyn IrqLine>,
}

impl Pl011 {
    /// The length of its registers.
    pub const BYTES: u64 = 0x1000;

    /// A UART as it is after reset.
    ///
    /// # Errors
    /// There is no memory for its output.
    pub fn new(host: Arc<dyn DeviceHost>, irq: Arc<dyn IrqLine>) -> Result<Self, TryReserveError> {
        Ok(Self {
            state: TicketMutex::new(State::new()?),
            host,
            irq,
        })
    }

    /// Moves the guest's output into `bytes`. Returns how many there were. [`DeviceHost::wake`] is called for new output once
    /// this has returned 0.
    pub fn take_output(&self, bytes: &mut [u8]) -> usize {
        self.change(|state| state.take_output(bytes))
    }

    /// Drops the guest's output, which somebody else sends.
    pub fn drop_output(&self) {
        self.change(State::drop_output);
    }

    /// Gives input to the guest. Returns how many of the bytes it takes; [`DeviceHost::wake`] is called when it has room for
    /// the others.
    pub fn give_input(&self, bytes: &[u8]) -> usize {
        self.change(|state| state.give_input(bytes))
    }

    /// Changes the state, and tells the others what follows from it.
    fn change<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.state.lock();
        let before = state.line();
        let result = change(&mut state);
        let after = state.line();
        if before != after {
            self.irq.set(after);
        }
        let wake = state.take_wake();
        drop(state);
        if wake {
            self.host.wake();
        }
        result
    }
}

impl Device for Pl011 {
    fn read(&self, offset: u64, width: Width) -> u64 {
        self.change(|state| read_words(offset, width, |register| state.read(register)))
    }

    fn write(&self, offset: u64, width: Width, value: u64) {
        self.change(|state| {
            write_words(offset, width, value, |register, value| {
                state.write(register, value);
            });
        });
    }

    fn save(&self, saved: &mut Vec<u8>) -> Result<(), TryReserveError> {
        let state = self.state.lock();
        let mut writer = Writer::begin(saved, SAVED, state.saved_bytes())?;
        state.save(&mut writer);
        Ok(())
    }

    fn restore(&self, saved: &[u8]) -> Result<(), RestoreError> {
        let reader = Reader::begin(saved, SAVED)?;
        let mut state = self.state.lock();
        state.restore(reader)?;
        self.irq.set(state.line());
        drop(state);
        self.host.wake();
        Ok(())
    }
}

impl fmt::Debug for Pl011 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pl011").finish_non_exhaustive()
    }
}
