//! Connections that are still being opened when whoever asked for them has gone.

use polylock::{
    Lease, LockManager, Result,
    host::{CompletionQueue, OperationId, Started},
};

use super::{SLACK, cancel::cut_short, eventually, fresh, long, manager, server::Server};

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
