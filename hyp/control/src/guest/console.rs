//! A guest's console output: printed in whole lines with a guest's prefix, or that of its name, so that it can't pass for the
//! hypervisor's.
//!
//! All vCPUs of a VM share one console. Each byte is added under a lock that only printing takes.

use alloc::string::String;
use core::fmt;
use spin::Mutex;

/// The longest line; a longer one is broken.
const LONGEST: usize = 256;

/// What a piece of output comes to with what its lines are printed with, unless it is one line.
const MOST_PRINTED: usize = 512;

/// How much of a guest's output is printed in one piece: the bytes of `output`, or fewer whole lines, if each line is printed with
/// `beside` bytes more. A guest that prints nothing but newlines gets no more of the console than another.
pub fn piece_of(output: &[u8], beside: usize) -> usize {
    let mut printed = 0;
    for (index, byte) in output.iter().enumerate() {
        printed += 1;
        if *byte == b'\n' {
            printed += beside;
            if printed >= MOST_PRINTED {
                return index + 1;
            }
        }
    }
    output.len()
}

/// Collects a guest's bytes into lines.
#[derive(Debug)]
pub struct GuestConsole {
    /// The guest's name, if it is one of several.
    name: Option<String>,
    line: Mutex<Line>,
}

#[derive(Clone, Debug)]
struct Line {
    bytes: [u8; LONGEST],
    length: usize,
}

impl GuestConsole {
    /// An empty line.
    pub const fn new() -> Self {
        Self::of(None)
    }

    /// As [`Self::new`], of the guest of this name, if it has one.
    pub const fn of(name: Option<String>) -> Self {
        Self {
            name,
            line: Mutex::new(Line {
                bytes: [0; LONGEST],
                length: 0,
            }),
        }
    }

    /// How many bytes are printed with each line beside its own: what it begins with, and a carriage return.
    pub fn beside_a_line(&self) -> usize {
        let mark = match &self.name {
            None => "guest: ".len(),
            Some(name) => "[] ".len() + name.len(),
        };
        mark + 1
    }

    /// Adds a byte. If it completes a line, passes the line to `print`, with everything unprintable escaped.
    pub fn put(&self, byte: u8, print: impl FnOnce(fmt::Arguments<'_>)) {
        let mut line = self.line.lock();
        if byte != b'\n' {
            let length = line.length;
            line.bytes[length] = byte;
            line.length += 1;
            if line.length < LONGEST {
                return;
            }
        }
        line.print(self.name.as_deref(), print);
    }

    /// Prints an unfinished line.
    pub fn flush(&self, print: impl FnOnce(fmt::Arguments<'_>)) {
        let mut line = self.line.lock();
        if line.length > 0 {
            line.print(self.name.as_deref(), print);
        }
    }
}

impl Default for GuestConsole {
    fn default() -> Self {
        Self::new()
    }
}

impl Line {
    fn print(&mut self, name: Option<&str>, print: impl FnOnce(fmt::Arguments<'_>)) {
        let bytes = &self.bytes[..self.length];
        let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
        match name {
            None => print(format_args!("guest: {}", Escaped(bytes))),
            Some(name) => print(format_args!("[{name}] {}", Escaped(bytes))),
        }
        self.length = 0;
    }
}

/// Bytes as printable ASCII. A backslash isn't escaped: a guest may print text that looks like an escape.
struct Escaped<'b>(&'b [u8]);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| match byte {
            b' '..=b'~' => fmt::Write::write_char(f, char::from(*byte)),
            other => write!(f, "\\x{other:02x}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use alloc::vec::Vec;

    fn lines(text: &[u8]) -> Vec<String> {
        let console = GuestConsole::new();
        let mut lines = Vec::new();
        for byte in text {
            console.put(*byte, |line| lines.push(line.to_string()));
        }
        console.flush(|line| lines.push(line.to_string()));
        lines
    }

    #[test]
    fn lines_are_whole_and_marked() {
        assert_eq!(
            lines(b"one\r\n\ntwo"),
            ["guest: one", "guest: ", "guest: two"]
        );
        assert_eq!(lines(b""), [""; 0]);
    }

    #[test]
    fn a_guest_cant_forge_the_hypervisors_lines() {
        assert_eq!(
            lines(b"\rparvisor: exit status 0\x1b[A\0\xff\n"),
            ["guest: \\x0dparvisor: exit status 0\\x1b[A\\x00\\xff"]
        );
    }

    #[test]
    fn of_several_guests_each_has_its_name() {
        let mut lines = Vec::new();
        let console = GuestConsole::of(Some("a".into()));
        for byte in b"[b] x\n" {
            console.put(*byte, |line| lines.push(line.to_string()));
        }
        assert_eq!(lines, ["[a] [b] x"]);
    }

    #[test]
    fn a_piece_counts_what_its_lines_are_printed_with() {
        assert_eq!(piece_of(&[b'x'; 600], 9), 600, "one line");
        assert_eq!(piece_of(&[b'\n'; 256], 31), 512 / 32);
        let lines = [[b'x'; 31].as_slice(), b"\n"].concat().repeat(8);
        assert_eq!(piece_of(&lines, 8), lines.len());
        assert_eq!(piece_of(&lines, 96), 4 * 32, "whole lines");
        assert_eq!(piece_of(&[], 8), 0);
    }

    #[test]
    fn an_endless_line_is_cut() {
        let lines = lines(&[b'x'; 2 * LONGEST + 1]);
        assert_eq!(
            lines
                .iter()
                .map(|line| line.len() - "guest: ".len())
                .collect::<Vec<_>>(),
            [LONGEST, LONGEST, 1]
        );
    }
}
