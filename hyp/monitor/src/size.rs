//! Sizes in bytes as people write them: `64M`.

use core::fmt;

const UNITS: [(char, u32); 3] = [('G', 30), ('M', 20), ('K', 10)];

/// A number of bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Size(pub u64);

impl Size {
    /// Reads a decimal number with a suffix of K, M, G (of 1,024) or none. `None` if it isn't one or exceeds 64 bits.
    pub fn parse(text: &str) -> Option<Self> {
        let unit = UNITS
            .into_iter()
            .find(|(suffix, _)| text.ends_with([*suffix, suffix.to_ascii_lowercase()]));
        let (digits, shift) = match unit {
            Some((_, shift)) => (&text[..text.len() - 1], shift),
            None => (text, 0),
        };
        decimal(digits)?.checked_mul(1 << shift).map(Self)
    }
}

/// Reads digits only: no sign, no space. `None` if there are others, none, or too many.
pub(crate) fn decimal(digits: &str) -> Option<u64> {
    let only_digits = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    if only_digits {
        digits.parse().ok()
    } else {
        None
    }
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
        assert_eq!(Size::parse("64M"), Some(Size(64 << 20)));
        assert_eq!(Size::parse("1g"), Some(Size(1 << 30)));
        assert_eq!(Size::parse("4096"), Some(Size(4096)));
        assert_eq!(Size::parse("16777215G"), Some(Size(16_777_215 << 30)));
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in [
            "",
            "M",
            "-1",
            "+1",
            "1 M",
            "1MM",
            "0x10",
            "1.5G",
            "17179869184G",
            "99999999999999999999",
            "é",
        ] {
            assert_eq!(Size::parse(text), None, "{text}");
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
