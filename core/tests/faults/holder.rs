//! What a holder is told when its server fails it, and what the next holder gets.

use std::time::Duration;

use polylock::{Acquire, Instant, Lease, LockManager, LossReason, Release, Target};

use super::{
    SLACK, fresh, long, manager, ms,
    server::{Server, urls},
    soon, until_clean,
};

/// Waits for the lost signal, which must not come later than the deadline.
async fn lost_in_time(lease: &Lease) -> LossReason {
    let (told, heard) = tokio::sync::oneshot::channel();
    lease.on_lost(move |reason| {
        let _ = told.send((reason, Instant::now()));
    });
    let (reason, at) = tokio::time::timeout(Duration::from_secs(20), heard).await.expect("never told").unwrap();
    // The deadline is the last one that there was; a thread may start late on a busy machine.
    assert!(at < lease.deadline().after(ms(500)), "told {:?} late", at.since(lease.deadline()));
    assert_eq!((lease.is_held(), lease.loss(), lease.remaining()), (false, Some(reason), Duration::ZERO));
    assert_eq!(lease.release().await.unwrap(), Release::NotHeld);
    reason
}

fn short() -> Acquire {
    Acquire::ttl(ms(1500))
}

/// Takes a lease that is renewed while all is well.
async fn renewed(locks: &LockManager, name: &str) -> Lease {
    let lease = locks.acquire(name, short()).await.unwrap();
    let first = lease.deadline();
    super::eventually(SLACK, "it is renewed", || lease.deadline() > first).await;
    lease
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_is_stopped_past_the_ttl() {
    let server = Server::start();
    let (one, two, name) = (manager(&[server.url()]), manager(&[server.url()]), fresh("r"));
    let lease = renewed(&one, &name).await;
    server.stop();
    assert_eq!(lost_in_time(&lease).await, LossReason::Expired);
    server.resume();
    // The renewals that were on their way must not bring it back.
    let next = soon(&two, &name).await;
    assert!(next.fencing_token() > lease.fencing_token());
    assert_eq!(server.get(&name).as_deref(), Some(next.owner_token().as_str()));
    assert_eq!(next.release().await.unwrap(), Release::Released);
    until_clean(&[&server], &name).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_forgets_everything() {
    let server = Server::start();
    let (one, two, name) = (manager(&[server.url()]), manager(&[server.url()]), fresh("r"));
    let lease = renewed(&one, &name).await;
    server.kill();
    server.restart();
    assert_eq!(lost_in_time(&lease).await, LossReason::Taken);
    let next = soon(&two, &name).await;
    // Even its memory of the tokens is gone.
    assert!(next.fencing_token() > lease.fencing_token());
    assert_eq!(next.release().await.unwrap(), Release::Released);

    let lease = renewed(&one, &name).await;
    let _: () = server.ask(&["FLUSHALL"]);
    assert_eq!(lost_in_time(&lease).await, LossReason::Taken);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_key_is_deleted_or_taken() {
    let server = Server::start();
    let (locks, name) = (manager(&[server.url()]), fresh("r"));
    let lease = renewed(&locks, &name).await;
    let _: i64 = server.ask(&["DEL", &name]);
    assert_eq!(lost_in_time(&lease).await, LossReason::Taken);

    let lease = renewed(&locks, &name).await;
    let _: () = server.ask(&["SET", &name, super::FOREIGN]);
    assert_eq!(lost_in_time(&lease).await, LossReason::Taken);
    // Nothing of ours touches the other's.
    assert_eq!(server.get(&name).as_deref(), Some(super::FOREIGN));
    assert_eq!(server.ask::<i64>(&["PTTL", &name]), -1);

    // Taken, and noticed by the release only.
    let other = fresh("r");
    let lease = locks.acquire(&other, long()).await.unwrap();
    let _: () = server.ask(&["SET", &other, super::FOREIGN]);
    assert_eq!(lease.release().await.unwrap(), Release::NotHeld);
    assert_eq!(server.get(&other).as_deref(), Some(super::FOREIGN));
}

/// Somebody removed the ttl of a lock: the next renewal restores it, and a crash would free it again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_ttl_is_restored() {
    let server = Server::start();
    let (locks, name) = (manager(&[server.url()]), fresh("r"));
    let lease = renewed(&locks, &name).await;
    assert_eq!(server.ask::<i64>(&["PERSIST", &name]), 1);
    super::eventually(SLACK, "it has a ttl", || server.ask::<i64>(&["PTTL", &name]) > 0).await;
    assert!(lease.is_held());
}

/// Connections are cut again and again while locks are taken, renewed and released.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_connections_go_unnoticed() {
    let server = Server::start();
    let (one, two) = (manager(&[server.url()]), manager(&[server.url()]));
    let held = renewed(&one, &fresh("held")).await;
    let renewals = held.deadline();
    let (name, mut last) = (fresh("r"), 0);
    for round in 0..60 {
        server.cut_clients();
        let lease = one.try_acquire(&name, long()).await.expect("out of reach").expect("not free");
        assert!(lease.fencing_token() > last);
        last = lease.fencing_token();
        if round % 3 == 0 {
            server.cut_clients();
        }
        assert!(two.try_acquire(&name, long()).await.expect("out of reach").is_none());
        if round % 2 == 0 {
            server.cut_clients();
        }
        lease.extend(None).await.expect("not extended");
        server.cut_clients();
        // Its answer may have been cut off after it was carried out.
        assert_ne!(lease.release().await.unwrap(), Release::NotHeld);
        super::eventually(SLACK, "it is free", || server.get(&name).is_none()).await;
    }
    super::eventually(SLACK, "it is renewed", || held.deadline() > renewals).await;
    assert!(held.is_held());
}

/// A waiter whose connections are cut while it waits gets the lock when it is free.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiter_survives_cut_connections_and_restarts() {
    let server = Server::start();
    let (one, two, name) = (manager(&[server.url()]), manager(&[server.url()]), fresh("r"));
    let holder = soon(&one, &name).await;
    let waiter = tokio::spawn({
        let (two, name) = (two.clone(), name.clone());
        async move { two.acquire(&name, long()).await }
    });
    for _ in 0..10 {
        tokio::time::sleep(ms(20)).await;
        server.cut_clients();
    }
    assert!(!waiter.is_finished());
    assert_ne!(holder.release().await.unwrap(), Release::NotHeld);
    let lease = tokio::time::timeout(SLACK, waiter).await.expect("never woken").unwrap().unwrap();

    let waiter = tokio::spawn({
        let (one, name) = (one.clone(), name.clone());
        async move { one.acquire(&name, long()).await }
    });
    while one.waiting(&name).unwrap() == 0 {
        tokio::task::yield_now().await;
    }
    server.kill();
    tokio::time::sleep(ms(100)).await;
    server.restart(); // without the lock
    let next = tokio::time::timeout(SLACK, waiter).await.expect("never woken").unwrap().unwrap();
    assert!(next.fencing_token() > lease.fencing_token());
}

/// Another library frees its lock and tells nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_release_is_found_soon() {
    let servers = Server::several(3);
    for nodes in [1, 3] {
        let locks = manager(&urls(&servers[..nodes]));
        let mut fastest = Duration::MAX;
        for _ in 0..4 {
            let name = fresh("r");
            for server in &servers[..nodes] {
                let _: () = server.ask(&["SET", &name, super::FOREIGN]); // without a ttl
            }
            let waiter = tokio::spawn({
                let (locks, name) = (locks.clone(), name.clone());
                async move { locks.acquire(&name, long()).await }
            });
            tokio::time::sleep(ms(300)).await;
            assert!(!waiter.is_finished());
            let freed = Instant::now();
            for server in &servers[..nodes] {
                let _: i64 = server.ask(&["DEL", &name]);
            }
            let lease = waiter.await.unwrap().unwrap();
            fastest = fastest.min(Instant::now().since(freed));
            lease.release().await.unwrap();
        }
        // The best of some: the machine is busy.
        assert!(fastest < ms(250 + 150), "{nodes} nodes: {fastest:?}");
    }
}

/// Waiters of python-redis-lock block on a list, which each release fills: ours as well, where it has their prefix.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_blocks_on_a_list_is_woken() {
    let server = Server::start();
    let locks = polylock::connect(server.url()).prefix("lock:").lazy().unwrap();
    for broken in [false, true] {
        let name = fresh("r");
        let lease = soon(&locks, &name).await;
        let (url, list) = (server.url(), format!("lock-signal:{name}"));
        let waiter = tokio::task::spawn_blocking(move || {
            let mut connection = redis::Client::open(url).unwrap().get_connection().unwrap();
            redis::cmd("BLPOP").arg(&[&list, "60"]).query::<(String, String)>(&mut connection)
        });
        let blocks = || server.ask::<String>(&["CLIENT", "LIST"]).contains("cmd=blpop");
        super::eventually(SLACK, "it blocks", blocks).await;
        if broken {
            let holder = locks.inspect(&name).await.unwrap().expect("it is held");
            assert!(locks.break_lock(&name, &holder).await.unwrap());
        } else {
            assert_eq!(lease.release().await.unwrap(), Release::Released);
        }
        let woken = tokio::time::timeout(SLACK, waiter).await.expect("never woken").unwrap();
        assert_eq!(woken.unwrap().0, format!("lock-signal:{name}"));
        // Nobody waits: it is gone soon.
        soon(&locks, &name).await.release().await.unwrap();
        super::eventually(SLACK, "no key is left", || server.keys().is_empty()).await;
    }
    // Nobody else's releases leave one.
    let locks = manager(&[server.url()]);
    assert_eq!(soon(&locks, "lock:r").await.release().await.unwrap(), Release::Released);
    assert_eq!(server.keys(), Vec::<String>::new());
}

/// With one node of three down, or without its key, waiters sleep and are woken as with all of them up.
async fn waits_without_polling(only_forgets: bool) {
    let servers = Server::several(3);
    let (one, two, name) = (manager(&urls(&servers)), manager(&urls(&servers)), fresh("r"));
    let holder = soon(&one, &name).await;
    super::eventually(SLACK, "all hold", || servers.iter().all(|server| server.get(&name).is_some())).await;
    if only_forgets {
        // Each of the waiter's attempts gets this one, and gives it back.
        let _: () = servers[0].ask(&["FLUSHALL"]);
    } else {
        servers[0].kill();
    }
    let waiter = tokio::spawn({
        let (two, name) = (two.clone(), name.clone());
        async move { two.acquire(&name, long()).await }
    });
    tokio::time::sleep(ms(500)).await;
    let before = servers[1].scripts();
    let began = Instant::now();
    tokio::time::sleep(ms(2000)).await;
    let (calls, quarters) = (servers[1].scripts() - before, Instant::now().since(began).as_millis() / 200 + 3);
    assert!(u128::from(calls) < quarters * 3, "{calls} scripts while it waited");
    assert_eq!(holder.release().await.unwrap(), Release::Released);
    tokio::time::timeout(SLACK, waiter).await.expect("never woken").unwrap().unwrap().release().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_node_does_not_turn_waiting_into_polling() {
    waits_without_polling(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forgetful_node_does_not_turn_waiting_into_polling() {
    waits_without_polling(true).await;
}

/// A node that lost the key gets it back by a renewal, and the lease then outlives another node's failure.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_key_is_put_back() {
    let servers = Server::several(3);
    // At once, and not only when what it forgot must have expired.
    let urls: Vec<String> = urls(&servers).into_iter().map(|url| url + "?longest_ttl=0").collect();
    let (locks, name) = (manager(&urls), fresh("r"));
    let lease = locks.acquire(&name, Acquire::ttl(Duration::from_secs(3))).await.unwrap();
    for lost in 0..3 {
        let held = |server: &Server| server.get(&name).as_deref() == Some(lease.owner_token().as_str());
        super::eventually(SLACK, "all hold", || servers.iter().all(held)).await;
        servers[lost].kill();
        servers[lost].restart();
        super::eventually(SLACK, "it is put back", || held(&servers[lost])).await;
        // It counts from the next round on.
        let deadline = lease.deadline();
        super::eventually(SLACK, "it is renewed", || lease.deadline() > deadline).await;
    }
    assert!(lease.is_held());
    assert_eq!(lease.release().await.unwrap(), Release::Released);
    until_clean(&servers.iter().collect::<Vec<_>>(), &name).await;
}

/// Whatever the caller left to the defaults: a holder that dies frees the lock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_lock_is_without_a_ttl() {
    let server = Server::start();
    let locks = manager(&[server.url()]);
    let names = [fresh("alone"), fresh("shared"), fresh("permit"), fresh("one"), fresh("other")];
    let [alone, shared, permit, one, other] = &names;
    let targets = [
        Target::from(alone.as_str()),
        Target::shared(shared),
        Target::permit(permit, 2),
        Target::all([one.clone(), other.clone()]),
    ];
    let mut leases = Vec::new();
    for target in targets {
        leases.push(locks.acquire(target, Acquire::default()).await.unwrap());
    }
    for name in &names {
        let left: i64 = server.ask(&["PTTL", name]);
        assert!((1..=30_000).contains(&left), "{name}: {left} ms");
    }
}
