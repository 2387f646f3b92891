//! Owner tokens: who holds.

use std::fmt;

use crate::{Error, ErrorKind, Result, mutant::mutant};

/// Proves ownership: 160 bits from the operating system as 40 lower-case hex digits, new for each attempt.
///
/// A user-space generator is no substitute: a fork would clone it, and two processes would draw one token.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct OwnerToken([u8; Self::LEN]);

impl OwnerToken {
    /// Length in hex digits.
    pub const LEN: usize = 40;

    /// Draws a token.
    ///
    /// # Errors
    /// `Internal` if the operating system gives no randomness.
    pub(crate) fn draw() -> Result<Self> {
        let mut random = [0; Self::LEN / 2];
        if mutant!("D20") {
            return Ok(Self([b'0'; Self::LEN]));
        }
        if mutant!("D3") {
            thread_local! { static WHO: u8 = fastrand::u8(..); }
            let digit = b"0123456789abcdef"[usize::from(WHO.with(|who| who % 16))];
            return Ok(Self([digit; Self::LEN]));
        }
        getrandom::fill(&mut random)
            .map_err(|error| Error::new(ErrorKind::Internal, format!("no randomness: {error}")))?;
        let mut digits = [0; Self::LEN];
        for (byte, pair) in random.iter().zip(digits.chunks_exact_mut(2)) {
            const HEX: &[u8; 16] = b"0123456789abcdef";
            pair[0] = HEX[usize::from(byte >> 4)];
            pair[1] = HEX[usize::from(byte & 15)];
        }
        Ok(Self(digits))
    }

    /// The token with these digits, if they are one.
    pub(crate) fn parse(digits: &str) -> Option<Self> {
        let digits: [u8; Self::LEN] = digits.as_bytes().try_into().ok()?;
        digits.iter().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(b)).then_some(Self(digits))
    }

    /// The hex digits.
    pub fn as_str(&self) -> &str {
        // All bytes are ASCII hex digits by construction.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Display for OwnerToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for OwnerToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_hex_and_never_the_same() {
        let (one, two) = (OwnerToken::draw().unwrap(), OwnerToken::draw().unwrap());
        assert_ne!(one, two);
        assert_eq!(one.as_str().len(), OwnerToken::LEN);
        assert_eq!(OwnerToken::parse(one.as_str()), Some(one));
        assert_eq!(OwnerToken::parse(&"x".repeat(40)), None);
        assert_eq!(OwnerToken::parse(&one.as_str()[1..]), None);
    }
}
