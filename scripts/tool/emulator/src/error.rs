//! The errors that end a command of the tool early, each with its exit status. One line each on standard
//! error; scripts and CI act on the status.

use std::fmt;
use std::io;
use std::path::Path;

/// The exit status of bad options.
pub const USAGE: u8 = 2;
/// The exit status when something that is needed couldn't be installed, built, read or written.
pub const FAILED: u8 = 1;
/// The exit status when the emulator ended, or had to be ended, without a status from the hypervisor.
pub const NO_STATUS: u8 = 4;

/// Why a command ends early.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToolError {
    /// Options that are unknown, malformed or contradict each other.
    Usage(String),
    /// Something that the command needs is missing and couldn't be installed.
    Setup(String),
    /// The images couldn't be built. Cargo has said why.
    Build(String),
    /// A file or a program couldn't be used.
    Io(String),
    /// A mutant can't be applied, or the suites don't pass without one.
    Mutants(String),
    /// The emulator ended, or was ended, and the hypervisor had given no exit status.
    NoStatus(String),
    /// A command that was started has failed with this exit status, and has said why.
    Said(u8),
}

impl ToolError {
    /// The error that a path can't be used.
    pub fn unusable(path: &Path, error: &io::Error) -> Self {
        Self::Io(format!("{}: {error}", path.display()))
    }

    /// The exit status of the command that ends with this error.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Usage(_) => USAGE,
            Self::Setup(_) | Self::Build(_) | Self::Io(_) | Self::Mutants(_) => FAILED,
            Self::NoStatus(_) => NO_STATUS,
            Self::Said(status) => *status,
        }
    }
}

impl fmt::Display for ToolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(text)
            | Self::Setup(text)
            | Self::Build(text)
            | Self::Io(text)
            | Self::Mutants(text)
            | Self::NoStatus(text) => f.write_str(text),
            Self::Said(status) => write!(f, "exit status {status}"),
        }
    }
}

impl std::error::Error for ToolError {}
