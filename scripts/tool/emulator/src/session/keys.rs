//! The keys that the user's terminal keeps from the guest: Ctrl-A and a key after it, as under QEMU.

/// Ctrl-A.
const ESCAPE: u8 = 1;

/// The meaning of all these keys.
pub const HELP: &str = "\r\n\
    Ctrl-A h      print this\r\n\
    Ctrl-A x      end the machine\r\n\
    Ctrl-A Ctrl-A send Ctrl-A to the guest\r\n\
    Ctrl-] n      of several guests, give the next one the input\r\n";

/// What the user asks the tool for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// The meaning of the keys.
    Help,
    /// The end of the machine.
    End,
}

/// Reads what is typed.
#[derive(Debug, Default)]
pub struct Keys {
    /// Whether the last key was Ctrl-A.
    escaped: bool,
}

impl Keys {
    /// Takes what was typed: gives what is the guest's, and what the user asks for, in this order.
    pub fn take(&mut self, typed: &[u8]) -> (Vec<u8>, Vec<Request>) {
        let (mut guests, mut requests) = (Vec::new(), Vec::new());
        for &key in typed {
            if !self.escaped {
                match key {
                    ESCAPE => self.escaped = true,
                    _ => guests.push(key),
                }
                continue;
            }
            self.escaped = false;
            match key {
                ESCAPE => guests.push(ESCAPE),
                b'x' | b'X' => requests.push(Request::End),
                b'h' | b'H' | b'?' => requests.push(Request::Help),
                _ => {}
            }
        }
        (guests, requests)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_ctrl_a_is_the_guests() {
        let mut keys = Keys::default();
        let typed = b"ls\r\x03\x04\x1bx\xff";
        assert_eq!(keys.take(typed), (typed.to_vec(), Vec::new()));
    }

    #[test]
    fn a_key_behind_ctrl_a_is_the_tools_even_if_it_comes_later() {
        let mut keys = Keys::default();
        assert_eq!(keys.take(b"a\x01"), (b"a".to_vec(), Vec::new()));
        assert_eq!(keys.take(b"xb"), (b"b".to_vec(), vec![Request::End]));
        assert_eq!(
            keys.take(b"\x01h\x01?"),
            (Vec::new(), vec![Request::Help; 2])
        );
        assert_eq!(keys.take(b"\x01qx"), (b"x".to_vec(), Vec::new()));
    }

    #[test]
    fn ctrl_a_twice_is_one_for_the_guest() {
        let mut keys = Keys::default();
        assert_eq!(keys.take(b"\x01\x01x"), (b"\x01x".to_vec(), Vec::new()));
        assert_eq!(
            keys.take(b"\x01\x01\x01\x01\x01"),
            (b"\x01\x01".to_vec(), Vec::new())
        );
        assert_eq!(keys.take(b"x"), (Vec::new(), vec![Request::End]));
    }
}
