//! What does not answer any more, and says nothing about it.

use std::sync::atomic::AtomicU32;

use super::*;

/// A network namespace with a way to this host.
struct Namespace {
    name: String,
    /// This host's end of the way.
    device: String,
    ours: String,
    theirs: String,
}

/// Which packets are lost. Nobody is told, as a route that refuses them would tell who sends.
#[derive(Clone, Copy)]
enum Lost {
    All,
    /// What the client sends, and with it the acknowledgements of what it was sent.
    Requests,
    /// What the server sends.
    Replies,
}

impl Namespace {
    /// The 169.254.x.y/30 nets are for one link alone. None where this process may not make one.
    fn new() -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let unique = (std::process::id() + COUNT.fetch_add(2000, Ordering::Relaxed)) % 16000;
        let (name, device) = (format!("polylock-{unique}"), format!("plk{unique}"));
        let net = format!("169.254.{}", 1 + unique / 64);
        let (ours, theirs) = (format!("{net}.{}", unique % 64 * 4 + 1), format!("{net}.{}", unique % 64 * 4 + 2));
        let namespace = Self { name, device, ours, theirs };
        let (name, device, ours, theirs) = (&namespace.name, &namespace.device, &namespace.ours, &namespace.theirs);
        let made = ip(&format!("netns add {name}"))
            .and_then(|()| ip(&format!("link add {device} type veth peer name eth0 netns {name}")))
            .and_then(|()| ip(&format!("addr add {ours}/30 dev {device}")))
            .and_then(|()| ip(&format!("link set {device} up")))
            .and_then(|()| ip(&format!("-n {name} addr add {theirs}/30 dev eth0")))
            .and_then(|()| ip(&format!("-n {name} link set eth0 up")));
        if let Err(why) = made {
            // Not by the macro, whose words are kept from whoever runs the tests.
            let _ = writeln!(std::io::stderr(), "SKIPPED, nothing was tested: no network namespace ({why})");
            return None;
        }
        Some(namespace)
    }

    /// From now on these do not come through: they go to a machine that is not there.
    fn cut(&self, lost: Lost) {
        let Self { name, device, ours, theirs } = self;
        let nowhere = "lladdr 02:00:00:00:00:01 nud permanent";
        match lost {
            Lost::All => ip(&format!("link set {device} down")),
            Lost::Requests => ip(&format!("-n {name} neigh replace {ours} {nowhere} dev eth0")),
            Lost::Replies => ip(&format!("neigh replace {theirs} {nowhere} dev {device}")),
        }
        .unwrap();
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

/// Runs in a process of its own, in the namespace: holds what it is told to, and says when, and until when.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holder_in_a_namespace() {
    let Ok(url) = std::env::var("POLYLOCK_TEST_HOLD_AT") else { return };
    let lease = manager(&url).acquire("r", Acquire::ttl(5000 * MS)).await.unwrap();
    println!("\nheld");
    let mut valid = since_boot();
    loop {
        // Read before it is asked: it was held then.
        let now = since_boot();
        if !lease.is_held() {
            break;
        }
        valid = now;
        tokio::time::sleep(MS).await;
    }
    assert!(lease.lost().await.is_some());
    println!("\nheld until {}", valid.as_nanos());
}

/// One clock for all processes.
fn since_boot() -> Duration {
    polylock::Instant::now().since_boot()
}

/// The holder's end is cut off: it knows that before the next one holds, which is within 15 s and what a busy machine adds.
async fn cut_off(mode: &str, lost: Lost) {
    let Some(namespace) = Namespace::new() else { return };
    let server = Server::start(&["listen_addresses=*"]);
    let url = server.url.replace("127.0.0.1", &namespace.ours) + "?mode=" + mode;
    let mut holder = Command::new("ip")
        .args(["netns", "exec", &namespace.name])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "cut_off::holder_in_a_namespace", "--nocapture"])
        .env("POLYLOCK_TEST_HOLD_AT", url)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(holder.stdout.take().unwrap()).lines().map(Result::unwrap);
    tokio::task::block_in_place(|| lines.find(|line| line == "held").expect("it does not hold"));
    let locks = manager(&format!("{}?mode={mode}", server.url));
    assert!(locks.try_acquire("r", long()).await.unwrap().is_none());
    namespace.cut(lost);
    let cut = Instant::now();
    let next = locks.acquire("r", long().wait(LIMIT)).await.unwrap();
    let (freed, now) = (cut.elapsed(), since_boot());
    assert!(next.is_held());
    assert!(freed < Duration::from_secs(15 + 10), "{freed:?}");
    let until = tokio::task::block_in_place(|| lines.find_map(|line| line.strip_prefix("held until ")?.parse().ok()));
    let until = Duration::from_nanos(until.expect("it does not know"));
    assert!(until < now, "it was held until {until:?}, by the next one at {now:?}");
    holder.kill().unwrap();
    holder.wait().unwrap();
}

/// At one time, as they only wait.
async fn cut_off_in_each_way(mode: &'static str) {
    let ways = [Lost::All, Lost::Requests, Lost::Replies].map(|lost| tokio::spawn(cut_off(mode, lost)));
    for way in ways {
        way.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_client_that_is_cut_off_in_one_way_or_both_frees_its_session_and_knew_before() {
    cut_off_in_each_way("session").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_client_that_is_cut_off_in_one_way_or_both_frees_its_lease_by_its_ttl() {
    cut_off_in_each_way("lease").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stands_still_costs_the_leases_and_no_more() {
    let mut server = Server::start(&[]);
    let (leases, sessions) = (manager(&server.url), manager(&session(&server)));
    let ttl = Acquire::ttl(3000 * MS);
    let lease = leases.acquire("r", ttl.clone()).await.unwrap();
    let of_session = sessions.acquire("r", ttl.clone()).await.unwrap();
    let (stopped, deadline) = (Instant::now(), lease.remaining());
    tokio::task::block_in_place(|| server.order("pause"));
    // Whoever asks meanwhile is answered in time, and leaves nothing behind.
    let asking = Instant::now();
    let error = leases.acquire("s", ttl.clone().wait(500 * MS)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(asking.elapsed() < Duration::from_secs(30));
    assert!(lease.lost().await.is_some() && of_session.lost().await.is_some());
    assert!(stopped.elapsed() + 100 * MS >= deadline.min(2000 * MS));
    tokio::task::block_in_place(|| server.order("resume"));
    for locks in [&leases, &sessions] {
        for name in ["r", "s"] {
            let next = locks.acquire(name, long().wait(LIMIT)).await.unwrap();
            assert!(name == "s" || next.fencing_token() > lease.fencing_token().min(of_session.fencing_token()));
            assert_eq!(next.release().await.unwrap(), Release::Released);
        }
    }
    let sql = server.sql().await;
    let began = Instant::now();
    while count(&sql, OURS).await + count(&sql, "SELECT count(*) FROM polylock_lease WHERE owner IS NOT NULL").await
        > 0
    {
        assert!(began.elapsed() < LIMIT, "a lock is left");
        tokio::time::sleep(10 * MS).await;
    }
}
