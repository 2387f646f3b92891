//! Connections that are still being opened when whoever asked for them has gone.

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
    server::Server,
    soon,
};

/// How long a server may take that is waited for in vain: that is much longer than [`SLACK`].
const PATIENT: Duration = Duration::from_secs(60);

/// Starts what has to open a connection first.
fn start(queue: &CompletionQueue<Result<Lease>>, locks: &LockManager, name: &str) -> OperationId {
    let (locks, name, driver) = (locks.clone(), name.to_owned(), queue.driver());
    match queue.start(async move { locks.acquire_by(&name, long(), &driver).await }) {
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_while_a_cluster_is_connected_to() {
    let server = Server::of_a_cluster();
    let proxy = Proxy::before(server.port).await;
    let _: () = server.ask(&["CONFIG", "SET", "cluster-announce-port", &proxy.port.to_string()]);
    let _: () = server.ask(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]);
    let url = proxy.url().replace("redis:", "redis+cluster:");
    for connected in [false, true] {
        closing_is_not_held_up(std::slice::from_ref(&url), &[&proxy], connected).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_while_a_primary_is_connected_to() {
    let server = Server::start();
    let proxy = Proxy::before(server.port).await;
    let sentinel = Server::sentinel(&format!("sentinel monitor mymaster 127.0.0.1 {} 1\n", proxy.port));
    let url = format!("redis+sentinel://127.0.0.1:{}/mymaster", sentinel.port);
    for connected in [false, true] {
        closing_is_not_held_up(std::slice::from_ref(&url), &[&proxy], connected).await;
    }
}
