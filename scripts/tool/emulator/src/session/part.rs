//! What the console is taken apart into.

/// A part of the console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'b> {
    /// What the user sees.
    Shown(&'b [u8]),
    /// What is said before and after that.
    Log(&'b [u8]),
    /// What one of several VMs has printed.
    Of(&'b str, &'b [u8]),
    /// The guest takes input, or begins its command, from here on.
    Begun,
    /// The command has ended with this status.
    Status(u8),
}
