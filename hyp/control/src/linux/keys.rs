//! The keys by which the user of a console that several VMs share gives the input to another one: Ctrl-] and a key behind it.

/// Ctrl-].
const ESCAPE: u8 = 0x1d;

/// What a key means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Key {
    /// A byte for the VM that has the input.
    Typed(u8),
    /// The input goes to the next VM.
    Next,
    /// The input goes to the VM of this number.
    To(usize),
    /// No such key: the user may want to know those that there are.
    Unknown,
}

/// All of these keys, for the user.
pub(super) const HELP: &str =
    "Ctrl-] n gives it to the next VM, Ctrl-] 1 to the first one and so on, Ctrl-] twice is Ctrl-]";

/// Reads what is typed.
#[derive(Debug, Default)]
pub(super) struct Keys {
    /// Whether the last key was Ctrl-].
    is_escaped: bool,
}

impl Keys {
    /// Takes a byte that was typed. `None` if its meaning depends on the next one.
    pub fn take(&mut self, byte: u8) -> Option<Key> {
        if !core::mem::take(&mut self.is_escaped) {
            self.is_escaped = byte == ESCAPE;
            return (byte != ESCAPE).then_some(Key::Typed(byte));
        }
        Some(match byte {
            ESCAPE => Key::Typed(ESCAPE),
            b'n' | b'N' => Key::Next,
            b'1'..=b'9' => Key::To((byte - b'1').into()),
            _ => Key::Unknown,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn only_the_key_behind_the_escape_is_kept_from_the_vm() {
        let mut keys = Keys::default();
        let typed = b"n1\x01\x1dn\x1d2\x1d\x1dn\x1d?x";
        let meant: Vec<Key> = typed.iter().filter_map(|byte| keys.take(*byte)).collect();
        let expected = [
            Key::Typed(b'n'),
            Key::Typed(b'1'),
            Key::Typed(1),
            Key::Next,
            Key::To(1),
            Key::Typed(0x1d),
            Key::Typed(b'n'),
            Key::Unknown,
            Key::Typed(b'x'),
        ];
        assert_eq!(meant, expected);
    }
}
