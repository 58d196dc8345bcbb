//! Series of Linux kernels, by which the user chooses one.

use std::fmt;

/// The first two numbers of a kernel's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Series {
    major: u32,
    minor: u32,
}

impl Series {
    /// Reads `6.12`.
    pub fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.split_once('.')?;
        Some(Self {
            major: number(major)?,
            minor: number(minor)?,
        })
    }
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

fn number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(text: &str) -> Series {
        Series::parse(text).expect("a series")
    }

    #[test]
    fn a_series_is_two_numbers() {
        assert_eq!(series("6.12").to_string(), "6.12");
        assert!(series("6.2") < series("6.12"));
        for text in [
            "",
            "6",
            "6.",
            ".1",
            "6.1.2",
            "v6.1",
            "6.+1",
            "99999999999.1",
        ] {
            assert_eq!(Series::parse(text), None, "{text}");
        }
    }
}
