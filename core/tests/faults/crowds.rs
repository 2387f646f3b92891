//! Many who want locks of every kind from five servers, of which up to two are stopped, cut their clients off or forget the
//! scripts: those get in who may, and all come round.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use polylock::{Lease, LockManager, Release, Target};

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

/// Each server has as many places as there are permits, so holders who have a majority of any would be too many: here the
/// third of two. A majority of one number suffices, whoever is away.
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
        let lease = without(&away).try_acquire(permit(), long()).await.unwrap().expect("nobody else is there");
        lease.extend(None).await.unwrap();
        assert_eq!(lease.release().await.unwrap(), Release::Released);
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minority_that_is_down_costs_no_permit() {
    for (nodes, down) in [(3, 1), (5, 2)] {
        let servers = Server::several(nodes);
        servers[..down].iter().for_each(Server::kill);
        let (one, other) = (manager(&urls(&servers)), manager(&urls(&servers)));
        for of in [1, 2, 3, 7] {
            let name = fresh("permits");
            let mut held = Vec::new();
            for turn in 0..of {
                let locks = if turn % 2 == 0 { &one } else { &other };
                held.push(locks.try_acquire(Target::permit(&name, of), long()).await.unwrap().expect("one is left"));
            }
            for locks in [&one, &other] {
                assert!(locks.try_acquire(Target::permit(&name, of), long()).await.unwrap().is_none(), "too many");
            }
            assert!(held.is_sorted_by_key(Lease::fencing_token));
            for lease in held {
                lease.extend(None).await.unwrap();
                assert_eq!(lease.release().await.unwrap(), Release::Released);
            }
        }
        let clean = || servers[down..].iter().all(|server| server.keys().is_empty());
        eventually(SLACK, "no key is left", clean).await;
    }
}

/// A server that has missed a holder may give its number to the next one, which the others give another number.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_number_that_the_others_do_not_give_is_given_back() {
    let servers = Server::several(3);
    let last = Proxy::before(servers[2].port).await;
    let locks = manager(&[servers[0].url(), servers[1].url(), last.url()]);
    let other = manager(&urls(&servers));
    let permits = |server: &Server, name: &str| -> Vec<String> {
        let mut numbered: Vec<String> = server.ask(&["HGETALL", &format!("polylock:permits:{{{name}}}")]);
        numbered.truncate(if server.keys().iter().any(|key| key == name) { numbered.len() } else { 0 });
        numbered
    };
    // Two numbers there are, and one of them is drawn: both cases come.
    for _ in 0..12 {
        let name = fresh("permits");
        last.door(Door::Slam);
        let first = locks.try_acquire(Target::permit(&name, 2), long()).await.unwrap().expect("the first");
        last.door(Door::Open);
        let second = other.try_acquire(Target::permit(&name, 2), long()).await.unwrap().expect("the second");
        let agree = || {
            let (all, here) = (permits(&servers[0], &name), permits(&servers[2], &name));
            here.chunks(2).all(|permit| all.chunks(2).any(|other| other == permit))
        };
        eventually(SLACK, "the last server has no number of its own", agree).await;
        second.extend(None).await.unwrap();
        assert_eq!(second.release().await.unwrap(), Release::Released);
        assert_eq!(first.release().await.unwrap(), Release::Released);
    }
}
