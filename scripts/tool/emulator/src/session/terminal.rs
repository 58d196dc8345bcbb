//! The user's terminal in raw mode: each key goes to the guest at once, and nothing is added to what the guest prints.
//!
//! It gets its mode back however this process ends: by [`restore`] when the session is dropped, at a panic, and at a signal
//! that is handled (`process`). A signal that can't be handled leaves that to a shell that waits at a pipe, whose other end
//! closes when this process ends; where the terminal has another mode by then, that is left alone.

use std::io::{self, IsTerminal, stdin};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::panic;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

/// The shell's program: the usual mode and the raw one, as `stty -g` prints them, are its name and its argument. It isn't in
/// the foreground, so changing the mode would stop it.
const WATCHER: &str = "read -r nothing; trap '' TTOU
[ \"$(stty -g <&2)\" != \"$1\" ] || stty \"$0\" <&2";

/// The terminal while it is in raw mode.
static RAW: Mutex<Option<Raw>> = Mutex::new(None);

fn raw() -> MutexGuard<'static, Option<Raw>> {
    RAW.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Raw {
    usual: Termios,
    /// None where there is no stty.
    watcher: Option<Child>,
}

/// Raw mode. Dropping it restores the usual one.
#[derive(Debug)]
pub struct RawMode(());

impl RawMode {
    /// Switches the terminal that is standard input to raw mode; nothing if it isn't a terminal.
    ///
    /// # Errors
    ///
    /// If the mode can't be changed.
    pub fn enter() -> io::Result<Option<Self>> {
        if !stdin().is_terminal() {
            return Ok(None);
        }
        restore_at_panic();
        let usual = tcgetattr(stdin())?;
        let before = settings();
        let mut wanted = usual.clone();
        cfmakeraw(&mut wanted);
        // The lock is held over the change, so that a signal finds either all of it or nothing.
        let mut raw = raw();
        tcsetattr(stdin(), SetArg::TCSADRAIN, &wanted)?;
        *raw = Some(Raw {
            usual,
            watcher: None,
        });
        if let (Some(raw), Some(before), Some(after)) = (raw.as_mut(), before, settings()) {
            raw.watcher = watch(&before, &after).ok();
        }
        Ok(Some(Self(())))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Gives the terminal its usual mode back, if it is in raw mode.
pub fn restore() {
    let Some(Raw { usual, watcher }) = raw().take() else {
        return;
    };
    // Before anybody else can change the mode, as the watcher might undo that.
    if let Some(mut watcher) = watcher {
        // Killed, it can't be waited for in vain.
        let _ = watcher.kill();
        let _ = watcher.wait();
    }
    // A terminal that is gone has no mode.
    let _ = tcsetattr(stdin(), SetArg::TCSADRAIN, &usual);
}

/// The message of a panic is to be readable too.
fn restore_at_panic() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            restore();
            usual(panic);
        }));
    });
}

/// The mode as `stty -g` prints it.
fn settings() -> Option<String> {
    stty("-g")
}

/// The terminal's size as stty takes it: `rows 24 cols 80`; empty if standard input isn't a terminal, or it doesn't tell.
pub fn size() -> String {
    let size = stdin().is_terminal().then(|| stty("size")).flatten();
    let size = size.as_deref().and_then(|size| size.split_once(' '));
    match size {
        Some((rows, columns)) if rows != "0" && columns != "0" => {
            format!("rows {rows} cols {columns}")
        }
        _ => String::new(),
    }
}

fn stty(argument: &str) -> Option<String> {
    let mut stty = Command::new("stty");
    stty.arg(argument)
        .stdin(Stdio::inherit())
        .stderr(Stdio::null());
    let output = stty.output().ok()?;
    let printed = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| printed.trim().to_string())
}

fn watch(usual: &str, raw: &str) -> io::Result<Child> {
    let terminal = stdin().as_fd().try_clone_to_owned()?;
    Command::new("/bin/sh")
        .args(["-c", WATCHER, usual, raw])
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(terminal)
        .spawn()
}
