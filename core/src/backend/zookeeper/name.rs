//! Names of nodes: a directory for each resource, in it a contender for each claim.
//!
//! A contender's name is `KIND-OWNER-SEQUENCE`: a letter, the owner token of the attempt that made it, and what the server
//! counts. So what a lost answer was about can be found again, and other libraries' nodes are told from ours.

use crate::{Mode, OwnerToken, Resource};

/// The directory of a resource. Different names give different ones, and none is a part of another's path: what is not a letter,
/// a digit or one of `-_:@.` is escaped, byte by byte, and so is a dot where ZooKeeper gives it a meaning.
pub(super) fn directory(root: &str, resource: &Resource) -> String {
    let name = resource.as_str();
    let dots_mean = matches!(name, "." | "..");
    let mut path = format!("{root}/");
    for byte in name.bytes() {
        match byte {
            b'.' if dots_mean => path.push_str("%2E"),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b':' | b'@' | b'.' => path.push(char::from(byte)),
            _ => path.push_str(&format!("%{byte:02X}")),
        }
    }
    path
}

/// The resource whose directory this is, if it is one.
pub(super) fn resource(directory: &str) -> Option<Resource> {
    let name = decoded(directory)?;
    // Only what we would write ourselves, so that no two directories are one resource.
    Resource::new(&name).ok().filter(|resource| self::directory("", resource)[1..] == *directory)
}

/// Without its percent escapes.
pub(super) fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
            }
            byte => bytes.push(byte),
        }
    }
    String::from_utf8(bytes).ok()
}

/// What a contender's path starts with.
pub(super) fn contender(directory: &str, mode: Mode, owner: OwnerToken) -> String {
    format!("{directory}/{}-{owner}-", letter(mode))
}

fn letter(mode: Mode) -> char {
    match mode {
        Mode::Exclusive => 'x',
        Mode::Shared => 's',
        Mode::Permit { .. } => 'p',
    }
}

/// A contender, read from its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Contender<'a> {
    pub(super) name: &'a str,
    pub(super) kind: char,
    pub(super) owner: &'a str,
    sequence: i32,
    /// The transaction that made it, where the sequence does not tell who came first.
    pub(super) created: Option<i64>,
}

impl<'a> Contender<'a> {
    /// `None` if it is not one of ours.
    pub(super) fn read(name: &'a str) -> Option<Self> {
        let kind = name.chars().next().filter(|kind| matches!(kind, 'x' | 's' | 'p'))?;
        let (owner, sequence) = name.get(1..)?.strip_prefix('-')?.split_at_checked(OwnerToken::LEN)?;
        let is_token = owner.bytes().all(|digit| digit.is_ascii_hexdigit());
        // After 2^31 - 1 some servers go on at -2^31, so that there may be a minus behind the dash.
        let sequence = sequence.strip_prefix('-')?.parse().ok()?;
        is_token.then_some(Self { name, kind, owner, sequence, created: None })
    }

    /// Whether it came before `other`. Those that live at one time are never 2^31 apart, so the counter may wrap around.
    pub(super) fn is_before(&self, other: &Self) -> bool {
        match (self.created, other.created) {
            (Some(one), Some(other)) => one < other,
            _ => self.sequence.wrapping_sub(other.sequence) < 0,
        }
    }

    /// How long after `any` it came; negative if it came before. To sort by.
    pub(super) fn distance(&self, any: &Self) -> (i64, i32) {
        (self.created.unwrap_or(0), self.sequence.wrapping_sub(any.sequence))
    }

    /// Whether the counter has come to its end. ZooKeeper 3.6 and later then give the last number to all; but to what is made
    /// while another creation is on its way they give the numbers from -2^31 on, and then the last one again.
    pub(super) fn is_at_the_end(&self) -> bool {
        // More than a server ever has on their way.
        const ON_THEIR_WAY: i32 = 1 << 20;
        self.sequence == i32::MAX || self.sequence < i32::MIN + ON_THEIR_WAY
    }

    pub(super) fn is_like(&self, mode: Mode) -> bool {
        (self.kind == 'p') == matches!(mode, Mode::Permit { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_names_share_a_directory() {
        let names = [
            "a",
            "a/b",
            "a%2Fb",
            "a%2F",
            "/",
            ".",
            "..",
            "...",
            "%2E",
            "A",
            "\u{e4}",
            "a b",
            "a\n",
            "zookeeper",
            "a.b",
        ];
        let mut directories: Vec<_> =
            names.iter().map(|name| directory("/r", &Resource::new(name).unwrap())).collect();
        for directory in &directories {
            assert_eq!(directory.matches('/').count(), 2, "{directory}");
            assert!(directory.is_ascii() && !directory.ends_with("/.") && !directory.ends_with("/.."));
        }
        for (directory, name) in directories.iter().zip(names) {
            assert_eq!(resource(&directory[3..]).unwrap().as_str(), name);
        }
        directories.sort();
        directories.dedup();
        assert_eq!(directories.len(), names.len());
    }

    #[test]
    fn contenders_are_in_order_though_the_counter_wraps_around() {
        let owner = OwnerToken::draw().unwrap();
        let name = |sequence: i32| format!("x-{owner}-{sequence:010}");
        let names = [i32::MAX - 1, i32::MAX, i32::MIN, i32::MIN + 1].map(name);
        assert!(names[2].ends_with("--2147483648"));
        let contenders = names.each_ref().map(|name| Contender::read(name).unwrap());
        for pair in contenders.windows(2) {
            assert!(pair[0].is_before(&pair[1]) && !pair[1].is_before(&pair[0]));
        }
        assert_eq!(contenders[0].owner, owner.as_str());
    }

    #[test]
    fn foreign_directories_are_no_resources() {
        for foreign in ["", "a b", "%61", "a%2f", "%", "%FF", "\u{e4}", "%+1"] {
            assert_eq!(resource(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn foreign_nodes_are_no_contenders() {
        let owner = "0".repeat(40);
        for name in [
            "",
            "x",
            "_c_uuid-lock-0000000001",
            "\u{e4}-x",
            &format!("y-{owner}-1"),
            &format!("x-{owner}-"),
            &format!("x-{}-1", "\u{e4}".repeat(20)),
        ] {
            assert_eq!(Contender::read(name), None, "{name}");
        }
    }
}
