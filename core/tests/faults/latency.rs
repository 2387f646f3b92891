//! A minority that says nothing is not waited for.
//!
//! A server may take [`SILENCE`] here, and many pairs together take less: whoever waits for one that says nothing is seen by
//! that, however slow the machine.

use std::time::Duration;

use polylock::{Instant, LockManager, Release, blocking};

use super::{
    fresh, long,
    proxy::{Door, Proxy},
    server::{Server, urls},
};

const PAIRS: usize = 60;

/// How long one server may take: longer than anything takes that waits for none.
const SILENCE: Duration = Duration::from_secs(20);

fn patient(urls: &[String]) -> LockManager {
    polylock::connect(urls.to_vec()).node_timeout(SILENCE).lazy().expect("no manager")
}

fn waited_for_nobody(began: Instant) {
    let took = Instant::now().since(began);
    assert!(took < SILENCE, "it took {took:?}");
}

async fn pair(locks: &LockManager, name: &str) {
    let lease = locks.acquire(name, long()).await.unwrap();
    assert_eq!(lease.release().await.unwrap(), Release::Released);
}

async fn pairs(locks: &LockManager, name: &str) {
    let began = Instant::now();
    for _ in 0..PAIRS {
        pair(locks, name).await;
        waited_for_nobody(began);
    }
}

/// Three servers, and what stands for two that do not answer; the second list has them all answer.
async fn half_dead(servers: &[Server]) -> (Vec<String>, Vec<Proxy>) {
    let mut faulty = urls(&servers[..3]);
    let mut proxies = Vec::new();
    for server in &servers[3..] {
        let proxy = Proxy::before(server.port).await;
        proxy.door(Door::Blackhole);
        faulty.push(proxy.url());
        proxies.push(proxy);
    }
    faulty.rotate_left(3); // the dead first
    (faulty, proxies)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_of_five_black_holed() {
    let servers = Server::several(5);
    let (urls, _proxies) = half_dead(&servers).await;
    let (locks, name) = (patient(&urls), fresh("r"));
    pairs(&locks, &name).await;
    // The first pair of a manager.
    let began = Instant::now();
    for _ in 0..20 {
        pair(&patient(&urls), &fresh("r")).await;
        waited_for_nobody(began);
    }

    let began = Instant::now();
    let connected = polylock::connect(urls).node_timeout(SILENCE).await.expect("a majority is there");
    assert!(connected.inspect(&name).await.expect("a majority is there").is_none());
    waited_for_nobody(began);

    let blocking = move || {
        let (began, locks, name) = (Instant::now(), &locks, &name);
        for _ in 0..PAIRS {
            blocking::wait(|driver| async move {
                let lease = locks.acquire_by(name, long(), &driver).await.unwrap();
                assert_eq!(lease.release_by(&driver).await.unwrap(), Release::Released);
            });
            waited_for_nobody(began);
        }
    };
    tokio::task::spawn_blocking(blocking).await.unwrap();
}

/// The nodes go silent while their connections stand, as a stopped machine's do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_of_five_stopped() {
    let servers = Server::several(5);
    let locks = patient(&urls(&servers));
    pair(&locks, &fresh("warm")).await;
    let held = locks.acquire(&fresh("held"), polylock::Acquire::ttl(Duration::from_secs(6))).await.unwrap();
    servers[1].stop();
    servers[4].stop();
    // A name of its own: of the others a server may have something late to carry out yet.
    let name = fresh("r");
    pairs(&locks, &name).await;
    // And one that is held all the while is renewed by the other three.
    let deadline = held.deadline();
    super::eventually(super::SLACK, "it is renewed", || held.deadline() > deadline).await;
    assert!(held.is_held());
    servers[1].resume();
    servers[4].resume();
    super::until_clean(&servers.iter().collect::<Vec<_>>(), &name).await;
}
