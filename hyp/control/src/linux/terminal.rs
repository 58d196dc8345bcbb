//! Carries bytes between a guest's UART and the console, on CPU 0, and looks after the guest's real-time clock.
//!
//! CPU 0 is woken when the UART has output and when it has room for input, and for the console's own input, if that can wake it;
//! else it is polled.

use super::line_watch::LineWatch;
use crate::board::GuestBoard;
use crate::guest::console::{GuestConsole, piece_of};
use crate::machine::Machine;
use crate::options::Options;
use alloc::sync::Arc;
use core::ops::Range;
use devices::{Pl011, Pl031};
use records::words::ConsoleMode;

/// How often a console is looked at for input that says nothing by itself.
const INPUT_NS: u64 = 10_000_000;
/// When a console that has no room is tried again: about as long as a FIFO of 16 takes at 115,200 baud.
const ROOM_NS: u64 = 1_000_000;
/// How long a console may take no byte of the rest of the output when a guest has ended.
const PATIENCE_NS: u64 = 1_000_000_000;
/// The pieces of output in one go: whoever floods the console doesn't keep CPU 0 from its other duties.
const PIECES: usize = 16;
const PIECE: usize = 256;

/// The way between a guest's UART and the console.
pub struct Terminal<M: Machine> {
    machine: &'static M,
    uart: Arc<Pl011>,
    rtc: Arc<Pl031>,
    mode: ConsoleMode,
    lines: GuestConsole,
    output: Piece,
    input: Piece,
    watch: LineWatch,
}

/// Bytes on their way.
struct Piece {
    bytes: [u8; PIECE],
    rest: Range<usize>,
}

impl Piece {
    const EMPTY: Self = Self {
        bytes: [0; PIECE],
        rest: 0..0,
    };

    /// Takes bytes from `from` if it has none, and gives them to `to`, which returns how many it takes.
    fn carry(
        &mut self,
        from: impl FnOnce(&mut [u8]) -> usize,
        to: impl FnOnce(&[u8]) -> usize,
    ) -> Carried {
        if self.rest.is_empty() {
            self.rest = 0..from(&mut self.bytes).min(PIECE);
        }
        if self.rest.is_empty() {
            return Carried::Nothing;
        }
        self.rest.start += to(&self.bytes[self.rest.clone()]);
        match self.rest.is_empty() {
            true => Carried::All,
            false => Carried::Part,
        }
    }
}

/// What became of a piece.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Carried {
    /// There was none.
    Nothing,
    /// All of it was taken.
    All,
    /// There is no room for the rest.
    Part,
}

impl<M: Machine> Terminal<M> {
    /// For the guest with this board.
    pub(crate) fn new(machine: &'static M, board: &GuestBoard<'_>, options: &Options) -> Self {
        Self {
            machine,
            uart: board.uart.clone(),
            rtc: board.rtc.clone(),
            mode: options.console,
            lines: GuestConsole::new(),
            output: Piece::EMPTY,
            input: Piece::EMPTY,
            watch: LineWatch::new(options.log_from.clone()),
        }
    }

    /// The guest's UART.
    pub fn uart(&self) -> &Arc<Pl011> {
        &self.uart
    }

    /// Looks after the clock alone. Returns when this is to be called again, unless this CPU is woken before.
    pub fn attend_clock(&self) -> u64 {
        self.rtc.attend();
        self.rtc.deadline_ns().unwrap_or(u64::MAX)
    }

    /// Whether the guest has printed the line that the options name, if they do.
    pub fn has_printed_line(&self) -> bool {
        self.watch.has_come()
    }

    /// Types a return to the guest. It is lost if the UART has no room.
    pub fn type_return(&self) {
        let _ = self.uart.give_input(b"\n");
    }

    /// Carries what there is. Returns when this is to be called again, unless this CPU is woken before.
    pub fn attend(&mut self) -> u64 {
        let alarm_ns = self.attend_clock();
        let after = |ns: u64| self.machine.now_ns().saturating_add(ns);
        let is_polled = self.mode == ConsoleMode::Raw && !self.machine.facts().wakes_for_input;
        let input_ns = match is_polled {
            true => after(INPUT_NS),
            false => u64::MAX,
        };
        if self.mode == ConsoleMode::Raw {
            while self.carry_input() == Carried::All {}
        }
        let mut carried = (0..PIECES).map(|_| self.carry_output());
        let output_ns = match carried.find(|carried| *carried != Carried::All) {
            Some(Carried::Nothing) => u64::MAX,
            Some(_) => after(ROOM_NS),
            None => 0,
        };
        alarm_ns.min(input_ns).min(output_ns)
    }

    /// Carries the rest of the output of a guest that has ended.
    pub fn finish(&mut self) {
        let mut until_ns = self.machine.now_ns().saturating_add(PATIENCE_NS);
        loop {
            let before = self.output.rest.clone();
            let carried = self.carry_output();
            let now_ns = self.machine.now_ns();
            if carried == Carried::All || self.output.rest != before {
                until_ns = now_ns.saturating_add(PATIENCE_NS);
            } else if carried == Carried::Nothing || now_ns >= until_ns {
                break;
            }
            if carried == Carried::Part {
                self.machine.wait(now_ns.saturating_add(ROOM_NS));
            }
        }
        let machine = self.machine;
        self.lines.flush(|line| machine.write_line(line));
    }

    fn carry_output(&mut self) -> Carried {
        let (machine, lines, mode) = (self.machine, &self.lines, self.mode);
        let to = |bytes: &[u8]| match mode {
            ConsoleMode::Raw => machine.write_console(bytes),
            ConsoleMode::Lines => {
                let count = piece_of(bytes, lines.beside_a_line());
                for byte in &bytes[..count] {
                    lines.put(*byte, |line| machine.write_line(line));
                }
                count
            }
        };
        let from = |bytes: &mut [u8]| {
            let count = self.uart.take_output(bytes);
            self.watch.look(&bytes[..count.min(PIECE)]);
            count
        };
        self.output.carry(from, to)
    }

    fn carry_input(&mut self) -> Carried {
        let machine = self.machine;
        let from = |bytes: &mut [u8]| machine.read_console(bytes);
        self.input.carry(from, |bytes| self.uart.give_input(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    /// Carries `text` to somebody who takes `most` bytes at a time.
    fn carried(text: &[u8], most: usize) -> (Vec<u8>, Vec<Carried>) {
        let (mut piece, mut left) = (Piece::EMPTY, text);
        let (mut arrived, mut outcomes) = (Vec::new(), Vec::new());
        loop {
            let from = |bytes: &mut [u8]| {
                let count = bytes.len().min(left.len());
                let (now, later) = left.split_at(count);
                bytes[..count].copy_from_slice(now);
                left = later;
                count
            };
            let outcome = piece.carry(from, |bytes| {
                let count = bytes.len().min(most);
                arrived.extend_from_slice(&bytes[..count]);
                count
            });
            outcomes.push(outcome);
            if outcome == Carried::Nothing {
                return (arrived, outcomes);
            }
        }
    }

    #[test]
    fn all_bytes_arrive_in_their_order_however_few_are_taken_at_once() {
        let text: Vec<u8> = (0..3 * PIECE + 5).map(|number| number as u8).collect();
        for most in [1, 7, PIECE - 1, PIECE, 4 * PIECE] {
            assert_eq!(carried(&text, most).0, text, "{most}");
        }
    }

    #[test]
    fn a_piece_says_whether_somebody_has_no_room() {
        let (_, outcomes) = carried(b"abcd", 3);
        assert_eq!(outcomes, [Carried::Part, Carried::All, Carried::Nothing]);
        let mut piece = Piece::EMPTY;
        let stuck = |piece: &mut Piece| piece.carry(|bytes| bytes.len(), |_| 0);
        assert_eq!(stuck(&mut piece), Carried::Part);
        assert_eq!(stuck(&mut piece), Carried::Part);
        assert_eq!(piece.rest, 0..PIECE);
    }
}
