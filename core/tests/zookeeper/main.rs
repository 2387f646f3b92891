//! ZooKeeper's own: connections that are cut, sessions that end, log-ins, who comes first among processes, ensembles.
//!
//! The servers are real: run through `tests/servers/with_servers.py`.

mod connection;
mod cut_off;
mod ensemble;
mod line;
mod login;
#[path = "../namespace/mod.rs"]
mod namespace;
mod proxy;
mod session;

use std::{
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use polylock::{Acquire, Lease, LockManager};

const LONG: Duration = Duration::from_secs(300);

fn url() -> String {
    std::env::var("POLYLOCK_TEST_ZOOKEEPER").expect("run this through tests/servers/with_servers.py")
}

fn connect(url: &str) -> LockManager {
    polylock::connect(url).lazy().expect("no manager")
}

fn name() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_millis());
    format!("polylock-zookeeper-{}-{now}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

// An ensemble that loses its leader may take a minute to agree on another.
async fn acquire(locks: &LockManager, name: &str) -> Lease {
    locks.acquire(name, Acquire::ttl(LONG).wait(Duration::from_secs(200))).await.expect("not acquired")
}

/// Who holds or wants `name`, as the server has it.
fn contenders(name: &str) -> Vec<String> {
    contenders_at(&url(), name)
}

fn contenders_at(url: &str, name: &str) -> Vec<String> {
    let listed = Command::new(program("zookeeper_contenders.py")).arg(url).output().expect("cannot look around");
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    let paths = String::from_utf8(listed.stdout).expect("not UTF-8");
    paths.lines().filter(|path| path.contains(&format!("/{name}/"))).map(str::to_owned).collect()
}

fn program(name: &str) -> String {
    format!("{}/../tests/servers/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Waits for what is bound to come.
async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(60);
    while !is() {
        assert!(Instant::now() < limit, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A program that answers each line of its input by a line; ends with this.
struct Servant {
    child: Child,
    /// `None` once it is to end.
    input: Option<ChildStdin>,
    output: std::io::BufReader<ChildStdout>,
}

impl Servant {
    fn start(name: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new(program(name));
        let mut child = command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect(name);
        let (input, output) = (child.stdin.take(), child.stdout.take().expect("no output"));
        Self { child, input, output: std::io::BufReader::new(output) }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        std::io::BufRead::read_line(&mut self.output, &mut line).expect("no answer");
        assert!(line.ends_with('\n'), "it has ended");
        line.trim_end().to_owned()
    }

    /// Blocks: the test's other tasks need a thread of their own.
    fn ask(&mut self, command: &str) -> String {
        let input = self.input.as_mut().expect("no input");
        std::io::Write::write_all(input, format!("{command}\n").as_bytes()).expect("it has ended");
        self.line()
    }
}

impl Drop for Servant {
    fn drop(&mut self) {
        // By its end of the input it stops what it started.
        self.input = None;
        let _ = self.child.wait();
    }
}
