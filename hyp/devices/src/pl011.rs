//! A PL011 UART (Arm DDI 0183, r1: FIFOs of 16) as Linux, FreeBSD, Zephyr and U-Boot drive it.
//!
//! Output is sent at once into a ring, which CPU 0 drains to the console. While the ring has room the transmit FIFO is empty,
//! as on a line of any speed. With a full ring the FIFO fills: FR.TXFF and the transmit interrupt make the guest wait, and
//! nothing is lost. Input is taken only while the receiver is enabled and its FIFO has room.
//!
//! Unlike hardware, a transmitter that isn't enabled sends too, as early consoles expect that know the UART from QEMU;
//! switching the FIFOs off loses nothing; and the receive timeout comes with the end of the input, as no more of it is here.
//!
//! # Why each poll of FR is an exit
//!
//! Drivers read FR before each character: half of the accesses. These reads could do without exits: while the receive FIFO is
//! empty no read has a side effect, so stage 2 could map a page with the registers' values read-only. This was tried, with the
//! boot of Debian's 6.12 kernel on one vCPU (neoverse-n1, a nanosecond of simulated time per instruction):
//!
//! | | each access is an exit | page mapped read-only |
//! |---|---|---|
//! | accesses of the UART that exit | 29,126 | 14,685 |
//! | a read of FR, ns | 498 | 2 |
//! | a write, ns | 473 | 984 |
//! | both, as for a character | 971 | 986 |
//! | boot to init, ms: mean (and deviation) | 934 (23), of 8 boots | 916 (18), of 6 boots |
//!
//! Exits are halved, but a character costs the same: a write is then a fault of permission, which goes the way of writes to guest
//! memory first, and whose address has to be translated by the guest's tables, as the CPU doesn't tell it. To look for devices
//! before would make each write to a logged page dearer. What the trial left out costs more: the page is unmapped and TLBs
//! are invalidated on all CPUs before each piece of input; without FEAT_S2FWB each change of a register is cleaned to the point of
//! coherency; each VM has a page more, which dirty logs, forks and restores have to know. Instructions without a syndrome (LDP,
//! exclusives) would work or be aborts, depending on whether input has come.

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
