//! Sessions that end: cut off, killed, slept through.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use polylock::{Acquire, ErrorKind, Lease, LossReason, Release};

use super::{LONG, acquire, connect, name, proxy::proxy, url};

/// Hands out when and why the lease was lost.
pub fn told(lease: &Lease) -> tokio::sync::oneshot::Receiver<(LossReason, Instant)> {
    let (tell, told) = tokio::sync::oneshot::channel();
    lease.on_lost(move |reason| _ = tell.send((reason, Instant::now())));
    told
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_cut_off_is_told_before_the_next_gets_in() {
    let (through, rules) = proxy();
    let (cut, other, name) = (connect(&format!("{through}?session_timeout=2")), connect(&url()), name());
    let lease = acquire(&cut, &name).await;
    let told = told(&lease);
    rules.silent.store(true, Ordering::SeqCst);
    let next = acquire(&other, &name).await;
    let entered = Instant::now();
    assert!(!lease.is_held());
    let (reason, at) = told.await.expect("not told");
    assert_eq!(reason, LossReason::Expired);
    assert!(at <= entered, "{:?} too late", at - entered);
    assert!(next.fencing_token() > lease.fencing_token());
    assert!(lease.remaining().is_zero());
    assert_eq!(lease.extend(None).await.unwrap_err().kind(), ErrorKind::Lost);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_holder_is_told_at_once_when_its_session_is_killed() {
    let (through, rules) = proxy();
    // Long enough that nothing but the server can have told in time.
    let (killed, other, name) = (connect(&format!("{through}?session_timeout=60")), connect(&url()), name());
    for _ in 0..3 {
        let lease = acquire(&killed, &name).await;
        let (told, began) = (told(&lease), Instant::now());
        rules.kill_session();
        let (reason, at) = told.await.expect("not told");
        assert_eq!(reason, LossReason::Taken);
        assert!(at - began < Duration::from_secs(15), "{:?}", at - began);
        assert!(!lease.is_held());
        let next = acquire(&other, &name).await;
        assert!(next.fencing_token() > lease.fencing_token());
        assert_eq!(lease.release().await.unwrap(), Release::NotHeld);
        next.extend(None).await.expect("it is another session's");
        assert_eq!(next.release().await.unwrap(), Release::Released);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_session_is_kept_and_so_is_one_with_a_lease_that_nobody_extends() {
    let locks = connect(&format!("{}?session_timeout=1", url()));
    let name = name();
    let first = acquire(&locks, &name).await;
    let token = first.fencing_token();
    first.release().await.unwrap();
    drop(first);
    // Three times as long as the session lasts without its pings.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let second = locks.try_acquire(&name, Acquire::ttl(LONG).auto_extend(false)).await.unwrap().expect("it is free");
    assert!(second.fencing_token() > token);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(second.is_held(), "nothing extends it, and its session is kept all the same");
    assert_eq!(second.release().await.unwrap(), Release::Released);
}
