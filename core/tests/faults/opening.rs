//! Who goes away, or closes, while a connection is being opened for him, or the first answer on it is on its way.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use polylock::{
    ErrorKind, Lease, LockManager, Result,
    host::{CompletionQueue, OperationId, Started},
};
use tokio::time::timeout;

use super::{
    SLACK,
    cancel::cut_short,
    eventually, fresh, long, manager,
    proxy::{Fate, Gate, Proxy, is_acquire},
    server::{Server, free_port},
    soon,
};

/// How long a server may take that is waited for in vain: that is much longer than [`SLACK`].
const PATIENT: Duration = Duration::from_secs(60);

/// Starts what has to open a connection first.
fn start(queue: &CompletionQueue<Result<Lease>>, locks: &LockManager, name: &str) -> OperationId {
    let (locks, name, driver) = (locks.clone(), name.to_owned(), queue.driver());
    match queue.start(Box::pin(async move { locks.acquire_by(&name, long(), &driver).await })) {
        Ok(Started::Pending(id)) => id,
        _ => panic!("no connection was opened"),
    }
}

/// Of the connections that `ask` had opened for drivers that were gone before, none is left.
async fn none_stays_open(ask: fn(&LockManager)) {
    const ROUNDS: u64 = 100;
    let server = Server::start();
    let locks = manager(&[server.url()]);
    let received = || {
        let info: String = server.ask(&["INFO", "stats"]);
        let count = info.lines().find_map(|line| line.strip_prefix("total_connections_received:"));
        count.and_then(|count| count.parse::<u64>().ok()).expect("no count")
    };
    let before = received();
    let asking = {
        let locks = locks.clone();
        move || (0..ROUNDS).for_each(|_| ask(&locks))
    };
    tokio::task::spawn_blocking(asking).await.unwrap();
    eventually(SLACK, "all were opened", || received() >= before + ROUNDS).await;
    // The engine's own stays, by which attempts are undone.
    eventually(SLACK, "all are closed", || server.clients() <= 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn for_an_event_loop() {
    none_stays_open(|locks| {
        let queue = CompletionQueue::new().unwrap();
        let id = start(&queue, locks, &fresh("r"));
        assert!(queue.cancel(id));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn for_a_tokio_runtime() {
    none_stays_open(|locks| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        assert!(runtime.block_on(cut_short(1, locks.acquire(fresh("r"), long()))).is_none());
    })
    .await;
}

/// Closing does not wait for what a server might do of an attempt that was never sent to it: its connection, which leads
/// through `proxies`, is still being opened.
async fn closing_is_not_held_up(urls: &[String], proxies: &[&Proxy], connected: bool) {
    for given_up in [true, false] {
        for opens in [true, false] {
            let (gate, opening, acquires) =
                (Gate::new(), Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
            let locks = polylock::connect(urls.to_vec()).node_timeout(PATIENT).lazy().unwrap();
            proxies.iter().for_each(|proxy| proxy.heal());
            if connected {
                soon(&locks, &fresh("first")).await.release().await.unwrap();
            }
            for proxy in proxies {
                let (gate, opening, acquires) = (Arc::clone(&gate), Arc::clone(&opening), Arc::clone(&acquires));
                proxy.rule(move |request| {
                    acquires.fetch_add(is_acquire(request).into(), Ordering::Relaxed);
                    // A part of the log-in.
                    let is_opening = request[0] == b"TIME";
                    opening.fetch_add(is_opening.into(), Ordering::Relaxed);
                    if is_opening { Fate::Hold(Arc::clone(&gate)) } else { Fate::Pass }
                });
            }
            let (mut queue, name) = (Some(CompletionQueue::new().unwrap()), fresh("r"));
            let id = queue.as_ref().map(|queue| start(queue, &locks, &name)).unwrap();
            eventually(SLACK, "a connection is being opened", || {
                assert!(queue.iter().all(|queue| queue.turn().is_empty()));
                opening.load(Ordering::Relaxed) > 0
            })
            .await;
            if given_up {
                assert!(queue.take().is_some_and(|queue| queue.cancel(id)));
            }
            if opens {
                gate.open();
            }
            let case = format!("{given_up} {opens}");
            assert!(timeout(SLACK, locks.close()).await.is_ok(), "closing waits: {case}");
            gate.open();
            if let Some(queue) = queue {
                // Whoever comes back to it is told, and sends nothing.
                let told = queue.turn();
                assert!(matches!(&told[..], [(of, Err(error))] if *of == id && error.kind() == ErrorKind::Closed));
            }
            assert_eq!(acquires.load(Ordering::Relaxed), 0, "{case}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_while_a_server_is_connected_to() {
    let server = Server::start();
    let proxy = Proxy::before(server.port).await;
    for connected in [false, true] {
        closing_is_not_held_up(&[proxy.url()], &[&proxy], connected).await;
    }
}

/// Nor does it wait for servers that never got anything of an attempt, or refused it, after that was given back where it was granted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_after_a_majority_had_nothing() {
    let servers = Server::several(3);
    let up = &servers[0];
    let places =
        |user: &str| servers[1..].iter().map(|server| format!("redis://{user}127.0.0.1:{}", server.port)).collect();
    for server in &servers[1..] {
        let _: () = server.ask(&["ACL", "SETUSER", "clerk", "on", ">secret", "~*", "&*", "+@all", "-evalsha"]);
    }
    let dead = (0..2).map(|_| format!("redis://127.0.0.1:{}", free_port())).collect();
    let cases: [Vec<String>; 3] = [dead, places("nobody:wrong@"), places("clerk:secret@")];
    for others in cases {
        let urls: Vec<_> =
            std::iter::once(up.url()).chain(others).map(|url| format!("{url}?longest_ttl=0")).collect();
        let (locks, name) = (manager(&urls), fresh("r"));
        let error = locks.try_acquire(&name, long()).await.expect_err("a minority is enough");
        assert!(timeout(SLACK, locks.close()).await.is_ok(), "closing waits after {error}");
        assert_eq!(up.get(&name), None, "it is left after {error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_while_a_quorum_is_connected_to() {
    let servers = Server::several(3);
    let mut proxies = Vec::new();
    for server in &servers {
        proxies.push(Proxy::before(server.port).await);
    }
    let urls: Vec<_> = proxies.iter().map(Proxy::url).collect();
    for connected in [false, true] {
        closing_is_not_held_up(&urls, &proxies.iter().collect::<Vec<_>>(), connected).await;
    }
}

/// A cluster of one server, which says that it is where the proxy is.
async fn cluster() -> (Server, Proxy, String) {
    let server = Server::of_a_cluster();
    let proxy = Proxy::before(server.port).await;
    let _: () = server.ask(&["CONFIG", "SET", "cluster-announce-port", &proxy.port.to_string()]);
    let _: () = server.ask(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]);
    let url = proxy.url().replace("redis:", "redis+cluster:");
    (server, proxy, url)
}

/// A primary that its sentinel takes to be where the proxy is.
async fn watched() -> (Server, Server, Proxy, String) {
    let server = Server::start();
    let proxy = Proxy::before(server.port).await;
    let sentinel = Server::sentinel(&format!("sentinel monitor mymaster 127.0.0.1 {} 1\n", proxy.port));
    let url = format!("redis+sentinel://127.0.0.1:{}/mymaster", sentinel.port);
    (server, sentinel, proxy, url)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_while_a_cluster_is_connected_to() {
    let (_server, proxy, url) = cluster().await;
    for connected in [false, true] {
        closing_is_not_held_up(std::slice::from_ref(&url), &[&proxy], connected).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_while_a_primary_is_connected_to() {
    let (_server, _sentinel, proxy, url) = watched().await;
    for connected in [false, true] {
        closing_is_not_held_up(std::slice::from_ref(&url), &[&proxy], connected).await;
    }
}

/// Closing reads what was answered to an attempt that was given up, or whose queue is not turned: it need not wait until
/// nothing can come of it any more. Its connection leads through `proxy`; somebody else holds the lock, so that no release
/// tells what became of it.
async fn closing_reads_the_answer(url: &str, proxy: &Proxy, server: &Server, given_up: bool, connected: bool) {
    let (name, others) = (fresh("r"), polylock::connect(url).lazy().unwrap());
    proxy.heal();
    let held = soon(&others, &name).await;
    let locks = polylock::connect(url).node_timeout(PATIENT).lazy().unwrap();
    let mut queue = Some(CompletionQueue::new().unwrap());
    let turn = |queue: &Option<CompletionQueue<_>>| queue.iter().flat_map(CompletionQueue::turn).collect::<Vec<_>>();
    if connected {
        let id = queue.as_ref().map(|queue| start(queue, &locks, &fresh("first"))).unwrap();
        let mut told = Vec::new();
        eventually(SLACK, "the first is granted", || {
            told.extend(turn(&queue));
            matches!(&told[..], [(of, Ok(_))] if *of == id)
        })
        .await;
    }
    let (gate, acquires) = (Gate::new(), Arc::<AtomicUsize>::default());
    proxy.rule({
        let (gate, acquires) = (Arc::clone(&gate), Arc::clone(&acquires));
        move |request| {
            acquires.fetch_add(is_acquire(request).into(), Ordering::Relaxed);
            if is_acquire(request) { Fate::Hold(Arc::clone(&gate)) } else { Fate::Pass }
        }
    });
    let id = queue.as_ref().map(|queue| start(queue, &locks, &name)).unwrap();
    eventually(SLACK, "it is asked for", || {
        assert!(turn(&queue).is_empty());
        acquires.load(Ordering::Relaxed) > 0
    })
    .await;
    if given_up {
        assert!(queue.take().is_some_and(|queue| queue.cancel(id)));
    }
    gate.open();
    assert!(timeout(SLACK, locks.close()).await.is_ok(), "closing waits");
    assert_eq!(server.get(&name).as_deref(), Some(held.owner_token().as_str()));
    held.release().await.unwrap();
    assert_eq!(server.get(&name), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_while_a_server_answers() {
    let server = Server::start();
    let proxy = Proxy::before(server.port).await;
    closing_reads_the_answer(&proxy.url(), &proxy, &server, true, false).await;
    closing_reads_the_answer(&proxy.url(), &proxy, &server, true, true).await;
    closing_reads_the_answer(&proxy.url(), &proxy, &server, false, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_while_a_cluster_answers() {
    let (server, proxy, url) = cluster().await;
    for connected in [false, true] {
        closing_reads_the_answer(&url, &proxy, &server, true, connected).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_while_a_primary_answers() {
    let (server, _sentinel, proxy, url) = watched().await;
    for connected in [false, true] {
        closing_reads_the_answer(&url, &proxy, &server, true, connected).await;
    }
}
