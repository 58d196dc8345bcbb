//! Sizes in bytes as people write them: `64M`.

use core::fmt;

const UNITS: [(char, u32); 3] = [('G', 30), ('M', 20), ('K', 10)];

/// A text isn't a size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SizeError {
    /// It isn't a number with or without a suffix.
    Malformed,
    /// It is more than 64 bits hold.
    TooLarge,
}

impl fmt::Display for SizeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected())
    }
}

impl SizeError {
    /// The expected form.
    pub const fn expected(self) -> &'static str {
        match self {
            Self::Malformed => "a number of bytes, or a number with K, M or G, as in 64M",
            Self::TooLarge => "less than 2^64 bytes, as no machine has so much",
        }
    }
}

impl core::error::Error for SizeError {}

/// A number of bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Size(pub u64);

impl Size {
    /// Reads a decimal number with a suffix of K, M, G (of 1,024) or none.
    ///
    /// # Errors
    /// The text isn't such a number, or the size exceeds 64 bits.
    pub fn parse(text: &str) -> Result<Self, SizeError> {
        let unit = UNITS
            .into_iter()
            .find(|(suffix, _)| text.ends_with([*suffix, suffix.to_ascii_lowercase()]));
        let (digits, shift) = match unit {
            Some((_, shift)) => (&text[..text.len() - 1], shift),
            None => (text, 0),
        };
        if !is_decimal(digits) {
            return Err(SizeError::Malformed);
        }
        let bytes = decimal(digits).and_then(|number| number.checked_mul(1 << shift));
        bytes.map(Self).ok_or(SizeError::TooLarge)
    }
}

/// Reads digits only: no sign, no space. `None` if there are others, none, or too many.
pub fn decimal(digits: &str) -> Option<u64> {
    is_decimal(digits).then(|| digits.parse().ok()).flatten()
}

fn is_decimal(digits: &str) -> bool {
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// In the largest unit that leaves no fraction.
impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = |shift: u32| self.0 != 0 && self.0.trailing_zeros() >= shift;
        match UNITS.into_iter().find(|(_, shift)| whole(*shift)) {
            Some((suffix, shift)) => write!(f, "{} {suffix}iB", self.0 >> shift),
            None => write!(f, "{} bytes", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn suffixes_are_powers_of_1024() {
        assert_eq!(Size::parse("64M"), Ok(Size(64 << 20)));
        assert_eq!(Size::parse("1g"), Ok(Size(1 << 30)));
        assert_eq!(Size::parse("4096"), Ok(Size(4096)));
        assert_eq!(Size::parse("16777215G"), Ok(Size(16_777_215 << 30)));
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "M", "-1", "+1", "1 M", "1MM", "0x10", "1.5G", "é"] {
            assert_eq!(Size::parse(text), Err(SizeError::Malformed), "{text}");
        }
    }

    #[test]
    fn what_no_machine_has_is_told_from_what_is_no_size() {
        for text in ["17179869184G", "99999999999G", "99999999999999999999"] {
            assert_eq!(Size::parse(text), Err(SizeError::TooLarge), "{text}");
        }
    }

    #[test]
    fn sizes_print_in_whole_units() {
        assert_eq!(Size(64 << 20).to_string(), "64 MiB");
        assert_eq!(Size(1536 << 20).to_string(), "1536 MiB");
        assert_eq!(Size(5).to_string(), "5 bytes");
        assert_eq!(Size(0).to_string(), "0 bytes");
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in ".*") {
            let _ = Size::parse(&text);
        }
    }
}
