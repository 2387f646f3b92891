//! The Lua scripts: one file each, with its arguments and results on top.

use once_cell::race::OnceBox;

/// A script and what names it on the server.
pub(super) struct Script {
    source: &'static str,
    sha: OnceBox<String>,
}

macro_rules! script {
    ($name:ident, $file:literal) => {
        pub(super) static $name: Script = Script { source: include_str!($file), sha: OnceBox::new() };
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
    sha: OnceBox::new(),
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
    /// The request that runs it by its name.
    pub(super) fn by_name(&self, keys: &[&str], args: &[&[u8]]) -> Vec<u8> {
        let sha = || Box::new(sha1_smol::Sha1::from(self.source).digest().to_string());
        Self::request("EVALSHA", self.sha.get_or_init(sha), keys, args)
    }

    /// The request that runs it by its text, after which the server knows its name.
    pub(super) fn by_text(&self, keys: &[&str], args: &[&[u8]]) -> Vec<u8> {
        Self::request("EVAL", self.source, keys, args)
    }

    fn request(command: &str, script: &str, keys: &[&str], args: &[&[u8]]) -> Vec<u8> {
        let mut request = redis::cmd(command);
        request.arg(script).arg(keys.len());
        for key in keys {
            request.arg(key);
        }
        for arg in args {
            request.arg(arg);
        }
        request.get_packed_command()
    }
}
