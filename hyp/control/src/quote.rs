//! Quotes text from outside in a message: on one line, printable, and of limited length.

use core::fmt;

/// The most characters shown.
const MOST: usize = 48;

/// Shows a piece of input in quotes, with everything that isn't printable escaped.
#[derive(Clone, Copy, Debug)]
pub struct Quoted<'t>(pub &'t str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("'")?;
        for character in self.0.chars().take(MOST) {
            // Beyond ASCII, a character that needs no escape prints as itself.
            let is_printable = match character {
                ' '..='~' => true,
                other => other.escape_debug().len() == 1,
            };
            match is_printable {
                true => fmt::Write::write_char(f, character)?,
                false => write!(f, "{}", character.escape_unicode())?,
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
        assert_eq!(
            Quoted("a\nb\u{1b}\u{85}").to_string(),
            r"'a\u{a}b\u{1b}\u{85}'"
        );
        assert_eq!(Quoted("\u{202e}\u{301}").to_string(), r"'\u{202e}\u{301}'");
        assert_eq!(
            Quoted("12345678901234567890123456789012345678901234567890")
                .to_string()
                .len(),
            MOST + 5
        );
    }

    #[test]
    fn what_is_printable_is_shown_as_it_was_typed() {
        assert_eq!(Quoted("it's \"é\" 大").to_string(), "'it's \"é\" 大'");
    }
}
