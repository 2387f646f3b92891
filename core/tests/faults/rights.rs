//! What a user may not do, and what a server says that is not fit for locks, for now or for ever.

use std::time::Duration;

use polylock::{Acquire, ErrorKind, EventKind, LockManager, LossReason, Release, Target};

use super::{NODE_TIMEOUT, SLACK, eventually, fresh, long, manager, ms, server::Server, soon};

/// What a busy machine may need until a server is in some state.
const PATIENCE: Duration = Duration::from_secs(20);

/// A manager of a user with all rights but these.
fn clerk(server: &Server, without: &[&str]) -> LockManager {
    let all = ["ACL", "SETUSER", "clerk", "reset", "on", ">secret", "~*", "&*", "+@all"];
    let _: () = server.ask(&[&all[..], without].concat());
    manager(&[format!("redis://clerk:secret@127.0.0.1:{}", server.port)])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_user_may_not_run_is_said_at_once() {
    let server = Server::start();
    let targets = || {
        let name = fresh("r");
        [Target::from(&*name), Target::shared(&name), Target::permit(&name, 2), Target::all([name, fresh("r")])]
    };
    for (right, named) in [("-eval", "'eval'"), ("-evalsha", "'evalsha'"), ("-time", "'time'"), ("-set", "")] {
        let _: () = server.ask(&["SCRIPT", "FLUSH"]);
        let locks = clerk(&server, &[right]);
        for target in targets() {
            let error =
                tokio::time::timeout(SLACK, locks.acquire(target, long())).await.expect("retried").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Auth, "{right}: {error:?}");
            assert!(error.to_string().contains(named) && !error.to_string().contains("secret"), "{right}: {error}");
        }
        eventually(SLACK, "no key is left", || server.keys().is_empty()).await;
    }
    // These are asked for more, but not needed.
    for right in ["-script", "-client", "-info", "-publish", "-subscribe"] {
        let locks = clerk(&server, &[right]);
        for target in targets() {
            let lease = locks.acquire(target, long()).await.unwrap();
            lease.extend(None).await.unwrap();
            assert_eq!(lease.release().await.unwrap(), Release::Released, "{right}");
        }
    }
}

/// Who may not look at a lock does not know whose it is: it is not said to be somebody else's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_right_that_is_lost_is_no_lost_lease() {
    let server = Server::start();
    for (right, back, shared) in [("-get", "+get", false), ("-zscore", "+zscore", true), ("-zrem", "+zrem", true)] {
        let (other, locks) = (clerk(&server, &[]), clerk(&server, &[]));
        let name = fresh("r");
        let target = if shared { Target::shared(&name) } else { Target::from(&*name) };
        let lease = locks.acquire(target, long()).await.unwrap();
        let holder = locks.inspect(&name).await.unwrap().expect("it is held");
        let _: () = server.ask(&["ACL", "SETUSER", "clerk", right]);
        if right != "-zrem" {
            let error = lease.extend(None).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Auth, "{right}: {error:?}");
        }
        if right == "-get" {
            for tried in [locks.try_acquire(&name, long()).await.err(), locks.inspect(&name).await.err()] {
                assert_eq!(tried.expect("who holds it is known").kind(), ErrorKind::Auth);
            }
            // (Its own manager would end the lease first.)
            let broken = other.break_lock(&name, &holder).await;
            assert_eq!(broken.unwrap_err().kind(), ErrorKind::Auth);
        }
        assert!(lease.is_held(), "{right}");
        if right != "-zscore" {
            assert_eq!(lease.release().await.unwrap(), Release::Unknown, "{right}");
            let _: () = server.ask(&["ACL", "SETUSER", "clerk", back]);
        } else {
            let _: () = server.ask(&["ACL", "SETUSER", "clerk", back]);
            lease.extend(None).await.unwrap();
            assert_eq!(lease.release().await.unwrap(), Release::Released);
        }
        eventually(PATIENCE, "it is released after all", || server.keys().is_empty()).await;
    }
}

/// Without the right to listen or to publish, waiters find out by their timers, on the connections that they have.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiters_that_nobody_may_wake() {
    let server = Server::start();
    let connections = || -> u64 {
        let stats: String = server.ask(&["INFO", "stats"]);
        let line = stats.lines().find_map(|line| line.strip_prefix("total_connections_received:"));
        line.expect("no such line").parse().unwrap()
    };
    for right in ["-subscribe", "-publish", "resetchannels"] {
        let locks = clerk(&server, &[right]);
        let name = fresh("r");
        let lease = soon(&locks, &name).await;
        let waiter = tokio::spawn({
            let (locks, name) = (locks.clone(), name.clone());
            async move { locks.acquire(&name, long()).await }
        });
        tokio::time::sleep(ms(300)).await;
        let before = connections();
        tokio::time::sleep(ms(700)).await;
        // On a busy machine the one that listens may come late.
        assert!(connections() <= before + 1, "{right}: it connects again and again");
        assert_eq!(lease.release().await.unwrap(), Release::Released);
        let next = tokio::time::timeout(SLACK, waiter).await.expect("never found out").unwrap().unwrap();
        assert_eq!(next.release().await.unwrap(), Release::Released);
    }
}

/// Out of reach for now: said with the server's words, and waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_passes_is_waited_for() {
    // In each of these states, and what ends it.
    async fn passes(server: &Server, says: &str, end: impl FnOnce()) {
        let locks = manager(&[server.url()]);
        let error = locks.try_acquire(fresh("r"), long()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{says}: {error:?}");
        assert!(error.to_string().contains(says), "{says}: {error}");
        let error = locks.acquire(fresh("r"), long().wait(NODE_TIMEOUT)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{says}: {error:?}");
        assert!(error.to_string().contains(says), "{says}: {error}");
        let waiter = tokio::spawn(async move { locks.acquire(fresh("r"), long().wait(PATIENCE)).await });
        tokio::time::sleep(ms(50)).await;
        end();
        let lease = waiter.await.unwrap().unwrap();
        assert_eq!(lease.release().await.unwrap(), Release::Released);
    }
    let primary = Server::start();
    let of = primary.port.to_string();
    let replica = Server::with(&["--replicaof", "127.0.0.1", &of, "--replica-serve-stale-data", "no"], &[]);
    let linked = || replica.ask::<String>(&["INFO", "replication"]).contains("master_link_status:up");
    eventually(PATIENCE, "it replicates", linked).await;
    let promote = || replica.ask::<()>(&["REPLICAOF", "NO", "ONE"]);
    passes(&replica, "READONLY", promote).await;
    let _: () = replica.ask(&["REPLICAOF", "127.0.0.1", &of]);
    eventually(PATIENCE, "it replicates", linked).await;
    primary.kill();
    eventually(PATIENCE, "it is cut off", || !linked()).await;
    passes(&replica, "MASTERDOWN", promote).await;

    let server = Server::with(&["--min-replicas-to-write", "1"], &[]);
    passes(&server, "NOREPLICAS", || server.ask(&["CONFIG", "SET", "min-replicas-to-write", "0"])).await;

    let cluster = Server::of_a_cluster();
    passes(&cluster, "CLUSTERDOWN", || cluster.ask(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"])).await;

    // A disk that cannot be written: nothing is lost by that, and what cannot be released is once it can be.
    let server = Server::start();
    let (locks, name) = (manager(&[server.url()]), fresh("r"));
    let lease = locks.acquire(&name, Acquire::ttl(Duration::from_secs(60))).await.unwrap();
    let directory: Vec<String> = server.ask(&["CONFIG", "GET", "dir"]);
    std::fs::remove_dir_all(&directory[1]).unwrap();
    let _: () = server.ask(&["CONFIG", "SET", "save", "3600 1"]);
    let _ = server.try_ask::<String>(&["BGSAVE"]);
    let refuses = || server.try_ask::<()>(&["SET", "x", "1"]).is_err_and(|error| error.code() == Some("MISCONF"));
    eventually(PATIENCE, "it cannot save", refuses).await;
    let error = lease.extend(None).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Unavailable && lease.is_held(), "{error:?}");
    assert_eq!(lease.release().await.unwrap(), Release::Unknown);
    passes(&server, "MISCONF", || server.ask(&["CONFIG", "SET", "stop-writes-on-bgsave-error", "no"])).await;
    eventually(PATIENCE, "it is released after all", || server.get(&name).is_none()).await;
}

/// A URL that calls a server what it is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_server_is_not_is_said_at_once() {
    let server = Server::start();
    for url in [
        format!("redis+cluster://127.0.0.1:{}", server.port),
        format!("redis+sentinel://127.0.0.1:{}/m", server.port),
    ] {
        let locks = manager(std::slice::from_ref(&url));
        let error =
            tokio::time::timeout(SLACK, locks.acquire(fresh("r"), long())).await.expect("retried").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{url}: {error:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_lease_says_what_kept_it_from_being_extended() {
    let server = Server::start();
    let locks = clerk(&server, &[]);
    let events = locks.events().unwrap();
    let lease = locks.acquire(&fresh("r"), Acquire::ttl(Duration::from_secs(1))).await.unwrap();
    let _: () = server.ask(&["ACL", "SETUSER", "clerk", "-evalsha"]);
    assert_eq!(lease.extend(None).await.unwrap_err().kind(), ErrorKind::Auth);
    assert!(lease.last_failure().is_none(), "it is held yet");
    assert_eq!(lease.lost().await, Some(LossReason::Expired));
    assert_eq!(lease.last_failure().map(|failure| failure.kind()), Some(ErrorKind::Auth));
    let error = lease.extend(None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost);
    assert!(error.to_string().contains("'evalsha'"), "{error}");
    let told = async {
        loop {
            let lost = events.next().await.unwrap().into_iter().find(|event| event.kind == EventKind::Lost);
            if let Some(lost) = lost {
                return lost.error;
            }
        }
    };
    assert!(told.await.is_some_and(|error| error.contains("'evalsha'")));
}
