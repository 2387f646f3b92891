//! A server whose wall clock is set while it runs.

use std::{fs::File, os::unix::fs::FileExt, path::Path};

use polylock::LossReason;

use super::*;

/// Sets the clock of a server that has its own to be so far off.
async fn set(server: &Server, seconds: i64) {
    let offset = File::options().write(true).open(Path::new(&server.directory).join("clock")).unwrap();
    offset.write_all_at(&(seconds * 1000).to_ne_bytes(), 0).unwrap();
    let real = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let shown = count(&server.sql().await, "SELECT extract(epoch FROM clock_timestamp())::bigint").await;
    let off = shown - i64::try_from(real).unwrap();
    assert!((off - seconds).abs() < 30, "the shim does not work: off by {off} s");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_grow_and_locks_work_though_the_clock_is_set() {
    let server = Server::start(&["--own-clock"]);
    let (lease_mode, session_mode) = (manager(&server.url), manager(&session(&server)));
    let mut last = [0, 0];
    // On connections that learnt the clock before, from one extreme to the other.
    for seconds in [0, 100, 0, -100, 7200, -7200, 0, 86_400, 0] {
        set(&server, seconds).await;
        for (locks, last) in [&lease_mode, &session_mode].into_iter().zip(&mut last) {
            let lease = locks.try_acquire("r", long()).await.expect("out of reach").expect("not free");
            assert!(lease.fencing_token() > *last, "at {seconds}: {} after {last}", lease.fencing_token());
            *last = lease.fencing_token();
            lease.extend(None).await.expect("not extended");
            assert_eq!(lease.release().await.unwrap(), Release::Released);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_forward_is_a_loss_that_is_told_and_a_step_back_keeps_nobody_out() {
    let server = Server::start(&["--own-clock"]);
    let (locks, others) = (manager(&server.url), manager(&server.url));
    // It frees a lease too early: the holder is told at its next renewal, and the next token is greater.
    let lease = locks.acquire("r", Acquire::ttl(3000 * MS)).await.unwrap();
    set(&server, 60).await;
    let reason = tokio::time::timeout(LIMIT, lease.lost()).await.expect("never told");
    assert_eq!(reason, Some(LossReason::Taken));
    let next = others.acquire("r", long().wait(LIMIT)).await.unwrap();
    assert!(next.fencing_token() > lease.fencing_token());
    next.release().await.unwrap();

    // A step back makes it last longer on the server: the holder goes by its own clock, and frees it then.
    let lease = locks.acquire("r", Acquire::ttl(600 * MS).auto_extend(false)).await.unwrap();
    set(&server, -3600).await;
    let reason = tokio::time::timeout(LIMIT, lease.lost()).await.expect("never told");
    assert_eq!(reason, Some(LossReason::Expired));
    others.acquire("r", long().wait(LIMIT)).await.unwrap().release().await.unwrap();

    // A session's lock ends with the session, whatever the clock shows.
    let session = manager(&session(&server));
    let lease = session.acquire("s", Acquire::ttl(3000 * MS)).await.unwrap();
    for seconds in [86_400, -86_400] {
        set(&server, seconds).await;
        renewed(&lease).await;
    }
    assert_eq!(lease.release().await.unwrap(), Release::Released);
}
