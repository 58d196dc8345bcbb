//! The UART's registers and FIFOs, without a lock.

use crate::identification::{self, IDENTIFICATION};
use crate::saved::{Reader, RestoreError, Writer};
use alloc::collections::{TryReserveError, VecDeque};

/// The entries of a FIFO.
pub(super) const FIFO: usize = 16;
/// The bytes of output that wait for CPU 0 at most. The last of them, as many as a FIFO has, are the transmit FIFO.
pub(super) const OUTPUT: usize = 4096;

const PERIPHERAL: [u8; 4] = [0x11, 0x10, 0x14, 0x00];

const DR: u64 = 0x00;
const RSR: u64 = 0x04;
const FR: u64 = 0x18;
const ILPR: u64 = 0x20;
const IBRD: u64 = 0x24;
const FBRD: u64 = 0x28;
const LCR_H: u64 = 0x2c;
const CR: u64 = 0x30;
const IFLS: u64 = 0x34;
const IMSC: u64 = 0x38;
const RIS: u64 = 0x3c;
const MIS: u64 = 0x40;
const ICR: u64 = 0x44;
const DMACR: u64 = 0x48;

/// The registers that hold what is written: their offsets, the bits that they have, and their values after reset.
const PLAIN: [(u64, u32, u32); 8] = [
    (ILPR, 0xff, 0),
    (IBRD, 0xffff, 0),
    (FBRD, 0x3f, 0),
    (LCR_H, 0xff, 0),
    (CR, 0xff87, CR_TXE | CR_RXE),
    (IFLS, 0x3f, 0x12),
    (IMSC, INTERRUPTS, 0),
    (DMACR, 0x7, 0),
];
/// Their places in [`State::plain`].
const LCR_H_AT: usize = 3;
const CR_AT: usize = 4;
const IFLS_AT: usize = 5;
const IMSC_AT: usize = 6;

/// The modem lines of somebody who is there and ready: CTS, DSR, DCD.
const FR_READY: u32 = 0b111;
const FR_BUSY: u32 = 1 << 3;
const FR_RXFE: u32 = 1 << 4;
const FR_TXFF: u32 = 1 << 5;
const FR_RXFF: u32 = 1 << 6;
const FR_TXFE: u32 = 1 << 7;
const LCR_H_FEN: u32 = 1 << 4;
const CR_UARTEN: u32 = 1 << 0;
const CR_LBE: u32 = 1 << 7;
const CR_TXE: u32 = 1 << 8;
const CR_RXE: u32 = 1 << 9;
const RSR_OVERRUN: u32 = 1 << 3;

const INTERRUPTS: u32 = 0x7ff;
const RECEIVE: u32 = 1 << 4;
const TRANSMIT: u32 = 1 << 5;
const TIMEOUT: u32 = 1 << 6;
const OVERRUN: u32 = 1 << 10;

/// The registers and the FIFOs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct State {
    plain: [u32; PLAIN.len()],
    /// RIS. The transmit interrupt is set only while the FIFO is filled to its trigger level at most.
    raised: u32,
    errors: u32,
    /// The receive FIFO. It never grows.
    input: VecDeque<u8>,
    /// What the guest has sent. It never grows.
    output: VecDeque<u8>,
    /// Whether somebody has input that there was no room for.
    starved: bool,
    /// Whether CPU 0 is to be woken.
    wake: bool,
}

impl State {
    pub fn new() -> Result<Self, TryReserveError> {
        let (mut input, mut output) = (VecDeque::new(), VecDeque::new());
        input.try_reserve_exact(FIFO)?;
        output.try_reserve_exact(OUTPUT)?;
        Ok(Self {
            plain: PLAIN.map(|(_, _, reset)| reset),
            raised: 0,
            errors: 0,
            input,
            output,
            starved: false,
            wake: false,
        })
    }

    /// The level of the interrupt's line.
    pub fn line(&self) -> bool {
        self.raised & self.plain[IMSC_AT] != 0
    }

    /// Whether CPU 0 is to be woken, once.
    pub fn take_wake(&mut self) -> bool {
        core::mem::take(&mut self.wake)
    }

    pub fn read(&mut self, register: u64) -> u32 {
        match register {
            DR => self.receive(),
            RSR => self.errors,
            FR => self.flags(),
            RIS => self.raised,
            MIS => self.raised & self.plain[IMSC_AT],
            IDENTIFICATION.. => identification::read(PERIPHERAL, register),
            _ => plain(register).map_or(0, |at| self.plain[at]),
        }
    }

    pub fn write(&mut self, register: u64, value: u32) {
        match register {
            DR => self.send(value as u8),
            RSR => self.errors = 0,
            ICR => self.raised &= !value,
            _ => {
                if let Some(at) = plain(register) {
                    self.plain[at] = value & PLAIN[at].1;
                    self.levels_moved(at);
                }
            }
        }
    }

    pub fn take_output(&mut self, bytes: &mut [u8]) -> usize {
        let count = bytes.len().min(self.output.len());
        let mut free = bytes.iter_mut();
        self.output_leaves(count, |sent| {
            if let Some(byte) = free.next() {
                *byte = sent;
            }
        });
        count
    }

    fn output_leaves(&mut self, count: usize, to: impl FnMut(u8)) {
        let before = self.waiting();
        self.output.drain(..count).for_each(to);
        if before > self.transmit_trigger() && self.waiting() <= self.transmit_trigger() {
            self.raised |= TRANSMIT;
        }
    }

    pub fn drop_output(&mut self) {
        self.output_leaves(self.output.len(), |_| ());
    }

    pub fn give_input(&mut self, bytes: &[u8]) -> usize {
        let room = match self.receives() {
            true => self.depth().saturating_sub(self.input.len()),
            false => 0,
        };
        let count = bytes.len().min(room);
        bytes[..count].iter().for_each(|byte| self.arrive(*byte));
        self.starved = count < bytes.len();
        if count > 0 {
            self.raised |= TIMEOUT;
        }
        count
    }

    pub fn saved_bytes(&self) -> usize {
        (PLAIN.len() + 4) * size_of::<u32>() + self.input.len() + self.output.len()
    }

    pub fn save(&self, writer: &mut Writer<'_>) {
        self.plain.iter().for_each(|value| writer.word(*value));
        writer.word(self.raised);
        writer.word(self.errors);
        writer.word(self.input.len() as u32);
        writer.word(self.output.len() as u32);
        writer.bytes(self.input.iter().chain(&self.output).copied());
    }

    pub fn restore(&mut self, mut reader: Reader<'_>) -> Result<(), RestoreError> {
        let mut new = PLAIN.map(|_| 0);
        for (value, (_, bits, _)) in new.iter_mut().zip(PLAIN) {
            *value = within(reader.word()?, bits, "register")?;
        }
        let raised = within(reader.word()?, INTERRUPTS, "interrupt")?;
        let errors = within(reader.word()?, RSR_OVERRUN, "error")?;
        let count = |most: usize, count: u32| match usize::try_from(count) {
            Ok(count) if count <= most => Ok(count),
            _ => Err(RestoreError::Field("number of bytes")),
        };
        let input = count(FIFO, reader.word()?)?;
        let output = count(OUTPUT, reader.word()?)?;
        let (input, output) = (reader.bytes(input)?, reader.bytes(output)?);
        reader.end()?;
        self.plain = new;
        (self.raised, self.errors) = (raised, errors);
        self.input.clear();
        self.input.extend(input);
        self.output.clear();
        self.output.extend(output);
        self.levels_moved(IFLS_AT);
        Ok(())
    }

    fn flags(&self) -> u32 {
        let waiting = self.waiting();
        let flags = [
            (FR_BUSY, waiting > 0),
            (FR_TXFE, waiting == 0),
            (FR_TXFF, waiting >= self.depth()),
            (FR_RXFE, self.input.is_empty()),
            (FR_RXFF, self.input.len() >= self.depth()),
        ];
        let set = flags.into_iter().filter(|(_, set)| *set);
        set.fold(FR_READY, |flags, (flag, _)| flags | flag)
    }

    /// The next byte of input.
    fn receive(&mut self) -> u32 {
        let Some(byte) = self.input.pop_front() else {
            return 0;
        };
        if self.input.len() < self.receive_trigger() {
            self.raised &= !RECEIVE;
        }
        if self.input.is_empty() {
            self.raised &= !TIMEOUT;
            self.wake |= core::mem::take(&mut self.starved);
        }
        byte.into()
    }

    /// A byte from the line.
    fn arrive(&mut self, byte: u8) {
        if self.input.len() >= self.depth() {
            self.errors |= RSR_OVERRUN;
            self.raised |= OVERRUN;
            return;
        }
        self.input.push_back(byte);
        if self.input.len() >= self.receive_trigger() {
            self.raised |= RECEIVE;
        }
    }

    /// A byte from the guest. One that it sends although there is no room is lost.
    fn send(&mut self, byte: u8) {
        if self.plain[CR_AT] & CR_LBE != 0 {
            self.arrive(byte);
            self.raised |= TIMEOUT | TRANSMIT;
            return;
        }
        if self.waiting() >= self.depth() {
            return;
        }
        self.wake |= self.output.is_empty();
        self.output.push_back(byte);
        if self.waiting() == 0 {
            // It has left the FIFO.
            self.raised |= TRANSMIT;
        } else if self.waiting() > self.transmit_trigger() {
            self.raised &= !TRANSMIT;
        }
    }

    /// A register has changed that says how deep a FIFO is, where its trigger is, or whether input is taken.
    fn levels_moved(&mut self, at: usize) {
        if ![LCR_H_AT, CR_AT, IFLS_AT].contains(&at) {
            return;
        }
        if self.waiting() > self.transmit_trigger() {
            self.raised &= !TRANSMIT;
        }
        self.wake |= self.receives() && core::mem::take(&mut self.starved);
    }

    /// The bytes in the transmit FIFO.
    fn waiting(&self) -> usize {
        self.output.len().saturating_sub(OUTPUT - FIFO)
    }

    /// Whether input is taken.
    fn receives(&self) -> bool {
        let needed = CR_UARTEN | CR_RXE;
        self.plain[CR_AT] & (needed | CR_LBE) == needed
    }

    /// The entries of each FIFO: one where they are switched off.
    fn depth(&self) -> usize {
        match self.has_fifos() {
            true => FIFO,
            false => 1,
        }
    }

    fn has_fifos(&self) -> bool {
        self.plain[LCR_H_AT] & LCR_H_FEN != 0
    }

    /// The transmit interrupt comes when no more than these bytes wait.
    fn transmit_trigger(&self) -> usize {
        match self.has_fifos() {
            true => level(self.plain[IFLS_AT]),
            false => 0,
        }
    }

    /// The receive interrupt comes with this many bytes.
    fn receive_trigger(&self) -> usize {
        match self.has_fifos() {
            true => level(self.plain[IFLS_AT] >> 3),
            false => 1,
        }
    }
}

/// The place of a register in [`State::plain`].
fn plain(register: u64) -> Option<usize> {
    PLAIN.iter().position(|(offset, ..)| *offset == register)
}

/// The entries for three bits of IFLS: an eighth, a quarter, half, three quarters, seven eighths.
fn level(bits: u32) -> usize {
    match bits & 0b111 {
        0 => FIFO / 8,
        1 => FIFO / 4,
        2 => FIFO / 2,
        3 => FIFO * 3 / 4,
        _ => FIFO * 7 / 8,
    }
}

fn within(value: u32, bits: u32, name: &'static str) -> Result<u32, RestoreError> {
    match value & !bits {
        0 => Ok(value),
        _ => Err(RestoreError::Field(name)),
    }
}
