//! The console that several VMs share, on CPU 0.
//!
//! Output: each line begins with the name of its VM ([`Speaker`]). The VMs take turns, a piece of at most [`PIECE`] bytes each,
//! so that a VM that floods the console takes no more of it than its share. Whole lines go out, so that they don't mix; of the
//! VM that has the input also what isn't a whole line yet, such as a prompt, after a moment in which the rest may come.
//!
//! Input: goes to one VM, until the user's [`Keys`] give it to another. A VM that takes none keeps what is typed waiting, and
//! after a while it is dropped: the keys are always read.

use super::keys::{HELP, Key, Keys};
use crate::guest::console::{GuestConsole, piece_of};
use crate::machine::{Machine, Speaker};
use alloc::collections::{TryReserveError, VecDeque};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use devices::Pl011;
use records::words::ConsoleMode;

/// The most output of a VM in its turn.
const PIECE: usize = 256;
/// The turns in one go: whoever floods the console doesn't keep CPU 0 from its other duties.
const TURNS: usize = 16;
/// When a console that has no room is tried again: about as long as a FIFO of 16 takes at 115,200 baud.
const ROOM_NS: u64 = 1_000_000;
/// How long the rest of a line is waited for.
const REST_NS: u64 = 20_000_000;
/// How often a console is looked at for input that says nothing by itself.
const INPUT_NS: u64 = 10_000_000;
/// Input that waits for a VM.
const TYPED: usize = 4096;
/// How long a VM may take none of it before more is dropped.
const STUCK_NS: u64 = 1_000_000_000;

/// The console that is shared.
pub(super) trait Wire {
    fn now_ns(&self) -> u64;
    fn wakes_for_input(&self) -> bool;
    fn write_line(&self, line: fmt::Arguments<'_>);
    fn write_as(&self, speaker: &Speaker<'_>, bytes: &[u8]) -> usize;
    fn read(&self, bytes: &mut [u8]) -> usize;
}

impl<M: Machine> Wire for M {
    fn now_ns(&self) -> u64 {
        Machine::now_ns(self)
    }

    fn wakes_for_input(&self) -> bool {
        self.facts().wakes_for_input
    }

    fn write_line(&self, line: fmt::Arguments<'_>) {
        Machine::write_line(self, line);
    }

    fn write_as(&self, speaker: &Speaker<'_>, bytes: &[u8]) -> usize {
        self.write_console_as(speaker, bytes)
    }

    fn read(&self, bytes: &mut [u8]) -> usize {
        self.read_console(bytes)
    }
}

/// A console with the VMs that share it.
pub(super) struct SharedConsole {
    mode: ConsoleMode,
    voices: Vec<Voice>,
    /// The VM that has the input.
    focus: usize,
    /// The VM whose turn it is.
    turn: usize,
    /// What is left of its turn, if the console had no room for all of it.
    left: usize,
    keys: Keys,
}

/// One of the VMs.
struct Voice {
    name: String,
    lines: GuestConsole,
    /// Output on its way.
    output: [u8; PIECE],
    length: usize,
    /// When it began to wait.
    since_ns: u64,
    /// Whether the VM's last byte on the console was within a line.
    is_within: bool,
    /// Whether nothing follows what is on its way.
    is_ending: bool,
    /// Whether nothing was on its way at the last look.
    is_silent: bool,
    /// Whether there won't be output any more, nor is there anybody for input.
    is_over: bool,
    /// Input on its way.
    typed: VecDeque<u8>,
    /// When the VM took some last.
    taken_ns: u64,
}

impl SharedConsole {
    /// For VMs of these names. The first one has the input.
    ///
    /// # Errors
    /// There is no heap.
    pub fn new<'n>(
        names: impl Iterator<Item = &'n str>,
        mode: ConsoleMode,
    ) -> Result<Self, TryReserveError> {
        let voices = names.map(Voice::new).collect::<Result<_, _>>()?;
        Ok(Self {
            mode,
            voices,
            focus: 0,
            turn: 0,
            left: 0,
            keys: Keys::default(),
        })
    }

    /// Tells the user who has the input, and how another one gets it.
    pub fn greet(&self, wire: &impl Wire) {
        if self.mode == ConsoleMode::Raw && self.voices.len() > 1 {
            let name = &self.voices[self.focus].name;
            wire.write_line(format_args!("parvisor: input goes to VM {name}; {HELP}"));
        }
    }

    /// Carries what there is between the console and the UARTs; a VM that doesn't run has none. Returns when this is to be called
    /// again, unless this CPU is woken before.
    pub fn attend<'u>(
        &mut self,
        wire: &impl Wire,
        uart: impl Fn(usize) -> Option<&'u Pl011>,
    ) -> u64 {
        let input_ns = match self.mode {
            ConsoleMode::Lines => u64::MAX,
            ConsoleMode::Raw => self.carry_input(wire, &uart),
        };
        input_ns.min(self.carry_output(wire, &uart))
    }

    /// The VM has ended: all of its output is shown from now on, as nothing follows it.
    pub fn end(&mut self, number: usize) {
        let voice = &mut self.voices[number];
        (voice.is_ending, voice.is_silent) = (true, false);
    }

    /// Whether all output of a VM that has ended has been shown.
    pub fn has_shown_all(&self, number: usize) -> bool {
        self.voices[number].is_silent
    }

    /// The VM starts again.
    pub fn begin(&mut self, number: usize) {
        self.voices[number].is_ending = false;
    }

    /// The VM won't start again. If it had the input, another one gets it.
    pub fn retire(&mut self, number: usize, wire: &impl Wire) {
        let voice = &mut self.voices[number];
        voice.is_over = true;
        voice.typed.clear();
        if self.mode == ConsoleMode::Lines {
            voice.lines.flush(|line| wire.write_line(line));
        } else if number == self.focus {
            self.give_to_next(wire);
        }
    }

    fn carry_output<'u>(
        &mut self,
        wire: &impl Wire,
        uart: &impl Fn(usize) -> Option<&'u Pl011>,
    ) -> u64 {
        let (mut due_ns, mut silent, mut turns) = (u64::MAX, 0, 0);
        while silent < self.voices.len() {
            if turns == TURNS {
                return 0;
            }
            let number = self.turn;
            let has_input = self.mode == ConsoleMode::Raw && number == self.focus;
            let now_ns = wire.now_ns();
            let voice = &mut self.voices[number];
            voice.fill(uart(number), now_ns);
            let ready = match self.left {
                0 => voice.ready(has_input, now_ns),
                left => left,
            };
            let ready = piece_of(&voice.output[..ready], voice.lines.beside_a_line());
            if ready == 0 {
                if voice.length != 0 && has_input {
                    due_ns = due_ns.min(voice.since_ns.saturating_add(REST_NS));
                }
                silent += 1;
            } else {
                let sent = match self.mode {
                    ConsoleMode::Lines => voice.print(wire, ready),
                    ConsoleMode::Raw => voice.send(wire, number, ready),
                };
                self.left = ready - sent;
                if self.left != 0 {
                    return now_ns.saturating_add(ROOM_NS);
                }
                (silent, turns) = (0, turns + 1);
            }
            self.turn = (number + 1) % self.voices.len();
        }
        due_ns
    }

    fn carry_input<'u>(
        &mut self,
        wire: &impl Wire,
        uart: &impl Fn(usize) -> Option<&'u Pl011>,
    ) -> u64 {
        let mut bytes = [0; 64];
        let now_ns = wire.now_ns();
        let later_ns = now_ns.saturating_add(INPUT_NS);
        let mut due_ns = match wire.wakes_for_input() {
            true => u64::MAX,
            false => later_ns,
        };
        loop {
            let focus = &self.voices[self.focus];
            let room = TYPED - focus.typed.len();
            if room == 0 && now_ns < focus.taken_ns.saturating_add(STUCK_NS) {
                due_ns = later_ns;
                break;
            }
            let most = match room {
                0 => bytes.len(),
                room => room.min(bytes.len()),
            };
            let count = wire.read(&mut bytes[..most]);
            for byte in &bytes[..count] {
                if let Some(key) = self.keys.take(*byte) {
                    self.take_key(key, wire);
                }
            }
            if count < most {
                break;
            }
        }
        for (number, voice) in self.voices.iter_mut().enumerate() {
            if let Some(uart) = uart(number) {
                voice.type_into(uart, now_ns);
            }
        }
        due_ns
    }

    fn take_key(&mut self, key: Key, wire: &impl Wire) {
        match key {
            Key::Typed(byte) => {
                let voice = &mut self.voices[self.focus];
                if voice.typed.is_empty() {
                    voice.taken_ns = wire.now_ns();
                }
                if voice.typed.len() < TYPED && !voice.is_over {
                    voice.typed.push_back(byte);
                }
            }
            Key::Next => self.give_to_next(wire),
            Key::To(number) if self.voices.get(number).is_some_and(|voice| !voice.is_over) => {
                self.give_to(number, wire);
            }
            Key::To(_) | Key::Unknown => self.greet(wire),
        }
    }

    fn give_to_next(&mut self, wire: &impl Wire) {
        let count = self.voices.len();
        let mut others = (1..=count).map(|after| (self.focus + after) % count);
        if let Some(next) = others.find(|number| !self.voices[*number].is_over) {
            self.give_to(next, wire);
        }
    }

    fn give_to(&mut self, number: usize, wire: &impl Wire) {
        self.focus = number;
        let name = &self.voices[number].name;
        wire.write_line(format_args!("parvisor: input goes to VM {name}"));
    }
}

impl Voice {
    fn new(name: &str) -> Result<Self, TryReserveError> {
        let mut typed = VecDeque::new();
        typed.try_reserve_exact(TYPED)?;
        Ok(Self {
            name: name.into(),
            lines: GuestConsole::of(Some(name.into())),
            output: [0; PIECE],
            length: 0,
            since_ns: 0,
            is_within: false,
            is_ending: false,
            is_silent: false,
            is_over: false,
            typed,
            taken_ns: 0,
        })
    }

    /// Takes the VM's output, as far as there is room for it.
    fn fill(&mut self, uart: Option<&Pl011>, now_ns: u64) {
        let Some(uart) = uart else { return };
        while self.length < PIECE {
            let count = uart.take_output(&mut self.output[self.length..]);
            if count == 0 {
                break;
            }
            if self.length == 0 {
                self.since_ns = now_ns;
            }
            self.length += count;
        }
        self.is_silent = self.length == 0;
    }

    /// How much of it may be shown now.
    fn ready(&self, has_input: bool, now_ns: u64) -> usize {
        let held = &self.output[..self.length];
        if let Some(end) = held.iter().rposition(|byte| *byte == b'\n') {
            return end + 1;
        }
        let is_prompt =
            has_input && (self.is_within || now_ns >= self.since_ns.saturating_add(REST_NS));
        match self.length == PIECE || self.is_ending || is_prompt {
            true => self.length,
            false => 0,
        }
    }

    fn send(&mut self, wire: &impl Wire, number: usize, ready: usize) -> usize {
        let speaker = Speaker {
            number,
            name: &self.name,
            is_within: self.is_within,
        };
        let sent = wire.write_as(&speaker, &self.output[..ready]);
        if let Some(last) = sent.checked_sub(1) {
            self.is_within = self.output[last] != b'\n';
        }
        self.forget(sent);
        sent
    }

    fn print(&mut self, wire: &impl Wire, ready: usize) -> usize {
        for byte in &self.output[..ready] {
            self.lines.put(*byte, |line| wire.write_line(line));
        }
        self.forget(ready);
        ready
    }

    fn forget(&mut self, shown: usize) {
        self.output.copy_within(shown..self.length, 0);
        self.length -= shown;
    }

    /// Gives the VM what was typed, as far as it takes it.
    fn type_into(&mut self, uart: &Pl011, now_ns: u64) {
        while !self.typed.is_empty() {
            let count = uart.give_input(self.typed.as_slices().0);
            if count == 0 {
                break;
            }
            self.typed.drain(..count);
            self.taken_ns = now_ns;
        }
    }
}

#[cfg(test)]
mod tests;
