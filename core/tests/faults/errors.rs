//! What servers say instead of doing what they are asked.

use std::{
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use polylock::{Acquire, ErrorKind, Release, Target};

use super::{
    FOREIGN, SLACK, eventually, fresh, long, manager, ms,
    server::{Server, urls},
    soon, until_clean,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scripts_are_flushed_in_the_middle_of_everything() {
    let server = Server::start();
    let (locks, name) = (manager(&[server.url()]), fresh("r"));
    let held = locks.acquire(fresh("held"), Acquire::ttl(ms(1500))).await.unwrap();
    let first = held.deadline();
    let stop = Arc::new(AtomicBool::new(false));
    let flushing = tokio::spawn({
        let (locks, name, stop) = (locks.clone(), name.clone(), Arc::clone(&stop));
        async move {
            while !stop.load(Ordering::Relaxed) {
                let lease = locks.try_acquire(&name, long()).await.expect("out of reach").expect("not free");
                lease.extend(None).await.expect("not extended");
                assert_eq!(lease.release().await.unwrap(), Release::Released);
            }
        }
    });
    for _ in 0..100 {
        let _: () = server.ask(&["SCRIPT", "FLUSH"]);
        tokio::time::sleep(ms(2)).await;
    }
    eventually(SLACK, "it is renewed", || held.deadline() > first).await;
    stop.store(true, Ordering::Relaxed);
    flushing.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_clients_are_taken() {
    let server = Server::start();
    let (one, name) = (manager(&[server.url()]), fresh("r"));
    let lease = soon(&one, &name).await;
    let clients = server.clients();
    let _: () = server.ask(&["CONFIG", "SET", "maxclients", &(clients + 1).to_string()]);
    let mut guests = Vec::new();
    let two = manager(&[server.url()]);
    // Whether a connection is refused depends on how many there are: fill up what is left.
    for _ in 0..3 {
        guests.push(TcpStream::connect(("127.0.0.1", server.port)).expect("no connection"));
    }
    let error = two.try_acquire(&name, long()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    assert!(format!("{error:?} {:?}", error.causes()).contains("max number of clients"), "{error:?}");
    let _: () = server.ask(&["CONFIG", "SET", "maxclients", "1000"]);
    assert!(two.try_acquire(&name, long()).await.unwrap().is_none());
    assert_eq!(lease.release().await.unwrap(), Release::Released);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_password_is_changed() {
    let server = Server::start();
    let locks = manager(&[format!("redis://:sesame@127.0.0.1:{}", server.port)]);
    let _: () = server.ask(&["CONFIG", "SET", "requirepass", "sesame"]);
    let name = fresh("r");
    let lease = locks.acquire(&name, Acquire::ttl(ms(1500))).await.unwrap();
    let _: () = server.ask(&["CONFIG", "SET", "requirepass", "other"]);
    server.cut_clients();
    // Not tried again and again: said at once, without the password.
    let error = tokio::time::timeout(SLACK, locks.acquire(fresh("r"), long())).await.expect("retried").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Auth, "{error:?}");
    assert!(!format!("{error:?}{error}").contains("sesame"), "{error:?}");
    assert!(tokio::time::timeout(SLACK, lease.lost()).await.expect("never told").is_some());
    let _: () = server.ask(&["CONFIG", "SET", "requirepass", "sesame"]);
    soon(&locks, &name).await.release().await.unwrap();
}

/// Wrong at every node, it is said as clearly as by one; wrong at one, it is that node's affair.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passwords_of_a_quorum() {
    let servers = Server::several(3);
    let locks = manager(&urls(&servers));
    let _: () = servers[0].ask(&["CONFIG", "SET", "requirepass", "other"]);
    let name = fresh("r");
    let lease = soon(&locks, &name).await;
    assert_eq!(lease.release().await.unwrap(), Release::Released);
    for server in &servers[1..] {
        let _: () = server.ask(&["CONFIG", "SET", "requirepass", "other"]);
    }
    let locks = manager(&urls(&servers));
    let error = tokio::time::timeout(SLACK, locks.acquire(&name, long())).await.expect("retried").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Auth, "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endless_script_runs() {
    let server = Server::start();
    let _: () = server.ask(&["CONFIG", "SET", "busy-reply-threshold", "1"]);
    let (locks, name) = (manager(&[server.url()]), fresh("r"));
    let lease = soon(&locks, &name).await;
    // On a connection of its own: its answer comes when it is killed.
    let url = server.url();
    let endless = tokio::task::spawn_blocking(move || {
        let mut connection = redis::Client::open(url).unwrap().get_connection().unwrap();
        redis::cmd("EVAL").arg("while true do end").arg(0).query::<()>(&mut connection).unwrap_err()
    });
    eventually(
        SLACK,
        "it is busy",
        || matches!(server.try_ask::<()>(&["GET", "x"]), Err(error) if error.code() == Some("BUSY")),
    )
    .await;
    let error = locks.try_acquire(&name, long()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    assert!(format!("{error:?}").contains("BUSY"), "{error:?}");
    assert_eq!(lease.release().await.unwrap(), Release::Unknown);
    let _: () = server.ask(&["SCRIPT", "KILL"]);
    endless.await.unwrap();
    // What could not be released is released now.
    until_clean(&[&server], &name).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_memory_is_used_up() {
    let server = Server::start();
    let (locks, name) = (manager(&[server.url()]), fresh("r"));
    let lease = soon(&locks, &name).await;
    let _: () = server.ask(&["CONFIG", "SET", "maxmemory", "1"]);
    let error = locks.try_acquire(fresh("r"), long()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    assert!(format!("{error:?}").contains("OOM"), "{error:?}");
    lease.extend(None).await.expect("an extension needs no memory");
    assert_eq!(lease.release().await.unwrap(), Release::Released);
    assert_eq!(server.keys(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_is_loading() {
    let directory = std::env::temp_dir().join(format!("polylock-{}-loading", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.to_string_lossy().into_owned();
    let server = Server::with(&["--dir", &path, "--enable-debug-command", "yes"], &[]);
    let (locks, name) = (manager(&[server.url()]), fresh("r"));
    let _: () = server.ask(&["DEBUG", "POPULATE", "4000", "filler", "1000"]);
    let lease = soon(&locks, &name).await;
    let _: () = server.ask(&["SAVE"]);
    let _: () = server.ask(&["CONFIG", "SET", "key-load-delay", "1000"]);
    let _: () = server.ask(&["CONFIG", "SET", "loading-process-events-interval-bytes", "1024"]);
    // Loads what it saved, the lock as well; its answer comes afterwards.
    let url = server.url();
    let loading = tokio::task::spawn_blocking(move || {
        let mut connection = redis::Client::open(url).unwrap().get_connection().unwrap();
        redis::cmd("DEBUG").arg("RELOAD").arg("NOSAVE").query::<()>(&mut connection).unwrap();
    });
    eventually(
        SLACK,
        "it is loading",
        || matches!(server.try_ask::<()>(&["GET", "x"]), Err(error) if error.code() == Some("LOADING")),
    )
    .await;
    let tried = locks.try_acquire(&name, long()).await;
    let still = matches!(server.try_ask::<()>(&["GET", "x"]), Err(error) if error.code() == Some("LOADING"));
    if still {
        let error = tried.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
        assert!(format!("{error:?}").contains("LOADING"), "{error:?}");
    }
    loading.await.unwrap();
    assert!(locks.try_acquire(&name, long()).await.unwrap().is_none());
    assert_eq!(lease.release().await.unwrap(), Release::Released);
    drop(server);
    std::fs::remove_dir_all(directory).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_key_is_something_else() {
    let server = Server::start();
    let locks = manager(&[server.url()]);
    let fillings: [&[&str]; 5] = [&["LPUSH"], &["SADD"], &["HSET", "field"], &["ZADD", "1"], &["XADD", "*", "field"]];
    for filling in fillings {
        let name = fresh("r");
        let mut command = vec![filling[0], &name];
        command.extend(&filling[1..]);
        command.push("value");
        let _: redis::Value = server.ask(&command);
        let before: Vec<u8> = server.ask(&["DUMP", &name]);
        let error = locks.try_acquire(&name, long()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict, "{filling:?}: {error:?}");
        let error = locks.acquire(&name, long().wait(ms(30))).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict, "{filling:?}: {error:?}");
        assert_eq!(server.ask::<Vec<u8>>(&["DUMP", &name]), before);
    }
    // Another library's, without a ttl: held, and nobody knows for how long.
    let name = fresh("r");
    let _: () = server.ask(&["SET", &name, FOREIGN]);
    assert!(locks.try_acquire(&name, long()).await.unwrap().is_none());
    let error = locks.acquire(&name, long().wait(ms(400))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error:?}");
    let holder = locks.inspect(&name).await.unwrap().expect("it is held");
    assert_eq!((holder.owner.as_str(), holder.expires_in, holder.fencing_token), (FOREIGN, None, None));
}

/// The script cannot write after its first write: what it wrote is taken back, though the server said no.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_script_that_breaks_off_leaves_nothing() {
    let server = Server::start();
    let (locks, name) = (manager(&[server.url()]), fresh("r"));
    let fence = format!("polylock:fence:{{{name}}}");
    let _: i64 = server.ask(&["LPUSH", &fence, "not a fence"]);
    let error = locks.try_acquire(&name, long()).await.unwrap_err();
    assert!(format!("{error:?}").contains("WRONGTYPE"), "{error:?}");
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error:?}");
    assert_eq!(server.get(&name), None, "a lock without its token");
    // The same for several, and for one that is shared.
    let others = [fresh("r"), fresh("r")];
    for resource in &others {
        let _: i64 = server.ask(&["LPUSH", &format!("polylock:fence:{{{resource}}}"), "not a fence"]);
    }
    for target in [Target::shared(&others[0]), Target::all(others.clone())] {
        let error = locks.try_acquire(target, long()).await.unwrap_err();
        assert!(format!("{error:?}").contains("WRONGTYPE"), "{error:?}");
        eventually(SLACK, "no key is left", || server.keys().is_empty()).await;
    }

    // A user who lacks what comes after the first writes.
    let _: () = server.ask(&["ACL", "SETUSER", "clerk", "on", ">secret", "~*", "&*", "+@all", "-pexpire"]);
    let clerk = manager(&[format!("redis://clerk:secret@127.0.0.1:{}", server.port)]);
    let name = fresh("r");
    let shared = clerk.acquire(Target::shared(&name), long());
    let error = tokio::time::timeout(SLACK, shared).await.expect("retried").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Auth, "{error:?}");
    eventually(SLACK, "no key is left", || server.keys().is_empty()).await;

    // And one who may not publish still releases.
    let _: () = server.ask(&["ACL", "SETUSER", "clerk", "+pexpire", "-publish"]);
    let lease = soon(&clerk, &name).await;
    assert_eq!(lease.release().await.unwrap(), Release::Released);
}

/// A fence that somebody else wrote, from which tokens would fall, repeat or not be numbers: no lock, and the fence stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fence_that_cannot_be_counted_on_from_is_refused() {
    let server = Server::start();
    let locks = manager(&[server.url()]);
    for written in ["9999999999999999", "9007199254740991 somebody", "1e300", "inf", "0x7fffffffffffff"] {
        let (one, other) = (fresh("r"), fresh("r"));
        let fence = format!("polylock:fence:{{{one}}}");
        let _: () = server.ask(&["SET", &fence, written]);
        let all = Target::all([one.clone(), other.clone()]);
        let in_turn = locks.acquire(&one, long().wait(SLACK).fair(true)).await.unwrap_err();
        assert_eq!(in_turn.kind(), ErrorKind::Conflict, "{written}: {in_turn:?}");
        for target in [Target::from(&*one), all, Target::shared(&one), Target::permit(&one, 2)] {
            let error = locks.acquire(target.clone(), long().wait(SLACK)).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Conflict, "{written}, {target:?}: {error:?}");
            assert!(error.to_string().contains(&fence), "{written}, {target:?}: {error}");
            assert_eq!(server.get(&fence).as_deref(), Some(written), "{target:?}");
            eventually(SLACK, "no lock is left", || server.get(&one).is_none() && server.get(&other).is_none()).await;
        }
    }
    // The last one that can be counted on from, and what is no number is no counter.
    let name = fresh("r");
    let fence = format!("polylock:fence:{{{name}}}");
    for (written, next) in [("9007199254740990", Some((1 << 53) - 1)), ("nan", None), ("hello", None)] {
        let _: () = server.ask(&["SET", &fence, written]);
        let lease = soon(&locks, &name).await;
        match next {
            Some(next) => assert_eq!(lease.fencing_token(), next),
            None => assert!((1 << 50..1 << 53).contains(&lease.fencing_token()), "{written}"),
        }
        assert_eq!(lease.release().await.unwrap(), Release::Released);
    }
    // Nor is one raised to it, when the majority's tokens differ.
    let raise = include_str!("../../src/backend/redis/scripts/raise.lua");
    let _: () = server.ask(&["MSET", "lock", "owner", "fence", "9999999999999999"]);
    let error = server
        .try_ask::<i64>(&["EVAL", raise, "2", "lock", "fence", "owner", "0000000000000009", "1000"])
        .unwrap_err();
    assert!(error.to_string().contains("fence is not a fencing counter"), "{error}");
}

/// Commands that are called something else on this server (`rename-command`).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_have_other_names() {
    for command in ["SET", "TIME", "EVAL"] {
        let server = Server::with(&["--rename-command", command, "other"], &[]);
        let error = manager(&[server.url()]).acquire(&fresh("r"), long().wait(SLACK)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{command}: {error:?}");
        assert!(server.keys().is_empty(), "{command}");
    }
    let server = Server::with(&["--rename-command", "DEL", "other"], &[]);
    let (locks, name) = (manager(&[server.url()]), fresh("r"));
    let lease = locks.acquire(&name, Acquire::ttl(ms(500))).await.unwrap();
    assert_eq!(lease.release().await.unwrap(), Release::Unknown);
    eventually(SLACK, "it is free once its ttl is over", || server.keys().is_empty()).await;
}

/// A request whose first answer was lost is sent again: it is granted with the same token, or a later one if the fence
/// is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn asking_again_is_granted_again() {
    let server = Server::start();
    let acquire = include_str!("../../src/backend/redis/scripts/acquire.lua");
    let acquire_all = include_str!("../../src/backend/redis/scripts/acquire_all.lua");
    let share = include_str!("../../src/backend/redis/scripts/share.lua");
    let (first, second) = ("0000000000000007", "0000000000000009");
    let shapes: [(&str, &[&str], &[&str]); 4] = [
        (acquire, &["3", "lock", "fence", "writer"], &[]),
        (acquire_all, &["4", "lock", "lock2", "fence", "fence2"], &[]),
        (share, &["3", "lock", "fence", "writer"], &["shared:", "0"]),
        (share, &["3", "lock", "fence", "writer"], &["permit:", "1"]),
    ];
    for (script, keys, how) in shapes {
        let ask = |proposed: &str| -> i64 {
            let fence = format!("{proposed} owner record");
            let args = ["owner", "60000", proposed, "9999999999999999", &fence, "3600000"];
            server.ask(&[&["EVAL", script][..], keys, &args[..], how].concat())
        };
        assert_eq!(ask(first), 7, "{keys:?}");
        assert_eq!(ask(second), 7, "{keys:?}");
        let _: i64 = server.ask(&["DEL", "fence", "fence2"]);
        assert_eq!(ask(second), 9, "{keys:?}");
        assert_eq!(server.get("fence").as_deref(), Some(&format!("{second} owner record")[..]), "{keys:?}");
        let _: i64 = server.ask(&["DEL", "lock", "lock2"]);
        // The counter is ahead of whoever asks next.
        assert_eq!(ask(first), 10, "{keys:?}");
        assert_eq!(server.get("fence").as_deref(), Some("0000000000000010 owner record"), "{keys:?}");
        let _: () = server.ask(&["FLUSHALL"]);
    }
}
