//! The tests by what goes wrong, and what they share.

mod cancel;
mod clocks;
mod contention;
mod crowds;
mod cut_off;
mod errors;
mod guarantee;
mod history;
mod holder;
mod host;
mod latency;
mod managed;
mod masks;
#[path = "../namespace/mod.rs"]
mod namespace;
mod once;
mod opening;
mod permits;
mod proxy;
mod restart;
mod rights;
mod server;
mod storms;
mod together;
mod transport;

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use polylock::{Acquire, Instant, Lease, LockManager};

use self::server::Server;

/// Longer than any test: what ends such a lease is not its ttl.
const LONG: Duration = Duration::from_secs(300);

/// What a busy machine may add to any wait that is measured.
const SLACK: Duration = Duration::from_secs(5);

/// How long one server may take in these tests: much less than [`SLACK`], and enough on a busy machine.
const NODE_TIMEOUT: Duration = Duration::from_millis(700);

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn long() -> Acquire {
    Acquire::ttl(LONG)
}

/// A name that no other test uses.
fn fresh(word: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!("fault:{}:{word}", COUNT.fetch_add(1, Ordering::Relaxed))
}

/// A manager whose servers may take [`NODE_TIMEOUT`].
fn manager(urls: &[String]) -> LockManager {
    polylock::connect(urls.to_vec()).node_timeout(NODE_TIMEOUT).lazy().expect("no manager")
}

/// Acquires what must be free now or very soon.
async fn soon(locks: &LockManager, name: &str) -> Lease {
    match locks.acquire(name, long().wait(Duration::from_secs(20))).await {
        Ok(lease) => lease,
        Err(error) => panic!("it should have become free: {error:?}"),
    }
}

/// Waits until `holds`, which must be within `limit`.
async fn eventually(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(Instant::now().since(began) < limit, "still not so after {limit:?}: {what}");
        tokio::time::sleep(ms(5)).await;
    }
}

/// Waits until no server knows a key of `name`, except what must outlive the locks and `foreign` locks.
async fn until_clean(servers: &[&Server], name: &str) {
    eventually(Duration::from_secs(20), "no key is left", || {
        servers.iter().all(|server| server.get(name).is_none_or(|owner| owner == FOREIGN))
    })
    .await;
}

/// What another library's lock holds.
const FOREIGN: &str = "another library's";
