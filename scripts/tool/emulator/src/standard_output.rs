//! Standard output, what is lost of which makes a command fail at its end. A reader who goes away early, as `head` does, loses
//! nothing that he wants.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::sync::{Mutex, PoisonError};

use crate::error::FAILED;

/// Why something was lost.
static LOST: Mutex<Option<io::Error>> = Mutex::new(None);

/// Prints a line. Threads may do so at the same time.
pub fn print_line(line: impl Display) {
    note(writeln!(io::stdout(), "{line}"));
}

/// Notes whether something was printed.
pub fn note(printed: io::Result<()>) {
    if let Some(error) = loss(printed) {
        LOST.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(error);
    }
}

/// The exit status of a command that would end with this one. Says what was lost, if something was.
pub(crate) fn ended(status: u8) -> u8 {
    note(io::stdout().flush());
    let lost = LOST.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(error) = &lost {
        eprintln!("error: standard output: {error}");
    }
    failed_if(lost.is_some(), status)
}

fn loss(printed: io::Result<()>) -> Option<io::Error> {
    let error = printed.err()?;
    (error.kind() != ErrorKind::BrokenPipe).then_some(error)
}

/// A failure of the command's own stays.
fn failed_if(is_lost: bool, status: u8) -> u8 {
    match status {
        0 if is_lost => FAILED,
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;

    #[test]
    fn what_a_full_disk_takes_is_lost_and_what_nobody_reads_isnt() {
        let full = OpenOptions::new().write(true).open("/dev/full");
        let lost = loss(writeln!(full.expect("Linux has it"), "a table"));
        assert_eq!(lost.map(|error| error.kind()), Some(ErrorKind::StorageFull));
        let (reader, mut writer) = io::pipe().expect("a pipe");
        assert!(loss(writeln!(writer, "a table")).is_none());
        drop(reader);
        let unread = writeln!(writer, "a table");
        assert!(unread.is_err() && loss(unread).is_none());
    }

    #[test]
    fn a_command_whose_output_is_lost_fails() {
        assert_eq!((failed_if(true, 0), failed_if(false, 0)), (FAILED, 0));
        assert_eq!((failed_if(true, 3), failed_if(false, 3)), (3, 3));
        note(Err(ErrorKind::StorageFull.into()));
        assert_eq!((ended(0), ended(0)), (FAILED, 0));
    }
}
