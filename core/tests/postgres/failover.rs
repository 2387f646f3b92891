//! A standby takes over.

use std::sync::atomic::AtomicBool;

use polylock::{
    LossReason,
    postgres::{CLAIM, CLAIM_TABLE},
};
use tokio::task::block_in_place;

use super::*;

/// A server, and another that follows it.
struct Pair {
    primary: Server,
    standby: Server,
}

impl Pair {
    fn start() -> Self {
        let primary = Server::start(&[]);
        let standby = Server::start(&[&format!("--standby-of={}", primary.admin)]);
        Self { primary, standby }
    }

    /// Both, as an application names them.
    fn url(&self, mode: &str) -> String {
        let (login, address) = self.primary.url.rsplit_once('@').unwrap();
        let (first, database) = address.split_once('/').unwrap();
        let second = self.standby.url.rsplit_once('@').unwrap().1.split_once('/').unwrap().0;
        format!("{login}@{first},{second}/{database}?target_session_attrs=read-write&mode={mode}")
    }

    /// From now on nothing is answered by the primary before it is on the standby's disk.
    async fn synchronize(&mut self) {
        let primary = self.primary.sql().await;
        primary.batch_execute("ALTER SYSTEM SET synchronous_standby_names = '*'").await.unwrap();
        primary.batch_execute("SELECT pg_reload_conf()").await.unwrap();
        eventually(&primary, "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'", 1).await;
        // So it is when somebody waits for a standby that does not answer.
        block_in_place(|| self.standby.order("pause"));
        let writes = self.primary.sql().await;
        let writing = tokio::spawn(async move {
            loop {
                writes.batch_execute("CREATE TABLE written ()").await.unwrap();
                writes.batch_execute("DROP TABLE written").await.unwrap();
            }
        });
        eventually(&primary, "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'", 1).await;
        writing.abort();
        block_in_place(|| self.standby.order("resume"));
    }
}

/// Waits until `query` counts `number`.
async fn eventually(sql: &tokio_postgres::Client, query: &str, number: i64) {
    let began = Instant::now();
    while count(sql, query).await != number {
        assert!(began.elapsed() < LIMIT, "still not {number}: {query}");
        tokio::time::sleep(10 * MS).await;
    }
}

async fn promote(standby: &tokio_postgres::Client) {
    assert!(standby.query_one("SELECT pg_promote()", &[]).await.unwrap().get::<_, bool>(0), "it is not promoted");
}

/// Takes and releases `r` until it is told to stop; no token is smaller than one that was known when it was asked for.
async fn work(locks: LockManager, highest: Arc<AtomicU64>, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::SeqCst) {
        let known = highest.load(Ordering::SeqCst);
        match locks.acquire("r", Acquire::ttl(2000 * MS).wait(LIMIT)).await {
            Ok(lease) => {
                assert!(lease.fencing_token() > known, "{} after {known}", lease.fencing_token());
                highest.fetch_max(lease.fencing_token(), Ordering::SeqCst);
                // There may be no server now.
                let _ = lease.release().await;
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}"),
        }
    }
}

/// The primary is killed under load and never comes back; returns a manager of those that are left, and what was held.
async fn fail_over(pair: &mut Pair, mode: &str) -> (LockManager, polylock::Lease) {
    pair.synchronize().await;
    let url = pair.url(mode);
    let held = manager(&url).acquire("held", long().wait(LIMIT)).await.unwrap();
    let (highest, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let workers: Vec<_> =
        (0..4).map(|_| tokio::spawn(work(manager(&url), Arc::clone(&highest), Arc::clone(&stop)))).collect();
    let grows = async |from: u64| {
        let began = Instant::now();
        while highest.load(Ordering::SeqCst) <= from {
            assert!(began.elapsed() < LIMIT, "nobody is granted anything");
            tokio::time::sleep(MS).await;
        }
        highest.load(Ordering::SeqCst)
    };
    let first = grows(0).await;
    grows(first).await;
    let standby = pair.standby.sql().await;
    block_in_place(|| pair.primary.order("kill"));
    let before = highest.load(Ordering::SeqCst);
    promote(&standby).await;
    let after = grows(before).await;
    grows(after).await;
    stop.store(true, Ordering::SeqCst);
    for worker in workers {
        worker.await.unwrap();
    }
    (manager(&url), held)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_and_tokens_live_through_a_failover_to_a_synchronous_standby() {
    let mut pair = Pair::start();
    let (locks, held) = fail_over(&mut pair, "lease").await;
    let holder = locks.inspect("held").await.unwrap().expect("the grant was forgotten");
    assert_eq!(holder.fencing_token, Some(held.fencing_token()));
    assert!(locks.try_acquire("held", long()).await.unwrap().is_none());
    held.extend(None).await.unwrap();
    assert_eq!(held.release().await.unwrap(), Release::Released);
    let next = locks.acquire("held", long().wait(LIMIT)).await.unwrap();
    assert!(next.fencing_token() > held.fencing_token());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_is_lost_by_a_failover_and_tokens_grow() {
    let mut pair = Pair::start();
    let (locks, held) = fail_over(&mut pair, "session").await;
    assert_eq!(tokio::time::timeout(LIMIT, held.lost()).await.unwrap(), Some(LossReason::Taken));
    let next = locks.acquire("held", long().wait(LIMIT)).await.unwrap();
    assert!(next.fencing_token() > held.fencing_token());
}

/// Where the guarantee ends: the standby had not heard of the lock, and the primary that it followed lives on. Two hold
/// it then; the token keeps the data right.
async fn forgotten(mode: &str) -> (Pair, polylock::Lease, polylock::Lease) {
    let pair = Pair::start();
    let standby = pair.standby.sql().await;
    let locks = manager(&pair.url(mode));
    let earlier = locks.acquire("r", long().wait(LIMIT)).await.unwrap();
    assert_eq!(earlier.release().await.unwrap(), Release::Released);
    // The standby knows as much, and nothing of what comes.
    let written = pair.primary.sql().await.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await.unwrap();
    let replayed = format!("SELECT count(*) WHERE pg_last_wal_replay_lsn() >= '{}'", written.get::<_, &str>(0));
    eventually(&standby, &replayed, 1).await;
    standby.batch_execute("ALTER SYSTEM SET primary_conninfo = ''").await.unwrap();
    standby.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    eventually(&standby, "SELECT count(*) FROM pg_stat_wal_receiver", 0).await;

    let old = locks.acquire("r", long().wait(LIMIT)).await.unwrap();
    promote(&standby).await;
    let new = manager(&format!("{}?mode={mode}", pair.standby.url)).acquire("r", long().wait(LIMIT)).await.unwrap();
    assert!(old.is_held() && new.is_held(), "this was to show that both do");
    assert!(new.fencing_token() > old.fencing_token(), "{} after {}", new.fencing_token(), old.fencing_token());
    standby.batch_execute(CLAIM_TABLE).await.unwrap();
    let claim = async |lease: &polylock::Lease| {
        standby.execute(CLAIM, &[&"r", &i64::try_from(lease.fencing_token()).unwrap()]).await.is_ok()
    };
    assert!(claim(&old).await && claim(&new).await && !claim(&old).await && claim(&new).await);
    (pair, old, new)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_that_lagged_behind_forgets_a_lease_and_the_token_catches_it() {
    let (mut pair, old, new) = forgotten("lease").await;
    block_in_place(|| pair.primary.order("kill"));
    // The next renewal goes to the server that is left, where another holds it.
    let began = Instant::now();
    while old.extend(None).await.is_ok() || old.loss().is_none() {
        assert!(began.elapsed() < LIMIT, "it is never told");
    }
    assert_eq!(old.loss(), Some(LossReason::Taken));
    assert!(new.is_held());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_lives_as_long_as_the_server_that_was_replaced() {
    let (mut pair, old, new) = forgotten("session").await;
    block_in_place(|| pair.primary.order("kill"));
    assert_eq!(tokio::time::timeout(LIMIT, old.lost()).await.unwrap(), Some(LossReason::Taken));
    assert!(new.is_held());
}
