//! Starts the trace at a guest's first entry, through QEMU's debugger interface: what a boot executes before would make most of
//! the log. And ends the machine when the log is long enough.
//!
//! The GDB remote protocol, as far as that: packets `$text#checksum`, each of which is answered.

use std::fs;
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::Duration;

/// How often the socket that isn't there yet, and the log, are looked at.
const LOOK: Duration = Duration::from_millis(50);
/// The most bytes of a log.
const MOST_BYTES: u64 = 32 << 20;
/// What the log is to have.
const LOGGED: &str = "log exec,int,nochain";

/// A conversation with QEMU about a machine that waits for its start.
pub struct Debugger {
    stream: UnixStream,
    received: Vec<u8>,
}

impl Debugger {
    /// Connects, as soon as QEMU listens; `is_over` says when it won't any more.
    pub fn connect(socket: &Path, is_over: impl Fn() -> bool) -> Result<Self> {
        loop {
            match UnixStream::connect(socket) {
                Ok(stream) => {
                    let received = Vec::new();
                    return Ok(Self { stream, received });
                }
                Err(error) if is_over() => return Err(error),
                Err(_) => thread::sleep(LOOK),
            }
        }
    }

    /// Lets the machine run until CPU `cpu` is about to execute the instruction at `address`, and has everything logged from
    /// there on, up to the machine's end or the log's most bytes.
    pub fn trace(mut self, address: u64, cpu: u32, log: &Path) -> Result<()> {
        let breakpoint = format!("0,{address:x},4");
        // QEMU's threads are its CPUs, from 1 on.
        let thread = format!("thread:{:02x};", cpu + 1);
        loop {
            self.ask(&format!("Z{breakpoint}"))?;
            let stopped = self.ask("c")?;
            self.ask(&format!("z{breakpoint}"))?;
            if stopped.contains(&thread) {
                break;
            }
            self.ask("s")?;
        }
        let command: String = LOGGED.bytes().map(|byte| format!("{byte:02x}")).collect();
        self.ask(&format!("qRcmd,{command}"))?;
        self.send("c")?;
        self.stream.set_read_timeout(Some(LOOK))?;
        loop {
            match self.receive() {
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                // It has ended by itself.
                _ => return Ok(()),
            }
            if fs::metadata(log).is_ok_and(|log| log.len() > MOST_BYTES) {
                // It is stopped before it can be ended.
                self.stream.write_all(b"\x03")?;
                self.stream.set_read_timeout(None)?;
                self.receive()?;
                return self.send("k");
            }
        }
    }

    fn ask(&mut self, text: &str) -> Result<String> {
        self.send(text)?;
        self.receive()
    }

    fn send(&mut self, text: &str) -> Result<()> {
        self.stream.write_all(packet(text).as_bytes())
    }

    /// The text of the next packet.
    fn receive(&mut self) -> Result<String> {
        loop {
            if let Some((text, rest)) = unpacked(&self.received) {
                self.received = rest;
                self.stream.write_all(b"+")?;
                return Ok(text);
            }
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer)? {
                0 => return Err(Error::from(ErrorKind::UnexpectedEof)),
                count => self.received.extend(&buffer[..count]),
            }
        }
    }
}

fn packet(text: &str) -> String {
    let sum = text.bytes().fold(0, u8::wrapping_add);
    format!("${text}#{sum:02x}")
}

/// The text of the first packet in `received`, and what follows it, if it is whole.
fn unpacked(received: &[u8]) -> Option<(String, Vec<u8>)> {
    let start = received.iter().position(|byte| *byte == b'$')? + 1;
    let length = received[start..].iter().position(|byte| *byte == b'#')?;
    let rest = received.get(start + length + 3..)?;
    let text = String::from_utf8_lossy(&received[start..start + length]);
    Some((text.into_owned(), rest.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_made_and_taken_apart() {
        assert_eq!([packet("c"), packet("OK")], ["$c#63", "$OK#9a"]);
        let whole = unpacked(b"++$OK#9a$T05");
        assert_eq!(whole, Some(("OK".into(), b"$T05".to_vec())));
        for part in [&b"+"[..], b"$OK", b"$OK#", b"$OK#9"] {
            assert_eq!(unpacked(part), None);
        }
    }

    /// QEMU's side of a conversation: each request, and its answer.
    fn answered(stream: &mut UnixStream, answers: &[(&str, &str)]) {
        let mut debugger = Debugger {
            stream: stream.try_clone().expect("it can be shared"),
            received: Vec::new(),
        };
        for (request, answer) in answers {
            assert_eq!(debugger.receive().expect("a packet"), *request);
            debugger.send(answer).expect("it is read");
        }
    }

    #[test]
    fn the_trace_starts_on_the_cpu_that_was_named() {
        let (stream, mut other) = UnixStream::pair().expect("a pair");
        let thread = thread::spawn(move || {
            answered(
                &mut other,
                &[
                    ("Z0,40202924,4", "OK"),
                    ("c", "T05thread:02;"),
                    ("z0,40202924,4", "OK"),
                    ("s", "T05thread:02;"),
                    ("Z0,40202924,4", "OK"),
                    ("c", "T05thread:03;"),
                    ("z0,40202924,4", "OK"),
                    ("qRcmd,6c6f6720657865632c696e742c6e6f636861696e", "OK"),
                    ("c", "W00"),
                ],
            );
        });
        let debugger = Debugger {
            stream,
            received: Vec::new(),
        };
        let traced = debugger.trace(0x4020_2924, 2, Path::new("/no/log"));
        assert!(traced.is_ok(), "{traced:?}");
        thread.join().expect("all was as it should be");
    }
}
