//! Many who want locks of every kind from five servers, of which up to two are stopped, cut their clients off or forget the
//! scripts: those get in who may, and all come round.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use polylock::{ErrorKind, LockManager, Release, Target};

use super::{
    SLACK, eventually, fresh, long, manager, ms,
    proxy::{Door, Proxy},
    server::{Server, urls},
};

const TASKS: usize = 9;
const TURNS: usize = 8;

/// So many names there are to take several of.
const NAMES: usize = 5;

/// What those who are in have written down, for each name: writers, readers.
struct Seen([[AtomicI64; 2]; NAMES]);

/// How one of them gets in.
#[derive(Clone, Copy)]
enum Way {
    /// With a permit, of two that there are.
    Permit,
    /// In order.
    Fair,
    /// Two of three of them share it.
    Shared,
    /// Takes up to three of the names, in any order.
    Several,
}

impl Way {
    async fn turn(self, locks: &LockManager, name: &str, seen: &Seen, count: usize) {
        let mut indices = vec![0];
        let reads = matches!(self, Self::Shared) && !count.is_multiple_of(3);
        let target = match self {
            Self::Permit => Target::permit(name, 2),
            Self::Shared if reads => Target::shared(name),
            Self::Several => {
                indices = fastrand::choose_multiple(0..NAMES, fastrand::usize(1..4));
                fastrand::shuffle(&mut indices);
                Target::all(indices.iter().map(|index| format!("{name}:{index}")))
            }
            Self::Fair | Self::Shared => Target::from(name),
        };
        let options = long().wait(Duration::from_secs(60)).fair(matches!(self, Self::Fair));
        let lease = locks.acquire(target, options).await.expect("it must come round");
        for index in &indices {
            let [writers, readers] = &seen.0[*index];
            let (ours, others) = if reads { (readers, writers) } else { (writers, readers) };
            let here = ours.fetch_add(1, Ordering::SeqCst) + 1;
            assert!(reads || here <= if matches!(self, Self::Permit) { 2 } else { 1 }, "{here} are in");
            assert_eq!(others.load(Ordering::SeqCst), 0, "a writer and a reader are in");
        }
        tokio::time::sleep(Duration::from_micros(fastrand::u64(0..3000))).await;
        for index in &indices {
            seen.0[*index][usize::from(reads)].fetch_sub(1, Ordering::SeqCst);
        }
        if fastrand::u8(0..5) == 0 {
            drop(lease);
        } else {
            lease.release().await.expect("not forked");
        }
    }
}

async fn all_come_round(way: Way) {
    let servers = Arc::new(Server::several(5));
    let managers: [LockManager; 3] = std::array::from_fn(|_| manager(&urls(&servers)));
    let (name, over) = (fresh("crowd"), Arc::new(AtomicBool::new(false)));
    let seen = Arc::new(Seen(std::array::from_fn(|_| Default::default())));
    let trouble = tokio::spawn({
        let (servers, over) = (Arc::clone(&servers), Arc::clone(&over));
        async move {
            while !over.load(Ordering::Relaxed) {
                let (one, two) = (fastrand::usize(0..5), fastrand::usize(0..5));
                servers[one].stop();
                servers[two].stop(); // perhaps the same one
                tokio::time::sleep(ms(fastrand::u64(10..200))).await;
                servers[one].resume();
                servers[two].resume();
                let _: () = servers[one].ask(&["SCRIPT", "FLUSH"]);
                servers[two].cut_clients();
                tokio::time::sleep(ms(fastrand::u64(0..30))).await;
            }
        }
    });
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let (locks, name, seen) = (managers[task % 3].clone(), name.clone(), Arc::clone(&seen));
            tokio::spawn(async move {
                for turn in 0..TURNS {
                    way.turn(&locks, &name, &seen, task + turn).await;
                }
            })
        })
        .collect();
    let mut played = Vec::new();
    for task in tasks {
        played.push(task.await);
    }
    // The servers are asked below: they must be awake by then.
    over.store(true, Ordering::Relaxed);
    trouble.await.unwrap();
    played.into_iter().for_each(Result::unwrap);
    let clean = || servers.iter().all(|server| server.keys().is_empty());
    eventually(Duration::from_secs(20), "no key is left", clean).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_permits() {
    all_come_round(Way::Permit).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_order() {
    all_come_round(Way::Fair).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sharing() {
    all_come_round(Way::Shared).await;
}

/// Sets that overlap, asked for in different orders: nobody waits for somebody who waits for him.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_several() {
    all_come_round(Way::Several).await;
}

/// Each server has as many places as there are permits, so holders who have a majority alone could be too many: here the
/// third of two.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn there_are_never_more_than_permits() {
    let servers = Server::several(5);
    let mut proxies = Vec::new();
    for server in &servers {
        proxies.push(Proxy::before(server.port).await);
    }
    let name = fresh("crowd");
    let permit = || Target::permit(&name, 2);
    // Each by the servers that he reaches.
    let without = |away: &[usize]| {
        for (index, proxy) in proxies.iter().enumerate() {
            proxy.door(if away.contains(&index) { Door::Slam } else { Door::Open });
        }
        manager(&proxies.iter().map(Proxy::url).collect::<Vec<_>>())
    };
    for away in [[3, 4], [0, 1]] {
        let error = without(&away).try_acquire(permit(), long()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    }
    let managers = [without(&[4]), without(&[0]), without(&[])];
    eventually(SLACK, "no key is left", || servers.iter().all(|server| server.keys().is_empty())).await;
    let mut leases = Vec::new();
    for (locks, away) in managers.iter().zip([&[4][..], &[0], &[]]) {
        without(away);
        leases.extend(locks.try_acquire(permit(), long()).await.unwrap());
    }
    assert_eq!(leases.len(), 2);
    for lease in leases {
        lease.extend(None).await.unwrap();
        assert_eq!(lease.release().await.unwrap(), Release::Released);
    }
}
