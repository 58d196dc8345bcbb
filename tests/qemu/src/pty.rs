//! A terminal with nobody before it: what a program prints on it can be read, and keys can be typed.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use nix::pty::openpty;
use nix::sys::termios::{LocalFlags, Termios, tcgetattr};

/// How long a program may take for anything, on a busy host.
const LIMIT: Duration = Duration::from_secs(300);

/// A program on a terminal of its own.
#[derive(Debug)]
pub struct OnTerminal {
    /// The program.
    pub child: Child,
    /// The end that a terminal emulator would have.
    keyboard: File,
    /// The program's end, which keeps the terminal alive.
    terminal: File,
    printed: Receiver<Vec<u8>>,
    /// All that it has printed.
    pub screen: Vec<u8>,
    /// The mode before the program had it.
    usual: Termios,
}

impl OnTerminal {
    /// Starts `command` with a terminal as its standard input and output.
    ///
    /// # Panics
    ///
    /// If there is no terminal, or the program can't be started.
    pub fn start(command: &mut Command) -> Self {
        let pty = openpty(None, None).expect("the system has terminals");
        let terminal = File::from(pty.slave);
        let usual = tcgetattr(&terminal).expect("a mode");
        let end = || Stdio::from(terminal.try_clone().expect("another handle"));
        command.stdin(end()).stdout(end()).stderr(Stdio::piped());
        let child = command.spawn().expect("the program starts");
        let keyboard = File::from(pty.master);
        let mut screen = keyboard.try_clone().expect("another handle");
        let (sender, printed) = mpsc::channel();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = screen.read(&mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self {
            child,
            keyboard,
            terminal,
            printed,
            screen: Vec::new(),
            usual,
        }
    }

    /// Types this.
    ///
    /// # Panics
    ///
    /// If the terminal is gone.
    pub fn types(&mut self, keys: &[u8]) {
        self.keyboard
            .write_all(keys)
            .expect("the terminal is there");
    }

    /// Waits until `text` has been printed since the last that was waited for, and forgets what stands before its end.
    ///
    /// # Panics
    ///
    /// If it isn't printed.
    pub fn wait_for(&mut self, text: &str) {
        let end = Instant::now() + LIMIT;
        loop {
            let windows = self.screen.windows(text.len());
            if let Some(place) = windows
                .into_iter()
                .position(|found| found == text.as_bytes())
            {
                self.screen.drain(..place + text.len());
                return;
            }
            let rest = end.saturating_duration_since(Instant::now());
            match self.printed.recv_timeout(rest) {
                Ok(bytes) => self.screen.extend(bytes),
                Err(_) => panic!(
                    "no {text:?} but {:?}",
                    String::from_utf8_lossy(&self.screen)
                ),
            }
        }
    }

    /// Waits until `holds`.
    ///
    /// # Panics
    ///
    /// If it never does.
    pub fn wait_until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let end = Instant::now() + LIMIT;
        while !holds(self) {
            assert!(Instant::now() < end, "{what}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether each key goes to the program at once, and none has a meaning of its own.
    pub fn is_raw(&self) -> bool {
        let raw = LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG;
        !self.mode().local_flags.intersects(raw)
    }

    /// Whether the terminal has the mode that it had before the program started.
    pub fn is_as_before(&self) -> bool {
        self.mode() == self.usual
    }

    fn mode(&self) -> Termios {
        tcgetattr(&self.terminal).expect("a mode")
    }

    /// Waits for the program's end; gives its status and what it complained about.
    ///
    /// # Panics
    ///
    /// If it doesn't end.
    pub fn ends(mut self) -> (ExitStatus, String, bool) {
        let end = Instant::now() + LIMIT;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("it is ours") {
                break status;
            }
            assert!(Instant::now() < end, "it doesn't end");
            thread::sleep(Duration::from_millis(20));
        };
        let mut complaints = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            // Whoever has outlived the program may still hold the pipe.
            let _ = stderr.read_to_string(&mut complaints);
        }
        (status, complaints, self.is_as_before())
    }
}

/// A test that fails leaves nothing behind: the program is killed, and what it has started ends with it.
impl Drop for OnTerminal {
    fn drop(&mut self) {
        // It has ended, or does so now.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
