//! What holds for PostgreSQL alone: faults of a server of its own, and what it leaves in the database.
//!
//! `POLYLOCK_TEST_ROUNDS` multiplies the rounds; the usual number is for everyday.

mod clocks;
mod connecting;
mod crash;
mod cut_off;
mod disk;
mod failover;
mod lease;
#[path = "../namespace/mod.rs"]
mod namespace;
mod session;
mod transaction;

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use polylock::{Acquire, ErrorKind, Lease, LockManager, Release, Target};
use tokio_postgres::NoTls;

const MS: Duration = Duration::from_millis(1);
const LONG: Duration = Duration::from_secs(300);
/// What must come about comes within this, however busy the machine is.
const LIMIT: Duration = Duration::from_secs(60);

fn rounds(usual: u32) -> u32 {
    usual * std::env::var("POLYLOCK_TEST_ROUNDS").map_or(1, |rounds| rounds.parse().expect("not a number"))
}

/// A server of its own, in the hands of a program that obeys.
struct Server {
    program: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    url: String,
    admin: String,
    pooler: String,
    /// Where its certificates are.
    directory: String,
}

impl Server {
    fn start(options: &[&str]) -> Self {
        let program = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/servers/postgres_server.py");
        let mut program = Command::new("python3")
            .arg(program)
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("no python3");
        let (orders, answers) = (program.stdin.take().unwrap(), program.stdout.take().unwrap());
        let mut answers = BufReader::new(answers);
        let mut urls = String::new();
        answers.read_line(&mut urls).unwrap();
        let urls: Vec<_> = urls.split_whitespace().map(str::to_owned).collect();
        let [url, admin, pooler, directory]: [String; 4] = urls.try_into().expect("it did not start");
        Self { program, orders, answers, url, admin, pooler, directory }
    }

    fn order(&mut self, order: &str) {
        writeln!(self.orders, "{order}").unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        assert_eq!(answer, "ok\n", "{order}");
    }

    fn password(&self) -> &str {
        self.url.split(':').nth(2).and_then(|rest| rest.split('@').next()).unwrap()
    }

    /// As the administrator, in the database `app`.
    async fn sql(&self) -> tokio_postgres::Client {
        let url = self.admin.replace("/postgres", "/app");
        let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The end of its input ends it; it removes what it kept.
        let orders = std::mem::replace(&mut self.orders, {
            let mut nobody = Command::new("true").stdin(Stdio::piped()).spawn().unwrap();
            let orders = nobody.stdin.take().unwrap();
            nobody.wait().unwrap();
            orders
        });
        drop(orders);
        let _ = self.program.wait();
    }
}

fn manager(url: &str) -> LockManager {
    polylock::connect(url).lazy().unwrap()
}

fn long() -> Acquire {
    Acquire::ttl(LONG)
}

async fn kind(url: &str) -> (ErrorKind, String) {
    let error = polylock::connect(url).await.map(drop).unwrap_err();
    (error.kind(), format!("{error} {error:?}"))
}

/// Spread over 0 to 63, the same in each run.
fn spread(round: u32) -> u32 {
    round.wrapping_mul(2_654_435_761) >> 26
}

fn session(server: &Server) -> String {
    format!("{}?mode=session", server.url)
}

/// The number that `query` answers.
async fn count(sql: &tokio_postgres::Client, query: &str) -> i64 {
    sql.query_one(query, &[]).await.unwrap().get(0)
}

/// Counts the advisory locks.
const OURS: &str = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'";

/// Waits until it has been renewed once more.
async fn renewed(lease: &Lease) {
    let (deadline, began) = (lease.deadline(), Instant::now());
    while lease.deadline() == deadline {
        assert!(lease.is_held() && began.elapsed() < LIMIT);
        tokio::time::sleep(MS).await;
    }
}
