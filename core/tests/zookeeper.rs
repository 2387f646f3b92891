//! ZooKeeper's own: connections that are cut, sessions that end, log-ins, who comes first among processes.
//!
//! The server is real: run through `tests/servers/with_servers.py`.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use polylock::{Acquire, ErrorKind, Lease, LockManager, LossReason, Release};

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

async fn acquire(locks: &LockManager, name: &str) -> Lease {
    locks.acquire(name, Acquire::ttl(LONG).wait(Duration::from_secs(50))).await.expect("not acquired")
}

/// Who holds or wants `name`, as the server has it.
fn contenders(name: &str) -> Vec<String> {
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/servers/zookeeper_contenders.py");
    let listed = std::process::Command::new(program).arg(url()).output().expect("cannot look around");
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    let paths = String::from_utf8(listed.stdout).expect("not UTF-8");
    paths.lines().filter(|path| path.contains(&format!("/{name}/"))).map(str::to_owned).collect()
}

/// What a proxy does with the connections through it.
#[derive(Default)]
struct Rules {
    /// The next creation of a contender is passed on, and then the connection is cut: its answer is never seen.
    cut_after_create: AtomicBool,
    cuts: AtomicU64,
    /// Nothing is passed on, nothing is closed.
    silent: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
}

/// A proxy before the server; ends with the process.
fn proxy() -> (String, Arc<Rules>) {
    let url = url();
    let (server, path) = url.trim_start_matches("zookeeper://").split_once('/').expect("no path");
    let (server, rules): (SocketAddr, _) = (server.parse().expect("no address"), Arc::new(Rules::default()));
    let listener = TcpListener::bind("127.0.0.1:0").expect("no port");
    let own = format!("zookeeper://{}/{path}", listener.local_addr().expect("no address"));
    let watched = Arc::clone(&rules);
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(server) = TcpStream::connect(server) else { continue };
            let both = [client.try_clone().expect("no clone"), server.try_clone().expect("no clone")];
            watched.open.lock().unwrap().extend(both.map(|stream| stream.try_clone().expect("no clone")));
            let (forth, back) = (Arc::clone(&watched), Arc::clone(&watched));
            let (mut from_client, mut to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            std::thread::spawn(move || pass_requests(&forth, &mut from_client, &mut to_server));
            let (mut from_server, mut to_client) = (server, client);
            std::thread::spawn(move || pass_answers(&back, &mut from_server, &mut to_client));
        }
    });
    (own, rules)
}

fn pass_requests(rules: &Rules, client: &mut TcpStream, server: &mut TcpStream) {
    const OP_CREATE_WITH_STAT: i32 = 15;
    let mut is_greeting = true;
    loop {
        let mut len = [0; 4];
        if client.read_exact(&mut len).is_err() {
            break;
        }
        let mut body = vec![0; usize::try_from(i32::from_be_bytes(len)).expect("not a length")];
        if client.read_exact(&mut body).is_err() {
            break;
        }
        if rules.silent.load(Ordering::SeqCst) {
            continue;
        }
        let op = body.get(4..8).map(|op| i32::from_be_bytes(op.try_into().unwrap()));
        let is_create = !std::mem::take(&mut is_greeting) && op == Some(OP_CREATE_WITH_STAT);
        if is_create && rules.cut_after_create.swap(false, Ordering::SeqCst) {
            // The client sees the end, and no answer; the server gets the whole request.
            let _ = client.shutdown(Shutdown::Both);
            let _ = server.write_all(&[&len[..], &body].concat());
            rules.cuts.fetch_add(1, Ordering::SeqCst);
            break;
        }
        if server.write_all(&[&len[..], &body].concat()).is_err() {
            break;
        }
    }
    let _ = server.shutdown(Shutdown::Write);
}

fn pass_answers(rules: &Rules, server: &mut TcpStream, client: &mut TcpStream) {
    let mut buffer = [0; 4096];
    while let Ok(len @ 1..) = server.read(&mut buffer) {
        if !rules.silent.load(Ordering::SeqCst) && client.write_all(&buffer[..len]).is_err() {
            break;
        }
    }
    let _ = client.shutdown(Shutdown::Both);
}

impl Rules {
    fn cut_all(&self) {
        for stream in self.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_creation_whose_answer_is_lost_leaves_no_contender() {
    const ROUNDS: u64 = 60;
    let (through, rules) = proxy();
    let (cut, other, name) = (connect(&through), connect(&url()), name());
    let inside = AtomicBool::new(false);
    let mut last_token = 0;
    for round in 0..ROUNDS {
        rules.cut_after_create.store(true, Ordering::SeqCst);
        let enter = async |locks: &LockManager| {
            let lease = acquire(locks, &name).await;
            assert!(!inside.swap(true, Ordering::SeqCst), "two holders");
            let token = lease.fencing_token();
            tokio::task::yield_now().await;
            inside.store(false, Ordering::SeqCst);
            assert_eq!(lease.release().await.unwrap(), Release::Released);
            token
        };
        let tokens = tokio::join!(enter(&cut), enter(&other));
        for token in [tokens.0.min(tokens.1), tokens.0.max(tokens.1)] {
            assert!(token > last_token, "round {round}");
            last_token = token;
        }
    }
    assert_eq!(rules.cuts.load(Ordering::SeqCst), ROUNDS);
    // Closing waits for what is still being undone.
    cut.close().await;
    other.close().await;
    assert_eq!(contenders(&name), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_cut_is_no_loss() {
    let (through, rules) = proxy();
    let (locks, name) = (connect(&through), name());
    let lease = acquire(&locks, &name).await;
    for _ in 0..10 {
        rules.cut_all();
        lease.extend(None).await.or_else(|error| if error.is_retryable() { Ok(()) } else { Err(error) }).unwrap();
    }
    assert!(lease.is_held());
    while lease.extend(None).await.is_err() {
        assert!(lease.is_held());
    }
    assert_eq!(lease.release().await.unwrap(), Release::Released);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_cut_off_is_told_before_the_next_gets_in() {
    let (through, rules) = proxy();
    let (cut, other, name) = (connect(&format!("{through}?session_timeout=2")), connect(&url()), name());
    let lease = acquire(&cut, &name).await;
    let (told, tell) = tokio::sync::oneshot::channel();
    lease.on_lost(move |reason| _ = told.send((reason, Instant::now())));
    rules.silent.store(true, Ordering::SeqCst);
    let next = acquire(&other, &name).await;
    let entered = Instant::now();
    assert!(!lease.is_held());
    let (reason, at) = tell.await.expect("not told");
    assert_eq!(reason, LossReason::Expired);
    assert!(at <= entered, "{:?} too late", at - entered);
    assert!(next.fencing_token() > lease.fencing_token());
    assert!(lease.remaining().is_zero());
    assert_eq!(lease.extend(None).await.unwrap_err().kind(), ErrorKind::Lost);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn managers_are_served_in_the_order_in_which_they_came() {
    const WAITERS: usize = 6;
    let (holder, name) = (connect(&url()), name());
    let lease = acquire(&holder, &name).await;
    let (order, mut served) = tokio::sync::mpsc::unbounded_channel();
    for number in 0..WAITERS {
        let (waits_for, order) = (name.clone(), order.clone());
        tokio::spawn(async move {
            let lease = acquire(&connect(&url()), &waits_for).await;
            order.send(number).unwrap();
            lease.release().await.unwrap();
        });
        let limit = Instant::now() + Duration::from_secs(20);
        while contenders(&name).len() != number + 2 {
            assert!(Instant::now() < limit, "it does not get in line");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    drop(order);
    lease.release().await.unwrap();
    for number in 0..WAITERS {
        assert_eq!(served.recv().await, Some(number));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_in_keeps_others_out() {
    let (_, rest) = url().split_once("://").map(|(a, b)| (a.to_owned(), b.to_owned())).expect("no URL");
    let server = rest.split('/').next().expect("no host");
    let root = name();
    let (mine, name) = (connect(&format!("zookeeper://me:my%20secret@{server}/{root}")), "r");
    let lease = acquire(&mine, name).await;
    for login in ["", "me:wrong@"] {
        let locks = connect(&format!("zookeeper://{login}{server}/{root}"));
        let error = locks.try_acquire(name, Acquire::default()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Auth, "{error}");
        assert!(!error.to_string().contains("wrong"));
    }
    assert_eq!(lease.release().await.unwrap(), Release::Released);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_ensemble_is_unavailable_in_time() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("no port");
    let silent = listener.local_addr().expect("no address");
    let refused = TcpListener::bind("127.0.0.1:0").expect("no port").local_addr().expect("no address");
    for hosts in [refused.to_string(), format!("{refused},{silent}")] {
        let locks = connect(&format!("zookeeper://{hosts}"));
        let asked = Instant::now();
        let error = locks.acquire("r", Acquire::ttl(LONG).wait(Duration::from_millis(300))).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
        assert_eq!(locks.try_acquire("r", Acquire::ttl(LONG)).await.unwrap_err().kind(), ErrorKind::Unavailable);
    }
}
