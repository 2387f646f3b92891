//! Connections that are cut, silent or never there.

use std::{
    net::TcpListener,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use polylock::{Acquire, ErrorKind, LockManager, LossReason, Release};

use super::{LONG, acquire, connect, contenders, name, proxy::proxy, until, url};

/// Locks and unlocks through a proxy that breaks each creation, while somebody else does the same without.
async fn cut_creations(rounds: u64) {
    let (through, rules) = proxy();
    let (cut, other, name) = (connect(&through), connect(&url()), name());
    let inside = AtomicBool::new(false);
    let mut last_token = 0;
    for round in 0..rounds {
        rules.cut_after_create.store(true, Ordering::SeqCst);
        let enter = async |locks: &LockManager| {
            let lease = acquire(locks, &name).await;
            assert!(!inside.swap(true, Ordering::SeqCst), "two holders");
            let token = lease.fencing_token();
            tokio::task::yield_now().await;
            inside.store(false, Ordering::SeqCst);
            assert_eq!(lease.release().await.unwrap(), Release::Released);
            token
        };
        let tokens = tokio::join!(enter(&cut), enter(&other));
        for token in [tokens.0.min(tokens.1), tokens.0.max(tokens.1)] {
            assert!(token > last_token, "round {round}");
            last_token = token;
        }
    }
    assert_eq!(rules.cuts.load(Ordering::SeqCst), rounds);
    // While the sessions live: closing them would delete all the same.
    let probe = cut.acquire(&name, Acquire::ttl(LONG)).await.expect("not acquired");
    until("an orphan is left", || contenders(&name).len() == 1).await;
    probe.release().await.unwrap();
    assert_eq!(contenders(&name), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_creation_whose_answer_is_lost_leaves_no_contender() {
    const LANES: usize = 5;
    const ROUNDS: u64 = 100;
    futures_util::future::join_all((0..LANES).map(|_| tokio::spawn(cut_creations(ROUNDS))))
        .await
        .into_iter()
        .for_each(|lane| lane.expect("a lane failed"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_at_any_request_leaves_no_contender() {
    let (through, rules) = proxy();
    let (cut, other) = (connect(&through), connect(&url()));
    for passes_on in [false, true] {
        rules.passes_on.store(passes_on, Ordering::SeqCst);
        let mut at = 1;
        loop {
            let name = name();
            let cuts = rules.cuts.load(Ordering::SeqCst);
            rules.cut_at.store(at, Ordering::SeqCst);
            // It waits in line, too: for somebody who leaves when it is seen there, or right after the cut.
            let before = acquire(&other, &name).await;
            let waiting = tokio::spawn({
                let (cut, name) = (cut.clone(), name.clone());
                async move { acquire(&cut, &name).await }
            });
            until("it does not get in line", || contenders(&name).len() > 1).await;
            before.release().await.unwrap();
            let lease = waiting.await.unwrap();
            let token = lease.fencing_token();
            assert!(token > before.fencing_token());
            // The answer to it may be what is cut; then the background has to see to it.
            lease.release().await.unwrap();
            let next = acquire(&other, &name).await;
            assert!(next.fencing_token() > token);
            next.release().await.unwrap();
            until("an orphan is left", || contenders(&name).is_empty()).await;
            let uncut = rules.cut_at.swap(0, Ordering::SeqCst) > 0;
            if uncut {
                break;
            }
            assert_eq!(rules.cuts.load(Ordering::SeqCst), cuts + 1);
            at += 1;
        }
        assert!(at > 5, "there are more requests than that: {at}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_gives_up_at_any_point_leaves_no_contender() {
    let (locks, other, free, held) = (connect(&url()), connect(&url()), name(), name());
    let holder = acquire(&other, &held).await;
    for name in [&free, &held] {
        for polls in 0..12 {
            for pause in [0, 1, 5, 20] {
                let mut acquiring = Box::pin(locks.acquire(name.as_str(), Acquire::ttl(LONG).wait(LONG)));
                for _ in 0..polls {
                    let polled = futures_util::future::poll_immediate(&mut acquiring).await;
                    if let Some(acquired) = polled {
                        acquired.expect("not acquired").release().await.unwrap();
                        acquiring = Box::pin(locks.acquire(name.as_str(), Acquire::ttl(LONG).wait(LONG)));
                    }
                    tokio::time::sleep(Duration::from_micros(50 * pause)).await;
                }
                drop(acquiring);
            }
        }
    }
    until("a contender is left", || contenders(&free).is_empty() && contenders(&held).len() == 1).await;
    holder.extend(None).await.expect("it was never anybody else's");
    assert_eq!(holder.release().await.unwrap(), Release::Released);
}

/// A contender does not end with its ttl: it is deleted for as long as that takes, while the session lives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silence_longer_than_the_ttl_leaves_no_contender() {
    let short = || Acquire::ttl(Duration::from_secs(1)).auto_extend(false);
    let (through, rules) = proxy();
    let locks = connect(&format!("{through}?session_timeout=4"));
    let (kept, lapsed, released) = (name(), name(), name());
    let session = acquire(&locks, &kept).await;
    let lapses = locks.acquire(&lapsed, short()).await.unwrap();
    let releases = locks.acquire(&released, short()).await.unwrap();
    rules.silent.store(true, Ordering::SeqCst);
    let asked = locks.clone();
    let inspecting = tokio::spawn(async move { asked.inspect("r").await });
    let waited = locks.acquire(&name(), Acquire::ttl(LONG).wait(Duration::from_millis(100))).await;
    assert_eq!(releases.release().await.unwrap(), Release::Unknown);
    assert_eq!(lapses.lost().await, Some(LossReason::Expired));
    // Which takes half of the session's timeout.
    until("the connection is not given up", || rules.ended.load(Ordering::SeqCst) > 0).await;
    let host = through.split('/').nth(2).unwrap();
    for error in [waited.unwrap_err(), inspecting.await.unwrap().unwrap_err()] {
        assert!(error.to_string().contains(host), "it names no server: {error}");
    }
    rules.silent.store(false, Ordering::SeqCst);
    until("a contender is left", || contenders(&lapsed).is_empty() && contenders(&released).is_empty()).await;
    assert!(session.is_held() && contenders(&kept).len() == 1, "the session has ended, and showed nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_cut_is_no_loss() {
    let (through, rules) = proxy();
    let (locks, name) = (connect(&through), name());
    let lease = acquire(&locks, &name).await;
    for _ in 0..10 {
        rules.cut_all();
        lease.extend(None).await.or_else(|error| if error.is_retryable() { Ok(()) } else { Err(error) }).unwrap();
    }
    assert!(lease.is_held());
    while lease.extend(None).await.is_err() {
        assert!(lease.is_held());
    }
    assert_eq!(lease.release().await.unwrap(), Release::Released);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_ensemble_is_unavailable_in_time() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("no port");
    let silent = listener.local_addr().expect("no address");
    let refused = TcpListener::bind("127.0.0.1:0").expect("no port").local_addr().expect("no address");
    for hosts in [refused.to_string(), silent.to_string(), format!("{refused},{silent}")] {
        let locks = connect(&format!("zookeeper://{hosts}"));
        let asked = Instant::now();
        let error = locks.acquire("r", Acquire::ttl(LONG).wait(Duration::from_millis(300))).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert!(hosts.split(',').any(|host| error.to_string().contains(host)), "it names no server: {error}");
        assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
        assert_eq!(locks.try_acquire("r", Acquire::ttl(LONG)).await.unwrap_err().kind(), ErrorKind::Unavailable);
    }
}
