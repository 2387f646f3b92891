//! A holder that is cut off from its servers: a process in a network namespace of its own, where packets vanish.

#![allow(dead_code)] // of each of the programs that this is a part of some

use std::{
    io::{BufRead, BufReader, Lines, Write},
    process::{Child, ChildStdout, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use polylock::{Acquire, LockManager};

/// A network namespace with a way to this host.
pub struct Namespace {
    name: String,
    /// This host's end of the way.
    device: String,
    /// This host's addresses there.
    pub ours: Vec<String>,
    theirs: String,
}

/// Which packets are lost. Nobody is told, as a route that refuses them would tell who sends.
#[derive(Clone, Copy)]
pub enum Lost {
    All,
    /// What the client sends, and with it the acknowledgements of what it was sent.
    Requests,
    /// What the server sends.
    Replies,
}

/// An address that no machine has.
const NOWHERE: &str = "lladdr 02:00:00:00:00:01 nud permanent";

impl Namespace {
    /// With so many addresses for this host, 12 at the most, in a net that is for one link alone. None where this process
    /// may not make one.
    pub fn new(addresses: usize) -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let unique = (std::process::id() + COUNT.fetch_add(250, Ordering::Relaxed)) % 4000;
        let (name, device) = (format!("polylock-{unique}"), format!("plk{unique}"));
        let address = |host| format!("169.254.{}.{}", 1 + unique / 16, unique % 16 * 16 + host);
        let ours = (1..=u32::try_from(addresses).unwrap()).map(address).collect();
        let namespace = Self { name, device, ours, theirs: address(14) };
        if let Err(why) = namespace.make() {
            // Not by the macro, whose words are kept from whoever runs the tests.
            let _ = writeln!(std::io::stderr(), "SKIPPED, nothing was tested: no network namespace ({why})");
            return None;
        }
        Some(namespace)
    }

    fn make(&self) -> Result<(), String> {
        let Self { name, device, ours, theirs } = self;
        ip(&format!("netns add {name}"))?;
        ip(&format!("link add {device} type veth peer name eth0 netns {name}"))?;
        for address in ours {
            ip(&format!("addr add {address}/28 dev {device}"))?;
        }
        ip(&format!("link set {device} up"))?;
        ip(&format!("-n {name} addr add {theirs}/28 dev eth0"))?;
        ip(&format!("-n {name} link set eth0 up"))
    }

    /// From now on these do not come through.
    pub fn cut(&self, lost: Lost) {
        let Self { device, theirs, .. } = self;
        match lost {
            Lost::All => ip(&format!("link set {device} down")).unwrap(),
            Lost::Requests => self.ours.iter().for_each(|address| self.cut_from(address)),
            Lost::Replies => ip(&format!("neigh replace {theirs} {NOWHERE} dev {device}")).unwrap(),
        }
    }

    /// From now on what is sent to this address of ours does not come through.
    pub fn cut_from(&self, address: &str) {
        ip(&format!("-n {} neigh replace {address} {NOWHERE} dev eth0", self.name)).unwrap();
    }
}

fn ip(arguments: &str) -> Result<(), String> {
    let done = Command::new("ip").args(arguments.split(' ')).output().map_err(|error| format!("ip: {error}"))?;
    if done.status.success() {
        return Ok(());
    }
    Err(format!("ip {arguments}: {}", String::from_utf8_lossy(&done.stderr).trim()))
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Neither may be there.
        let _ = ip(&format!("link del {}", self.device));
        let _ = ip(&format!("netns del {}", self.name));
    }
}

/// The process in the namespace.
pub struct Holder {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

/// Tells the process where to hold.
const PLACE: &str = "POLYLOCK_TEST_HOLD_AT";

impl Holder {
    /// Has the test of that name, which calls [`hold`], run there by itself, and waits until it holds.
    pub fn start(namespace: &Namespace, test: &str, urls: &str) -> Self {
        let mut process = Command::new("ip")
            .args(["netns", "exec", &namespace.name])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(PLACE, urls)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut holder = Self { process, lines };
        holder.told("held at ");
        holder
    }

    /// Waits until it has renewed its lease after `since`.
    pub fn renews_after(&mut self, since: Duration) {
        while self.told("renewed at ") <= since {}
    }

    /// The last moment at which it held.
    pub fn held_until(mut self) -> Duration {
        self.told("held until ")
    }

    /// The time that follows `what` in the next line that begins so. Blocks.
    fn told(&mut self, what: &str) -> Duration {
        tokio::task::block_in_place(|| {
            let nanos = self.lines.find_map(|line| line.unwrap().strip_prefix(what)?.parse().ok());
            Duration::from_nanos(nanos.unwrap_or_else(|| panic!("it never {what}")))
        })
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Where this process is to hold, if it is a [`Holder`].
pub fn place() -> Option<String> {
    std::env::var(PLACE).ok()
}

/// Holds `r` until it is lost, and tells of it.
pub async fn hold(locks: LockManager, ttl: Duration) {
    let lease = locks.acquire("r", Acquire::ttl(ttl)).await.unwrap();
    let (mut valid, mut deadline) = (since_boot(), lease.deadline());
    println!("\nheld at {}", valid.as_nanos());
    loop {
        // Read before it is asked: it was held then.
        let now = since_boot();
        if !lease.is_held() {
            break;
        }
        valid = now;
        if std::mem::replace(&mut deadline, lease.deadline()) != deadline {
            println!("renewed at {}", now.as_nanos());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(lease.lost().await.is_some());
    println!("held until {}", valid.as_nanos());
}

/// One clock for all processes.
pub fn since_boot() -> Duration {
    polylock::Instant::now().since_boot()
}
