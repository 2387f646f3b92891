//! The floor: our two scripts over one blocking socket, with nothing around them.

use std::{
    io::{Read, Result, Write},
    net::TcpStream,
    time::{SystemTime, UNIX_EPOCH},
};

const TTL_MS: u128 = 30_000;
const FENCE_TTL_MS: u128 = 86_400_000;

pub struct Floor {
    socket: TcpStream,
    name: String,
    acquire: String,
    release: String,
    pairs: u64,
}

impl Floor {
    pub fn open(address: &str, name: &str) -> Result<Self> {
        let socket = TcpStream::connect(address)?;
        socket.set_nodelay(true)?;
        let mut floor =
            Self { socket, name: name.to_owned(), acquire: String::new(), release: String::new(), pairs: 0 };
        floor.acquire = floor.load(include_str!("../../../core/src/backend/redis/scripts/acquire.lua"))?;
        floor.release = floor.load(include_str!("../../../core/src/backend/redis/scripts/release.lua"))?;
        Ok(floor)
    }

    pub fn pair(&mut self) -> Result<()> {
        self.pairs += 1;
        let (name, owner) = (self.name.clone(), format!("{:040x}", self.pairs));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (ms, us) = (now.as_millis(), now.as_micros());
        let (fence, writer) = (format!("polylock:fence:{{{name}}}"), format!("polylock:writer:{{{name}}}"));
        let (ttl, token, limit, fence_ttl) =
            (TTL_MS.to_string(), us.to_string(), (ms + TTL_MS).to_string(), FENCE_TTL_MS.to_string());
        let (sha, record) = (self.acquire.clone(), format!("{ms}\n1\nhost\n"));
        self.call(&["EVALSHA", &sha, "3", &name, &fence, &writer, &owner, &ttl, &token, &limit, &record, &fence_ttl])?;
        let (sha, channel) = (self.release.clone(), format!("polylock:wake:{{{name}}}"));
        self.call(&["EVALSHA", &sha, "1", &name, &owner, &channel]).map(drop)
    }

    fn load(&mut self, script: &str) -> Result<String> {
        let reply = self.call(&["SCRIPT", "LOAD", script])?;
        Ok(reply.split("\r\n").nth(1).unwrap_or_default().to_owned())
    }

    fn call(&mut self, words: &[&str]) -> Result<String> {
        let mut request = format!("*{}\r\n", words.len());
        for word in words {
            request += &format!("${}\r\n{word}\r\n", word.len());
        }
        self.socket.write_all(request.as_bytes())?;
        // The replies are small: they come in one piece.
        let mut reply = [0; 4096];
        let length = self.socket.read(&mut reply)?;
        let reply = String::from_utf8_lossy(&reply[..length]).into_owned();
        assert!(!reply.starts_with('-'), "{reply}");
        Ok(reply)
    }
}
