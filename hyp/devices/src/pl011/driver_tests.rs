//! The accesses of operating systems that no package of Debian's brings, register by register: what is written comes out in
//! order, and what is typed comes in.

use super::tests::{
    CR, DR, FR, FR_RXFE, FR_TXFE, FR_TXFF, ICR, IFLS, IMSC, LCR_H, MIS, RECEIVE, RIS, TIMEOUT,
    TRANSMIT,
};
use super::*;
use crate::testing::TestMachine;
use alloc::vec::Vec;

const IBRD: u64 = 0x24;
const FBRD: u64 = 0x28;
const DMACR: u64 = 0x48;

/// Enabled, transmitting, receiving.
const ON: u64 = 0x301;
/// More than the UART takes at once.
const TEXT: usize = 10_000;

struct Guest {
    uart: Pl011,
    machine: Arc<TestMachine>,
    arrived: Vec<u8>,
}

impl Guest {
    fn new() -> Self {
        let machine = TestMachine::new();
        let uart = Pl011::new(machine.clone(), machine.clone()).unwrap();
        let arrived = Vec::new();
        Self {
            uart,
            machine,
            arrived,
        }
    }

    fn read(&self, offset: u64) -> u64 {
        self.uart.read(offset, Width::Word)
    }

    fn write(&self, offset: u64, value: u64) {
        self.uart.write(offset, Width::Word, value);
    }

    /// The console takes some bytes.
    fn console(&mut self, most: usize) {
        let mut bytes = [0; 256];
        let count = self.uart.take_output(&mut bytes[..most]);
        self.arrived.extend_from_slice(&bytes[..count]);
    }

    /// The console takes all that comes without a further access.
    fn flush(&mut self) {
        loop {
            let before = self.arrived.len();
            self.console(256);
            if self.arrived.len() == before {
                return;
            }
        }
    }

    /// Polls a flag, while the console goes on.
    fn wait_while(&mut self, flags: u64) {
        for _ in 0..2 {
            if self.read(FR) & flags == 0 {
                return;
            }
            self.console(16);
        }
        panic!("FR has {flags:#x} for ever");
    }
}

fn text() -> Vec<u8> {
    (0..TEXT).map(|number| (number % 251) as u8).collect()
}

/// FreeBSD 14, sys/dev/uart/uart_dev_pl011.c: by words; it sends a FIFO of 16 and has the interrupt of transmitting on until it
/// comes.
#[test]
fn freebsd_sends_by_interrupts() {
    let mut guest = Guest::new();
    guest.write(IMSC, guest.read(IMSC) & !0x7ff);
    guest.write(CR, guest.read(CR) & !ON);
    guest.write(LCR_H, 3 << 5 | 1 << 4);
    guest.write(IFLS, 0x12);
    guest.write(CR, guest.read(CR) | ON);
    guest.write(ICR, 0x7ff);
    guest.write(IMSC, RECEIVE | TIMEOUT);
    let text = text();
    for piece in text.chunks(16) {
        for byte in piece {
            guest.write(DR, u64::from(*byte));
        }
        guest.write(IMSC, guest.read(IMSC) | TRANSMIT);
        for _ in 0..3 {
            if guest.machine.level() {
                break;
            }
            guest.console(16);
        }
        assert_eq!(guest.read(MIS) & TRANSMIT, TRANSMIT, "it is sent some time");
        guest.write(IMSC, guest.read(IMSC) & !TRANSMIT);
        assert!(!guest.machine.level());
    }
    guest.flush();
    assert_eq!(guest.arrived, text);
    // What is typed comes by an interrupt, and is read until there is no more.
    assert_eq!(guest.uart.give_input(b"ls\r"), 3);
    assert!(guest.machine.level() && guest.read(MIS) & (RECEIVE | TIMEOUT) != 0);
    let mut typed = Vec::new();
    while guest.read(FR) & FR_RXFE == 0 {
        typed.push(guest.read(DR) as u8);
    }
    assert_eq!(typed, b"ls\r");
    assert!(!guest.machine.level());
}

/// Zephyr 3, drivers/serial/uart_pl011.c, by polling: without FIFOs, each byte waits for room, and input is asked for.
#[test]
fn zephyr_sends_by_polling() {
    let mut guest = Guest::new();
    guest.write(CR, guest.read(CR) & !1);
    guest.write(LCR_H, guest.read(LCR_H) & !(1 << 4));
    guest.write(IBRD, 13);
    guest.write(FBRD, 1);
    guest.write(LCR_H, guest.read(LCR_H));
    guest.write(LCR_H, 3 << 5);
    guest.write(IFLS, 2 << 3);
    guest.write(IMSC, 0);
    guest.write(ICR, 0x7ff);
    guest.write(DMACR, 0);
    guest.write(CR, guest.read(CR) & !(3 << 14) | 0x300);
    guest.write(CR, guest.read(CR) | 1);
    assert_eq!((guest.read(IBRD), guest.read(FBRD)), (13, 1));
    assert_eq!(guest.read(CR) & ON, ON);
    let text = text();
    for byte in &text {
        guest.wait_while(FR_TXFF);
        guest.write(DR, u64::from(*byte));
    }
    guest.flush();
    assert_eq!(guest.arrived, text);
    assert_ne!(guest.read(FR) & FR_RXFE, 0);
    for byte in *b"help\r" {
        assert_eq!(guest.uart.give_input(&[byte]), 1);
        assert_eq!(guest.read(FR) & FR_RXFE, 0);
        assert_eq!(guest.read(DR), u64::from(byte));
        assert_eq!(guest.read(RIS) & RECEIVE, 0);
    }
    assert!(!guest.machine.level());
}

/// U-Boot 2023.01, drivers/serial/serial_pl01x.c, with a clock whose rate the tree gives; it waits for its last byte.
#[test]
fn u_boot_sends_by_polling() {
    let mut guest = Guest::new();
    guest.write(CR, 0);
    guest.write(IBRD, 13);
    guest.write(FBRD, 1);
    guest.write(LCR_H, 3 << 5 | 1 << 4);
    guest.write(CR, ON);
    let text = text();
    for byte in &text {
        guest.wait_while(FR_TXFF);
        guest.write(DR, u64::from(*byte));
    }
    guest.flush();
    assert_ne!(guest.read(FR) & FR_TXFE, 0);
    assert_eq!(guest.arrived, text);
    assert_eq!(guest.uart.give_input(b"bdinfo\r"), 7);
    let mut typed = Vec::new();
    while guest.read(FR) & FR_RXFE == 0 {
        typed.push(guest.read(DR) as u8);
    }
    assert_eq!(typed, b"bdinfo\r");
}
