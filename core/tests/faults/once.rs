//! Requests that arrive late, twice or not at all, and what their senders are told.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use polylock::{ErrorKind, Release};

use super::{
    NODE_TIMEOUT, SLACK, eventually, fresh, long, manager, ms,
    proxy::{Door, Fate, Gate, Proxy, is_acquire, is_script},
    server::Server,
    soon, until_clean,
};

/// Teaches the server the scripts, so that the next request is the one that counts.
async fn warm(server: &Server) {
    soon(&manager(&[server.url()]), &fresh("warm")).await.release().await.unwrap();
}

/// Has `fate` befall the first request that `which` picks, once.
fn once(which: fn(&[Vec<u8>]) -> bool, fate: Fate) -> impl Fn(&[Vec<u8>]) -> Fate {
    let count = AtomicUsize::new(0);
    move |request| {
        if which(request) && count.fetch_add(1, Ordering::Relaxed) == 0 { fate.clone() } else { Fate::Pass }
    }
}

fn is_release(request: &[Vec<u8>]) -> bool {
    is_script(request) && request.len() == 6 && request[5].starts_with(b"polylock:wake:")
}

async fn held_up(slow_login: bool) {
    let server = Server::start();
    warm(&server).await;
    let proxy = Proxy::before(server.port).await;
    let (gate, name) = (Gate::new(), fresh("r"));
    if slow_login {
        // What the manager learns of the server's clock is then as uncertain as this is long.
        proxy.rule(|request| if request[0] == b"TIME" { Fate::Delay(ms(400)) } else { Fate::Pass });
        let other = manager(&[proxy.url()]);
        assert!(other.inspect("x").await.is_ok());
    }
    let locks = manager(&[proxy.url()]);
    if slow_login {
        assert!(locks.inspect("x").await.is_ok());
    }
    let held = Arc::clone(&gate);
    proxy.rule(once(is_acquire, Fate::Hold(held)));
    let error = locks.try_acquire(&name, long()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    gate.open();
    gate.delivered.notified().await;
    // The server has carried it out: nothing may have come of it, not even for a moment.
    assert_eq!(server.get(&name), None);
    until_clean(&[&server], &name).await;
    let lease = soon(&locks, &name).await;
    assert_eq!(lease.release().await.unwrap(), Release::Released);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_arrives_too_late_does_nothing() {
    held_up(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_arrives_too_late_does_nothing_though_the_log_in_was_slow() {
    held_up(true).await;
}

/// The attempt was dropped, and its request arrives within its time: it is undone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_arrives_after_its_sender_left_is_undone() {
    let server = Server::start();
    warm(&server).await;
    let proxy = Proxy::before(server.port).await;
    let (gate, name) = (Gate::new(), fresh("r"));
    proxy.rule(once(is_acquire, Fate::Hold(Arc::clone(&gate))));
    let locks = polylock::connect(proxy.url()).node_timeout(Duration::from_secs(3)).lazy().unwrap();
    let attempt = tokio::spawn({
        let (locks, name) = (locks.clone(), name.clone());
        async move { locks.try_acquire(&name, long()).await.map(drop) }
    });
    gate.arrived.notified().await;
    attempt.abort();
    assert!(attempt.await.unwrap_err().is_cancelled());
    gate.open();
    gate.delivered.notified().await;
    until_clean(&[&server], &name).await;
    soon(&locks, &name).await.release().await.unwrap();
}

/// What frees finds the grant of the first request, whose answer was lost, while the second is on its way yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_was_sent_again_arrives_after_its_sender_left_and_is_undone() {
    let server = Server::start();
    warm(&server).await;
    let proxy = Proxy::before(server.port).await;
    let locks = polylock::connect(proxy.url()).node_timeout(Duration::from_secs(10)).lazy().unwrap();
    // The first try is made on a connection that is open.
    soon(&locks, &fresh("first")).await.release().await.unwrap();
    let (gate, name, count) = (Gate::new(), fresh("r"), AtomicUsize::new(0));
    let second = Arc::clone(&gate);
    proxy.rule(move |request| match is_acquire(request).then(|| count.fetch_add(1, Ordering::Relaxed)) {
        Some(0) => Fate::CutReply(0),
        Some(1) => Fate::Hold(Arc::clone(&second)),
        _ => Fate::Pass,
    });
    let attempt = tokio::spawn({
        let (locks, name) = (locks.clone(), name.clone());
        async move { locks.try_acquire(&name, long()).await.map(drop) }
    });
    gate.arrived.notified().await;
    assert!(server.get(&name).is_some());
    attempt.abort();
    assert!(attempt.await.unwrap_err().is_cancelled());
    eventually(SLACK, "the first grant is given back", || server.get(&name).is_none()).await;
    gate.open();
    gate.delivered.notified().await;
    until_clean(&[&server], &name).await;
}

/// Cuts the connection of the first release in one way after another: before it was carried out, or after that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_is_never_called_not_held_because_its_answer_was_cut_off() {
    let server = Server::start();
    warm(&server).await;
    let proxy = Proxy::before(server.port).await;
    let locks = manager(&[proxy.url()]);
    for (fate, certain) in [
        (Fate::CutRequest(0), true),
        (Fate::CutRequest(9), true),
        (Fate::CutReply(0), false),
        (Fate::CutReply(2), false),
    ] {
        let name = fresh("r");
        let lease = soon(&locks, &name).await;
        proxy.rule(once(is_release, fate));
        let release = lease.release().await.unwrap();
        // Carried out and answered is "released"; carried out and not answered may be "unknown".
        assert!(release == Release::Released || (!certain && release == Release::Unknown), "{release:?}");
        until_clean(&[&server], &name).await;
    }
}

/// A connection that is cut anywhere does not make an attempt fail: it is asked again within its time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_survives_a_cut_connection() {
    let server = Server::start();
    warm(&server).await;
    let proxy = Proxy::before(server.port).await;
    let locks = manager(&[proxy.url()]);
    for cut in (0..40).step_by(3) {
        for fate in [Fate::CutRequest(cut), Fate::CutReply(cut)] {
            let name = fresh("r");
            proxy.rule(once(is_acquire, fate));
            let lease = locks.try_acquire(&name, long()).await.expect("not in reach").expect("not free");
            assert_eq!(server.get(&name).as_deref(), Some(lease.owner_token().as_str()));
            assert_eq!(lease.release().await.unwrap(), Release::Released);
            assert_eq!(server.get(&name), None);
        }
    }
}

/// A server that lets everybody log in and then hangs up is not asked thousands of times.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_always_hangs_up_is_not_flooded() {
    let server = Server::start();
    let proxy = Proxy::before(server.port).await;
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    proxy.rule(move |request| {
        if is_script(request) {
            count.fetch_add(1, Ordering::Relaxed);
            return Fate::CutRequest(0);
        }
        Fate::Pass
    });
    let locks = manager(&[proxy.url()]);
    let error = locks.try_acquire(&fresh("r"), long()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    let asked = asked.load(Ordering::Relaxed);
    assert!((1..100).contains(&asked), "asked {asked} times in {NODE_TIMEOUT:?}");
}

/// Two of three have freed it, and the release to the third is on its way when the manager is closed: it arrives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_waits_for_a_slow_node() {
    let servers = Server::several(3);
    let (gate, slow) = (Gate::new(), Proxy::before(servers[2].port).await);
    let urls = [servers[0].url(), servers[1].url(), slow.url()];
    // How long it would wait at most: so long that none of this test's waits ends by it.
    let locks = polylock::connect(urls.to_vec()).node_timeout(Duration::from_secs(60)).lazy().unwrap();
    let name = fresh("r");
    let lease = soon(&locks, &name).await;
    eventually(SLACK, "all nodes hold", || servers.iter().all(|server| server.get(&name).is_some())).await;
    slow.rule(once(is_release, Fate::Hold(Arc::clone(&gate))));
    assert_eq!(lease.release().await.unwrap(), Release::Released);
    gate.arrived.notified().await;
    let mut closing = std::pin::pin!(locks.close());
    assert!(tokio::time::timeout(ms(300), &mut closing).await.is_err(), "closed with a release on its way");
    gate.open();
    closing.await;
    assert!(servers.iter().all(|server| server.get(&name).is_none()));
}

/// One that never answers holds up the closing no longer than it may take to answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_does_not_wait_for_a_dead_node() {
    let servers = Server::several(3);
    let dead = Proxy::before(servers[2].port).await;
    let locks = manager(&[servers[0].url(), servers[1].url(), dead.url()]);
    let name = fresh("r");
    let lease = soon(&locks, &name).await;
    eventually(SLACK, "all nodes hold", || servers.iter().all(|server| server.get(&name).is_some())).await;
    dead.door(Door::Blackhole);
    dead.rule(|_| Fate::Swallow);
    assert_eq!(lease.release().await.unwrap(), Release::Released);
    let closed = tokio::time::timeout(NODE_TIMEOUT + SLACK, locks.close()).await;
    assert!(closed.is_ok(), "it waits for the ttl");
}

/// The answer that nobody read, because its thread went on to other things, is there when the manager is closed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_reads_what_a_thread_has_left() {
    let servers = Server::several(3);
    let slow = Proxy::before(servers[2].port).await;
    let urls = [servers[0].url(), servers[1].url(), slow.url()];
    let locks = polylock::connect(urls.to_vec()).node_timeout(Duration::from_secs(60)).lazy().unwrap();
    let name = fresh("r");
    slow.rule(|request| if is_release(request) { Fate::Delay(ms(50)) } else { Fate::Pass });
    let on_a_thread = {
        let (locks, name) = (locks.clone(), name.clone());
        move || {
            let lease = polylock::blocking::wait(|driver| {
                let (locks, name) = (&locks, &name);
                async move { locks.acquire_by(name.as_str(), long(), &driver).await }
            });
            let lease = lease.expect("not free");
            polylock::blocking::wait(|driver| {
                let lease = &lease;
                async move { lease.release_by(&driver).await }
            })
        }
    };
    let released = tokio::task::spawn_blocking(on_a_thread).await.unwrap();
    assert_eq!(released.unwrap(), Release::Released);
    assert!(tokio::time::timeout(ms(30_000), locks.close()).await.is_ok(), "nobody reads the answer");
    assert!(servers.iter().all(|server| server.get(&name).is_none()));
}

/// One of five applies the attempt, says nothing, and stays silent during the release: its key is freed
/// as soon as it can be reached again, not when the ttl is over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_minority_is_freed_when_it_comes_back() {
    let servers = Server::several(5);
    let mut proxies = Vec::new();
    for server in &servers {
        proxies.push(Proxy::before(server.port).await);
    }
    let locks = manager(&proxies.iter().map(Proxy::url).collect::<Vec<_>>());
    let name = fresh("r");
    let lease = soon(&locks, &name).await;
    eventually(SLACK, "all nodes hold", || servers.iter().all(|server| server.get(&name).is_some())).await;
    // Long enough that a test of the release alone would have come and gone.
    for proxy in &proxies[3..] {
        proxy.door(Door::Blackhole);
        proxy.rule(|_| Fate::Swallow);
    }
    assert_eq!(lease.release().await.unwrap(), Release::Released);
    tokio::time::sleep(NODE_TIMEOUT + ms(100)).await;
    assert!(servers[3].get(&name).is_some() && servers[4].get(&name).is_some());
    proxies.iter().for_each(Proxy::heal);
    until_clean(&servers.iter().collect::<Vec<_>>(), &name).await;
}

/// It is released while one of three servers has not answered the attempt yet: that one gets the release behind it, and no other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_that_its_release_follows_is_given_back_once() {
    let servers = Server::several(3);
    for server in &servers {
        warm(server).await;
    }
    let (slow, before) = (&servers[2], servers[2].scripts());
    let proxy = Proxy::before(slow.port).await;
    proxy.rule(|request| if is_acquire(request) { Fate::Delay(ms(300)) } else { Fate::Pass });
    let urls = [servers[0].url(), servers[1].url(), proxy.url()];
    let locks = polylock::connect(urls).node_timeout(Duration::from_secs(5)).lazy().unwrap();
    let lease = locks.acquire(&fresh("r"), long()).await.unwrap();
    assert_eq!(lease.release().await.unwrap(), Release::Released);
    // It waits for what goes on in the background.
    locks.close().await;
    assert_eq!(slow.scripts(), before + 2);
}
