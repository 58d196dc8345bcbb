use super::registers::{FIFO, OUTPUT};
use super::*;
use crate::testing::TestMachine;
use proptest::prelude::*;

pub(super) const DR: u64 = 0x00;
pub(super) const FR: u64 = 0x18;
pub(super) const LCR_H: u64 = 0x2c;
pub(super) const CR: u64 = 0x30;
pub(super) const IFLS: u64 = 0x34;
pub(super) const IMSC: u64 = 0x38;
pub(super) const RIS: u64 = 0x3c;
pub(super) const MIS: u64 = 0x40;
pub(super) const ICR: u64 = 0x44;

const FR_BUSY: u64 = 1 << 3;
pub(super) const FR_RXFE: u64 = 1 << 4;
pub(super) const FR_TXFF: u64 = 1 << 5;
const FR_RXFF: u64 = 1 << 6;
pub(super) const FR_TXFE: u64 = 1 << 7;
pub(super) const RECEIVE: u64 = 1 << 4;
pub(super) const TRANSMIT: u64 = 1 << 5;
pub(super) const TIMEOUT: u64 = 1 << 6;

struct Uart {
    uart: Pl011,
    machine: Arc<TestMachine>,
}

impl Uart {
    fn new() -> Self {
        let machine = TestMachine::new();
        let uart = Pl011::new(machine.clone(), machine.clone()).unwrap();
        Self { uart, machine }
    }

    /// As Linux leaves it when a terminal is open.
    fn open() -> Self {
        let uart = Self::new();
        uart.write(LCR_H, 0x70);
        uart.write(CR, 0x301);
        uart.write(IFLS, 0x12);
        uart.write(IMSC, RECEIVE | TIMEOUT);
        uart
    }

    fn read(&self, offset: u64) -> u64 {
        self.uart.read(offset, Width::Word)
    }

    fn write(&self, offset: u64, value: u64) {
        self.uart.write(offset, Width::Word, value);
    }

    fn flags(&self, flags: u64) -> bool {
        self.read(FR) & flags == flags
    }

    fn output(&self) -> Vec<u8> {
        let mut bytes = [0; 2 * OUTPUT];
        let count = self.uart.take_output(&mut bytes);
        bytes[..count].to_vec()
    }

    fn fill(&self) -> usize {
        let mut sent = 0;
        while !self.flags(FR_TXFF) {
            self.write(DR, b'x'.into());
            sent += 1;
        }
        sent
    }
}

#[test]
fn registers_have_the_values_that_drivers_look_for() {
    let uart = Uart::new();
    assert_eq!(uart.read(CR), 0x300);
    assert_eq!(uart.read(IFLS), 0x12);
    assert!(uart.flags(FR_RXFE | FR_TXFE) && !uart.flags(FR_BUSY));
    let ids = (0xfe0..0x1000).step_by(4).map(|offset| uart.read(offset));
    let ids: Vec<u64> = ids.collect();
    assert_eq!(ids, [0x11, 0x10, 0x14, 0x00, 0x0d, 0xf0, 0x05, 0xb1]);
    for (offset, bits) in [
        (0x20, 0xff),
        (0x24, 0xffff),
        (0x28, 0x3f),
        (0x2c, 0xff),
        (0x30, 0xff87),
        (0x34, 0x3f),
        (0x38, 0x7ff),
        (0x48, 7),
    ] {
        uart.write(offset, u64::MAX);
        assert_eq!(uart.read(offset), bits, "{offset:#x}");
        uart.write(offset, 0);
        assert_eq!(uart.read(offset), 0, "{offset:#x}");
    }
}

#[test]
fn output_keeps_its_order_and_wakes_once() {
    let uart = Uart::new();
    for (width, byte) in [
        (Width::Byte, 0x1_0041),
        (Width::Half, 0x42),
        (Width::Word, 0x43),
    ] {
        uart.uart.write(DR, width, byte);
    }
    assert_eq!(uart.machine.wakes(), 1);
    assert!(uart.flags(FR_TXFE), "what is in the ring has been sent");
    assert_eq!(uart.output(), b"ABC");
    assert_eq!(uart.output(), b"");
    uart.write(DR, 0x44);
    assert_eq!(uart.machine.wakes(), 1);
}

#[test]
fn a_full_ring_makes_the_guest_wait_and_loses_nothing() {
    let uart = Uart::open();
    uart.write(IMSC, TRANSMIT);
    assert!(!uart.machine.level(), "not before anything was sent");
    uart.write(DR, b'x'.into());
    assert!(uart.machine.level());
    assert_eq!(uart.fill() + 1, OUTPUT);
    assert!(!uart.machine.level() && uart.flags(FR_TXFF | FR_BUSY));
    assert!(!uart.flags(FR_TXFE));
    uart.write(DR, b'!'.into());

    // Half of the FIFO is free: the interrupt comes, and a driver may write so much without a look.
    let mut bytes = [0; FIFO / 2 - 1];
    assert_eq!(uart.uart.take_output(&mut bytes), FIFO / 2 - 1);
    assert!(!uart.machine.level() && !uart.flags(FR_TXFF));
    assert_eq!(uart.uart.take_output(&mut bytes[..1]), 1);
    assert!(uart.machine.level());
    for _ in 0..FIFO / 2 {
        assert!(!uart.flags(FR_TXFF));
        uart.write(DR, b'x'.into());
    }
    assert!(uart.flags(FR_TXFF) && !uart.machine.level());
    assert_eq!(uart.output(), [b'x'; OUTPUT]);
    assert!(uart.machine.level() && uart.flags(FR_TXFE));
}

#[test]
fn a_transmit_interrupt_that_was_cleared_comes_with_the_next_byte() {
    let uart = Uart::open();
    uart.write(IMSC, TRANSMIT);
    uart.write(DR, 1);
    uart.write(ICR, TRANSMIT);
    assert!(!uart.machine.level());
    assert_eq!(uart.output(), [1]);
    assert!(!uart.machine.level(), "the FIFO was empty before");
    uart.write(DR, 2);
    assert!(uart.machine.level());
}

#[test]
fn without_fifos_one_byte_waits() {
    let uart = Uart::new();
    uart.write(IMSC, TRANSMIT);
    assert_eq!(uart.fill(), OUTPUT - FIFO + 1);
    assert!(!uart.machine.level());
    uart.uart.take_output(&mut [0]);
    assert!(uart.machine.level() && !uart.flags(FR_TXFF));
    uart.write(CR, 0x301);
    assert_eq!(uart.uart.give_input(b"ab"), 1);
    assert!(uart.flags(FR_RXFF));
    assert_eq!(uart.read(RIS) & RECEIVE, RECEIVE);
}

#[test]
fn the_trigger_of_transmitting_follows_its_register() {
    for (bits, level) in [(0, 2), (1, 4), (2, 8), (3, 12), (4, 14), (7, 14)] {
        let uart = Uart::open();
        uart.write(IFLS, bits);
        uart.write(IMSC, TRANSMIT);
        uart.fill();
        uart.uart.take_output(&mut vec![0; FIFO - level - 1]);
        assert!(!uart.machine.level(), "{bits}");
        uart.uart.take_output(&mut [0]);
        assert!(uart.machine.level(), "{bits}");
        if level > 2 {
            uart.write(IFLS, 0);
            assert!(!uart.machine.level(), "more than the new level waits");
        }
    }
}

#[test]
fn input_is_taken_when_there_is_room() {
    let uart = Uart::open();
    let text = b"twenty bytes of text";
    assert_eq!(uart.uart.give_input(text), FIFO);
    assert!(uart.flags(FR_RXFF) && !uart.flags(FR_RXFE));
    assert!(uart.machine.level());
    assert_eq!(uart.read(MIS), RECEIVE | TIMEOUT);
    uart.machine.wakes();
    let mut read = Vec::new();
    while !uart.flags(FR_RXFE) {
        read.push(uart.read(DR) as u8);
    }
    assert_eq!(read, text[..FIFO]);
    assert_eq!(uart.machine.wakes(), 1, "there is room for the others");
    assert!(!uart.machine.level());
    assert_eq!(uart.uart.give_input(&text[FIFO..]), 4);
    assert_eq!(uart.read(MIS), TIMEOUT, "less than the trigger's");
    assert_eq!(
        (0..4).map(|_| uart.read(DR) as u8).collect::<Vec<_>>(),
        text[FIFO..]
    );
    assert!(!uart.machine.level());
    assert_eq!(uart.machine.wakes(), 0, "nobody waits with input");
    assert_eq!(uart.read(DR), 0);
}

#[test]
fn a_timeout_ends_when_all_is_read_and_a_level_below_the_trigger() {
    let uart = Uart::open();
    assert_eq!(uart.uart.give_input(b"123456789"), 9);
    assert_eq!(uart.read(RIS), RECEIVE | TIMEOUT);
    uart.read(DR);
    assert_eq!(uart.read(RIS), RECEIVE | TIMEOUT);
    uart.read(DR);
    assert_eq!(uart.read(RIS), TIMEOUT);
    (0..7).for_each(|_| assert!(uart.read(DR) != 0));
    assert_eq!(uart.read(RIS), 0);
}

#[test]
fn a_receiver_that_is_off_takes_nothing_and_says_when_it_is_on() {
    let uart = Uart::new();
    assert_eq!(uart.uart.give_input(b"early"), 0);
    uart.write(CR, 0x200);
    assert_eq!(uart.machine.wakes(), 0);
    uart.write(LCR_H, 0x70);
    uart.write(CR, 0x301);
    assert_eq!(uart.machine.wakes(), 1);
    assert_eq!(uart.uart.give_input(b"early"), 5);
}

#[test]
fn looped_back_bytes_arrive_and_too_many_overrun() {
    let uart = Uart::open();
    uart.write(CR, 0x381);
    for byte in 0..FIFO as u64 + 1 {
        uart.write(DR, byte);
    }
    assert_eq!(uart.output(), b"");
    assert_eq!(uart.read(RIS) & 1 << 10, 1 << 10);
    assert_eq!(uart.read(4), 8);
    uart.write(4, 0);
    assert_eq!(uart.read(4), 0);
    let read = (0..FIFO).map(|_| uart.read(DR));
    assert!(read.eq(0..FIFO as u64));
}

#[test]
fn a_restored_uart_goes_on_where_the_saved_one_was() {
    let uart = Uart::open();
    uart.write(IMSC, RECEIVE | TIMEOUT | TRANSMIT);
    uart.uart.give_input(b"input");
    b"output"
        .iter()
        .for_each(|byte| uart.write(DR, u64::from(*byte)));
    let mut saved = Vec::new();
    uart.uart.save(&mut saved).unwrap();

    let other = Uart::new();
    other.uart.restore(&saved).unwrap();
    assert!(other.machine.level());
    assert_eq!(other.machine.wakes(), 1);
    assert_eq!(other.output(), b"output");
    let input: Vec<u8> = (0..5).map(|_| other.read(DR) as u8).collect();
    assert_eq!(input, b"input");
    assert_eq!(other.read(CR), 0x301);

    let before = other.read(FR);
    assert!(other.uart.restore(&saved[..saved.len() - 1]).is_err());
    assert!(other.uart.restore(&[]).is_err());
    saved.push(0);
    assert_eq!(
        other.uart.restore(&saved),
        Err(RestoreError::Length { bytes: saved.len() })
    );
    saved[0] ^= 1;
    assert!(matches!(
        other.uart.restore(&saved),
        Err(RestoreError::Foreign { .. })
    ));
    assert_eq!(other.read(FR), before);
}

#[derive(Clone, Debug)]
enum Act {
    Read(u64, Width),
    Write(u64, Width, u64),
    Take(usize),
    Give(Vec<u8>),
    Save,
}

fn width() -> impl Strategy<Value = Width> {
    prop::sample::select(Width::ALL.to_vec())
}

fn act() -> impl Strategy<Value = Act> {
    let offset =
        || prop_oneof![4 => (0u64..20).prop_map(|at| 4 * at), 1 => 0u64..0x1010, 1 => any::<u64>()];
    prop_oneof![
        4 => (offset(), width()).prop_map(|(at, width)| Act::Read(at, width)),
        4 => (offset(), width(), any::<u64>()).prop_map(|(at, width, value)| Act::Write(at, width, value)),
        1 => (0usize..40).prop_map(Act::Take),
        1 => prop::collection::vec(any::<u8>(), 0..24).prop_map(Act::Give),
        1 => Just(Act::Save),
    ]
}

proptest! {
    #[test]
    fn any_accesses_leave_a_state_that_makes_sense(acts in prop::collection::vec(act(), 0..200)) {
        let uart = Uart::new();
        for act in acts {
            match act {
                Act::Read(offset, width) => {
                    let value = uart.uart.read(offset, width);
                    prop_assert_eq!(value, width.of(value));
                }
                Act::Write(offset, width, value) => uart.uart.write(offset, width, value),
                Act::Take(count) => {
                    uart.uart.take_output(&mut vec![0; count]);
                }
                Act::Give(bytes) => {
                    let taken = uart.uart.give_input(&bytes);
                    prop_assert!(taken <= bytes.len().min(FIFO));
                }
                Act::Save => {
                    let mut saved = Vec::new();
                    uart.uart.save(&mut saved).unwrap();
                    let before = uart.uart.state.lock().clone();
                    uart.uart.restore(&saved).unwrap();
                    let mut again = Vec::new();
                    uart.uart.save(&mut again).unwrap();
                    prop_assert_eq!(saved, again);
                    prop_assert_eq!(before.line(), uart.machine.level());
                }
            }
            let level = uart.read(MIS) != 0;
            prop_assert_eq!(level, uart.machine.level());
            // A driver may fill what the interrupt says is free.
            if uart.read(RIS) & TRANSMIT != 0 {
                prop_assert!(!uart.flags(FR_TXFF));
            }
        }
    }

    #[test]
    fn any_state_is_refused_or_taken_without_a_panic(mut saved in prop::collection::vec(any::<u8>(), 0..100), plausible: bool) {
        if plausible {
            let mut whole = SAVED.to_le_bytes().to_vec();
            whole.append(&mut saved);
            saved = whole;
        }
        let uart = Uart::new();
        let _ = uart.uart.restore(&saved);
        uart.read(FR);
    }
}
