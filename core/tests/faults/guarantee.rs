//! Where a guarantee ends: two hold a lock at one time, and the fencing token keeps the data right. See `docs/faults.md`.

use polylock::{Acquire, ErrorKind, Lease, LossReason};

use super::{
    LONG, SLACK, eventually, fresh, manager, ms,
    server::{Server, urls},
    soon,
};

/// Data that refuses tokens older than one that it has seen, by the script that comes with the library.
struct Guarded {
    server: Server,
    script: &'static str,
}

impl Guarded {
    fn start() -> Self {
        Self { server: Server::start(), script: polylock::fencing::REDIS_CLAIM }
    }

    fn claim(&self, lease: &Lease) -> bool {
        self.server.ask(&["EVAL", self.script, "1", "data", &lease.fencing_token().to_string()])
    }

    fn write(&self, lease: &Lease, value: &str) -> bool {
        self.server.ask(&["EVAL", self.script, "1", "data", &lease.fencing_token().to_string(), value])
    }

    fn value(&self) -> Option<String> {
        self.server.ask(&["HGET", "data", "value"])
    }
}

/// Both believe to hold it; what is written is the later one's all the same.
fn assert_fenced(old: &Lease, new: &Lease) {
    assert!(old.is_held() && new.is_held(), "this was to show that both do");
    let data = Guarded::start();
    assert!(data.claim(old) && data.write(old, "old"));
    assert!(data.claim(new));
    // From here on the old one cannot change what the new one reads.
    assert!(!data.write(old, "late"), "{} came after {}", old.fencing_token(), new.fencing_token());
    assert_eq!(data.value().as_deref(), Some("old"));
    assert!(data.write(new, "new"));
    assert!(!data.claim(old) && !data.write(old, "later"));
    assert_eq!(data.value().as_deref(), Some("new"));
}

/// A fail-over to a replica that had not heard of the lock yet. Here the old primary lives on, cut off from those who
/// promoted the replica: its holder cannot know.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_that_forgot_the_lock() {
    let primary = Server::start();
    let replica = Server::with(&["--replicaof", "127.0.0.1", &primary.port.to_string()], &[]);
    let linked = || primary.ask::<String>(&["INFO", "replication"]).contains("state=online");
    eventually(SLACK, "it replicates", linked).await;
    let name = fresh("r");
    // Earlier tokens are known on both sides.
    soon(&manager(&[primary.url()]), &name).await.release().await.unwrap();
    let _: () = replica.ask(&["REPLICAOF", "NO", "ONE"]);

    let old = soon(&manager(&[primary.url()]), &name).await;
    let new = soon(&manager(&[replica.url()]), &name).await;
    assert_fenced(&old, &new);

    // Who asks for an acknowledgement gets nothing from a primary that has lost its replica.
    let careful = manager(&[format!("{}?replicas=1", primary.url())]);
    let error = careful.try_acquire(fresh("r"), Acquire::ttl(LONG)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
}

/// Three of five servers lose their memory without a restart, so that nobody could notice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_majority_that_was_flushed() {
    let servers = Server::several(5);
    let (one, two, name) = (manager(&urls(&servers)), manager(&urls(&servers)), fresh("r"));
    let old = one.acquire(&name, Acquire::ttl(ms(20_000))).await.unwrap();
    for server in &servers[..3] {
        let _: () = server.ask(&["FLUSHALL"]);
    }
    let new = soon(&two, &name).await;
    assert_fenced(&old, &new);
    // The holder is told at its next renewal, a third of the ttl later at most.
    let reason = tokio::time::timeout(ms(20_000) + SLACK, old.lost()).await.expect("never told");
    assert_eq!(reason, Some(LossReason::Taken));
    assert!(new.is_held());
}
