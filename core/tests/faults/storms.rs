//! Servers that change all the time while many want one lock.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use polylock::{Acquire, ErrorKind, Instant, Lease, LockManager, Release, Target};

use super::{
    eventually, fresh,
    managed::{Cluster, PATIENCE, Watched, connect},
    ms,
    server::Server,
};

/// Those who want it.
const CONTENDERS: usize = 6;

/// What they have seen.
#[derive(Default)]
struct Seen {
    /// Who holds, and until when by his own clock.
    holders: Mutex<Vec<(usize, Arc<Lease>)>>,
    last_token: AtomicU64,
    grants: AtomicU64,
}

impl Seen {
    fn enters(&self, who: usize, lease: &Arc<Lease>) {
        let mut holders = self.holders.lock().unwrap();
        holders.push((who, Arc::clone(lease)));
        let held: Vec<_> = holders
            .iter()
            .filter(|(_, lease)| lease.is_held())
            .map(|(who, lease)| (*who, lease.fencing_token()))
            .collect();
        assert!(held.len() < 2, "several hold it: {held:?}");
        let before = self.last_token.fetch_max(lease.fencing_token(), Ordering::Relaxed);
        assert!(lease.fencing_token() > before, "the token {} came after {before}", lease.fencing_token());
        self.grants.fetch_add(1, Ordering::Relaxed);
    }

    fn leaves(&self, who: usize) {
        self.holders.lock().unwrap().retain(|(other, _)| *other != who);
    }
}

/// Lets them fight for `target` while `trouble` lasts; it has to go well for all afterwards.
async fn storm(managers: Vec<LockManager>, target: Target, trouble: impl Future<Output = ()>) {
    let (seen, stop) = (Arc::<Seen>::default(), Arc::new(AtomicBool::new(false)));
    let contenders: Vec<_> = managers
        .into_iter()
        .enumerate()
        .map(|(who, locks)| {
            let (seen, stop, target) = (Arc::clone(&seen), Arc::clone(&stop), target.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let options = Acquire::ttl(Duration::from_secs(20)).wait(Duration::from_secs(30));
                    let lease = match locks.acquire(target.clone(), options).await {
                        Ok(lease) => Arc::new(lease),
                        Err(error) => panic!("{who} does not get it: {error:?}"),
                    };
                    seen.enters(who, &lease);
                    tokio::time::sleep(Duration::from_millis(fastrand::u64(0..4))).await;
                    if fastrand::bool()
                        && let Err(error) = lease.extend(None).await
                    {
                        assert_eq!(error.kind(), ErrorKind::Unavailable, "{who}: {error:?}");
                    }
                    seen.leaves(who);
                    // What it does not know is seen to in the background.
                    let released = lease.release().await.unwrap();
                    assert!(matches!(released, Release::Released | Release::Unknown), "{who}: {released:?}");
                }
            })
        })
        .collect();
    trouble.await;
    let before = seen.grants.load(Ordering::Relaxed);
    eventually(PATIENCE, "it goes on afterwards", || seen.grants.load(Ordering::Relaxed) > before + 20).await;
    stop.store(true, Ordering::Relaxed);
    for contender in contenders {
        tokio::time::timeout(PATIENCE, contender).await.expect("it hangs").unwrap();
    }
}

fn managers(url: &str) -> Vec<LockManager> {
    (0..CONTENDERS).map(|_| connect(url.to_owned())).collect()
}

/// With `replicas` as many as there are, a fail-over that loses nothing gives nothing away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_is_replaced_again_and_again() {
    let watched = Watched::start(None).await;
    let url = format!("{}?replicas=1", watched.url(""));
    let name = fresh("r");
    let servers = &watched.servers;
    storm(managers(&url), Target::from(&*name), async {
        for round in 0..2 {
            tokio::time::sleep(ms(500)).await;
            let primary = || {
                servers.iter().position(|server| {
                    server.try_ask::<redis::Value>(&["ROLE"]).is_ok_and(|role| format!("{role:?}").contains("master"))
                })
            };
            let before = primary();
            eventually(PATIENCE, "it is told to fail over", || {
                watched.sentinels[round].try_ask::<()>(&["SENTINEL", "FAILOVER", "mymaster"]).is_ok()
            })
            .await;
            eventually(PATIENCE, "another is the primary", || primary().is_some_and(|now| Some(now) != before)).await;
            let linked = || {
                servers.iter().any(|server| {
                    server.try_ask::<String>(&["INFO", "replication"]).is_ok_and(|info| info.contains("state=online"))
                })
            };
            eventually(PATIENCE, "the other follows it", linked).await;
        }
    })
    .await;
    // One that is demoted cuts everybody off.
    let clean = |server: &Server| {
        let keys = server.try_ask::<Vec<String>>(&["KEYS", "*"]);
        keys.is_ok_and(|keys| keys.iter().all(|key| key.starts_with("polylock:fence:")))
    };
    eventually(PATIENCE, "no key is left", || servers.iter().all(clean)).await;
}

async fn a_slot_moves_to_and_fro(target: impl FnOnce(String) -> Target) {
    let cluster = Cluster::start().await;
    let tag = fresh("tag");
    let (slot, first) = (cluster.slot(&tag), cluster.index(&tag));
    let second = (first + 1) % 3;
    storm(managers(&cluster.url()), target(tag), async {
        for round in 0..10 {
            let (from, to) = if round % 2 == 0 { (first, second) } else { (second, first) };
            cluster.set_out(slot, from, to);
            tokio::time::sleep(ms(30)).await;
            // What is released or taken meanwhile may come after it.
            let has_keys = || cluster.0[from].ask::<u64>(&["CLUSTER", "COUNTKEYSINSLOT", &slot.to_string()]) > 0;
            while has_keys() {
                cluster.carry(slot, from, to);
            }
            tokio::time::sleep(ms(30)).await;
            cluster.arrive(slot, to);
            tokio::time::sleep(ms(100)).await;
        }
    })
    .await;
    eventually(PATIENCE, "no key is left", || cluster.0.iter().all(|server| server.keys().is_empty())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_slot_of_one_moves_to_and_fro() {
    a_slot_moves_to_and_fro(|name| Target::from(&*name)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_slot_of_several_moves_to_and_fro() {
    a_slot_moves_to_and_fro(|tag| Target::all([format!("{{{tag}}}:1"), format!("{{{tag}}}:2")])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_take_over_in_a_cluster() {
    let cluster = Cluster::start().await;
    let name = fresh("r");
    let first = cluster.index(&name);
    let replica = Server::of_a_cluster();
    let _: () = replica.ask(&["CLUSTER", "MEET", "127.0.0.1", &cluster.0[0].port.to_string(), cluster.0[0].bus()]);
    let id = cluster.id(first);
    for server in cluster.0.iter().chain([&replica]) {
        let _: () = server.ask(&["CONFIG", "SET", "cluster-node-timeout", "1000"]);
    }
    eventually(PATIENCE, "it follows", || replica.try_ask::<()>(&["CLUSTER", "REPLICATE", &id]).is_ok()).await;
    eventually(PATIENCE, "it replicates", || {
        replica.ask::<String>(&["INFO", "replication"]).contains("master_link_status:up")
    })
    .await;
    let knows = || cluster.0.iter().all(|server| server.ask::<String>(&["CLUSTER", "NODES"]).contains("slave"));
    eventually(PATIENCE, "all know it", knows).await;
    storm(managers(&format!("{}?replicas=1", cluster.url())), Target::from(&*name), async {
        tokio::time::sleep(ms(500)).await;
        let follows = |server: &Server| server.ask::<String>(&["INFO", "replication"]).contains("state=online");
        let leads = |server: &Server| server.ask::<String>(&["INFO", "replication"]).contains("role:master");
        let old = &cluster.0[first];
        let _: () = replica.ask(&["CLUSTER", "FAILOVER"]);
        eventually(PATIENCE, "it takes over", || leads(&replica)).await;
        eventually(PATIENCE, "the other follows it", || follows(&replica)).await;
        // And without a word.
        replica.kill();
        eventually(PATIENCE, "the other takes over", || leads(old)).await;
        replica.restart();
        eventually(PATIENCE, "it follows that one", || follows(old)).await;
    })
    .await;
    eventually(PATIENCE, "no key is left", || cluster.0[first].keys().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_cut_and_scripts_flushed() {
    for several in [false, true] {
        let servers = Server::several(if several { 3 } else { 1 });
        let urls: Vec<String> = servers.iter().map(|s| format!("{}?longest_ttl=0", s.url())).collect();
        let name = fresh("r");
        storm(managers(&urls.join(",")), Target::from(&*name), async {
            let began = Instant::now();
            while Instant::now().since(began) < Duration::from_secs(2) {
                let server = &servers[fastrand::usize(..servers.len())];
                match fastrand::u32(0..4) {
                    0 => {
                        let _: i64 = server.ask(&["CLIENT", "KILL", "SKIPME", "yes", "TYPE", "pubsub"]);
                    }
                    1 => {
                        let _: i64 = server.ask(&["CLIENT", "KILL", "SKIPME", "yes", "TYPE", "normal"]);
                    }
                    2 => {
                        let _: () = server.ask(&["SCRIPT", "FLUSH"]);
                    }
                    _ => {
                        let _: () = server.ask(&["CLIENT", "PAUSE", "20"]);
                    }
                }
                tokio::time::sleep(Duration::from_millis(fastrand::u64(0..40))).await;
            }
        })
        .await;
        eventually(PATIENCE, "no key is left", || servers.iter().all(|server| server.keys().is_empty())).await;
    }
}
