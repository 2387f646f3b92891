//! A server that is killed.

use super::*;

/// Counts the rows that no statement writes.
pub(super) const HALVES: &str = "SELECT count(*) FROM polylock_lease WHERE token IS NULL OR expires_at IS NULL
    OR owner IS NOT NULL AND (acquired_at IS NULL OR host IS NULL OR pid IS NULL)";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_grow_and_grants_stay_though_the_server_is_killed_under_load() {
    // Only what the statements ask for themselves is then on the disk.
    let mut server = Server::start(&["synchronous_commit=off", "wal_writer_delay=10s"]);
    let highest = Arc::new(AtomicU64::new(0));
    for round in 0..rounds(3) {
        let locks = manager(&server.url);
        let workers: Vec<_> = (0..4)
            .map(|_| {
                let (locks, highest) = (locks.clone(), Arc::clone(&highest));
                tokio::spawn(async move {
                    loop {
                        let Ok(lease) = locks.acquire("r", long().wait(LIMIT)).await else { return };
                        let before = highest.fetch_max(lease.fencing_token(), Ordering::SeqCst);
                        assert!(lease.fencing_token() > before, "{} after {before}", lease.fencing_token());
                        if lease.release().await.unwrap() != Release::Released {
                            return;
                        }
                    }
                })
            })
            .collect();
        let held = manager(&server.url).acquire(&format!("held {round}"), long()).await.unwrap();
        let before = highest.load(Ordering::SeqCst);
        while highest.load(Ordering::SeqCst) == before {
            tokio::time::sleep(MS).await;
        }
        let last = manager(&server.url).acquire(&format!("last {round}"), long()).await.unwrap();
        tokio::task::block_in_place(|| server.order("kill"));
        workers.iter().for_each(tokio::task::JoinHandle::abort);
        tokio::task::block_in_place(|| server.order("start"));
        let locks = manager(&server.url);
        for (lease, name) in [(&held, "held"), (&last, "last")] {
            let holder = locks.inspect(&format!("{name} {round}")).await.unwrap().expect("the grant was forgotten");
            assert_eq!(holder.fencing_token, Some(lease.fencing_token()));
        }
        assert_eq!(count(&server.sql().await, HALVES).await, 0, "a row is half-written");
        // The lock that was on its way may be left to its ttl: take it by force.
        let sql = server.sql().await;
        sql.execute("UPDATE polylock_lease SET owner = NULL WHERE key = 'r'", &[]).await.unwrap();
        for worker in workers {
            if let Err(error) = worker.await {
                assert!(error.is_cancelled(), "{error}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn session_tokens_grow_though_the_server_is_killed() {
    let mut server = Server::start(&["synchronous_commit=off", "wal_writer_delay=10s"]);
    let locks = manager(&session(&server));
    let mut last = 0;
    for _ in 0..rounds(3) {
        for _ in 0..5 {
            let lease = locks.acquire("r", long().wait(LIMIT)).await.unwrap();
            assert!(lease.fencing_token() > last);
            last = lease.fencing_token();
            lease.release().await.unwrap();
        }
        let held = locks.acquire("r", long().wait(LIMIT)).await.unwrap();
        last = held.fencing_token();
        tokio::task::block_in_place(|| server.order("kill"));
        assert_eq!(tokio::time::timeout(LIMIT, held.lost()).await.unwrap(), Some(polylock::LossReason::Taken));
        tokio::task::block_in_place(|| server.order("start"));
        let kept: i64 = count(&server.sql().await, "SELECT token FROM polylock_session WHERE key = 'r'").await;
        assert_eq!(u64::try_from(kept).unwrap(), last, "the token was forgotten");
    }
}
