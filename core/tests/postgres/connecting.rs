//! Where to connect, and as whom.

use std::future::Future;

use tokio_postgres::error::SqlState;

use super::*;

#[tokio::test]
async fn says_what_is_wrong_and_never_the_password() {
    let mut server = Server::start(&[]);
    let password = server.password().to_owned();
    assert!(polylock::connect(&server.url).await.is_ok());
    let wrong = server.url.replace(&password, "swordfish");
    let nameless = server.url.replace("/app", "/nothing").replace("//nothing", "//app");
    let encrypted = format!("{}?sslmode=require", server.url);
    for (url, expected) in
        [(&wrong, ErrorKind::Auth), (&nameless, ErrorKind::InvalidArgument), (&encrypted, ErrorKind::Unavailable)]
    {
        let (kind, text) = kind(url).await;
        assert_eq!(kind, expected, "{text}");
        assert!(!text.contains("swordfish") && !text.contains(&password), "{text}");
    }
    let locks = manager(&server.url);
    assert!(!format!("{locks:?}").contains(&password));
    assert!(locks.try_acquire("r", long()).await.unwrap().is_some());

    server.order("standby");
    let (replica, text) = kind(&server.url).await;
    assert_eq!(replica, ErrorKind::Unavailable);
    assert!(text.contains("replica"), "{text}");

    server.order("kill");
    assert_eq!(kind(&server.url).await.0, ErrorKind::Unavailable);
    server.order("start");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_is_verified() {
    let server = Server::start(&["--tls"]);
    let here = server.url.replace("127.0.0.1", "localhost");
    let file = |name: &str| format!("{}/{name}", server.directory);
    let verified = format!("sslmode=verify-full&sslrootcert={}", file("ca.pem"));
    for url in [format!("{here}?{verified}"), format!("{here}?{verified}&mode=session"), here.clone()] {
        let locks = manager(&url);
        let lease = locks.acquire("r", long()).await.unwrap();
        let sql = server.sql().await;
        let encrypted =
            "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE ssl AND usename = 'app'";
        assert!(count(&sql, encrypted).await > 0);
        assert_eq!(lease.release().await.unwrap(), Release::Released);
        locks.close().await;
    }
    // The same server by another name, by another authority, and without TLS, which it insists on.
    for url in [
        format!("{}?{verified}", server.url),
        format!("{here}?sslmode=require&sslrootcert={}", file("other.pem")),
        format!("{here}?sslmode=verify-full"),
    ] {
        let (kind, text) = kind(&url).await;
        assert_eq!(kind, ErrorKind::Unavailable, "{text}");
        assert!(text.contains("certificate"), "{text}");
    }
    assert_eq!(kind(&format!("{here}?sslmode=disable")).await.0, ErrorKind::Auth);
    // A file of no use is an argument of no use.
    for bad in [format!("sslrootcert={}", file("nothing.pem")), format!("sslrootcert={}", file("ca.key"))] {
        let error = polylock::connect(format!("{here}?{bad}")).await.map(drop).unwrap_err();
        assert_eq!(error.argument(), Some("url"), "{error}");
        assert!(error.to_string().contains("sslrootcert"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_says_who_we_are() {
    let server = Server::start(&["--tls"]);
    let sql = server.sql().await;
    sql.batch_execute("GRANT CREATE, USAGE ON SCHEMA public TO carol").await.unwrap();
    let (_, address) = server.url.rsplit_once('@').unwrap();
    let address = address.replace("127.0.0.1", "localhost");
    let file = |name: &str| format!("{}/{name}", server.directory);
    let roots = format!("sslrootcert={}", file("ca.pem"));
    let ours = format!("sslcert={}&sslkey={}", file("client.pem"), file("client.key"));
    let locks = polylock::connect(format!("postgres://carol@{address}?{roots}&{ours}")).await.unwrap();
    assert!(locks.try_acquire("r", long()).await.unwrap().is_some());
    // Without it, with one of another authority, and with the key of another.
    let theirs = format!("sslcert={}&sslkey={}", file("other.pem"), file("other.key"));
    for (options, expected) in [(String::new(), ErrorKind::Auth), (theirs, ErrorKind::Unavailable)] {
        let (kind, text) = kind(&format!("postgres://carol@{address}?{roots}&{options}")).await;
        assert_eq!(kind, expected, "{text}");
    }
    let mixed = format!("sslcert={}&sslkey={}", file("client.pem"), file("other.key"));
    let error = polylock::connect(format!("postgres://carol@{address}?{roots}&{mixed}")).await.map(drop).unwrap_err();
    assert_eq!(error.argument(), Some("url"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_several_hosts_the_one_that_can_be_written_to_is_used() {
    let (mut one, mut two) = (Server::start(&[]), Server::start(&[]));
    // One user and password for both.
    for server in [&one, &two] {
        server
            .sql()
            .await
            .batch_execute("CREATE ROLE twin LOGIN PASSWORD 'twin'; GRANT ALL ON SCHEMA public TO twin")
            .await
            .unwrap();
    }
    let port = |server: &Server| server.url.rsplit(':').next().unwrap().split('/').next().unwrap().to_owned();
    let hosts = format!("127.0.0.1:{},127.0.0.1:{}", port(&one), port(&two));
    for mode in ["lease", "session"] {
        let locks = manager(&format!("postgres://twin:twin@{hosts}/app?target_session_attrs=read-write&mode={mode}"));
        locks.acquire("r", long().wait(LIMIT)).await.unwrap().release().await.unwrap();
        one.order("standby");
        let held = locks.acquire("r", long().wait(LIMIT)).await.unwrap();
        let table = if mode == "lease" { "polylock_lease" } else { "polylock_session" };
        let there = format!("SELECT count(*) FROM {table} WHERE owner = '{}'", held.owner_token());
        assert_eq!(count(&two.sql().await, &there).await, 1, "{mode}");
        one.order("primary");
        // And back, if that one is away.
        two.order("kill");
        locks.acquire("s", long().wait(LIMIT)).await.unwrap();
        assert_eq!(count(&one.sql().await, &format!("SELECT count(*) FROM {table} WHERE key = 's'")).await, 1);
        two.order("start");
        // Or if it can only be read.
        let (only, read) = (one.sql().await, "ALTER ROLE twin SET default_transaction_read_only = on");
        only.batch_execute(read).await.unwrap();
        let locks = manager(&format!("postgres://twin:twin@{hosts}/app?mode={mode}"));
        locks.acquire("t", long().wait(LIMIT)).await.unwrap();
        assert_eq!(count(&two.sql().await, &format!("SELECT count(*) FROM {table} WHERE key = 't'")).await, 1);
        // Alone it says who holds, and takes no locks.
        let alone = manager(&format!("postgres://twin:twin@127.0.0.1:{}/app?mode={mode}", port(&one)));
        assert!(alone.inspect("t").await.unwrap().is_none());
        let error = alone.try_acquire("t", long()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        only.batch_execute("ALTER ROLE twin RESET default_transaction_read_only").await.unwrap();
    }
}

/// Nobody else gets in; who holds goes on, and who waits gets in when there is room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_full_of_clients_says_so_and_costs_no_lease() {
    let server = Server::start(&["max_connections=16"]);
    for url in [server.url.clone(), session(&server)] {
        let (holding, others) = (manager(&url), manager(&url));
        let held = holding.acquire("r", long()).await.unwrap();
        let mut crowd = Vec::new();
        let refused = loop {
            match tokio_postgres::connect(&server.url, NoTls).await {
                Ok((client, connection)) => {
                    tokio::spawn(connection);
                    crowd.push(client);
                }
                Err(error) => break error,
            }
        };
        assert_eq!(refused.code(), Some(&SqlState::TOO_MANY_CONNECTIONS), "{refused}");
        let error = others.acquire("s", long().wait(200 * MS)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        held.extend(None).await.unwrap();
        let waiting = tokio::spawn(async move { others.acquire("s", long().wait(LIMIT)).await });
        drop(crowd);
        let lease = waiting.await.unwrap().unwrap();
        assert_eq!(lease.release().await.unwrap(), Release::Released);
        assert_eq!(held.release().await.unwrap(), Release::Released);
        holding.close().await;
    }
}

/// A server that takes connections and says nothing, as one that is stopped.
#[tokio::test]
async fn the_node_timeout_is_for_connecting_too() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let server = silent.local_addr().unwrap().to_string();
    for mode in ["lease", "session"] {
        let url = format!("postgres://app:secret@{server}/app?mode={mode}");
        let locks = polylock::connect(&*url).node_timeout(50 * MS).lazy().unwrap();
        let began = Instant::now();
        let refused = locks.try_acquire("r", long()).await.unwrap_err();
        let unknown = locks.inspect("r").await.unwrap_err();
        for error in [&refused, &unknown] {
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{mode}: {error}");
            assert!(error.to_string().contains(&server), "{mode}: it names no server: {error}");
        }
        // Connecting alone is given up after 5 s.
        assert!(began.elapsed() < Duration::from_secs(4), "{mode}: {:?}", began.elapsed());
    }
}

/// Who waits for an answer reads for all. If its event loop stands still, nobody waits for that, and a loss is told in time.
#[test]
fn a_loop_that_stands_still_keeps_nobody_waiting() {
    let server = Server::start(&[]);
    let still = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let other = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let sql = other.block_on(server.sql());
    for mode in ["lease", "session"] {
        let locks = manager(&format!("{}?mode={mode}", server.url));
        drop(still.block_on(locks.acquire("first", long())).unwrap());
        for _ in 0..rounds(20) {
            // It has asked, and does not look for the answer (unless that was there at once).
            let mut asking = Box::pin(locks.inspect("r"));
            let asked = std::future::poll_fn(|cx| std::task::Poll::Ready(asking.as_mut().poll(cx).is_pending()));
            let is_pending = still.block_on(asked);
            let beside = locks.acquire("beside", long());
            let beside = other.block_on(async { tokio::time::timeout(LIMIT / 12, beside).await });
            let beside = beside.expect("kept waiting").unwrap();
            assert_eq!(other.block_on(beside.release()).unwrap(), Release::Released);
            if is_pending {
                assert!(still.block_on(asking).unwrap().is_none());
            }
        }
    }
    let locks = manager(&session(&server));
    let end = "SELECT pg_terminate_backend(backend) FROM polylock_session WHERE key = 'r'";
    for round in 0..rounds(20) {
        let lease = still.block_on(locks.acquire("r", long())).unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        lease.on_lost(move |reason| tell.send(reason).unwrap());
        other.block_on(sql.query(end, &[])).unwrap();
        assert_eq!(told.recv_timeout(Duration::from_secs(1)), Ok(polylock::LossReason::Taken), "{round}");
    }
}

/// Nor if it stands still while it prepares what others ask for as well.
#[test]
fn a_loop_that_stands_still_with_its_first_request_keeps_nobody_waiting() {
    let server = Server::start(&[]);
    let still = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let other = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    for mode in ["lease", "session"] {
        for round in 0.. {
            let locks = manager(&format!("{}?mode={mode}", server.url));
            assert!(still.block_on(locks.inspect("connects")).unwrap().is_none());
            let name = format!("r{round}");
            let mut asking = Box::pin(locks.acquire(&name, long()));
            let asked = std::future::poll_fn(|cx| std::task::Poll::Ready(asking.as_mut().poll(cx).is_pending()));
            // Where the machine stops this thread at the wrong moment the answers are there at once.
            if !still.block_on(asked) {
                continue;
            }
            let beside = async { tokio::time::timeout(LIMIT / 12, locks.acquire("beside", long())).await };
            drop(other.block_on(beside).expect("kept waiting").unwrap());
            drop(still.block_on(asking).unwrap());
            break;
        }
    }
}

/// Who cannot listen is not asked to again; the engine does it.
#[test]
fn a_runtime_without_io_is_served_by_the_engine() {
    static PANICS: AtomicU64 = AtomicU64::new(0);
    let others = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        match panic.to_string().contains("IO is disabled") {
            true => drop(PANICS.fetch_add(1, Ordering::Relaxed)),
            false => others(panic),
        };
    }));
    let server = Server::start(&[]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let locks = manager(&server.url);
    for _ in 0..10 {
        assert!(runtime.block_on(locks.inspect("r")).unwrap().is_none());
    }
    assert_eq!(PANICS.load(Ordering::Relaxed), 1, "tokio has no other way to tell");
}

/// The others go on with what they have, and the server is not asked for more all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_room_for_another_connection_is_left_alone() {
    let server = Server::start(&["log_connections=on"]);
    let (locks, sql) = (manager(&server.url), server.sql().await);
    locks.acquire("r", long()).await.unwrap().release().await.unwrap();
    sql.batch_execute("ALTER ROLE app CONNECTION LIMIT 0").await.unwrap();
    let work = (0..4).map(|worker| {
        let locks = locks.clone();
        tokio::spawn(async move {
            for _ in 0..100 {
                let lease = locks.acquire(format!("r{worker}"), long()).await.unwrap();
                assert_eq!(lease.release().await.unwrap(), Release::Released);
            }
        })
    });
    let began = Instant::now();
    for worker in work.collect::<Vec<_>>() {
        worker.await.unwrap();
    }
    let refused = || {
        let log = std::fs::read_to_string(format!("{}/log", server.directory)).unwrap();
        log.matches("too many connections for role").count() as u64
    };
    // To be refused takes the server longer than the work, at times.
    while refused() == 0 {
        assert!(began.elapsed() < LIMIT, "no other was asked for");
        tokio::time::sleep(MS).await;
    }
    let most = 1 + began.elapsed().as_secs() / 4;
    assert!(refused() <= most, "{} in {:?}", refused(), began.elapsed());
}

/// Somebody else has the table, for its own purposes, and nobody has the lock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_is_locked_is_out_of_reach() {
    let server = Server::start(&[]);
    let sql = server.sql().await;
    for mode in ["lease", "session"] {
        let locks = manager(&format!("{}?mode={mode}", server.url));
        locks.acquire("r", long()).await.unwrap().release().await.unwrap();
        sql.batch_execute(&format!("BEGIN; LOCK TABLE polylock_{mode} IN ACCESS EXCLUSIVE MODE")).await.unwrap();
        for options in [long().no_wait(), long().wait(1500 * MS)] {
            let error = locks.acquire("r", options).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
            assert!(error.to_string().contains("lock timeout"), "{error}");
        }
        let waiting = tokio::spawn(async move { locks.acquire("r", long().wait(LIMIT)).await });
        sql.batch_execute("COMMIT").await.unwrap();
        assert_eq!(waiting.await.unwrap().unwrap().release().await.unwrap(), Release::Released);
    }
    assert_eq!(count(&sql, OURS).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_of_another_encoding_takes_the_names_that_it_can_write() {
    let server = Server::start(&[]);
    let create = "CREATE DATABASE latin ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0 OWNER app";
    server.sql().await.batch_execute(create).await.unwrap();
    for mode in ["lease", "session"] {
        let locks = manager(&format!("{}/latin?mode={mode}", server.url.strip_suffix("/app").unwrap()));
        let held = locks.acquire("ünïcode", long().label("für alle")).await.unwrap();
        assert_eq!(locks.inspect("ünïcode").await.unwrap().unwrap().label.as_deref(), Some("für alle"));
        assert!(locks.try_acquire("ünïcode", long()).await.unwrap().is_none());
        assert_eq!(held.release().await.unwrap(), Release::Released);
        for (name, label, argument) in [("日本", "r", "resource"), ("r", "日本", "label")] {
            let error = locks.acquire(name, long().label(label)).await.unwrap_err();
            assert_eq!((error.kind(), error.argument()), (ErrorKind::InvalidArgument, Some(argument)), "{error}");
        }
    }
}
