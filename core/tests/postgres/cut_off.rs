//! What does not answer any more, and says nothing about it.

use std::sync::atomic::AtomicU32;

use super::*;

/// A network namespace with a way to this host.
struct Namespace {
    name: String,
    /// This host's end of the way.
    device: String,
    address: String,
}

impl Namespace {
    /// The 169.254.x.y/30 nets are for one link alone.
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let unique = (std::process::id() + COUNT.fetch_add(8000, Ordering::Relaxed)) % 16000;
        let (name, device) = (format!("polylock-{unique}"), format!("plk{unique}"));
        let net = format!("169.254.{}", 1 + unique / 64);
        let (ours, theirs) = (format!("{net}.{}", unique % 64 * 4 + 1), format!("{net}.{}", unique % 64 * 4 + 2));
        let namespace = Self { name, device, address: ours };
        namespace.ip(&format!("netns add {}", namespace.name));
        let (name, device, ours) = (&namespace.name, &namespace.device, &namespace.address);
        namespace.ip(&format!("link add {device} type veth peer name eth0 netns {name}"));
        namespace.ip(&format!("addr add {ours}/30 dev {device}"));
        namespace.ip(&format!("link set {device} up"));
        namespace.ip(&format!("-n {name} addr add {theirs}/30 dev eth0"));
        namespace.ip(&format!("-n {name} link set eth0 up"));
        namespace
    }

    fn ip(&self, arguments: &str) {
        let done = Command::new("ip").args(arguments.split(' ')).output().expect("no ip");
        assert!(done.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&done.stderr));
    }

    /// From now on nothing comes through, and nobody is told.
    fn cut(&self) {
        self.ip(&format!("link set {} down", self.device));
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "del", &self.device]).status();
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// Runs in a process of its own, in the namespace: holds what it is told to, and says when, and when that is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holder_in_a_namespace() {
    let Ok(url) = std::env::var("POLYLOCK_TEST_HOLD_AT") else { return };
    let lease = manager(&url).acquire("r", Acquire::ttl(5000 * MS)).await.unwrap();
    println!("\nheld");
    lease.lost().await;
    println!("\nlost");
}

fn has_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
}

/// The holder's end is cut off; returns how long it took until it knew, and until the next one held.
async fn cut_off(mode: &str) -> Option<(Duration, Duration)> {
    if !has_root() {
        eprintln!("only root makes network namespaces: nothing was tested");
        return None;
    }
    let namespace = Namespace::new();
    let server = Server::start(&["listen_addresses=*"]);
    let url = server.url.replace("127.0.0.1", &namespace.address) + "?mode=" + mode;
    let mut holder = Command::new("ip")
        .args(["netns", "exec", &namespace.name])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "cut_off::holder_in_a_namespace", "--nocapture"])
        .env("POLYLOCK_TEST_HOLD_AT", url)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(holder.stdout.take().unwrap()).lines().map(Result::unwrap);
    let (known, knows) = tokio::sync::oneshot::channel();
    tokio::task::block_in_place(|| lines.find(|line| line == "held").expect("it does not hold"));
    let locks = manager(&format!("{}?mode={mode}", server.url));
    assert!(locks.try_acquire("r", long()).await.unwrap().is_none());
    namespace.cut();
    let cut = Instant::now();
    std::thread::spawn(move || {
        lines.find(|line| line == "lost").expect("it does not know");
        let _ = known.send(cut.elapsed());
    });
    let next = locks.acquire("r", long().wait(LIMIT)).await.unwrap();
    let freed = cut.elapsed();
    assert!(next.is_held());
    let knew = knows.await.unwrap();
    holder.kill().unwrap();
    holder.wait().unwrap();
    Some((knew, freed))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_is_cut_off_frees_its_session_and_knew_before() {
    let Some((knew, freed)) = cut_off("session").await else { return };
    assert!(freed < Duration::from_secs(15), "{freed:?}");
    assert!(knew < freed, "{knew:?} {freed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_is_cut_off_frees_its_lease_by_its_ttl() {
    let Some((knew, freed)) = cut_off("lease").await else { return };
    // It was renewed after a third of its 5 s, and the next one looks four times a second.
    assert!(freed < Duration::from_secs(15), "{freed:?}");
    assert!(knew < freed, "{knew:?} {freed:?}");
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
