//! Which advisory lock stands for a name.

use std::str::FromStr;

use sha2::{Digest, Sha256};

use crate::{Error, OwnerToken, Result, backend::postgres::config::Keys};

/// The id of the advisory lock for `name`.
///
/// # Errors
/// `InvalidArgument` naming `resource` if names are numbers, and this is none.
pub(super) fn lock_id(name: &str, keys: Keys) -> Result<i64> {
    let id = match keys {
        Keys::Name => return Ok(id_of_name(name)),
        Keys::Number => number(name).ok_or("a 64-bit number"),
        Keys::Pair => pair(name).ok_or("two 32-bit numbers like 1,2"),
    };
    id.map_err(|what| {
        let why = format!("must be {what}, without zeros or a + in front, as the URL says keys={keys}");
        Error::invalid("resource", why)
    })
}

fn pair(name: &str) -> Option<i64> {
    let (class, object) = name.split_once(',')?;
    let (class, object) = (number::<i32>(class)?, number::<i32>(object)?);
    Some(i64::from(class) << 32 | i64::from(object.cast_unsigned()))
}

/// In one way of writing it alone: what stands in the row for a name holds for the lock, so each lock has one name.
fn number<N: FromStr + ToString>(text: &str) -> Option<N> {
    text.parse().ok().filter(|number: &N| number.to_string() == text)
}

/// The first 8 bytes, in network order, of the SHA-256 of "polylock", a zero byte and the name.
pub(in crate::backend::postgres) fn id_of_name(name: &str) -> i64 {
    hashed(&[name])
}

/// The id of the advisory lock for one permit of the semaphore `name`, counted from 0.
pub(super) fn slot_id(name: &str, slot: u32) -> i64 {
    // No name has a zero byte in it.
    hashed(&[name, "\0", &slot.to_string()])
}

/// The id of the wish that `owner` gives up what it holds.
pub(super) fn wish_id(owner: OwnerToken) -> i64 {
    hashed(&["\0wish", owner.as_str()])
}

fn hashed(parts: &[&str]) -> i64 {
    let mut digest = Sha256::new().chain_update(b"polylock\0");
    for part in parts {
        digest.update(part.as_bytes());
    }
    let mut first = [0; 8];
    first.copy_from_slice(&digest.finalize()[..8]);
    i64::from_be_bytes(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written down for the tests of all languages, and in docs/postgres.md: other programs may count on them.
    #[test]
    fn ids_are_golden() {
        let golden = include_str!("../../../../../tests/golden/advisory_lock_ids.tsv");
        let lines: Vec<_> = golden.lines().filter(|line| !line.starts_with('#')).collect();
        assert!(lines.len() >= 8);
        for line in lines {
            let (id, name) = line.split_once('\t').unwrap();
            assert_eq!(lock_id(name, Keys::Name).unwrap(), id.parse::<i64>().unwrap(), "{name}");
        }
    }

    #[test]
    fn numbers_are_taken_as_they_are() {
        assert_eq!(lock_id("-42", Keys::Number).unwrap(), -42);
        assert_eq!(lock_id("1,2", Keys::Pair).unwrap(), (1 << 32) + 2);
        assert_eq!(lock_id("-1,-2", Keys::Pair).unwrap(), -2);
        for (name, keys) in [
            ("seven", Keys::Number),
            ("9223372036854775808", Keys::Number),
            ("042", Keys::Number),
            ("+42", Keys::Number),
            ("-0", Keys::Number),
            ("1,02", Keys::Pair),
            ("1", Keys::Pair),
            ("1,2,3", Keys::Pair),
            ("1,2147483648", Keys::Pair),
        ] {
            assert_eq!(lock_id(name, keys).unwrap_err().argument(), Some("resource"), "{name}");
        }
    }

    #[test]
    fn each_permit_has_its_own() {
        assert_ne!(slot_id("s", 1), slot_id("s", 11));
        assert_ne!(slot_id("s", 0), lock_id("s", Keys::Name).unwrap());
    }
}
