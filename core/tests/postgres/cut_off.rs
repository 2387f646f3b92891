//! What does not answer any more, and says nothing about it.

use super::{
    namespace::{Holder, Lost, Namespace, hold, place, since_boot},
    *,
};

/// The process in the namespace.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holder_in_a_namespace() {
    if let Some(url) = place() {
        hold(manager(&url), 5000 * MS).await;
    }
}

/// The holder's end is cut off: it knows that before the next one holds, which is within 15 s and what a busy machine adds.
async fn cut_off(mode: &str, lost: Lost) {
    let Some(namespace) = Namespace::new(1) else { return };
    let server = Server::start(&["listen_addresses=*"]);
    let url = server.url.replace("127.0.0.1", &namespace.ours[0]) + "?mode=" + mode;
    let holder = Holder::start(&namespace, "cut_off::holder_in_a_namespace", &url);
    let locks = manager(&format!("{}?mode={mode}", server.url));
    assert!(locks.try_acquire("r", long()).await.unwrap().is_none());
    namespace.cut(lost);
    let cut = Instant::now();
    let next = locks.acquire("r", long().wait(LIMIT)).await.unwrap();
    let (freed, now) = (cut.elapsed(), since_boot());
    assert!(next.is_held());
    assert!(freed < Duration::from_secs(15 + 10), "{freed:?}");
    let until = holder.held_until();
    assert!(until < now, "it was held until {until:?}, by the next one at {now:?}");
}

/// At one time, as they only wait.
async fn cut_off_in_each_way(mode: &'static str) {
    let ways = [Lost::All, Lost::Requests, Lost::Replies].map(|lost| tokio::spawn(cut_off(mode, lost)));
    for way in ways {
        way.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_client_that_is_cut_off_in_one_way_or_both_frees_its_session_and_knew_before() {
    cut_off_in_each_way("session").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_client_that_is_cut_off_in_one_way_or_both_frees_its_lease_by_its_ttl() {
    cut_off_in_each_way("lease").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stands_still_costs_the_leases_and_no_more() {
    let mut server = Server::start(&[]);
    let (leases, sessions) = (manager(&server.url), manager(&session(&server)));
    let ttl = Acquire::ttl(3000 * MS);
    let lease = leases.acquire("r", ttl.clone()).await.unwrap();
    let of_session = sessions.acquire("r", ttl.clone()).await.unwrap();
    let (stopped, deadline) = (Instant::now(), lease.remaining());
    tokio::task::block_in_place(|| server.order("pause"));
    // Whoever asks meanwhile is answered in time, and leaves nothing behind.
    let asking = Instant::now();
    let error = leases.acquire("s", ttl.clone().wait(500 * MS)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    let name = server.url.split(['@', '/']).nth(3).unwrap();
    assert!(error.to_string().contains(name), "it names no server: {error}");
    assert!(asking.elapsed() < Duration::from_secs(30));
    assert!(lease.lost().await.is_some() && of_session.lost().await.is_some());
    assert!(stopped.elapsed() + 100 * MS >= deadline.min(2000 * MS));
    tokio::task::block_in_place(|| server.order("resume"));
    for locks in [&leases, &sessions] {
        for name in ["r", "s"] {
            let next = locks.acquire(name, long().wait(LIMIT)).await.unwrap();
            assert!(name == "s" || next.fencing_token() > lease.fencing_token().min(of_session.fencing_token()));
            assert_eq!(next.release().await.unwrap(), Release::Released);
        }
    }
    let sql = server.sql().await;
    let began = Instant::now();
    while count(&sql, OURS).await + count(&sql, "SELECT count(*) FROM polylock_lease WHERE owner IS NOT NULL").await
        > 0
    {
        assert!(began.elapsed() < LIMIT, "a lock is left");
        tokio::time::sleep(10 * MS).await;
    }
}

/// What this process has asked itself, and does not know the end of, is nobody else's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stands_still_is_out_of_reach_and_not_in_others_hands() {
    let mut server = Server::start(&[]);
    for mode in ["lease", "session"] {
        let locks = manager(&format!("{}?mode={mode}", server.url));
        assert_eq!(locks.acquire("r", long()).await.unwrap().release().await.unwrap(), Release::Released);
        tokio::task::block_in_place(|| server.order("pause"));
        // The first outlasts an attempt, whose end the others do not know either.
        for wait in [3000, 200, 200] {
            let asking = Acquire::ttl(3000 * MS).wait(wait * MS);
            let error = locks.acquire("r", asking).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{mode}, {wait} ms: {error}");
        }
        tokio::task::block_in_place(|| server.order("resume"));
        let next = locks.acquire("r", long().wait(LIMIT)).await.unwrap();
        assert_eq!(next.release().await.unwrap(), Release::Released);
    }
}
