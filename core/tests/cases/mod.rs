//! The cases, and the stores that they run on.

mod acquire;
mod cancel;
mod inspection;
mod lease;
mod load;
mod modes;
mod observing;
mod store;

use std::{future::Future, time::Duration};

pub use self::{acquire::*, cancel::*, inspection::*, lease::*, load::*, modes::*, observing::*, store::Store};
use polylock::{Acquire, Lease, LockManager};

/// No case takes longer, or it hangs.
const LIMIT: Duration = Duration::from_secs(60);

/// What a busy machine may add to any wait that is measured.
const SLACK: Duration = Duration::from_secs(2);

/// A wait within which also a busy machine answers.
const ANSWERED: Duration = Duration::from_secs(1);

/// Longer than any test: what ends such a lease is not its ttl.
const LONG: Duration = Duration::from_secs(300);

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Runs `case` on a store of its own.
pub async fn run<F: Future<Output = ()>>(store: Store, case: impl FnOnce(Store) -> F) {
    tokio::time::timeout(LIMIT, case(store)).await.expect("it hangs");
}

/// For a lease that lasts for as long as it is not released.
fn long() -> Acquire {
    Acquire::ttl(LONG)
}

/// Acquires what must be free now or very soon.
async fn soon(locks: &LockManager, name: &str) -> Lease {
    match locks.acquire(name, long().wait(Duration::from_secs(20))).await {
        Ok(lease) => lease,
        Err(error) => panic!("it should have become free: {error:?}"),
    }
}

/// Waits until `count` wait for `name` through `locks`.
async fn until_waiting(locks: &LockManager, name: &str, count: usize) {
    while locks.waiting(name).expect("cannot count the waiters") != count {
        tokio::time::sleep(ms(1)).await;
    }
}
