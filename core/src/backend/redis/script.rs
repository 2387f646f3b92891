//! The Lua scripts, with the arguments and results of each on top of its file; and how they are called.

use once_cell::race::OnceBox;

/// A script.
pub(super) struct Script {
    source: &'static str,
    by_name: OnceBox<Vec<u8>>,
}

macro_rules! script {
    ($name:ident, $($file:literal),+) => {
        pub(super) static $name: Script = Script { source: concat!($(include_str!($file)),+), by_name: OnceBox::new() };
    };
}

script!(ACQUIRE, "scripts/acquire.lua", "scripts/acquire_one.lua");
script!(ACQUIRE_MANY, "scripts/acquire.lua", "scripts/acquire_many.lua");
// As ACQUIRE, in the order in which waiters came.
script!(ACQUIRE_IN_TURN, "scripts/acquire.lua", "scripts/queue.lua");
script!(LEAVE, "scripts/leave.lua");
script!(ACQUIRE_ALL, "scripts/acquire_all.lua");
script!(SHARE, "scripts/share.lua");
script!(SHARE_EXTEND, "scripts/share_extend.lua");
script!(SHARE_RELEASE, "scripts/share_release.lua");
script!(RAISE, "scripts/raise.lua");
script!(EXTEND, "scripts/extend.lua");
script!(REPAIR, "scripts/repair.lua");
script!(RELEASE, "scripts/release.lua");
script!(RELEASE_MANY, "scripts/release_many.lua");
script!(INSPECT, "scripts/inspect.lua");
script!(BREAK, "scripts/break.lua");

impl Script {
    /// The first words of a request that runs it by its name.
    fn by_name(&self) -> &[u8] {
        let head = || {
            let sha = sha1_smol::Sha1::from(self.source).digest().to_string();
            Box::new(Self::head("EVALSHA", &sha))
        };
        self.by_name.get_or_init(head)
    }

    /// The first words of a request that runs it by its text, after which the server knows its name.
    fn by_text(&self) -> Vec<u8> {
        Self::head("EVAL", self.source)
    }

    fn head(command: &str, script: &str) -> Vec<u8> {
        let mut head = Words::default();
        head.push(&[command]);
        head.push(&[script]);
        head.bytes
    }

    /// Appends what stands before the keys and arguments of a request: the script, and how many keys there are.
    pub(super) fn begin(&self, name: Name, keys: usize, args: usize, output: &mut Vec<u8>) {
        /// Command, script and number of keys.
        const HEAD: usize = 3;
        output.push(b'*');
        push_number(output, HEAD + keys + args);
        output.extend_from_slice(b"\r\n");
        match name {
            Name::Sha => output.extend_from_slice(self.by_name()),
            Name::Text => output.extend_from_slice(&self.by_text()),
        }
        push_word(output, &[itoa::Buffer::new().format(keys)]);
    }
}

/// How a script is called.
#[derive(Clone, Copy)]
pub(super) enum Name {
    Sha,
    /// By its text, for a server that does not know it.
    Text,
}

/// Words as they go over the wire, without their number in front.
#[derive(Clone, Default)]
pub(super) struct Words {
    pub(super) bytes: Vec<u8>,
    pub(super) count: usize,
}

impl Words {
    /// Appends a word that is in parts.
    pub(super) fn push(&mut self, parts: &[&str]) {
        push_word(&mut self.bytes, parts);
        self.count += 1;
    }

    /// Appends a number.
    pub(super) fn number(&mut self, number: u64) {
        self.push(&[itoa::Buffer::new().format(number)]);
    }
}

fn push_word(bytes: &mut Vec<u8>, parts: &[&str]) {
    bytes.push(b'$');
    push_number(bytes, parts.iter().map(|part| part.len()).sum());
    bytes.extend_from_slice(b"\r\n");
    for part in parts {
        bytes.extend_from_slice(part.as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
}

/// Appends the digits of `number`.
fn push_number(bytes: &mut Vec<u8>, number: usize) {
    bytes.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}
