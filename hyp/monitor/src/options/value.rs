//! The values that options can have.

use super::OptionError;
use crate::size::{Size, decimal};
use alloc::vec::Vec;
use log::LevelFilter;
use stage2::Level;

/// How stage-2 operations exclude each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// One lock for everything.
    Mutex,
    /// Faults share the lock.
    RwLock,
    /// No lock.
    Parallel,
}

impl Mode {
    const ALL: [Self; 3] = [Self::Mutex, Self::RwLock, Self::Parallel];

    /// Its name in options and results.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mutex => "mutex",
            Self::RwLock => "rwlock",
            Self::Parallel => "parallel",
        }
    }
}

/// What guest memory is made of: the size of its pieces, and the largest block that maps it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Backing {
    /// Pages of 4 KiB.
    Page4K,
    /// Blocks of 2 MiB.
    Block2M,
    /// Blocks of 1 GiB.
    Block1G,
}

impl Backing {
    const ALL: [Self; 3] = [Self::Page4K, Self::Block2M, Self::Block1G];

    /// Its name in options and results.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Page4K => "4K",
            Self::Block2M => "2M",
            Self::Block1G => "1G",
        }
    }

    /// The level of table that maps a piece by one entry.
    pub const fn level(self) -> Level {
        match self {
            Self::Page4K => Level::L3,
            Self::Block2M => Level::L2,
            Self::Block1G => Level::L1,
        }
    }

    /// The size of a piece.
    pub const fn bytes(self) -> u64 {
        stage2::Granule::Size4K.span(self.level())
    }
}

/// What the guest is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GuestKind {
    /// The dirty-log benchmark's.
    DirtyLog,
    /// A program that runs until it ends by itself.
    Program,
}

pub(super) fn guest<'t>(key: &'static str, text: &'t str) -> Result<GuestKind, OptionError<'t>> {
    match text {
        "dirty_log" => Ok(GuestKind::DirtyLog),
        "program" => Ok(GuestKind::Program),
        _ => Err(OptionError::Malformed {
            key,
            text,
            expected: "dirty_log or program",
        }),
    }
}

pub(super) fn modes<'t>(key: &'static str, text: &'t str) -> Result<Vec<Mode>, OptionError<'t>> {
    let mut modes = Vec::new();
    for name in text.split(',') {
        let Some(mode) = Mode::ALL.into_iter().find(|mode| mode.name() == name) else {
            return Err(OptionError::Malformed {
                key,
                text: name,
                expected: "parallel, rwlock or mutex",
            });
        };
        if modes.contains(&mode) {
            return Err(OptionError::Repeated { key, text: name });
        }
        modes.push(mode);
    }
    Ok(modes)
}

pub(super) fn backing<'t>(key: &'static str, text: &'t str) -> Result<Backing, OptionError<'t>> {
    let backing = Backing::ALL
        .into_iter()
        .find(|backing| backing.name().eq_ignore_ascii_case(text));
    backing.ok_or(OptionError::Malformed {
        key,
        text,
        expected: "4K, 2M or 1G",
    })
}

pub(super) fn size<'t>(key: &'static str, text: &'t str) -> Result<Size, OptionError<'t>> {
    Size::parse(text).ok_or(OptionError::Malformed {
        key,
        text,
        expected: "bytes, or a number with K, M or G",
    })
}

pub(super) fn number<'t>(
    key: &'static str,
    text: &'t str,
    least: u64,
    most: u64,
    expected: &'static str,
) -> Result<u64, OptionError<'t>> {
    let number = decimal(text).filter(|number| (least..=most).contains(number));
    number.ok_or(OptionError::Malformed {
        key,
        text,
        expected,
    })
}

pub(super) fn level<'t>(key: &'static str, text: &'t str) -> Result<LevelFilter, OptionError<'t>> {
    let levels = [
        LevelFilter::Error,
        LevelFilter::Warn,
        LevelFilter::Info,
        LevelFilter::Debug,
        LevelFilter::Trace,
    ];
    let level = levels
        .into_iter()
        .find(|level| level.as_str().eq_ignore_ascii_case(text));
    level.ok_or(OptionError::Malformed {
        key,
        text,
        expected: "error, warn, info, debug or trace",
    })
}
