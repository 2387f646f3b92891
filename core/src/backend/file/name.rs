//! From a resource's name to the path of its lock file.
//!
//! Two names never share a file, whatever the file system: everything but `a-z 0-9 . _ -` is percent-encoded,
//! also capital letters, because some file systems take `A` and `a` for one name. A leading dot is encoded as
//! well, so that no file is hidden and none is `.` or `..`. A name too long for one directory entry becomes a
//! path: its parts are directories that end in `~`, which no encoded name contains.

use std::path::PathBuf;

/// Directory entries hold 255 bytes; the rest is for the ending.
const LONGEST_PART: usize = 200;
const HEX: &[u8; 16] = b"0123456789abcdef";

/// The path of the lock file, relative to the directory.
pub(super) fn lock_file(resource: &str) -> PathBuf {
    let encoded = encode(resource);
    let mut path = PathBuf::new();
    let mut rest = encoded.as_str();
    // The encoded name is ASCII, so it can be cut anywhere.
    while rest.len() > LONGEST_PART {
        let (part, more) = rest.split_at(LONGEST_PART);
        path.push(format!("{part}~"));
        rest = more;
    }
    path.push(format!("{rest}.lock"));
    path
}

fn encode(name: &str) -> String {
    let mut encoded = String::with_capacity(name.len() + 16);
    for (index, byte) in name.bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' => encoded.push(char::from(byte)),
            b'.' if index > 0 => encoded.push('.'),
            _ => {
                encoded.push('%');
                encoded.push(char::from(HEX[usize::from(byte >> 4)]));
                encoded.push(char::from(HEX[usize::from(byte & 15)]));
            }
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, path::Component};

    use super::*;

    #[test]
    fn reads_like_the_name() {
        for (name, file) in [
            ("invoice:42", "invoice%3a42.lock"),
            ("a.b_c-d", "a.b_c-d.lock"),
            ("..", "%2e..lock"),
            ("../etc/passwd", "%2e.%2fetc%2fpasswd.lock"),
            ("A", "%41.lock"),
            ("ü~", "%c3%bc%7e.lock"),
            ("a.lock", "a.lock.lock"),
        ] {
            assert_eq!(lock_file(name), PathBuf::from(file), "{name}");
        }
    }

    #[test]
    fn stays_inside_and_is_never_the_same() {
        let long = |last: &str| format!("{}{last}", "x".repeat(1000));
        let names = [
            "a".to_owned(),
            "A".to_owned(),
            "%41".to_owned(),
            ".".to_owned(),
            "..".to_owned(),
            "/".to_owned(),
            "x".repeat(200),
            "x".repeat(201),
            format!("{}~/x", "x".repeat(200)),
            format!("{}~", "x".repeat(200)),
            long("a"),
            long("b"),
            "\u{1F512}".repeat(256),
        ];
        let mut seen = HashSet::new();
        for name in &names {
            let path = lock_file(name);
            for part in path.components() {
                let Component::Normal(part) = part else { panic!("{part:?} of {name}") };
                assert!(part.len() <= 255, "{part:?}");
            }
            assert!(seen.insert(path.to_string_lossy().to_lowercase()), "{name}");
        }
    }
}
