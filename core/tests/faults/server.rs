//! Servers that can be paused, killed and started again.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use redis::{Connection, FromRedisValue};
use rustix::process::{Pid, Signal, kill_process};

/// Among the arguments of a server: a port that nobody has when it starts.
pub const FREE_PORT: &str = "a free port";

/// A `redis-server` of this test's own, without persistence. Dropping it stops it.
pub struct Server {
    pub port: u16,
    child: Mutex<Child>,
    admin: Mutex<Option<Connection>>,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    /// Its own, removed with it: what a replica or a cluster writes there is no other server's affair.
    directory: PathBuf,
}

impl Server {
    pub fn start() -> Self {
        Self::with(&[], &[])
    }

    /// So many of them.
    pub fn several(count: usize) -> Vec<Self> {
        (0..count).map(|_| Self::start()).collect()
    }

    /// With more arguments and environment variables.
    pub fn with(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        Self::inside(own_directory(), arguments, environment)
    }

    fn inside(directory: PathBuf, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let environment: Vec<_> =
            environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        // Another process may take a port before the server does.
        for _ in 0..10 {
            let port = free_port();
            let chosen = |&argument: &&str| match argument {
                FREE_PORT => free_port().to_string(),
                other => other.to_owned(),
            };
            let arguments: Vec<String> = arguments.iter().map(chosen).collect();
            let mut child = launch(port, &directory, &arguments, &environment);
            if wait_ready(port, &mut child) {
                let (child, admin) = (Mutex::new(child), Mutex::new(None));
                return Self { port, child, admin, arguments, environment, directory };
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        panic!("redis-server does not start");
    }

    /// One that is ready to become a part of a cluster.
    pub fn of_a_cluster() -> Self {
        Self::with(&["--cluster-enabled", "yes", "--cluster-port", FREE_PORT, "--cluster-node-timeout", "5000"], &[])
    }

    /// The port by which the servers of a cluster talk to each other.
    pub fn bus(&self) -> &str {
        self.argument("--cluster-port")
    }

    /// The port by which it speaks TLS.
    pub fn tls_port(&self) -> u16 {
        self.argument("--tls-port").parse().expect("no port")
    }

    fn argument(&self, name: &str) -> &str {
        let index = self.arguments.iter().position(|argument| argument == name).expect("not given");
        &self.arguments[index + 1]
    }

    /// A sentinel with this configuration.
    pub fn sentinel(configuration: &str) -> Self {
        Self::sentinel_with(configuration, &[])
    }

    /// And with more arguments.
    pub fn sentinel_with(configuration: &str, arguments: &[&str]) -> Self {
        let directory = own_directory();
        let file = directory.join("sentinel");
        std::fs::write(&file, configuration).expect("no file");
        Self::inside(directory, &[&[&file.to_string_lossy(), "--sentinel"], arguments].concat(), &[])
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child()), signal).expect("no such server");
    }

    /// It does nothing any more, but its connections stay.
    pub fn stop(&self) {
        self.signal(Signal::STOP);
    }

    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// It is gone without a word, with all it knew.
    pub fn kill(&self) {
        let mut child = self.child();
        child.kill().expect("no such server");
        child.wait().expect("no such server");
        *self.admin.lock().unwrap() = None;
    }

    /// After [`kill`](Self::kill): starts it again at the same port, with an empty memory.
    pub fn restart(&self) {
        let mut child = launch(self.port, &self.directory, &self.arguments, &self.environment);
        assert!(wait_ready(self.port, &mut child), "redis-server does not start again");
        *self.child() = child;
    }

    /// Asks it something, on a connection of the test's own.
    pub fn ask<T: FromRedisValue>(&self, command: &[&str]) -> T {
        match self.try_ask(command) {
            Ok(answer) => answer,
            Err(error) => panic!("{command:?}: {error}"),
        }
    }

    pub fn try_ask<T: FromRedisValue>(&self, command: &[&str]) -> redis::RedisResult<T> {
        // It may take a while, and other tasks (who may resume this very server) must go on.
        tokio::task::block_in_place(|| self.ask_here(command))
    }

    fn ask_here<T: FromRedisValue>(&self, command: &[&str]) -> redis::RedisResult<T> {
        let mut admin = self.admin.lock().unwrap();
        let mut request = redis::cmd(command[0]);
        request.arg(&command[1..]);
        if admin.is_none() {
            let password = self.arguments.iter().position(|argument| argument == "--requirepass");
            let login = password.map_or(String::new(), |index| format!(":{}@", self.arguments[index + 1]));
            let url = format!("redis://{login}127.0.0.1:{}", self.port);
            let client = redis::Client::open(url).expect("not a Redis URL");
            let connection = client.get_connection_with_timeout(Duration::from_secs(10))?;
            connection.set_read_timeout(Some(Duration::from_secs(10)))?;
            *admin = Some(connection);
        }
        let answer = request.query(admin.as_mut().expect("connected above"));
        if answer.as_ref().is_err_and(redis::RedisError::is_unrecoverable_error) {
            *admin = None;
        }
        answer
    }

    /// The value of a string.
    pub fn get(&self, key: &str) -> Option<String> {
        self.ask(&["GET", key])
    }

    /// All its keys but those that must outlive the locks.
    pub fn keys(&self) -> Vec<String> {
        let keys: Vec<String> = self.ask(&["KEYS", "*"]);
        keys.into_iter().filter(|key| !key.starts_with("polylock:fence:")).collect()
    }

    /// How many scripts it has run.
    pub fn scripts(&self) -> u64 {
        let stats: String = self.ask(&["INFO", "commandstats"]);
        let scripts = stats.lines().filter(|line| line.starts_with("cmdstat_eval"));
        scripts.filter_map(|line| line.split(['=', ',']).nth(1)?.parse::<u64>().ok()).sum()
    }

    /// Cuts the connections of everybody but the test's own.
    pub fn cut_clients(&self) {
        let _: i64 = self.ask(&["CLIENT", "KILL", "SKIPME", "yes", "TYPE", "normal"]);
        let _: i64 = self.ask(&["CLIENT", "KILL", "SKIPME", "yes", "TYPE", "pubsub"]);
    }

    /// How many are connected, but for the test's own connection.
    pub fn clients(&self) -> usize {
        let list: String = self.ask(&["CLIENT", "LIST"]);
        list.lines().count() - 1
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let mut child = self.child.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let _ = child.kill(); // SIGKILL ends a stopped process, too
        let _ = child.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn own_directory() -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let name = format!("polylock-server-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let directory = std::env::temp_dir().join(name);
    std::fs::create_dir_all(&directory).expect("no directory");
    directory
}

/// The URLs of servers.
pub fn urls(servers: &[Server]) -> Vec<String> {
    servers.iter().map(Server::url).collect()
}

/// A port that nobody listens on now.
pub fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr()).expect("no free port").port()
}

fn launch(port: u16, directory: &Path, arguments: &[String], environment: &[(String, String)]) -> Child {
    // A configuration comes first.
    let (file, arguments) =
        arguments.split_at(usize::from(arguments.first().is_some_and(|first| !first.starts_with("--"))));
    Command::new("redis-server")
        .args(file)
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
        .args(["--repl-diskless-sync-delay", "0"])
        .args(["--dir", &directory.to_string_lossy()])
        .args(arguments)
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server is not installed")
}

/// Whether the server answers before it ends.
fn wait_ready(port: u16, child: &mut Child) -> bool {
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(20) {
        if !matches!(child.try_wait(), Ok(None)) {
            return false;
        }
        if pings(port) {
            // The answer may be another server's that took the port first; then ours has ended.
            return matches!(child.try_wait(), Ok(None));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    false
}

fn pings(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    let mut answer = [0; 5];
    let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
    stream.write_all(b"PING\r\n").is_ok() && stream.read_exact(&mut answer).is_ok()
}
