//! Lease mode.

use polylock::postgres::{LEASE_TABLE, SESSION_TABLE};

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_that_start_at_once_make_one_table() {
    let server = Server::start(&[]);
    let url = format!("{}?table=made_at_once", server.url);
    let begun = (0..10).map(|number| {
        let locks = manager(&url);
        tokio::spawn(async move {
            let lease = locks.acquire(&format!("r{number}"), long().wait(LIMIT)).await.unwrap();
            assert_eq!(lease.release().await.unwrap(), Release::Released);
            locks.close().await;
        })
    });
    for task in begun.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    let sql = server.sql().await;
    let count: i64 = sql.query_one("SELECT count(*) FROM made_at_once", &[]).await.unwrap().get(0);
    assert_eq!(count, 10);

    // So is one that is not ours.
    sql.batch_execute("CREATE TABLE of_others (key text); GRANT ALL ON of_others TO app").await.unwrap();
    for mode in ["lease", "session"] {
        let locks = manager(&format!("{}?table=of_others&mode={mode}", server.url));
        let error = locks.acquire("r", long()).await.unwrap_err();
        assert_eq!(error.argument(), Some("url"), "{error}");
    }
    // In no schema that is there: told at once, however long one would wait.
    sql.batch_execute("CREATE ROLE nowhere LOGIN PASSWORD 'nowhere'; ALTER ROLE nowhere SET search_path = ''")
        .await
        .unwrap();
    let (_, address) = server.url.rsplit_once('@').unwrap();
    for url in [format!("{}?table=nosuch.locks", server.url), format!("postgres://nowhere:nowhere@{address}")] {
        for mode in ["lease", "session"] {
            let locks = manager(&format!("{url}{}mode={mode}", if url.contains('?') { '&' } else { '?' }));
            let error = locks.acquire("r", long()).await.unwrap_err();
            assert_eq!(error.argument(), Some("url"), "{error}");
            assert!(error.to_string().contains("schema"), "{error}");
        }
    }

    // Who may not make it is told what to do.
    sql.batch_execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC; ALTER SCHEMA public OWNER TO admin")
        .await
        .unwrap();
    let refused = manager(&format!("{}?table=not_allowed", server.url)).try_acquire("r", long()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Auth);
    assert!(refused.to_string().contains("table.sql"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_outlives_its_connections() {
    let server = Server::start(&[]);
    let sql = server.sql().await;
    let limits = "ALTER ROLE app SET idle_session_timeout = '100ms'; ALTER ROLE app SET statement_timeout = '100ms'";
    sql.batch_execute(limits).await.unwrap();
    for url in [&server.url, &server.pooler] {
        let locks = manager(url);
        let lease = locks.acquire("r", Acquire::ttl(5000 * MS)).await.unwrap();
        let mut killed = 0;
        for _ in 0..10 {
            let ended = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'app'";
            killed += sql.query_one(ended, &[]).await.unwrap().get::<_, i64>(0);
            tokio::time::sleep(700 * MS).await;
        }
        // Behind the pooler the server ends most of them itself: they may not be idle.
        assert!(killed > 1 || *url == server.pooler, "{killed}");
        assert!(lease.is_held());
        assert_eq!(lease.release().await.unwrap(), Release::Released);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_when_giving_up_races_with_the_grant() {
    let server = Server::start(&[]);
    let (one, two) = (manager(&server.url), manager(&server.url));
    let sql = server.sql().await;
    for round in 0..rounds(100) {
        let held = one.acquire("r", long().wait(LIMIT)).await.unwrap();
        let patience = MS * spread(round) / 8;
        let (timed, cancelled) = (two.clone(), one.clone());
        let timed = tokio::spawn(async move { timed.acquire("r", long().wait(patience)).await.is_ok() });
        let cancelled = tokio::spawn(async move { cancelled.acquire("r", long()).await.is_ok() });
        tokio::time::sleep(patience / 2).await;
        held.release().await.unwrap();
        tokio::time::sleep(patience / 2).await;
        cancelled.abort();
        let _ = (timed.await, cancelled.await);
    }
    let began = Instant::now();
    loop {
        let held = "SELECT count(*) FROM polylock_lease WHERE owner IS NOT NULL";
        if sql.query_one(held, &[]).await.unwrap().get::<_, i64>(0) == 0 {
            break;
        }
        assert!(began.elapsed() < LIMIT, "a lock is left");
        tokio::time::sleep(10 * MS).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_too_late_is_not_granted() {
    let server = Server::start(&[]);
    let locks = manager(&server.url);
    locks.acquire("r", long()).await.unwrap().release().await.unwrap();
    let mut sql = server.sql().await;
    let in_the_way = sql.transaction().await.unwrap();
    in_the_way.execute("SELECT 1 FROM polylock_lease WHERE key = 'r' FOR UPDATE", &[]).await.unwrap();
    // Behind the row's lock for longer than the attempt may take; through the pooler no lock_timeout ends it.
    let pooled = manager(&server.pooler);
    let error = pooled.try_acquire("r", Acquire::ttl(600 * MS)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    tokio::time::sleep(300 * MS).await;
    in_the_way.commit().await.unwrap();
    let sql = server.sql().await;
    let began = Instant::now();
    while let waiting = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND state <> 'idle'"
        && sql.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) > 0
    {
        assert!(began.elapsed() < LIMIT);
    }
    assert!(locks.inspect("r").await.unwrap().is_none());
}

/// It need not be waited for until it is too late for the attempt: the release that followed it was answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_ends_with_the_attempt_that_was_on_its_way() {
    let server = Server::start(&[]);
    let others = manager(&server.url);
    others.acquire("r", long()).await.unwrap().release().await.unwrap();
    let sql = server.sql().await;
    for url in [&server.url, &server.pooler] {
        let locks = manager(url);
        let mut administrator = server.sql().await;
        let in_the_way = administrator.transaction().await.unwrap();
        in_the_way.execute("SELECT 1 FROM polylock_lease WHERE key = 'r' FOR UPDATE", &[]).await.unwrap();
        let acquiring = tokio::spawn({
            let locks = locks.clone();
            async move { locks.acquire("r", long()).await.map(drop).unwrap_err().kind() }
        });
        while count(&sql, "SELECT count(*) FROM pg_locks WHERE NOT granted").await == 0 {
            tokio::task::yield_now().await;
        }
        let closing = tokio::spawn(async move { locks.close().await });
        assert_eq!(acquiring.await.unwrap(), ErrorKind::Closed);
        // It may be granted yet.
        in_the_way.commit().await.unwrap();
        let began = Instant::now();
        closing.await.unwrap();
        // Nothing could be granted any more after a third of the ttl, 5 s at the most.
        assert!(began.elapsed() < 2500 * MS, "{:?}", began.elapsed());
        assert!(others.inspect("r").await.unwrap().is_none());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiter_holds_no_snapshot_and_is_told_of_the_release() {
    let server = Server::start(&[]);
    let (one, two) = (manager(&server.url), manager(&server.url));
    let held = one.acquire("r", long()).await.unwrap();
    let waiting = tokio::spawn(async move { two.acquire("r", long()).await.unwrap() });
    let sql = server.sql().await;
    let began = Instant::now();
    while !sql.query_one("SELECT wanted FROM polylock_lease", &[]).await.unwrap().get::<_, bool>(0) {
        assert!(began.elapsed() < LIMIT, "it does not ask to be told");
        tokio::time::sleep(5 * MS).await;
    }
    // A look is over in a moment: most of the time there is nothing.
    let mut idle = 0;
    for _ in 0..50 {
        let busy = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND backend_xmin IS NOT NULL";
        idle += u32::from(sql.query_one(busy, &[]).await.unwrap().get::<_, i64>(0) == 0);
        tokio::time::sleep(5 * MS).await;
    }
    assert!(idle > 25, "{idle} of 50");
    held.release().await.unwrap();
    let next = tokio::time::timeout(LIMIT, waiting).await.unwrap().unwrap();
    assert!(next.fencing_token() > held.fencing_token());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiters_hold_up_neither_vacuum_nor_an_index() {
    let server = Server::start(&[]);
    let sql = server.sql().await;
    sql.batch_execute("CREATE TABLE data (id integer); INSERT INTO data SELECT generate_series(1, 1000)")
        .await
        .unwrap();
    for url in [&server.url, &session(&server), &server.pooler] {
        let held = manager(url).acquire("r", long()).await.unwrap();
        let waiters: Vec<_> = (0..5)
            .map(|_| {
                let locks = manager(url);
                tokio::spawn(async move { locks.acquire("r", long()).await.unwrap().release().await.unwrap() })
            })
            .collect();
        tokio::time::sleep(300 * MS).await;
        // It would wait for every older snapshot in the database.
        sql.batch_execute("CREATE INDEX CONCURRENTLY data_id ON data (id)").await.unwrap();
        sql.batch_execute("DROP INDEX CONCURRENTLY data_id").await.unwrap();
        sql.batch_execute("DELETE FROM data WHERE id % 2 = 0").await.unwrap();
        let dead = "SELECT n_dead_tup FROM pg_stat_user_tables WHERE relname = 'data'";
        let began = Instant::now();
        loop {
            sql.batch_execute("VACUUM data").await.unwrap();
            if count(&sql, dead).await == 0 {
                break;
            }
            assert!(began.elapsed() < LIMIT, "what is deleted cannot be removed");
            tokio::time::sleep(50 * MS).await;
        }
        sql.batch_execute("INSERT INTO data SELECT generate_series(1, 1000)").await.unwrap();
        held.release().await.unwrap();
        for waiter in waiters {
            tokio::time::timeout(LIMIT, waiter).await.unwrap().unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_made_by_hand_needs_three_rights() {
    let server = Server::start(&[]);
    let sql = server.sql().await;
    let by_hand = format!(
        "CREATE SCHEMA ops; SET search_path = ops; {LEASE_TABLE} {SESSION_TABLE}
         CREATE ROLE plain LOGIN PASSWORD 'plain'; GRANT USAGE ON SCHEMA ops TO plain;
         GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA ops TO plain"
    );
    sql.batch_execute(&by_hand).await.unwrap();
    let (_, address) = server.url.rsplit_once('@').unwrap();
    for mode in ["lease", "session"] {
        let locks = manager(&format!("postgres://plain:plain@{address}?mode={mode}&table=ops.polylock_{mode}"));
        for target in [Target::from("r"), Target::shared("r"), Target::permit("p", 1), Target::from(["r", "s"])] {
            let lease = locks.acquire(target, long().wait(LIMIT)).await.unwrap();
            lease.extend(None).await.unwrap();
            assert!(!locks.list("*", 10).await.unwrap().is_empty());
            assert_eq!(lease.release().await.unwrap(), Release::Released, "{mode}");
        }
        let held = locks.acquire("r", long().wait(LIMIT)).await.unwrap();
        assert!(locks.break_lock("r", polylock::Seen::FencingToken(held.fencing_token())).await.unwrap());
    }
}

/// As where the queue of NOTIFY is full.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_is_released_and_broken_though_nobody_can_be_told() {
    let server = Server::start(&[]);
    let (locks, other) = (manager(&server.url), manager(&server.url));
    server.sql().await.batch_execute("REVOKE EXECUTE ON FUNCTION pg_notify FROM PUBLIC").await.unwrap();
    for target in ["r".into(), ["r", "s"].into(), Target::shared("r"), Target::permit("r", 1)] {
        let held = locks.acquire(target, long().wait(LIMIT)).await.unwrap();
        assert_eq!(held.release().await.unwrap(), Release::Released);
        let next = other.try_acquire("r", long()).await.unwrap().expect("not free");
        let seen = polylock::Seen::FencingToken(next.fencing_token());
        assert!(locks.break_lock("r", seen).await.unwrap());
        assert_eq!(next.lost().await, Some(polylock::LossReason::Taken));
    }
}

/// Of both modes. A deadlock would stall releases, too, until the server ends one of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_want_several_never_wait_in_a_circle() {
    const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
    let server = Server::start(&["deadlock_timeout=10ms"]);
    for mode in ["lease", "session"] {
        let managers: Vec<_> = (0..6).map(|_| manager(&format!("{}?mode={mode}", server.url))).collect();
        let work = managers.iter().cycle().take(24).cloned().zip(0..).map(|(locks, worker): (_, u32)| {
            tokio::spawn(async move {
                for round in 0..rounds(40) {
                    let mask = spread(40 * worker + round) | 1 << (worker % 6);
                    let names = NAMES.iter().zip(0..).filter(|(_, bit)| mask & 1 << bit != 0).map(|(name, _)| *name);
                    let lease = locks.acquire(Target::all(names), long().wait(LIMIT)).await.unwrap();
                    assert_eq!(lease.release().await.unwrap(), Release::Released);
                }
            })
        });
        for worker in work.collect::<Vec<_>>() {
            worker.await.unwrap();
        }
    }
    let log = std::fs::read_to_string(format!("{}/log", server.directory)).unwrap();
    assert_eq!(log.matches("deadlock detected").count(), 0);
}

/// What was prepared before is asked after it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_key_may_get_another_type_or_order_while_it_is_used() {
    let server = Server::start(&[]);
    let sql = server.sql().await;
    for (url, table) in [(server.url.clone(), "polylock_lease"), (session(&server), "polylock_session")] {
        let locks = manager(&url);
        let shared = locks.acquire(Target::shared("s"), long()).await.unwrap();
        let held = locks.acquire("r", long()).await.unwrap();
        for of_key in ["text COLLATE \"C\"", "varchar(2000)", "text COLLATE \"POSIX\""] {
            sql.batch_execute(&format!("ALTER TABLE {table} ALTER COLUMN key TYPE {of_key}")).await.unwrap();
            for lease in [&held, &shared] {
                let holder = locks.inspect(lease.resource().as_str()).await.expect(of_key).expect(of_key);
                assert_eq!(holder.owner, lease.owner_token().as_str());
            }
            assert_eq!(locks.list("*", 10).await.expect(of_key).len(), 2);
            let other = locks.acquire("o", long()).await.expect(of_key);
            other.extend(None).await.expect(of_key);
            assert_eq!(other.release().await.expect(of_key), Release::Released);
        }
        locks.close().await;
    }
}
