//! What a lock file says: who holds or held the lock last, and the fencing counter.
//!
//! A text file, to be read with `cat`: two slots of one line each, and two more lines. A record is written to
//! the slot that does not hold the newest one, with a checksum, so that a write that was torn by a crash of
//! the machine leaves the record before it. The third line is the owner token that released last; written
//! under the lock, it tells a record of a lock that was given back from one of a lock that is held. The last
//! line is the resource's name, for people: the path says it as well.

use std::{
    fmt::Write,
    fs::File,
    io,
    os::unix::fs::FileExt,
    time::{Duration, SystemTime},
};

use crate::{Holder, OwnerToken, Resource, clock::Instant};

/// Takes the longest record: label of 256 and host of 64 bytes, all escaped.
const SLOT: usize = 2048;
const RELEASED_AT: u64 = 2 * SLOT as u64;
const HEAD: &str = "polylock 1 ";

/// One acquisition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) fencing_token: u64,
    /// How often it was extended.
    pub(super) extensions: u64,
    pub(super) owner: String,
    pub(super) pid: u32,
    pub(super) host: String,
    /// Microseconds since 1970 when it was acquired.
    pub(super) since: u64,
    pub(super) ttl: Duration,
    /// When it expires unless it is extended: the same clock for all processes of this host.
    pub(super) until: Instant,
    pub(super) label: Option<String>,
}

/// What was read from a file.
#[derive(Debug, Default)]
pub(super) struct Contents {
    newest: Option<Newest>,
    released: Option<String>,
    /// It holds something, and that is not ours.
    pub(super) foreign: bool,
}

/// The newest record. All of it is looked at only for inspection.
#[derive(Debug)]
struct Newest {
    age: Age,
    fields: String,
    /// It is in the second slot.
    second: bool,
}

impl Contents {
    /// Reads the file. Without the lock it may come in the middle of a write: that record is then left out.
    pub(super) fn read(file: &File) -> io::Result<Self> {
        let mut bytes = [0; 2 * SLOT + OwnerToken::LEN];
        let mut length = 0;
        while length < bytes.len() {
            match file.read_at(&mut bytes[length..], length as u64) {
                Ok(0) => break,
                Ok(read) => length += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self::parse(&bytes[..length]))
    }

    fn parse(bytes: &[u8]) -> Self {
        let (first, rest) = bytes.split_at(bytes.len().min(SLOT));
        let (second, released) = rest.split_at(rest.len().min(SLOT));
        let slots = [(first, false), (second, true)].into_iter();
        let whole = slots.filter_map(|(slot, second)| {
            let fields = fields_in(slot)?;
            Some((age_of(fields)?, fields, second))
        });
        let newest = whole.max_by_key(|(age, ..)| *age);
        let newest = newest.map(|(age, fields, second)| Newest { age, fields: fields.to_owned(), second });
        // Zeros are what a crash of the machine may leave of a file that was being made.
        let ours = |slot: &[u8]| slot.starts_with(HEAD.as_bytes()) || slot.iter().all(|byte| *byte == 0);
        let foreign = newest.is_none() && !(ours(first) && ours(second));
        let released = std::str::from_utf8(released).ok().map(str::to_owned);
        Self { newest, released, foreign }
    }

    /// The newest fencing token in it; 0 if it has none.
    pub(super) fn last_token(&self) -> u64 {
        self.newest.as_ref().map_or(0, |newest| newest.age.0)
    }

    /// The newest record, unless its lock was given back.
    pub(super) fn holder(self) -> Option<Record> {
        let record = Record::from_fields(&self.newest?.fields)?;
        (self.released.as_deref() != Some(&record.owner)).then_some(record)
    }

    /// Whether it has no record yet.
    pub(super) fn is_new(&self) -> bool {
        self.newest.is_none()
    }

    /// Which slot to write next.
    pub(super) fn next_slot(&self) -> Slot {
        Slot { second: self.newest.as_ref().is_some_and(|newest| !newest.second) }
    }
}

/// Where the next record goes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Slot {
    second: bool,
}

impl Slot {
    /// Writes `record` here; the next one goes to the other slot.
    pub(super) fn write(&mut self, file: &File, record: &Record) -> io::Result<()> {
        file.write_all_at(&record.line(), if self.second { SLOT as u64 } else { 0 })?;
        self.second = !self.second;
        Ok(())
    }
}

/// Writes the last two lines of a new file.
pub(super) fn write_name(file: &File, resource: &Resource) -> io::Result<()> {
    let nobody = " ".repeat(OwnerToken::LEN);
    file.write_all_at(format!("{nobody}\n{resource}\n").as_bytes(), RELEASED_AT)
}

/// Notes that `owner` gives the lock back.
pub(super) fn write_released(file: &File, owner: &OwnerToken) -> io::Result<()> {
    file.write_all_at(owner.as_str().as_bytes(), RELEASED_AT)
}

impl Record {
    fn line(&self) -> Vec<u8> {
        let mut fields = String::with_capacity(256);
        let Self { fencing_token, extensions, owner, pid, host, since, ttl, until, label } = self;
        // Writing to a string cannot fail.
        let _ = write!(
            fields,
            "token={fencing_token} extensions={extensions} owner={owner} pid={pid} since={since} ttl={} until={} host=",
            ttl.as_micros(),
            until.since_boot().as_micros(),
        );
        escape(host, &mut fields);
        if let Some(label) = label {
            fields.push_str(" label=");
            escape(label, &mut fields);
        }
        let mut line = format!("{HEAD}{:016x} {fields}\n", checksum(&fields)).into_bytes();
        // Over what is left of a longer line.
        line.resize(SLOT, b' ');
        line
    }

    fn from_fields(fields: &str) -> Option<Self> {
        let field = |name| field(fields, name);
        Some(Self {
            fencing_token: field("token")?.parse().ok()?,
            extensions: field("extensions")?.parse().ok()?,
            owner: field("owner")?.to_owned(),
            pid: field("pid")?.parse().ok()?,
            host: unescape(field("host")?),
            since: field("since")?.parse().ok()?,
            ttl: Duration::from_micros(field("ttl")?.parse().ok()?),
            until: Instant::from_boot(Duration::from_micros(field("until")?.parse().ok()?)),
            label: field("label").map(unescape),
        })
    }

    /// As the user sees it.
    pub(super) fn to_holder(&self, resource: &Resource) -> Holder {
        Holder {
            fencing_token: Some(self.fencing_token),
            // The clock may differ in a container with a time namespace of its own.
            expires_in: Some(self.until.since(Instant::now()).min(self.ttl)),
            since: SystemTime::UNIX_EPOCH.checked_add(Duration::from_micros(self.since)),
            host: Some(self.host.clone()),
            pid: Some(self.pid),
            label: self.label.clone(),
            ..Holder::new(resource.clone(), self.owner.clone())
        }
    }
}

/// Token and number of extensions: the greater, the newer.
type Age = (u64, u64);

fn age_of(fields: &str) -> Option<Age> {
    Some((field(fields, "token")?.parse().ok()?, field(fields, "extensions")?.parse().ok()?))
}

/// The record in `slot`, if it is whole.
fn fields_in(slot: &[u8]) -> Option<&str> {
    let end = slot.iter().position(|byte| *byte == b'\n')?;
    let line = std::str::from_utf8(&slot[..end]).ok()?.strip_prefix(HEAD)?;
    let (sum, fields) = line.split_once(' ')?;
    (u64::from_str_radix(sum, 16).ok()? == checksum(fields)).then_some(fields)
}

fn field<'a>(fields: &'a str, name: &str) -> Option<&'a str> {
    fields.split(' ').find_map(|field| field.strip_prefix(name)?.strip_prefix('='))
}

/// FNV-1a: against torn writes, not against forgery.
fn checksum(fields: &str) -> u64 {
    fields.bytes().fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// Appends `text` without spaces, line ends and percent signs.
fn escape(text: &str, to: &mut String) {
    for c in text.chars() {
        if c.is_ascii_control() || c == ' ' || c == '%' {
            let _ = write!(to, "%{:02x}", u32::from(c));
        } else {
            to.push(c);
        }
    }
}

fn unescape(text: &str) -> String {
    let mut parts = text.split('%');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let code = part.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        plain.extend(code.map(char::from));
        plain.push_str(part.get(2..).unwrap_or_default());
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(fencing_token: u64) -> Record {
        Record {
            fencing_token,
            extensions: 3,
            owner: "0".repeat(OwnerToken::LEN),
            pid: 42,
            host: "h".repeat(64),
            since: 1_790_000_000_000_000,
            ttl: Duration::from_secs(30),
            until: Instant::from_boot(Duration::from_micros(123_456_789)),
            label: Some("50 % of\nall ü".to_owned()),
        }
    }

    #[test]
    fn comes_back_as_it_was_written() {
        assert_eq!(fields_in(&record(7).line()).and_then(Record::from_fields), Some(record(7)));
        let longest = Record { label: Some("\n".repeat(256)), host: " ".repeat(64), ..record(u64::MAX) };
        assert_eq!(longest.line().len(), SLOT);
        assert_eq!(fields_in(&longest.line()).and_then(Record::from_fields), Some(longest));
    }

    #[test]
    fn the_newest_counts_and_the_older_is_written_over() {
        for (one, two, newest, second) in [(7, 8, 8, false), (9, 8, 9, true)] {
            let contents = Contents::parse(&[record(one).line(), record(two).line()].concat());
            assert_eq!((contents.last_token(), contents.next_slot().second), (newest, second));
        }
    }

    #[test]
    fn a_torn_record_leaves_the_one_before() {
        let whole = [record(7).line(), record(8).line()].concat();
        for torn in SLOT..SLOT + 150 {
            let mut bytes = whole.clone();
            bytes[torn] ^= 1;
            assert_eq!(Contents::parse(&bytes).last_token(), 7, "{torn}");
            assert_eq!(Contents::parse(&whole[..torn]).last_token(), 7, "{torn}");
        }
    }

    #[test]
    fn tells_what_is_not_ours() {
        for (text, foreign) in
            [("", false), ("\0\0", false), ("polylock 1 torn", false), ("1234\n", true), ("polylock 2 x", true)]
        {
            assert_eq!(Contents::parse(text.as_bytes()).foreign, foreign, "{text:?}");
        }
    }

    #[test]
    fn a_lock_that_was_given_back_has_no_holder() {
        let mut file = [record(7).line(), vec![b' '; SLOT]].concat();
        assert_eq!(Contents::parse(&file).holder(), Some(record(7)));
        file.extend(record(7).owner.bytes());
        assert_eq!(Contents::parse(&file).holder(), None);
        file[2 * SLOT] = b'1';
        assert_eq!(Contents::parse(&file).holder(), Some(record(7)));
    }
}
