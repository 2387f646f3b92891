//! The Lua scripts: one file each, with its arguments and results on top; and how they are called.

use once_cell::race::OnceBox;

/// A script.
pub(super) struct Script {
    source: &'static str,
    by_name: OnceBox<Vec<u8>>,
}

macro_rules! script {
    ($name:ident, $file:literal) => {
        pub(super) static $name: Script = Script { source: include_str!($file), by_name: OnceBox::new() };
    };
}

script!(ACQUIRE, "scripts/acquire.lua");
/// [`ACQUIRE`], in the order in which waiters came.
pub(super) static ACQUIRE_IN_TURN: Script = Script {
    source: concat!(
        "local function take()\n",
        include_str!("scripts/acquire.lua"),
        "end\n",
        include_str!("scripts/queue.lua")
    ),
    by_name: OnceBox::new(),
};
script!(LEAVE, "scripts/leave.lua");
script!(ACQUIRE_ALL, "scripts/acquire_all.lua");
script!(SHARE, "scripts/share.lua");
script!(SHARE_EXTEND, "scripts/share_extend.lua");
script!(SHARE_RELEASE, "scripts/share_release.lua");
script!(RAISE, "scripts/raise.lua");
script!(EXTEND, "scripts/extend.lua");
script!(REPAIR, "scripts/repair.lua");
script!(RELEASE, "scripts/release.lua");
script!(INSPECT, "scripts/inspect.lua");
script!(BREAK, "scripts/break.lua");

impl Script {
    /// The first words of a request that runs it by its name.
    pub(super) fn by_name(&self) -> &[u8] {
        let head = || {
            let sha = sha1_smol::Sha1::from(self.source).digest().to_string();
            Box::new(Self::head("EVALSHA", &sha))
        };
        self.by_name.get_or_init(head)
    }

    /// The first words of a request that runs it by its text, after which the server knows its name.
    pub(super) fn by_text(&self) -> Vec<u8> {
        Self::head("EVAL", self.source)
    }

    /// How many words these are.
    pub(super) const HEAD: usize = 2;

    fn head(command: &str, script: &str) -> Vec<u8> {
        let mut head = Words::default();
        head.push(&[command]);
        head.push(&[script]);
        head.bytes
    }
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
        self.bytes.push(b'$');
        push_number(&mut self.bytes, parts.iter().map(|part| part.len()).sum());
        self.bytes.extend_from_slice(b"\r\n");
        for part in parts {
            self.bytes.extend_from_slice(part.as_bytes());
        }
        self.bytes.extend_from_slice(b"\r\n");
        self.count += 1;
    }

    /// Appends a number.
    pub(super) fn number(&mut self, number: u64) {
        self.push(&[itoa::Buffer::new().format(number)]);
    }
}

/// Appends the digits of `number`.
pub(super) fn push_number(bytes: &mut Vec<u8>, number: usize) {
    bytes.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}
