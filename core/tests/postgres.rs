//! What holds for PostgreSQL alone: faults of a server of its own, and what it leaves in the database.
//!
//! `POLYLOCK_TEST_ROUNDS` multiplies the rounds; the usual number is for everyday.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use polylock::{Acquire, ErrorKind, LockManager, Release};
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
        let [url, admin, pooler]: [&str; 3] =
            urls.split_whitespace().collect::<Vec<_>>().try_into().expect("it did not start");
        let (url, admin, pooler) = (url.to_owned(), admin.to_owned(), pooler.to_owned());
        Self { program, orders, answers, url, admin, pooler }
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

#[tokio::test]
async fn says_what_is_wrong_and_never_the_password() {
    let mut server = Server::start(&[]);
    let password = server.password().to_owned();
    assert!(polylock::connect(&server.url).await.is_ok());
    let wrong = server.url.replace(&password, "swordfish");
    let nameless = server.url.replace("/app", "/nothing").replace("//nothing", "//app");
    let encrypted = format!("{}?sslmode=require", server.url);
    for (url, expected) in
        [(&wrong, ErrorKind::Auth), (&nameless, ErrorKind::InvalidArgument), (&encrypted, ErrorKind::Unavailable)]
    {
        let (kind, text) = kind(url).await;
        assert_eq!(kind, expected, "{text}");
        assert!(!text.contains("swordfish") && !text.contains(&password), "{text}");
    }
    let locks = manager(&server.url);
    assert!(!format!("{locks:?}").contains(&password));
    assert!(locks.try_acquire("r", long()).await.unwrap().is_some());

    server.order("standby");
    let (replica, text) = kind(&server.url).await;
    assert_eq!(replica, ErrorKind::Unavailable);
    assert!(text.contains("replica"), "{text}");

    server.order("kill");
    assert_eq!(kind(&server.url).await.0, ErrorKind::Unavailable);
    server.order("start");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_that_start_at_once_make_one_table() {
    let server = Server::start(&[]);
    let url = format!("{}?table=made_at_once", server.url);
    let begun = (0..10).map(|number| {
        let locks = manager(&url);
        tokio::spawn(async move {
            let lease = locks.acquire(&format!("r{number}"), long().wait(LIMIT)).await.unwrap();
            assert_eq!(lease.release().await.unwrap(), Release::Released);
            locks.close().await;
        })
    });
    for task in begun.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    let sql = server.sql().await;
    let count: i64 = sql.query_one("SELECT count(*) FROM made_at_once", &[]).await.unwrap().get(0);
    assert_eq!(count, 10);

    // Who may not make it is told what to do.
    sql.batch_execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC; ALTER SCHEMA public OWNER TO admin")
        .await
        .unwrap();
    let refused = manager(&format!("{}?table=not_allowed", server.url)).try_acquire("r", long()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Auth);
    assert!(refused.to_string().contains("table.sql"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_outlives_its_connections() {
    let server = Server::start(&[]);
    let sql = server.sql().await;
    let limits = "ALTER ROLE app SET idle_session_timeout = '100ms'; ALTER ROLE app SET statement_timeout = '100ms'";
    sql.batch_execute(limits).await.unwrap();
    for url in [&server.url, &server.pooler] {
        let locks = manager(url);
        let lease = locks.acquire("r", Acquire::ttl(5000 * MS)).await.unwrap();
        let mut killed = 0;
        for _ in 0..10 {
            let ended = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'app'";
            killed += sql.query_one(ended, &[]).await.unwrap().get::<_, i64>(0);
            tokio::time::sleep(700 * MS).await;
        }
        // Behind the pooler the server ends most of them itself: they may not be idle.
        assert!(killed > 1 || *url == server.pooler, "{killed}");
        assert!(lease.is_held());
        assert_eq!(lease.release().await.unwrap(), Release::Released);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_grow_and_grants_stay_though_the_server_is_killed_under_load() {
    // Only what the statements ask for themselves is then on the disk.
    let mut server = Server::start(&["synchronous_commit=off", "wal_writer_delay=10s"]);
    let highest = Arc::new(AtomicU64::new(0));
    for round in 0..rounds(3) {
        let locks = manager(&server.url);
        let workers: Vec<_> = (0..4)
            .map(|_| {
                let (locks, highest) = (locks.clone(), Arc::clone(&highest));
                tokio::spawn(async move {
                    loop {
                        let Ok(lease) = locks.acquire("r", long().wait(LIMIT)).await else { return };
                        let before = highest.fetch_max(lease.fencing_token(), Ordering::SeqCst);
                        assert!(lease.fencing_token() > before, "{} after {before}", lease.fencing_token());
                        if lease.release().await.unwrap() != Release::Released {
                            return;
                        }
                    }
                })
            })
            .collect();
        let held = manager(&server.url).acquire(&format!("held {round}"), long()).await.unwrap();
        let before = highest.load(Ordering::SeqCst);
        while highest.load(Ordering::SeqCst) == before {
            tokio::time::sleep(MS).await;
        }
        let last = manager(&server.url).acquire(&format!("last {round}"), long()).await.unwrap();
        tokio::task::block_in_place(|| server.order("kill"));
        workers.iter().for_each(tokio::task::JoinHandle::abort);
        tokio::task::block_in_place(|| server.order("start"));
        let locks = manager(&server.url);
        for (lease, name) in [(&held, "held"), (&last, "last")] {
            let holder = locks.inspect(&format!("{name} {round}")).await.unwrap().expect("the grant was forgotten");
            assert_eq!(holder.fencing_token, Some(lease.fencing_token()));
        }
        // The lock that was on its way may be left to its ttl: take it by force.
        let sql = server.sql().await;
        sql.execute("UPDATE polylock_lease SET owner = NULL WHERE key = 'r'", &[]).await.unwrap();
        for worker in workers {
            if let Err(error) = worker.await {
                assert!(error.is_cancelled(), "{error}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_when_giving_up_races_with_the_grant() {
    let server = Server::start(&[]);
    let (one, two) = (manager(&server.url), manager(&server.url));
    let sql = server.sql().await;
    for round in 0..rounds(100) {
        let held = one.acquire("r", long().wait(LIMIT)).await.unwrap();
        let patience = MS * spread(round) / 8;
        let (timed, cancelled) = (two.clone(), one.clone());
        let timed = tokio::spawn(async move { timed.acquire("r", long().wait(patience)).await.is_ok() });
        let cancelled = tokio::spawn(async move { cancelled.acquire("r", long()).await.is_ok() });
        tokio::time::sleep(patience / 2).await;
        held.release().await.unwrap();
        tokio::time::sleep(patience / 2).await;
        cancelled.abort();
        let _ = (timed.await, cancelled.await);
    }
    let began = Instant::now();
    loop {
        let held = "SELECT count(*) FROM polylock_lease WHERE owner IS NOT NULL";
        if sql.query_one(held, &[]).await.unwrap().get::<_, i64>(0) == 0 {
            break;
        }
        assert!(began.elapsed() < LIMIT, "a lock is left");
        tokio::time::sleep(10 * MS).await;
    }
}

/// Spread over 0 to 63, the same in each run.
fn spread(round: u32) -> u32 {
    round.wrapping_mul(2_654_435_761) >> 26
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_too_late_is_not_granted() {
    let server = Server::start(&[]);
    let locks = manager(&server.url);
    locks.acquire("r", long()).await.unwrap().release().await.unwrap();
    let mut sql = server.sql().await;
    let in_the_way = sql.transaction().await.unwrap();
    in_the_way.execute("SELECT 1 FROM polylock_lease WHERE key = 'r' FOR UPDATE", &[]).await.unwrap();
    // Behind the row's lock for longer than the attempt may take; through the pooler no lock_timeout ends it.
    let pooled = manager(&server.pooler);
    let error = pooled.try_acquire("r", Acquire::ttl(600 * MS)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    tokio::time::sleep(300 * MS).await;
    in_the_way.commit().await.unwrap();
    let sql = server.sql().await;
    let began = Instant::now();
    while let waiting = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND state <> 'idle'"
        && sql.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) > 0
    {
        assert!(began.elapsed() < LIMIT);
    }
    assert!(locks.inspect("r").await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiter_holds_no_snapshot_and_is_told_of_the_release() {
    let server = Server::start(&[]);
    let (one, two) = (manager(&server.url), manager(&server.url));
    let held = one.acquire("r", long()).await.unwrap();
    let waiting = tokio::spawn(async move { two.acquire("r", long()).await.unwrap() });
    let sql = server.sql().await;
    let began = Instant::now();
    while !sql.query_one("SELECT wanted FROM polylock_lease", &[]).await.unwrap().get::<_, bool>(0) {
        assert!(began.elapsed() < LIMIT, "it does not ask to be told");
        tokio::time::sleep(5 * MS).await;
    }
    // A look is over in a moment: most of the time there is nothing.
    let mut idle = 0;
    for _ in 0..50 {
        let busy = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND backend_xmin IS NOT NULL";
        idle += u32::from(sql.query_one(busy, &[]).await.unwrap().get::<_, i64>(0) == 0);
        tokio::time::sleep(5 * MS).await;
    }
    assert!(idle > 25, "{idle} of 50");
    held.release().await.unwrap();
    let next = tokio::time::timeout(LIMIT, waiting).await.unwrap().unwrap();
    assert!(next.fencing_token() > held.fencing_token());
}

fn session(server: &Server) -> String {
    format!("{}?mode=session", server.url)
}

async fn count(sql: &tokio_postgres::Client, query: &str) -> i64 {
    sql.query_one(query, &[]).await.unwrap().get(0)
}

const OURS: &str = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_is_ended_tells_its_holders_at_once() {
    let server = Server::start(&[]);
    let (one, two) = (manager(&session(&server)), manager(&session(&server)));
    let sql = server.sql().await;
    let held = one.acquire("r", long()).await.unwrap();
    let other = one.acquire("s", long()).await.unwrap();
    let waiting = tokio::spawn(async move { two.acquire("r", long()).await.unwrap() });
    let holder = one.inspect("r").await.unwrap().unwrap();
    assert_eq!(
        (holder.owner.as_str(), holder.fencing_token),
        (held.owner_token().as_str(), Some(held.fencing_token()))
    );
    let end = "SELECT pg_terminate_backend(backend) FROM polylock_session WHERE key = 'r'";
    sql.query_one(end, &[]).await.unwrap();
    assert_eq!(held.lost().await, Some(polylock::LossReason::Taken));
    assert_eq!(other.lost().await, Some(polylock::LossReason::Taken));
    let next = tokio::time::timeout(LIMIT, waiting).await.unwrap().unwrap();
    assert!(next.fencing_token() > held.fencing_token());
    next.release().await.unwrap();
    // The connection tells, not the next heartbeat; the best of some, as the machine may be busy.
    let mut quickest = LIMIT;
    for _ in 0..5 {
        let held = one.acquire("r", long().wait(LIMIT)).await.unwrap();
        sql.query_one(end, &[]).await.unwrap();
        let began = Instant::now();
        assert_eq!(held.lost().await, Some(polylock::LossReason::Taken));
        quickest = quickest.min(began.elapsed());
    }
    assert!(quickest < Duration::from_secs(1), "{quickest:?}");
    // The manager goes on with another session.
    assert!(one.try_acquire("s", long()).await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn session_mode_refuses_a_pooler_and_names_the_other_mode() {
    let server = Server::start(&[]);
    let (kind, text) = kind(&format!("{}?mode=session", server.pooler)).await;
    assert_eq!(kind, ErrorKind::Unsupported, "{text}");
    assert!(text.contains("lease mode"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_names_on_one_number_are_one_lock() {
    let server = Server::start(&[]);
    let url = format!("{}&keys=number", session(&server));
    let (one, two) = (manager(&url), manager(&url));
    let held = one.acquire("7", long()).await.unwrap();
    // In one process it would be a deadlock of a task with itself: an error.
    assert_eq!(one.acquire("+7", long()).await.unwrap_err().kind(), ErrorKind::Conflict);
    // Among several it is a lock that is in use.
    assert!(two.try_acquire("+7", long()).await.unwrap().is_none());
    assert_eq!(two.try_acquire("seven", long()).await.unwrap_err().argument(), Some("resource"));
    // So is a lock that somebody else takes by its number.
    let sql = server.sql().await;
    let theirs: bool = sql.query_one("SELECT pg_try_advisory_lock(7)", &[]).await.unwrap().get(0);
    assert!(!theirs);
    held.release().await.unwrap();
    let theirs: bool = sql.query_one("SELECT pg_try_advisory_lock(7)", &[]).await.unwrap().get(0);
    assert!(theirs && two.try_acquire("7", long()).await.unwrap().is_none());
    assert!(two.inspect("7").await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_session_lock_is_left_when_giving_up_races_with_the_grant() {
    let server = Server::start(&[]);
    let (one, two) = (manager(&session(&server)), manager(&session(&server)));
    let sql = server.sql().await;
    let mut last = 0;
    for round in 0..rounds(100) {
        let held = one.acquire("r", long().wait(LIMIT)).await.unwrap();
        assert!(held.fencing_token() > last);
        last = held.fencing_token();
        let patience = MS * spread(round) / 8;
        let (timed, cancelled) = (two.clone(), one.clone());
        let timed = tokio::spawn(async move { timed.acquire("r", long().wait(patience)).await.is_ok() });
        let cancelled = tokio::spawn(async move { cancelled.acquire("r", long()).await.is_ok() });
        tokio::time::sleep(patience / 2).await;
        held.release().await.unwrap();
        tokio::time::sleep(patience / 2).await;
        cancelled.abort();
        let _ = (timed.await, cancelled.await);
    }
    let began = Instant::now();
    while count(&sql, OURS).await > 0 {
        assert!(began.elapsed() < LIMIT, "a lock is left");
        tokio::time::sleep(10 * MS).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn session_tokens_grow_though_the_server_is_killed() {
    let mut server = Server::start(&["synchronous_commit=off", "wal_writer_delay=10s"]);
    let locks = manager(&session(&server));
    let mut last = 0;
    for _ in 0..rounds(3) {
        for _ in 0..5 {
            let lease = locks.acquire("r", long().wait(LIMIT)).await.unwrap();
            assert!(lease.fencing_token() > last);
            last = lease.fencing_token();
            lease.release().await.unwrap();
        }
        let held = locks.acquire("r", long().wait(LIMIT)).await.unwrap();
        last = held.fencing_token();
        tokio::task::block_in_place(|| server.order("kill"));
        assert_eq!(tokio::time::timeout(LIMIT, held.lost()).await.unwrap(), Some(polylock::LossReason::Taken));
        tokio::task::block_in_place(|| server.order("start"));
        let kept: i64 = count(&server.sql().await, "SELECT token FROM polylock_session WHERE key = 'r'").await;
        assert_eq!(u64::try_from(kept).unwrap(), last, "the token was forgotten");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_sessions_ask_the_server_to_look_after_them() {
    let server = Server::start(&[]);
    let locks = manager(&session(&server));
    let _held = locks.acquire("r", long()).await.unwrap();
    let sql = server.sql().await;
    let named = "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)
                 WHERE locktype = 'advisory' AND application_name LIKE 'polylock %'";
    assert_eq!(count(&sql, named).await, 1);
    // What the kernel was asked to do for the server's end of the connection: probes after 5 s of silence.
    let port: i32 = sql
        .query_one("SELECT client_port FROM pg_stat_activity WHERE application_name LIKE 'polylock %' LIMIT 1", &[])
        .await
        .unwrap()
        .get(0);
    let sockets = Command::new("ss").args(["-tnoH", &format!("dport = :{port}")]).output().expect("no ss");
    let sockets = String::from_utf8_lossy(&sockets.stdout).into_owned();
    let left = sockets.split("timer:(keepalive,").nth(1).and_then(|rest| rest.split(',').next());
    let left = left.unwrap_or_else(|| panic!("no keep-alive: {sockets}"));
    let seconds = left.strip_suffix("sec").map(|seconds| seconds.parse::<f64>().unwrap());
    // Less than a second is in ms.
    assert!(left.ends_with("ms") || seconds.is_some_and(|seconds| seconds <= 6.0), "{sockets}");
}
