//! Requests that go out as one script: each gets the answer that it would get alone.

use std::{future::Future, time::Duration};

use futures_util::future::join_all;
use polylock::{Acquire, ErrorKind, Lease, LockManager, Release, Result};
use tokio::runtime::{Builder, Runtime};

use super::{fresh, long, manager, ms, server::Server};

const MANY: usize = 32;

/// Many names, and a manager whose server is asked for them in one turn of an event loop.
struct Crowd {
    event_loop: Runtime,
    locks: LockManager,
    names: Vec<String>,
}

impl Crowd {
    /// The server has the scripts by then, unless the user may not run them.
    fn at(url: &str) -> Self {
        let event_loop = Builder::new_current_thread().enable_all().build().unwrap();
        let names = (0..MANY).map(|_| fresh("together")).collect();
        let crowd = Self { event_loop, locks: manager(&[url.to_owned()]), names };
        // The connection is there when many come to use it.
        crowd.turn(async { crowd.locks.acquire(fresh("first"), long()).await.unwrap().release().await }).unwrap();
        for _ in 0..2 {
            let leases = crowd.take();
            assert_eq!(crowd.give(leases), [Release::Released; MANY]);
        }
        crowd
    }

    /// Nothing else runs meanwhile that is asked of its own loop.
    fn turn<T>(&self, work: impl Future<Output = T>) -> T {
        self.event_loop.block_on(work)
    }

    fn try_all(&self) -> Vec<Result<Option<Lease>>> {
        self.turn(join_all(self.names.iter().map(|name| self.locks.try_acquire(name, long()))))
    }

    fn take(&self) -> Vec<Lease> {
        self.try_all().into_iter().map(|taken| taken.unwrap().expect("it is free")).collect()
    }

    fn give(&self, leases: Vec<Lease>) -> Vec<Release> {
        self.turn(join_all(leases.iter().map(Lease::release))).into_iter().map(Result::unwrap).collect()
    }
}

#[test]
fn many_take_few_scripts_and_have_a_token_each() {
    let server = Server::start();
    let crowd = Crowd::at(&server.url());
    let (before, mut tokens) = (server.scripts(), Vec::new());
    for _ in 0..3 {
        let leases = crowd.take();
        tokens.push(leases.iter().map(Lease::fencing_token).collect::<Vec<_>>());
        assert_eq!(crowd.give(leases), [Release::Released; MANY]);
    }
    // Each alone takes two.
    assert!(server.scripts() - before < 3 * MANY as u64, "{} scripts", server.scripts() - before);
    assert!(tokens.windows(2).all(|pair| pair[0].iter().zip(&pair[1]).all(|(one, next)| one < next)));
    assert!(server.keys().is_empty());
}

/// A runtime that may have several threads wakes a task before those that wait already: here the one that writes.
#[test]
fn many_tasks_take_few_scripts() {
    const PAIRS: usize = 10;
    let server = Server::start();
    let locks = manager(&[server.url()]);
    let pairs = |name: String| {
        let locks = locks.clone();
        async move {
            for _ in 0..PAIRS {
                let lease = locks.acquire(&name, long()).await.unwrap();
                assert_eq!(lease.release().await.unwrap(), Release::Released);
            }
        }
    };
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let tasks: Vec<_> = (0..MANY).map(|_| runtime.spawn(pairs(fresh("together")))).collect();
    runtime.block_on(join_all(tasks)).into_iter().for_each(Result::unwrap);
    // Each alone takes two; the first ones go alone.
    assert!(server.scripts() < (MANY * PAIRS * 3 / 2) as u64, "{} scripts", server.scripts());
}

#[test]
fn each_gets_its_own_answer() {
    let server = Server::start();
    let crowd = Crowd::at(&server.url());
    let fence = |index: usize| format!("polylock:fence:{{{}}}", crowd.names[index]);
    let _: () = server.ask(&["SET", &crowd.names[5], "somebody else's", "PX", "60000"]);
    let _: i64 = server.ask(&["LPUSH", &crowd.names[6], "a list"]);
    let _: () = server.ask(&["SET", &fence(7), "no token"]);
    let _: () = server.ask(&["SET", &fence(8), "8000000000000000 owner record"]);
    let mut leases = Vec::new();
    for (index, taken) in crowd.try_all().into_iter().enumerate() {
        match index {
            5 => assert!(taken.unwrap().is_none()),
            6 | 7 => {
                let error = taken.unwrap_err();
                assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Conflict, false), "{error}");
                assert!(error.to_string().contains(&crowd.names[index]), "{error}");
            }
            8 => {
                let error = taken.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
            }
            _ => leases.push(taken.unwrap().expect("it is free")),
        }
    }
    // Taken away from their holders in different ways.
    let _: i64 = server.ask(&["DEL", leases[0].resource().as_str()]);
    let _: () = server.ask(&["SET", leases[1].resource().as_str(), "somebody else's"]);
    let _: i64 = server.ask(&["DEL", leases[2].resource().as_str()]);
    let _: i64 = server.ask(&["LPUSH", leases[2].resource().as_str(), "a list"]);
    let held: Vec<_> = leases[..3].iter().map(|lease| lease.resource().to_string()).collect();
    let released = crowd.give(leases);
    assert_eq!(released[..3], [Release::NotHeld; 3]);
    assert!(released[3..].iter().all(|released| *released == Release::Released), "{released:?}");
    let mut left = server.keys();
    left.sort();
    let mut expected = [&held[1], &held[2], &crowd.names[5], &crowd.names[6]];
    expected.sort();
    assert_eq!(left.iter().collect::<Vec<_>>(), expected);
}

/// Who has waiters is told apart from who has none, in one script.
#[test]
fn those_who_wait_are_woken() {
    let server = Server::start();
    let (crowd, other) = (Crowd::at(&server.url()), Crowd::at(&server.url()));
    let leases = crowd.take();
    let waited = &crowd.names[3];
    let waiter = std::thread::spawn({
        let waited = waited.clone();
        move || other.turn(other.locks.acquire(waited, long().wait(Duration::from_secs(60))))
    });
    let channel = format!("polylock:wake:{{{waited}}}");
    let listening = || -> i64 {
        let (_, count): (String, i64) = server.ask(&["PUBSUB", "NUMSUB", &channel]);
        count
    };
    while listening() == 0 {
        std::thread::sleep(ms(5));
    }
    let published = || {
        let stats: String = server.ask(&["INFO", "commandstats"]);
        let line = stats.lines().find(|line| line.starts_with("cmdstat_publish:")).unwrap_or_default().to_owned();
        line.split(['=', ',']).nth(1).map_or(0, |calls| calls.parse::<u64>().unwrap())
    };
    let before = published();
    assert_eq!(crowd.give(leases), [Release::Released; MANY]);
    let lease = waiter.join().unwrap().unwrap();
    assert_eq!(published() - before, 1);
    assert!(lease.is_held());
}

#[test]
fn what_one_may_not_touch_does_not_keep_the_others_out() {
    let server = Server::start();
    let user = |name: &str, rights: &[&str]| {
        let all = ["ACL", "SETUSER", name, "reset", "on", ">secret", "~*", "&*", "+@all"];
        let _: () = server.ask(&[&all[..], rights].concat());
        format!("redis://{name}:secret@127.0.0.1:{}", server.port)
    };
    // Who may not look at several keys, or at who listens, is asked alone for that, or publishes always.
    for right in ["-mget", "-pubsub", "-publish"] {
        let crowd = Crowd::at(&user("clerk", &[right]));
        let leases = crowd.take();
        assert_eq!(crowd.give(leases), [Release::Released; MANY], "{right}");
        if right == "-mget" {
            // It is not tried again and again.
            let before = server.scripts();
            let leases = crowd.take();
            assert_eq!(crowd.give(leases), [Release::Released; MANY]);
            assert_eq!(server.scripts() - before, 2 * MANY as u64);
        }
    }
    let mut crowd = Crowd::at(&user("guest", &["resetkeys", "~fault:*", "~polylock:*"]));
    crowd.names[9] = "forbidden".into();
    for _ in 0..2 {
        let mut leases = Vec::new();
        for (index, taken) in crowd.try_all().into_iter().enumerate() {
            match taken {
                Err(error) => assert_eq!((index, error.kind()), (9, ErrorKind::Auth), "{error}"),
                Ok(taken) => leases.push(taken.expect("it is free")),
            }
        }
        assert_eq!(crowd.give(leases), [Release::Released; MANY - 1]);
    }
}

#[test]
fn a_server_that_forgets_the_scripts_learns_them_again() {
    let server = Server::start();
    let crowd = Crowd::at(&server.url());
    for _ in 0..3 {
        let _: () = server.ask(&["SCRIPT", "FLUSH"]);
        let leases = crowd.take();
        let _: () = server.ask(&["SCRIPT", "FLUSH"]);
        assert_eq!(crowd.give(leases), [Release::Released; MANY]);
    }
    let before = server.scripts();
    for _ in 0..4 {
        let leases = crowd.take();
        assert_eq!(crowd.give(leases), [Release::Released; MANY]);
    }
    assert!(server.scripts() - before < 4 * MANY as u64, "{} scripts", server.scripts() - before);
}

/// A server that has no room breaks the script off: nothing is granted, nothing stays, and all goes on when there is room.
#[test]
fn a_script_that_breaks_off_leaves_nothing() {
    let server = Server::start();
    let crowd = Crowd::at(&server.url());
    let _: () = server.ask(&["CONFIG", "SET", "maxmemory", "1"]);
    for taken in crowd.try_all() {
        let error = taken.unwrap_err();
        assert!(error.kind() == ErrorKind::Unavailable && error.to_string().contains("OOM"), "{error}");
    }
    let _: () = server.ask(&["CONFIG", "SET", "maxmemory", "0"]);
    let wait = Acquire::ttl(Duration::from_secs(300)).wait(Duration::from_secs(20));
    let leases = crowd.turn(join_all(crowd.names.iter().map(|name| crowd.locks.acquire(name, wait.clone()))));
    assert_eq!(crowd.give(leases.into_iter().map(Result::unwrap).collect()), [Release::Released; MANY]);
    assert!(server.keys().is_empty());
}
