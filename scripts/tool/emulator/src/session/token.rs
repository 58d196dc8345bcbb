//! The word by which a guest of ours marks its lines for the tool. It is another one in each run and only the guest's first
//! programs know it, so nothing that is printed can be taken for such a line.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};

/// A token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Another one than any before.
    ///
    /// # Errors
    ///
    /// If the system gives no random bytes.
    pub fn random() -> io::Result<Self> {
        let mut bytes = [0; 16];
        File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        Ok(Self(format!("{:032x}", u128::from_ne_bytes(bytes))))
    }

    /// The beginning of the line that the guest is `what`, up to where its line's end or a value follows.
    pub fn mark(&self, what: &str) -> Vec<u8> {
        format!("@{self} {what}").into_bytes()
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_another_one() {
        let [one, other] = [0; 2].map(|_| Token::random().expect("random bytes"));
        assert_ne!(one, other);
        assert_eq!(one.to_string().len(), 32);
        assert_eq!(one.mark("end "), format!("@{one} end ").into_bytes());
    }
}
