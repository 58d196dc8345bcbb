//! The lines by which a guest of ours tells the tool how its command comes on, on a console that has whole lines.

use super::token::Token;

/// Follows the commands of one guest after another.
#[derive(Debug)]
pub struct Marks {
    begin: String,
    end: String,
    is_running: bool,
    statuses: Vec<u8>,
}

impl Marks {
    /// Of guests with this token.
    pub fn new(token: &Token) -> Self {
        let mark = |what| String::from_utf8_lossy(&token.mark(what)).into_owned();
        Self {
            begin: mark("begin"),
            end: mark("end "),
            is_running: false,
            statuses: Vec::new(),
        }
    }

    /// Takes a line that a guest has printed. Gives what the user is to see of it: what a command prints.
    pub fn take<'l>(&mut self, line: &'l str) -> Option<&'l str> {
        if line.starts_with(&self.begin) {
            self.is_running = true;
            return None;
        }
        let Some((before, status)) = line.split_once(&self.end) else {
            return self.is_running.then_some(line);
        };
        // The shell's statuses have eight bits.
        self.statuses.push(status.trim().parse().unwrap_or(u8::MAX));
        let was_running = std::mem::take(&mut self.is_running);
        Some(before).filter(|before| was_running && !before.is_empty())
    }

    /// The statuses of the commands that have ended.
    pub fn statuses(&self) -> &[u8] {
        &self.statuses
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_each_guest_the_output_and_the_status_of_its_command_are_found() {
        let token = Token::random().expect("random bytes");
        let mut marks = Marks::new(&token);
        let end = format!("two@{token} end 7");
        for _ in 0..2 {
            assert_eq!(marks.take("Booting"), None);
            assert_eq!(marks.take(&format!("@{token} begin")), None);
            assert_eq!(marks.take("one"), Some("one"));
            assert_eq!(marks.take("@0 end 1"), Some("@0 end 1"));
            assert_eq!(marks.take(&end), Some("two"));
            assert_eq!(marks.take("gone"), None);
        }
        assert_eq!(marks.statuses(), [7, 7]);
    }
}
