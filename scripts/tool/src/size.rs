//! Sizes as a user writes them (`4K`, `64M`, `1G`) and as the hypervisor's options want them. Pure values; nothing
//! here touches the machine.

use std::fmt;
use std::str::FromStr;

/// A number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(u64);

/// Why a text isn't a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SizeError {
    /// No digits before the suffix.
    NoNumber,
    /// Something other than nothing, `K`, `M` or `G` after the digits.
    UnknownSuffix,
    /// More bytes than a 64-bit number holds.
    TooLarge,
}

impl fmt::Display for SizeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoNumber => "a size begins with a whole number, as in 64M",
            Self::UnknownSuffix => "a size ends in K, M, G or in nothing for bytes",
            Self::TooLarge => "the size is too large",
        })
    }
}

impl std::error::Error for SizeError {}

impl Size {
    /// 1 KiB.
    pub const KIB: Size = Size(1 << 10);
    /// 1 MiB.
    pub const MIB: Size = Size(1 << 20);
    /// 1 GiB.
    pub const GIB: Size = Size(1 << 30);

    /// A size of `bytes` bytes.
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// A size of `count` MiB.
    pub const fn mib(count: u64) -> Self {
        Self(count << 20)
    }

    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// `self` + `other`, or nothing where 64 bits don't hold it.
    pub fn checked_add(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).map(Self)
    }

    /// `count` times `self`, or nothing where 64 bits don't hold it.
    pub fn checked_mul(self, count: u64) -> Option<Self> {
        self.0.checked_mul(count).map(Self)
    }

    /// The next multiple of `unit` that isn't below `self`, or nothing where 64 bits don't hold it.
    pub fn round_up(self, unit: Size) -> Option<Self> {
        self.0.checked_next_multiple_of(unit.0).map(Self)
    }

    /// Whether `self` is a whole number of `unit`s.
    pub fn is_multiple_of(self, unit: Size) -> bool {
        self.0.is_multiple_of(unit.0)
    }

    /// The size in words: `64 MiB`.
    pub fn in_words(self) -> String {
        match self.split() {
            (count, "") => format!("{count} bytes"),
            (count, suffix) => format!("{count} {suffix}iB"),
        }
    }

    /// The largest unit of which the size is a whole number, and how many of them.
    fn split(self) -> (u64, &'static str) {
        for (unit, suffix) in [(Self::GIB, "G"), (Self::MIB, "M"), (Self::KIB, "K")] {
            if self.0 != 0 && self.is_multiple_of(unit) {
                return (self.0 / unit.0, suffix);
            }
        }
        (self.0, "")
    }
}

/// The form of the hypervisor's options and of QEMU's `-m`: `64M`.
impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (count, suffix) = self.split();
        write!(f, "{count}{suffix}")
    }
}

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let digits = text
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len());
        let (number, suffix) = text.split_at(digits);
        if number.is_empty() {
            return Err(SizeError::NoNumber);
        }
        let unit = match suffix {
            "" => Size(1),
            "K" | "k" => Self::KIB,
            "M" | "m" => Self::MIB,
            "G" | "g" => Self::GIB,
            _ => return Err(SizeError::UnknownSuffix),
        };
        let number = number.parse().map_err(|_| SizeError::TooLarge)?;
        unit.checked_mul(number).ok_or(SizeError::TooLarge)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_parse_with_every_suffix() {
        assert_eq!("4096".parse(), Ok(Size::from_bytes(4096)));
        assert_eq!("4K".parse(), Ok(Size::from_bytes(4096)));
        assert_eq!("64M".parse(), Ok(Size::mib(64)));
        assert_eq!("1g".parse(), Ok(Size::GIB));
    }

    #[test]
    fn what_is_no_size_is_refused() {
        assert_eq!("".parse::<Size>(), Err(SizeError::NoNumber));
        assert_eq!("M".parse::<Size>(), Err(SizeError::NoNumber));
        assert_eq!("-1M".parse::<Size>(), Err(SizeError::NoNumber));
        assert_eq!("64T".parse::<Size>(), Err(SizeError::UnknownSuffix));
        assert_eq!("64MB".parse::<Size>(), Err(SizeError::UnknownSuffix));
        assert_eq!("1.5G".parse::<Size>(), Err(SizeError::UnknownSuffix));
        assert_eq!(
            "99999999999999999999".parse::<Size>(),
            Err(SizeError::TooLarge)
        );
        assert_eq!(
            "18446744073709551615G".parse::<Size>(),
            Err(SizeError::TooLarge)
        );
    }

    #[test]
    fn a_size_is_shown_in_its_largest_whole_unit() {
        assert_eq!(Size::from_bytes(0).to_string(), "0");
        assert_eq!(Size::mib(64).to_string(), "64M");
        assert_eq!(Size::mib(1024).to_string(), "1G");
        assert_eq!(Size::mib(1536).to_string(), "1536M");
        assert_eq!(Size::from_bytes(4096).in_words(), "4 KiB");
        assert_eq!(Size::from_bytes(5).in_words(), "5 bytes");
    }
}
