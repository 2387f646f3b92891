//! Semaphores over several servers: each permit has a number, and a majority has to agree on it.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use polylock::{LockManager, Release, Target};

use super::{
    SLACK, eventually, fresh, long, manager,
    proxy::{Fate, Proxy, is_script},
    server::{Server, urls},
};

const SHARE: &str = include_str!("../../src/backend/redis/scripts/share.lua");
const RAISE: &str = include_str!("../../src/backend/redis/scripts/raise.lua");

/// Who holds permits that were there before.
pub const SOMEBODY: &str = "somebody";

/// Puts a permit of this number away on one server, as somebody's who does not let go.
pub fn occupy(server: &Server, name: &str, number: &str) {
    let owner = format!("{SOMEBODY} {number}");
    let args =
        [&owner, "600000", "0000000000000001", "9999999999999999", "0000000000000001 x y", "600000", "permit:"];
    let keys = ["fence", "writer", "permits"].map(|side| format!("polylock:{side}:{{{name}}}"));
    let command = [&["EVAL", SHARE, "4", name, &keys[0], &keys[1], &keys[2]], &args[..], &["2", number]].concat();
    let granted: Vec<i64> = server.ask(&command);
    assert_eq!(granted[2].to_string(), number);
}

/// What a crowd does at one semaphore: how many are in, and the tokens that were given.
#[derive(Default)]
struct Seen {
    inside: AtomicI64,
    tokens: Mutex<BTreeSet<u64>>,
}

/// Everybody gets in again and again, never more than there are permits, each with a token of his own that is larger than all
/// that were given before he asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_comes_round() {
    for (nodes, of) in [(3, 2), (3, 4), (5, 3), (4, 2)] {
        let servers = Server::several(nodes);
        let managers: [LockManager; 4] = std::array::from_fn(|_| manager(&urls(&servers)));
        let (name, seen) = (fresh("permit"), Arc::new(Seen::default()));
        let tasks: Vec<_> = (0..12)
            .map(|task| {
                let (locks, name, seen) = (managers[task % 4].clone(), name.clone(), Arc::clone(&seen));
                tokio::spawn(async move {
                    for _ in 0..8 {
                        let before = seen.tokens.lock().unwrap().last().copied().unwrap_or(0);
                        let target = Target::permit(&name, of);
                        let lease = locks.acquire(target, long().wait(SLACK * 12)).await.expect("it must come round");
                        let inside = seen.inside.fetch_add(1, Ordering::SeqCst) + 1;
                        assert!(inside <= i64::from(of), "{inside} of {of} are in");
                        let token = lease.fencing_token();
                        assert!(token > before, "a token that does not grow");
                        assert!(seen.tokens.lock().unwrap().insert(token), "a token twice");
                        tokio::time::sleep(Duration::from_micros(fastrand::u64(0..2000))).await;
                        seen.inside.fetch_sub(1, Ordering::SeqCst);
                        assert_eq!(lease.release().await.unwrap(), Release::Released);
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        let clean = || servers.iter().all(|server| server.keys().is_empty());
        eventually(SLACK * 2, "no key is left", clean).await;
    }
}

/// One server gave another number than the majority, and the request to give it back is lost: it is free all the same, while
/// the lease goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_number_is_given_back_for_certain() {
    let servers = Server::several(3);
    let proxy = Proxy::before(servers[2].port).await;
    let locks = manager(&[servers[0].url(), servers[1].url(), proxy.url()]);
    // Everything is open, and the scripts are known.
    let warm = locks.acquire(Target::permit(&fresh("warm"), 2), long()).await.unwrap();
    assert_eq!(warm.release().await.unwrap(), Release::Released);
    let name = fresh("permit");
    // These have number 0 left, and that one number 1.
    occupy(&servers[0], &name, "1");
    occupy(&servers[1], &name, "1");
    occupy(&servers[2], &name, "0");
    let lost = Arc::new(AtomicBool::new(false));
    proxy.rule({
        let lost = Arc::clone(&lost);
        move |request| {
            // Two keys, and the owner token, its kind, its number and a channel.
            let gives_back = is_script(request) && request[2] == b"2" && request.len() == 3 + 2 + 4;
            if gives_back && !lost.swap(true, Ordering::SeqCst) { Fate::Swallow } else { Fate::Pass }
        }
    });
    let lease = locks.acquire(Target::permit(&name, 2), long().auto_extend(false)).await.unwrap();
    let count = || servers[2].ask::<i64>(&["ZCARD", &name]);
    eventually(SLACK * 2, "the request is lost", || lost.load(Ordering::SeqCst)).await;
    eventually(SLACK * 2, "it is given back", || count() == 1).await;
    assert!(lease.is_held());
    lease.extend(None).await.unwrap();
    assert_eq!(servers[0].ask::<i64>(&["ZCARD", &name]), 2);
    assert_eq!(lease.release().await.unwrap(), Release::Released);
    eventually(SLACK, "it is free", || servers[0].ask::<i64>(&["ZCARD", &name]) == 1).await;
    let numbers = format!("polylock:permits:{{{name}}}");
    eventually(SLACK, "so is its number", || servers[0].ask::<i64>(&["HLEN", &numbers]) == 1).await;
}

/// Those who hold together at one server never have one token there: not when one asks again, nor when both raise the counter
/// to what they have seen elsewhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_hold_together_confirm_different_tokens() {
    let server = Server::start();
    let ways: [(&[&str], &[&str]); 3] = [
        (&["4", "lock", "fence", "writer", "permits"], &["permit:", "2", "0"]),
        (&["3", "lock", "fence", "writer"], &["permit:", "2"]),
        (&["3", "lock", "fence", "writer"], &["shared:", "0"]),
    ];
    for (keys, how) in ways {
        let ask = |owner: &str| -> (i64, Option<i64>) {
            let args =
                [owner, "60000", "0000000000000007", "9999999999999999", "0000000000000007 owner record", "60000"];
            let answer: redis::Value = server.ask(&[&["EVAL", SHARE][..], keys, &args[..], how].concat());
            match answer {
                redis::Value::Int(token) => (token, None),
                redis::Value::Array(parts) => match parts[..] {
                    [_, redis::Value::Int(token), redis::Value::Int(number)] => (token, Some(number)),
                    _ => panic!("{parts:?}"),
                },
                other => panic!("{other:?}"),
            }
        };
        let (one, two, again) = (ask("one"), ask("two"), ask("one"));
        assert!(one.0 < two.0 && two.0 < again.0, "{one:?}, {two:?}, {again:?}: {how:?}");
        assert_eq!(one.1, again.1, "the same owner has the same number: {how:?}");
        assert!(one.1.is_none() || one.1 != two.1, "{how:?}");
        let raise = |owner: &str, token: &str| -> Vec<i64> {
            let owner = format!("{}{owner}", how[0]);
            server.ask(&["EVAL", RAISE, "2", "lock", "fence", &owner, token, "60000"])
        };
        assert_eq!(raise("one", "0000000000000050"), [1, 50], "{how:?}");
        assert_eq!(raise("two", "0000000000000050"), [-1, 50], "{how:?}");
        assert_eq!(raise("two", "0000000000000051"), [1, 51], "{how:?}");
        let _: () = server.ask(&["FLUSHALL"]);
    }
}

/// Counters of two servers are ahead of the third's, by different numbers: whoever comes together gets tokens that differ.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_differ_though_counters_do() {
    let servers = Server::several(3);
    let name = fresh("permit");
    for (server, ahead) in servers.iter().zip([0, 3_000_000, 5_000_000_u64]) {
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_micros() as u64;
        let fence = format!("{:016} x y", now + ahead);
        let _: () = server.ask(&["SET", &format!("polylock:fence:{{{name}}}"), &fence]);
    }
    let locks = manager(&urls(&servers));
    let several = (0..6).map(|_| {
        let (locks, name) = (locks.clone(), name.clone());
        tokio::spawn(async move { locks.acquire(Target::permit(&name, 6), long().wait(SLACK * 4)).await.unwrap() })
    });
    let mut leases = Vec::new();
    for lease in several.collect::<Vec<_>>() {
        leases.push(lease.await.unwrap());
    }
    let tokens: BTreeSet<u64> = leases.iter().map(|lease| lease.fencing_token()).collect();
    assert_eq!(tokens.len(), 6, "{tokens:?}");
    for lease in leases {
        assert_eq!(lease.release().await.unwrap(), Release::Released);
    }
}
