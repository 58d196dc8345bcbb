//! Text from outside in a message: on one line, printable, and not longer than a person wants to read.

use core::fmt;

/// The most characters that are shown.
const MOST: usize = 48;

/// Shows a piece of input in quotes, with everything that isn't printable ASCII escaped.
#[derive(Clone, Copy, Debug)]
pub struct Quoted<'t>(pub &'t str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("'")?;
        for character in self.0.chars().take(MOST) {
            match character {
                ' '..='~' => fmt::Write::write_char(f, character)?,
                other => write!(f, "{}", other.escape_unicode())?,
            }
        }
        f.write_str(if self.0.chars().nth(MOST).is_some() {
            "...'"
        } else {
            "'"
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quote_is_one_short_line() {
        assert_eq!(Quoted("a\nb\u{1b}é").to_string(), r"'a\u{a}b\u{1b}\u{e9}'");
        assert_eq!(
            Quoted("12345678901234567890123456789012345678901234567890")
                .to_string()
                .len(),
            MOST + 5
        );
    }
}
