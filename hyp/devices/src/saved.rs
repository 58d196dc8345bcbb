//! The saved state of a device: its kind and version in one word, then its fields, all in little-endian order.

use alloc::collections::TryReserveError;
use alloc::vec::Vec;
use core::fmt;

/// Why a device can't take over a saved state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RestoreError {
    /// It is another device's, or of another version.
    Foreign {
        /// Its first word.
        found: u32,
        /// This device's.
        expected: u32,
    },
    /// It is too short or too long.
    Length {
        /// Its bytes.
        bytes: usize,
    },
    /// A field has a value that the device never has.
    Field(&'static str),
}

impl fmt::Display for RestoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Foreign { found, expected } => write!(
                f,
                "a device's state is of kind {found:#x}, not {expected:#x}"
            ),
            Self::Length { bytes } => {
                write!(f, "a device's state has a wrong length of {bytes} bytes")
            }
            Self::Field(name) => write!(f, "a device's state has an impossible {name}"),
        }
    }
}

impl core::error::Error for RestoreError {}

/// Writes a state.
pub(crate) struct Writer<'s>(&'s mut Vec<u8>);

impl<'s> Writer<'s> {
    /// Begins a state of at most `bytes` bytes after its first word.
    pub fn begin(saved: &'s mut Vec<u8>, kind: u32, bytes: usize) -> Result<Self, TryReserveError> {
        saved.try_reserve(size_of::<u32>() + bytes)?;
        let mut writer = Self(saved);
        writer.word(kind);
        Ok(writer)
    }

    pub fn word(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub fn double(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub fn bytes(&mut self, bytes: impl Iterator<Item = u8>) {
        self.0.extend(bytes);
    }
}

/// Reads a state.
pub(crate) struct Reader<'s> {
    rest: &'s [u8],
    length: usize,
}

impl<'s> Reader<'s> {
    /// Begins to read a state of this kind.
    pub fn begin(saved: &'s [u8], expected: u32) -> Result<Self, RestoreError> {
        let mut reader = Self {
            rest: saved,
            length: saved.len(),
        };
        let found = reader.word()?;
        if found == expected {
            Ok(reader)
        } else {
            Err(RestoreError::Foreign { found, expected })
        }
    }

    /// The next `count` bytes.
    pub fn bytes(&mut self, count: usize) -> Result<&'s [u8], RestoreError> {
        let (bytes, rest) = self.rest.split_at_checked(count).ok_or(self.wrong())?;
        self.rest = rest;
        Ok(bytes)
    }

    pub fn word(&mut self) -> Result<u32, RestoreError> {
        let mut bytes = [0; size_of::<u32>()];
        bytes.copy_from_slice(self.bytes(size_of::<u32>())?);
        Ok(u32::from_le_bytes(bytes))
    }

    pub fn double(&mut self) -> Result<u64, RestoreError> {
        let mut bytes = [0; size_of::<u64>()];
        bytes.copy_from_slice(self.bytes(size_of::<u64>())?);
        Ok(u64::from_le_bytes(bytes))
    }

    /// Checks that nothing is left.
    pub fn end(self) -> Result<(), RestoreError> {
        match self.rest {
            [] => Ok(()),
            _ => Err(self.wrong()),
        }
    }

    fn wrong(&self) -> RestoreError {
        RestoreError::Length { bytes: self.length }
    }
}
