//! From a resource's name to the path of its lock file.
//!
//! Two names never share a file, whatever the file system: everything but `a-z 0-9 . _ -` is percent-encoded,
//! also capital letters, because some file systems take `A` and `a` for one name. A leading dot is encoded as
//! well, so that no file is hidden and none is `.` or `..`. A name too long for one directory entry becomes a
//! path: its parts are directories that end in `~`, which no encoded name contains.

use std::path::{Path, PathBuf};

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

/// The resource whose lock file this is, if it is one: [`lock_file`] backwards.
pub(super) fn resource(path: &Path) -> Option<String> {
    let encoded: String = path.to_str()?.strip_suffix(".lock")?.split("~/").collect();
    let mut bytes = Vec::with_capacity(encoded.len());
    let mut rest = encoded.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            byte => byte,
        });
    }
    // Only what would be written so: no other file is taken for one of ours.
    String::from_utf8(bytes).ok().filter(|name| lock_file(name) == path)
}

/// Whether lock files with long names may be below `path`.
pub(super) fn is_part(path: &Path) -> bool {
    path.to_str().is_some_and(|path| path.ends_with('~'))
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
    fn takes_no_other_file_for_its_own() {
        for other in ["a", "A.lock", "a%3A.lock", "%61.lock", ".x.lock", "a~/b.lock", "a%3.lock", "%ff.lock"] {
            assert_eq!(resource(Path::new(other)), None, "{other}");
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
            assert_eq!(resource(&path).as_ref(), Some(name));
        }
    }
}
