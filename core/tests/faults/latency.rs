//! A minority that says nothing costs no time.

use std::time::Duration;

use polylock::{Instant, LockManager, Release, blocking};

use super::{
    fresh, long, manager,
    proxy::{Door, Proxy},
    server::{Server, urls},
};

const PAIRS: usize = 60;

/// Generous, as other programs run on the same cores; the figure itself is printed.
fn check(what: &str, grace: Duration, healthy: &mut [Duration], faulty: &mut [Duration]) {
    healthy.sort();
    faulty.sort();
    let (healthy, faulty) = (healthy[healthy.len() / 2], faulty[faulty.len() / 2]);
    let ratio = faulty.as_secs_f64() / healthy.as_secs_f64();
    eprintln!(
        "{what}: a pair takes {healthy:?} with five nodes, {faulty:?} with two of them black-holed: {ratio:.2} x"
    );
    assert!(faulty < healthy * 3 + grace + Duration::from_millis(10), "{what}: {ratio:.2} x");
}

async fn pair(locks: &LockManager, name: &str) -> Duration {
    let began = Instant::now();
    let lease = locks.acquire(name, long()).await.unwrap();
    assert_eq!(lease.release().await.unwrap(), Release::Released);
    Instant::now().since(began)
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
    let (faulty_urls, _proxies) = half_dead(&servers).await;
    let (one, two) = (manager(&urls(&servers)), manager(&faulty_urls));
    let name = fresh("r");
    let (mut healthy, mut faulty) = (Vec::new(), Vec::new());
    for _ in 0..PAIRS {
        healthy.push(pair(&one, &name).await);
        faulty.push(pair(&two, &name).await);
    }
    check("tokio", Duration::ZERO, &mut healthy, &mut faulty);

    let (mut healthy, mut faulty) = (Vec::new(), Vec::new());
    for _ in 0..20 {
        healthy.push(pair(&manager(&urls(&servers)), &fresh("r")).await);
        faulty.push(pair(&manager(&faulty_urls), &fresh("r")).await);
    }
    // It waits a moment for all of them.
    let grace = Duration::from_millis(50);
    check("the first pair of a manager", grace, &mut healthy, &mut faulty);

    // The quickest of some, as other programs run on the same cores; one that waited for the silent would never be quick.
    let (mut connecting, mut inspecting) = (Duration::MAX, Duration::MAX);
    for _ in 0..5 {
        let began = Instant::now();
        let locks = polylock::connect(faulty_urls.clone()).await.expect("a majority is there");
        let connected = Instant::now();
        assert!(locks.inspect(&name).await.expect("a majority is there").is_none());
        connecting = connecting.min(connected.since(began));
        inspecting = inspecting.min(Instant::now().since(connected));
    }
    eprintln!("connecting took {connecting:?}, inspecting {inspecting:?}");
    assert!(connecting < Duration::from_millis(1500) && inspecting < Duration::from_millis(450));

    let blocking = move || {
        let (mut healthy, mut faulty) = (Vec::new(), Vec::new());
        for _ in 0..PAIRS {
            for (locks, times) in [(&one, &mut healthy), (&two, &mut faulty)] {
                let (began, name) = (Instant::now(), &name);
                blocking::wait(|driver| async move {
                    let lease = locks.acquire_by(name, long(), &driver).await.unwrap();
                    assert_eq!(lease.release_by(&driver).await.unwrap(), Release::Released);
                });
                times.push(Instant::now().since(began));
            }
        }
        check("blocking", Duration::ZERO, &mut healthy, &mut faulty);
    };
    tokio::task::spawn_blocking(blocking).await.unwrap();
}

/// The nodes go silent while their connections stand, as a stopped machine's do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_of_five_stopped() {
    let servers = Server::several(5);
    let locks = manager(&urls(&servers));
    let name = fresh("r");
    let mut healthy: Vec<_> = Vec::new();
    for _ in 0..PAIRS {
        healthy.push(pair(&locks, &name).await);
    }
    let held = locks.acquire(&fresh("held"), polylock::Acquire::ttl(Duration::from_secs(3))).await.unwrap();
    servers[1].stop();
    servers[4].stop();
    let mut faulty = Vec::new();
    for _ in 0..PAIRS {
        faulty.push(pair(&locks, &name).await);
    }
    check("stopped", Duration::ZERO, &mut healthy, &mut faulty);
    // And one that is held all the while is renewed by the other three.
    let deadline = held.deadline();
    super::eventually(super::SLACK, "it is renewed", || held.deadline() > deadline).await;
    assert!(held.is_held());
    servers[1].resume();
    servers[4].resume();
    super::until_clean(&servers.iter().collect::<Vec<_>>(), &name).await;
}
