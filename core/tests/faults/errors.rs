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

/// What somebody else wrote where the fencing tokens are counted is no counter: no token comes of it, whatever it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_fence_is_something_else() {
    let server = Server::start();
    let locks = manager(&[server.url()]);
    let fence_of = |name: &str| format!("polylock:fence:{{{name}}}");
    let contents = [
        "9999999999999999",
        "9007199254740991 owner record",
        "9007199254740000 owner record",
        "5500000000000000",
        "10000000000000000",
        "inf",
        "nan",
        "1e300",
        "0x7",
        "-5",
        "x",
    ];
    type Shape = fn(&str, &str) -> (Target, Acquire);
    let shapes: [Shape; 5] = [
        |name, _| (Target::from(name), long()),
        |name, _| (Target::from(name), long().fair(true)),
        |name, _| (Target::shared(name), long()),
        |name, _| (Target::permit(name, 2), long()),
        |name, other| (Target::all([other, name]), long()),
    ];
    for content in contents.iter().map(Some).chain([None]) {
        for shape in shapes {
            let (name, other) = (fresh("r"), fresh("r"));
            let fence = fence_of(&name);
            match content {
                Some(content) => server.ask::<()>(&["SET", &fence, content]),
                None => server.ask::<()>(&["LPUSH", &fence, "not a fence"]),
            }
            let before: Vec<u8> = server.ask(&["DUMP", &fence]);
            let (target, options) = shape(&name, &other);
            let error =
                tokio::time::timeout(SLACK, locks.acquire(target, options)).await.expect("retried").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Conflict, "{content:?}: {error:?}");
            assert!(error.to_string().contains(&fence), "{error}");
            assert_eq!(server.ask::<Vec<u8>>(&["DUMP", &fence]), before, "{content:?}");
            assert_eq!(server.keys(), Vec::<String>::new(), "a lock without its token");
        }
    }
    // By a clock that was wrong by decades, and one that somebody set without an owner.
    for (content, token) in
        [("4500000000000000 owner record", 4500000000000001), ("4500000000000000", 4500000000000001)]
    {
        for shape in shapes {
            let (name, other) = (fresh("r"), fresh("r"));
            let _: () = server.ask(&["SET", &fence_of(&name), content]);
            let (target, options) = shape(&name, &other);
            let lease = locks.acquire(target, options).await.unwrap();
            assert_eq!(lease.fencing_token(), token);
            let holder = locks.inspect(&name).await.unwrap().expect("it is held");
            assert_eq!(holder.fencing_token, Some(token));
            assert_eq!(lease.release().await.unwrap(), Release::Released);
        }
    }
    // One that is held already is extended, looked at and released as ever.
    let name = fresh("r");
    let lease = soon(&locks, &name).await;
    let _: () = server.ask(&["DEL", &fence_of(&name)]);
    let _: () = server.ask(&["LPUSH", &fence_of(&name), "not a fence"]);
    lease.extend(None).await.unwrap();
    assert_eq!(locks.inspect(&name).await.unwrap().expect("it is held").owner, lease.owner_token().as_str());
    assert_eq!(lease.release().await.unwrap(), Release::Released);
    // Nor is one raised to it, when the majority's tokens differ.
    let raise = include_str!("../../src/backend/redis/scripts/raise.lua");
    let _: () = server.ask(&["MSET", "lock", "owner", "fence", "9999999999999999"]);
    let error = server
        .try_ask::<i64>(&["EVAL", raise, "2", "lock", "fence", "owner", "0000000000000009", "1000"])
        .unwrap_err();
    assert!(error.to_string().contains("the fence fence holds something else than a token"), "{error}");
}

/// What somebody else keeps where those who wait in line are: said by its name, and no lock is left by it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_line_is_something_else() {
    let server = Server::start();
    let locks = manager(&[server.url()]);
    for side in ["queue", "queue-until"] {
        let name = fresh("r");
        let key = format!("polylock:{side}:{{{name}}}");
        let _: () = server.ask(&["SET", &key, "not a line"]);
        let error = tokio::time::timeout(SLACK, locks.acquire(&name, long().fair(true))).await.expect("retried");
        let error = error.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error:?}");
        assert!(error.to_string().contains(&key), "{error}");
        assert_eq!(server.keys(), std::slice::from_ref(&key));
        // Who does not ask to be served in order is not concerned.
        assert_eq!(soon(&locks, &name).await.release().await.unwrap(), Release::Released);
        let _: () = server.ask(&["DEL", &key]);
    }
    // The mark of a waiting writer has a ttl; what has none holds up nobody.
    let name = fresh("r");
    let _: () = server.ask(&["SET", &format!("polylock:writer:{{{name}}}"), "nobody's"]);
    let lease = locks.try_acquire(Target::shared(&name), long()).await.unwrap().expect("held up");
    assert_eq!(lease.release().await.unwrap(), Release::Released);
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

/// A server whose counter is not one does not vote; the others go on, and their counters stay what they are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_fence_of_a_minority_is_something_else() {
    const WRONG: &str = "9999999999999998";
    // A number, but so far from any clock that no token has come of it: nor does one, which would take the others along.
    const WILD: &str = "9007199254740000";
    let servers = Server::several(3);
    let locks = manager(&urls(&servers));
    let mut last = 0;
    for (index, target) in [Target::from("a"), Target::shared("b"), Target::all(["c", "d"])].into_iter().enumerate() {
        for (name, wrong) in ["a", "b", "c", "d"].into_iter().zip([WILD, WILD, WILD, WRONG]) {
            let _: () = servers[index].ask(&["SET", &format!("polylock:fence:{{{name}}}"), wrong]);
        }
        for _ in 0..3 {
            let lease = locks.acquire(target.clone(), long()).await.unwrap();
            assert!(lease.fencing_token() > last && lease.fencing_token() < 9_000_000_000_000_000);
            last = lease.fencing_token();
            assert_eq!(lease.release().await.unwrap(), Release::Released);
        }
        let _: () = servers[index].ask(&["FLUSHALL"]);
    }
    for server in &servers[1..] {
        let _: () = server.ask(&["SET", "polylock:fence:{a}", WRONG]);
    }
    let error = tokio::time::timeout(SLACK, locks.acquire("a", long())).await.expect("retried").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error:?}");
    let left = || servers.iter().all(|server| server.keys().is_empty());
    eventually(SLACK, "no key is left", left).await;
}

/// A request whose first answer was lost is sent again: it is granted with the same token, or a later one if the fence
/// is gone, or may be another holder's by now.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn asking_again_is_granted_again() {
    let server = Server::start();
    let acquire = concat!(
        include_str!("../../src/backend/redis/scripts/acquire.lua"),
        include_str!("../../src/backend/redis/scripts/acquire_one.lua")
    );
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
        let try_ask = |proposed: &str| -> redis::RedisResult<i64> {
            let fence = format!("{proposed} owner record");
            let args = ["owner", "60000", proposed, "9999999999999999", &fence, "3600000"];
            server.try_ask(&[&["EVAL", script][..], keys, &args[..], how].concat())
        };
        let ask = |proposed| try_ask(proposed).unwrap();
        assert_eq!(ask(first), 7, "{keys:?}");
        assert_eq!(ask(second), if how.is_empty() { 7 } else { 9 }, "{keys:?}");
        let _: i64 = server.ask(&["DEL", "fence", "fence2"]);
        assert_eq!(ask(second), 9, "{keys:?}");
        assert_eq!(server.get("fence").as_deref(), Some(&format!("{second} owner record")[..]), "{keys:?}");
        let _: i64 = server.ask(&["DEL", "lock", "lock2"]);
        // The counter is ahead of whoever asks next.
        assert_eq!(ask(first), 10, "{keys:?}");
        assert_eq!(server.get("fence").as_deref(), Some("0000000000000010 owner record"), "{keys:?}");
        // Somebody else has written there meanwhile: refused, and what was granted is given back.
        let _: () = server.ask(&["SET", "fence", "x"]);
        assert_eq!(try_ask(first).unwrap_err().code(), Some("WRONGTYPE"), "{keys:?}");
        assert_eq!(server.ask::<i64>(&["EXISTS", "lock", "lock2"]), 0, "{keys:?}");
        let _: () = server.ask(&["FLUSHALL"]);
    }
}

/// The first free number from the one that is asked for; whoever has one already gets that again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn permits_are_numbered() {
    let server = Server::start();
    let share = include_str!("../../src/backend/redis/scripts/share.lua");
    let ask = |owner: &str, of: &str, begin: &str| -> Vec<i64> {
        let (proposed, fence) = ("0000000000000007", format!("0000000000000007 {owner} record"));
        let keys = ["4", "lock", "fence", "writer", "permits"];
        let args = [owner, "60000", proposed, "9999999999999999", &fence, "3600000", "permit:", of, begin];
        server.ask(&[&["EVAL", share][..], &keys, &args].concat())
    };
    assert_eq!(ask("a", "3", "2"), [1, 7, 2]);
    assert_eq!(ask("a", "3", "0"), [1, 8, 2]);
    assert_eq!(ask("b", "3", "2"), [1, 9, 0]);
    // Somebody takes it for a smaller one.
    assert_eq!(ask("c", "2", "0")[0], 0);
    assert_eq!(ask("c", "3", "0"), [1, 10, 1]);
    assert_eq!(ask("d", "3", "0")[0], 0);
    // Number 0 is free when its holder is gone.
    let _: i64 = server.ask(&["ZREM", "lock", "permit:b"]);
    assert_eq!(ask("d", "3", "1"), [1, 11, 0]);
    // The numbers are lost: whoever has none here does not get one that is not there.
    let _: i64 = server.ask(&["DEL", "permits"]);
    assert_eq!([ask("a", "3", "1")[2], ask("c", "3", "1")[2], ask("d", "3", "1")[2]], [1, 2, 0]);
    let _: i64 = server.ask(&["DEL", "permits"]);
    assert_eq!([ask("a", "2", "1")[2], ask("c", "2", "1")[2]], [1, 0]);
    assert_eq!(ask("d", "2", "1")[0], 0);
}
