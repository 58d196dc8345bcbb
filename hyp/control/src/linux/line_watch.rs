//! Looks in a guest's output for the first line that begins with a given text.

use alloc::string::String;

/// Looks for a line.
#[derive(Debug)]
pub(super) struct LineWatch {
    wanted: Option<String>,
    /// How much of the current line there is, as far as it is the wanted text; `None`: it isn't.
    matched: Option<usize>,
}

impl LineWatch {
    /// For a line that begins so; without a text, it has been there.
    pub fn new(wanted: Option<String>) -> Self {
        Self {
            wanted: wanted.filter(|text| !text.is_empty()),
            matched: Some(0),
        }
    }

    /// Whether the line has been there.
    pub fn has_come(&self) -> bool {
        self.wanted.is_none()
    }

    /// Looks at what comes next.
    pub fn look(&mut self, bytes: &[u8]) {
        let Some(wanted) = &self.wanted else {
            return;
        };
        for byte in bytes {
            self.matched = match self.matched {
                _ if *byte == b'\n' => Some(0),
                Some(count) if wanted.as_bytes()[count] == *byte => Some(count + 1),
                _ => None,
            };
            if self.matched == Some(wanted.len()) {
                self.wanted = None;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &[u8], size: usize) -> bool {
        let mut watch = LineWatch::new(Some("@ab".into()));
        text.chunks(size).for_each(|piece| watch.look(piece));
        watch.has_come()
    }

    #[test]
    fn only_the_beginning_of_a_line_counts_however_it_comes() {
        for size in [1, 2, 3, 100] {
            assert!(found(b"@ab", size) && found(b"one\r\n@abc\n", size));
            assert!(found(b"@a\n@ab", size) && found(b"\n\n@ab more", size));
            assert!(!found(b" @ab", size) && !found(b"@@ab", size) && !found(b"@a b\n@", size));
        }
    }

    #[test]
    fn nothing_wanted_is_there_at_once() {
        assert!(LineWatch::new(None).has_come());
        assert!(LineWatch::new(Some(String::new())).has_come());
    }
}
