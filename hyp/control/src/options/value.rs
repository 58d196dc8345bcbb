//! Values of options, as written in bootargs.

use super::OptionError;
use alloc::string::String;
use alloc::vec::Vec;
use log::LevelFilter;
use records::options::{ALONE, LEVELS, LINES, MOST_SLOTS, PATHS, RING_ENTRIES, RING_SIZES};
use records::size::{Size, decimal};
use records::words::Word;

/// The value that a word names, in upper or lower case.
pub(super) fn word<'t, T: Word>(key: &'static str, text: &'t str) -> Result<T, OptionError<'t>> {
    let mut all = T::ALL.iter().copied();
    all.find(|value| value.word().eq_ignore_ascii_case(text))
        .ok_or(OptionError::Malformed {
            key,
            text,
            expected: T::EXPECTED,
        })
}

/// The values named by words, separated by commas.
pub(super) fn words<'t, T: Word>(
    key: &'static str,
    text: &'t str,
) -> Result<Vec<T>, OptionError<'t>> {
    let mut values = Vec::new();
    for name in text.split(',') {
        let value = word(key, name)?;
        if values.contains(&value) {
            return Err(OptionError::Repeated { key, text: name });
        }
        values.push(value);
    }
    Ok(values)
}

pub(super) fn size<'t>(key: &'static str, text: &'t str) -> Result<Size, OptionError<'t>> {
    Size::parse(text).map_err(|error| OptionError::Malformed {
        key,
        text,
        expected: error.expected(),
    })
}

/// Different nodes' paths in a device tree. Each begins with a slash, so a comma before one separates them, while a node's name may
/// have commas too.
pub(super) fn paths<'t>(key: &'static str, text: &'t str) -> Result<Vec<String>, OptionError<'t>> {
    let mut paths: Vec<String> = Vec::new();
    let mut rest = text;
    loop {
        let next = rest.find(",/");
        let (one, others) = match next {
            Some(at) => (&rest[..at], Some(&rest[at + 1..])),
            None => (rest, None),
        };
        let path = path(key, one)?;
        if paths.contains(&path) {
            return Err(OptionError::Repeated { key, text: one });
        }
        (paths.try_reserve(1)).map_err(|_| OptionError::NoRoom(key))?;
        paths.push(path);
        match others {
            Some(others) => rest = others,
            None => return Ok(paths),
        }
    }
}

/// A node's path in a device tree.
fn path<'t>(key: &'static str, text: &'t str) -> Result<String, OptionError<'t>> {
    match text.strip_prefix('/') {
        Some(_) => {
            let mut path = String::new();
            path.try_reserve_exact(text.len())
                .map_err(|_| OptionError::NoRoom(key))?;
            path.push_str(text);
            Ok(path)
        }
        None => Err(OptionError::Malformed {
            key,
            text,
            expected: PATHS,
        }),
    }
}

/// The beginning of a line of a guest's.
pub(super) fn line<'t>(key: &'static str, text: &'t str) -> Result<String, OptionError<'t>> {
    if !(2..=64).contains(&text.len()) {
        return Err(OptionError::Malformed {
            key,
            text,
            expected: LINES,
        });
    }
    let mut line = String::new();
    line.try_reserve_exact(text.len())
        .map_err(|_| OptionError::NoRoom(key))?;
    line.push_str(text);
    Ok(line)
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

/// The number of slots of the test memory.
pub(super) fn slots<'t>(key: &'static str, text: &'t str) -> Result<usize, OptionError<'t>> {
    let slots = number(key, text, 1, u64::MAX, "a number from 1 on")?;
    let fitting = usize::try_from(slots).ok();
    let fitting = fitting.filter(|slots| *slots <= MOST_SLOTS);
    fitting.ok_or(OptionError::SlotsBeyondVm(slots))
}

/// Different numbers, separated by commas.
pub(super) fn numbers<'t>(
    key: &'static str,
    text: &'t str,
    least: u64,
    most: u64,
    expected: &'static str,
) -> Result<Vec<u64>, OptionError<'t>> {
    let mut values = Vec::new();
    for part in text.split(',') {
        let value = number(key, part, least, most, expected)?;
        if values.contains(&value) {
            return Err(OptionError::Repeated { key, text: part });
        }
        values.push(value);
    }
    Ok(values)
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
        expected: LEVELS,
    })
}

/// The value of an option that needs one.
pub(super) fn present<'t>(
    key: &'static str,
    text: Option<&'t str>,
) -> Result<&'t str, OptionError<'t>> {
    text.filter(|text| !text.is_empty())
        .ok_or(OptionError::NoValue(key))
}

/// An option without a value.
pub(super) fn alone<'t>(key: &'static str, text: Option<&'t str>) -> Result<bool, OptionError<'t>> {
    match text {
        None => Ok(true),
        Some(text) => Err(OptionError::Malformed {
            key,
            text,
            expected: ALONE,
        }),
    }
}

pub(super) fn ring_entries<'t>(key: &'static str, text: &'t str) -> Result<usize, OptionError<'t>> {
    let entries = decimal(text).and_then(|number| usize::try_from(number).ok());
    entries
        .filter(|entries| entries.is_power_of_two() && RING_ENTRIES.contains(entries))
        .ok_or(OptionError::Malformed {
            key,
            text,
            expected: RING_SIZES,
        })
}
