//! The floor: our two scripts over one blocking socket, with nothing around them.

use std::{
    fmt::Display,
    io::{Read, Result, Write},
    net::TcpStream,
    time::{SystemTime, UNIX_EPOCH},
};

const TTL_MS: u128 = 30_000;
const FENCE_TTL_MS: u128 = 86_400_000;

pub struct Floor {
    socket: TcpStream,
    name: String,
    scripts: Scripts,
    pairs: u64,
}

/// The names that the server knows our scripts by.
#[derive(Clone, Default)]
pub struct Scripts {
    acquire: String,
    release: String,
}

impl Scripts {
    /// A command that takes the lock, with an owner of its own.
    pub fn acquire(&self, name: &str) -> Vec<String> {
        self.acquire_as(name, &"0".repeat(40))
    }

    /// A command that frees it.
    pub fn release(&self, name: &str) -> Vec<String> {
        self.release_as(name, &"0".repeat(40))
    }

    fn acquire_as(&self, name: &str, owner: &str) -> Vec<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (ms, us) = (now.as_millis(), now.as_micros());
        let words: [&dyn Display; 12] = [
            &"EVALSHA",
            &self.acquire,
            &3,
            &name,
            &format!("polylock:fence:{{{name}}}"),
            &format!("polylock:writer:{{{name}}}"),
            &owner,
            &TTL_MS,
            &us,
            &(ms + TTL_MS),
            &format!("{us:016} {owner} {ms}\n1\nhost\n"),
            &FENCE_TTL_MS,
        ];
        words.iter().map(|word| word.to_string()).collect()
    }

    fn release_as(&self, name: &str, owner: &str) -> Vec<String> {
        let words: [&dyn Display; 6] =
            [&"EVALSHA", &self.release, &1, &name, &owner, &format!("polylock:wake:{{{name}}}")];
        words.iter().map(|word| word.to_string()).collect()
    }
}

impl Floor {
    pub fn open(address: &str, name: &str) -> Result<Self> {
        let socket = TcpStream::connect(address)?;
        socket.set_nodelay(true)?;
        let mut floor = Self { socket, name: name.to_owned(), scripts: Scripts::default(), pairs: 0 };
        let acquire = floor.load(concat!(
            include_str!("../../../core/src/backend/redis/scripts/acquire.lua"),
            include_str!("../../../core/src/backend/redis/scripts/acquire_one.lua")
        ))?;
        let release = floor.load(include_str!("../../../core/src/backend/redis/scripts/release.lua"))?;
        floor.scripts = Scripts { acquire, release };
        Ok(floor)
    }

    pub fn scripts(&self) -> Scripts {
        self.scripts.clone()
    }

    pub fn pair(&mut self) -> Result<()> {
        self.ask_to_acquire()?;
        self.answer()?;
        self.ask_to_release()?;
        self.answer().map(drop)
    }

    pub fn ask_to_acquire(&mut self) -> Result<()> {
        self.pairs += 1;
        self.ask(&self.scripts.acquire_as(&self.name, &format!("{:040x}", self.pairs)))
    }

    pub fn ask_to_release(&mut self) -> Result<()> {
        self.ask(&self.scripts.release_as(&self.name, &format!("{:040x}", self.pairs)))
    }

    fn load(&mut self, script: &str) -> Result<String> {
        self.ask(&["SCRIPT", "LOAD", script].map(str::to_owned))?;
        Ok(self.answer()?.split("\r\n").nth(1).unwrap_or_default().to_owned())
    }

    fn ask(&self, words: &[String]) -> Result<()> {
        let mut request = format!("*{}\r\n", words.len());
        for word in words {
            request += &format!("${}\r\n{word}\r\n", word.len());
        }
        (&self.socket).write_all(request.as_bytes())
    }

    /// The replies are small: they come in one piece.
    pub fn answer(&mut self) -> Result<String> {
        let mut reply = [0; 4096];
        let length = self.socket.read(&mut reply)?;
        let reply = String::from_utf8_lossy(&reply[..length]).into_owned();
        assert!(!reply.starts_with('-'), "{reply}");
        Ok(reply)
    }
}
