//! Session mode.

use futures_util::FutureExt;
use polylock::Seen;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_is_ended_tells_its_holders_at_once() {
    let server = Server::start(&[]);
    let (one, two) = (manager(&session(&server)), manager(&session(&server)));
    let sql = server.sql().await;
    let held = one.acquire("r", long()).await.unwrap();
    let other = one.acquire("s", long()).await.unwrap();
    let waiting = tokio::spawn(async move { two.acquire("r", long()).await.unwrap() });
    let holder = one.inspect("r").await.unwrap().unwrap();
    assert_eq!(
        (holder.owner.as_str(), holder.fencing_token),
        (held.owner_token().as_str(), Some(held.fencing_token()))
    );
    let end = "SELECT pg_terminate_backend(backend) FROM polylock_session WHERE key = 'r'";
    sql.query_one(end, &[]).await.unwrap();
    assert_eq!(held.lost().await, Some(polylock::LossReason::Taken));
    assert_eq!(other.lost().await, Some(polylock::LossReason::Taken));
    let next = tokio::time::timeout(LIMIT, waiting).await.unwrap().unwrap();
    assert!(next.fencing_token() > held.fencing_token());
    next.release().await.unwrap();
    // The connection tells, not the next heartbeat; the best of some, as the machine may be busy.
    let mut quickest = LIMIT;
    for _ in 0..5 {
        let held = one.acquire("r", long().wait(LIMIT)).await.unwrap();
        sql.query_one(end, &[]).await.unwrap();
        let began = Instant::now();
        assert_eq!(held.lost().await, Some(polylock::LossReason::Taken));
        quickest = quickest.min(began.elapsed());
    }
    assert!(quickest < Duration::from_secs(1), "{quickest:?}");
    // The manager goes on with another session.
    assert!(one.try_acquire("s", long()).await.unwrap().is_some());
}

/// Nobody took it: for all that is known the session holds it yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_does_not_answer_is_called_expired() {
    let mut server = Server::start(&[]);
    let locks = manager(&session(&server));
    let held = locks.acquire("r", long()).await.unwrap();
    tokio::task::block_in_place(|| server.order("pause"));
    let lost = tokio::time::timeout(LIMIT, held.lost()).await;
    tokio::task::block_in_place(|| server.order("resume"));
    assert_eq!(lost.unwrap(), Some(polylock::LossReason::Expired));
    assert!(locks.acquire("r", long().wait(LIMIT)).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn session_mode_refuses_a_pooler_and_names_the_other_mode() {
    let server = Server::start(&[]);
    let (kind, text) = kind(&format!("{}?mode=session", server.pooler)).await;
    assert_eq!(kind, ErrorKind::Unsupported, "{text}");
    assert!(text.contains("lease mode"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_number_has_one_name_and_is_a_lock_for_everybody() {
    let server = Server::start(&[]);
    let url = format!("{}&keys=number", session(&server));
    let (one, two) = (manager(&url), manager(&url));
    let held = one.acquire("7", long()).await.unwrap();
    for name in ["+7", "07", "seven"] {
        assert_eq!(two.try_acquire(name, long()).await.unwrap_err().argument(), Some("resource"));
    }
    // It is what somebody else takes by the number.
    let sql = server.sql().await;
    let theirs: bool = sql.query_one("SELECT pg_try_advisory_lock(7)", &[]).await.unwrap().get(0);
    assert!(!theirs);
    held.release().await.unwrap();
    let theirs: bool = sql.query_one("SELECT pg_try_advisory_lock(7)", &[]).await.unwrap().get(0);
    assert!(theirs && two.try_acquire("7", long()).await.unwrap().is_none());
    assert!(two.inspect("7").await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_session_lock_is_left_when_giving_up_races_with_the_grant() {
    let server = Server::start(&[]);
    let (one, two) = (manager(&session(&server)), manager(&session(&server)));
    let sql = server.sql().await;
    let mut last = 0;
    for round in 0..rounds(100) {
        let held = one.acquire("r", long().wait(LIMIT)).await.unwrap();
        assert!(held.fencing_token() > last);
        last = held.fencing_token();
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
    while count(&sql, OURS).await > 0 {
        assert!(began.elapsed() < LIMIT, "a lock is left");
        tokio::time::sleep(10 * MS).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_sessions_ask_the_server_to_look_after_them() {
    let server = Server::start(&[]);
    let locks = manager(&session(&server));
    let _held = locks.acquire("r", long()).await.unwrap();
    let sql = server.sql().await;
    let named = "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)
                 WHERE locktype = 'advisory' AND application_name LIKE 'polylock %'";
    assert_eq!(count(&sql, named).await, 1);
    // What the kernel was asked to do for the server's end of the connection: probes after 5 s of silence.
    let port: i32 = sql
        .query_one("SELECT client_port FROM pg_stat_activity WHERE application_name LIKE 'polylock %' LIMIT 1", &[])
        .await
        .unwrap()
        .get(0);
    // While bytes are on their way, ss shows the timer of those.
    let began = Instant::now();
    let (left, sockets) = loop {
        let sockets = Command::new("ss").args(["-tnoH", &format!("dport = :{port}")]).output().expect("no ss");
        let sockets = String::from_utf8_lossy(&sockets.stdout).into_owned();
        let left = sockets.split("timer:(keepalive,").nth(1).and_then(|rest| rest.split(',').next());
        if let Some(left) = left {
            break (left.to_owned(), sockets);
        }
        assert!(began.elapsed() < LIMIT, "no keep-alive: {sockets}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let seconds = left.strip_suffix("sec").map(|seconds| seconds.parse::<f64>().unwrap());
    // Less than a second is in ms.
    assert!(left.ends_with("ms") || seconds.is_some_and(|seconds| seconds <= 6.0), "{sockets}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_process_shares_is_one_lock_of_the_server() {
    let server = Server::start(&[]);
    let (one, sql) = (manager(&session(&server)), server.sql().await);
    let shared = || Target::shared("r");
    let leases = [one.acquire(shared(), long()).await.unwrap(), one.acquire(shared(), long()).await.unwrap()];
    assert_eq!(count(&sql, OURS).await, 1);
    let [first, second] = leases;
    assert_eq!(first.release().await.unwrap(), Release::Released);
    assert_eq!(count(&sql, OURS).await, 1);
    assert!(manager(&session(&server)).try_acquire("r", long()).await.unwrap().is_none());
    assert_eq!(second.release().await.unwrap(), Release::Released);
    assert_eq!(count(&sql, OURS).await, 0);
    // The other kind finds it free, and keeps the first out.
    let permit = one.acquire(Target::permit("r", 1), long()).await.unwrap();
    assert_eq!(count(&sql, OURS).await, 2);
    let refused = manager(&session(&server)).try_acquire(shared(), long()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict);
    permit.release().await.unwrap();
    assert_eq!(count(&sql, OURS).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dedicated_session_ends_alone() {
    let server = Server::start(&[]);
    let locks = manager(&format!("{}&connections=dedicated", session(&server)));
    let sql = server.sql().await;
    let (one, two) = (locks.acquire("r", long()).await.unwrap(), locks.acquire("s", long()).await.unwrap());
    let sessions = "SELECT count(DISTINCT pid) FROM pg_locks WHERE locktype = 'advisory'";
    assert_eq!(count(&sql, sessions).await, 2);
    let end = "SELECT pg_terminate_backend(backend) FROM polylock_session WHERE key = 'r'";
    sql.query_one(end, &[]).await.unwrap();
    assert_eq!(one.lost().await, Some(polylock::LossReason::Taken));
    assert!(two.is_held());
    two.extend(None).await.unwrap();
    two.release().await.unwrap();
    // What holds nothing is used again.
    for _ in 0..20 {
        locks.acquire("r", long().wait(LIMIT)).await.unwrap().release().await.unwrap();
    }
    let ours = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app'";
    assert!(count(&sql, ours).await <= 4, "{}", count(&sql, ours).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pairs_of_numbers_are_their_own_locks() {
    let server = Server::start(&[]);
    let locks = manager(&format!("{}&keys=pair", session(&server)));
    let sql = server.sql().await;
    let held = locks.acquire("-1,7", long()).await.unwrap();
    let theirs = async |call: &str| sql.query_one(&format!("SELECT {call}"), &[]).await.unwrap().get::<_, bool>(0);
    assert!(!theirs("pg_try_advisory_lock(-1, 7)").await);
    assert!(theirs("pg_try_advisory_lock((-1::bigint << 32) + 7)").await);
    assert_eq!(locks.inspect("-1,7").await.unwrap().unwrap().owner, held.owner_token().as_str());
    assert_eq!(locks.list("*", 10).await.unwrap().len(), 1);
    held.release().await.unwrap();
    assert!(theirs("pg_try_advisory_lock(-1, 7)").await);
    assert!(locks.try_acquire("-1,7", long()).await.unwrap().is_none());
    assert_eq!(locks.acquire(["1,1", "+1,1"], long()).await.unwrap_err().argument(), Some("resources"));
    let both = locks.acquire(["1,1", "1,2"], long()).await.unwrap();
    assert!(!theirs("pg_try_advisory_lock(1, 2)").await);
    both.release().await.unwrap();
    assert!(theirs("pg_try_advisory_lock(1, 2)").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_of_the_server_end_no_session() {
    let server = Server::start(&[]);
    let sql = server.sql().await;
    let limits = "ALTER ROLE app SET idle_session_timeout = '100ms'; ALTER ROLE app SET statement_timeout = '100ms';
                  ALTER ROLE app SET idle_in_transaction_session_timeout = '1ms'; ALTER ROLE app SET lock_timeout = '1ms';
                  ALTER ROLE app SET default_transaction_isolation = 'serializable';
                  ALTER ROLE app SET synchronous_commit = 'off'";
    sql.batch_execute(limits).await.unwrap();
    for url in [&session(&server), &server.url] {
        let locks = manager(url);
        let lease = locks.acquire("r", Acquire::ttl(5000 * MS)).await.unwrap();
        tokio::time::sleep(500 * MS).await;
        lease.extend(None).await.unwrap();
        assert_eq!(lease.release().await.unwrap(), Release::Released);
    }
    // Too short for any statement: on a busy machine for the one that lifts it, too, which is then tried again.
    sql.batch_execute("ALTER ROLE app SET statement_timeout = '1ms'").await.unwrap();
    for url in [&session(&server), &server.url] {
        let locks = manager(url);
        let lease = locks.acquire("r", long().wait(LIMIT)).await.unwrap();
        let limit = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND state = 'idle in transaction'";
        assert_eq!(count(&sql, limit).await, 0);
        assert_eq!(lease.release().await.unwrap(), Release::Released);
    }
}

/// Also through another manager, where only the session of the holder can free it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_broken_is_told_before_it_is_free_and_keeps_its_other_locks() {
    let server = Server::start(&[]);
    let (one, two) = (manager(&session(&server)), manager(&session(&server)));
    let sql = server.sql().await;
    let beside = one.acquire("s", long()).await.unwrap();
    for (target, locks) in [(Target::from("r"), &two), (Target::shared("r"), &two), ("r".into(), &one)] {
        let held = Arc::new(one.acquire(target, long()).await.unwrap());
        let (next, broken) = (manager(&session(&server)), Arc::clone(&held));
        assert!(next.try_acquire("r", long()).await.unwrap().is_none());
        let next = tokio::spawn(async move { (next.acquire("r", long()).await.unwrap(), broken.loss()) });
        assert!(locks.break_lock("r", owner_of(&held)).await.unwrap());
        assert_eq!(held.lost().await, Some(polylock::LossReason::Taken));
        let (next, known) = tokio::time::timeout(LIMIT, next).await.unwrap().unwrap();
        assert_eq!(known, Some(polylock::LossReason::Taken), "the next one came before it was told");
        assert!(!locks.break_lock("r", owner_of(&held)).await.unwrap());
        assert_eq!(next.release().await.unwrap(), Release::Released);
    }
    assert!(beside.is_held());
    // Of the wishes nothing is left.
    assert_eq!(count(&sql, OURS).await, 1);
}

/// Of one that stands still, as of a program that is no polylock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn breaking_ends_a_session_that_does_not_answer() {
    let server = Server::start(&[]);
    let locks = manager(&session(&server));
    let held = locks.acquire("r", long()).await.unwrap();
    let (owner, id) = (held.owner_token().to_string(), "SELECT lock_id FROM polylock_session WHERE key = 'r'");
    held.release().await.unwrap();
    let (still, connection) = tokio_postgres::connect(&server.url, NoTls).await.unwrap();
    tokio::spawn(connection);
    still.query_one(&format!("SELECT pg_advisory_lock(({id}))"), &[]).await.unwrap();
    still.execute("UPDATE polylock_session SET backend = pg_backend_pid()", &[]).await.unwrap();
    assert!(!locks.break_lock("r", Seen::Owner("0".repeat(40))).await.unwrap());
    assert!(locks.break_lock("r", Seen::Owner(owner)).await.unwrap());
    assert!(locks.try_acquire("r", long()).await.unwrap().is_some());
    assert!(still.query_one("SELECT 1", &[]).await.is_err());
}

/// Its release in the background comes before what it asks for afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_that_outlasts_its_ttl_leaves_nothing_and_gives_no_lease_that_is_not_held() {
    let server = Server::start(&[]);
    let (locks, sql) = (manager(&session(&server)), server.sql().await);
    for round in 0..rounds(3) {
        // The table is missing, and takes longer to make than the ttl.
        let in_its_way = format!("SELECT pg_advisory_lock({})", 0x706f_6c79_6c6f_636b_i64);
        sql.batch_execute(&format!("DROP TABLE IF EXISTS polylock_session; {in_its_way}")).await.unwrap();
        let waiting = locks.clone();
        let waiting = tokio::spawn(async move { waiting.acquire("r", Acquire::ttl(100 * MS).wait(LIMIT)).await });
        let began = Instant::now();
        while count(&sql, &format!("{OURS} AND NOT granted")).await == 0 {
            assert!(began.elapsed() < LIMIT, "it makes no table");
        }
        tokio::time::sleep(200 * MS).await;
        sql.batch_execute("SELECT pg_advisory_unlock_all()").await.unwrap();
        let lease = waiting.await.unwrap().unwrap();
        assert_eq!(lease.release().await.unwrap(), Release::Released, "{round}");
        let began = Instant::now();
        while count(&sql, OURS).await > 0 {
            assert!(began.elapsed() < LIMIT, "a lock is left");
            tokio::time::sleep(10 * MS).await;
        }
        assert_eq!(locks.acquire("r", long()).await.unwrap().release().await.unwrap(), Release::Released);
    }
}

/// Nobody who tries is told that it is held only because another try is on its way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tries_at_the_same_time_do_not_keep_each_other_out() {
    let server = Server::start(&[]);
    let managers: Vec<_> = (0..4).map(|_| manager(&session(&server))).collect();
    for round in 0..rounds(20) {
        // The name is new, so that each kind is the first to come once.
        let name = format!("r{}", round / 2);
        let target = if round % 2 == 0 { Target::shared(&name) } else { Target::permit(&name, 12) };
        let tries = managers.iter().cycle().take(12).map(|locks| {
            let (locks, target) = (locks.clone(), target.clone());
            tokio::spawn(async move { locks.try_acquire(target, long()).await.unwrap() })
        });
        let mut leases = Vec::new();
        for one in tries.collect::<Vec<_>>() {
            leases.push(one.await.unwrap().unwrap_or_else(|| panic!("{round}: held by nobody")));
        }
        for lease in leases {
            assert_eq!(lease.release().await.unwrap(), Release::Released);
        }
    }
    assert_eq!(count(&server.sql().await, OURS).await, 0);
}

fn owner_of(lease: &Lease) -> Seen {
    Seen::Owner(lease.owner_token().to_string())
}

/// An advisory lock is the session's, not its owner's: what frees it late would free the next holder's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_that_stood_still_frees_nobody_else() {
    let server = Server::start(&[]);
    let (one, two) = (manager(&session(&server)), manager(&session(&server)));
    let held = one.acquire("r", long()).await.unwrap();
    let mut releasing = Box::pin(held.release());
    assert!((&mut releasing).now_or_never().is_none());
    assert!(one.break_lock("r", owner_of(&held)).await.unwrap());
    let next = one.acquire("r", long().wait(LIMIT)).await.unwrap();
    releasing.await.unwrap();
    assert!(next.is_held() && two.try_acquire("r", long()).await.unwrap().is_none());
    assert_eq!(next.release().await.unwrap(), Release::Released);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_breaks_a_lock_and_goes_away_has_its_holder_told() {
    let server = Server::start(&[]);
    let locks = polylock::connect(session(&server)).node_timeout(LIMIT).lazy().unwrap();
    let (sql, locking) = (server.sql().await, server.sql().await);
    let held = locks.acquire("r", long()).await.unwrap();
    // Somebody waits, whom it wants to tell: so it has freed the lock, and cannot say so.
    locking.batch_execute("UPDATE polylock_session SET wanted = true WHERE key = 'r'").await.unwrap();
    locking.batch_execute("BEGIN; SELECT FROM polylock_session WHERE key = 'r' FOR UPDATE").await.unwrap();
    let mut breaking = Box::pin(locks.break_lock("r", owner_of(&held)));
    loop {
        assert!((&mut breaking).now_or_never().is_none(), "it has heard");
        if count(&sql, OURS).await == 0 {
            break;
        }
    }
    drop(breaking);
    let lost = tokio::time::timeout(LIMIT, held.lost()).await;
    assert_eq!(lost.expect("it takes itself for the holder"), Some(polylock::LossReason::Taken));
    locking.batch_execute("COMMIT").await.unwrap();
}

/// The row of the one that was seen stays until the next one has written its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn breaking_what_was_released_does_not_hit_who_is_taking_it() {
    let server = Server::start(&[]);
    let (one, two) = (manager(&session(&server)), manager(&session(&server)));
    let (sql, locking) = (server.sql().await, server.sql().await);
    let beside = one.acquire("s", long()).await.unwrap();
    let seen = one.acquire("r", long()).await.unwrap();
    let owner = owner_of(&seen);
    seen.release().await.unwrap();
    locking.batch_execute("BEGIN; SELECT FROM polylock_session WHERE key = 'r' FOR UPDATE").await.unwrap();
    let taking = tokio::spawn(async move { one.acquire("r", long()).await });
    // It has the advisory lock, and waits for the row.
    while count(&sql, OURS).await < 2 {
        tokio::time::sleep(MS).await;
    }
    let breaking = tokio::spawn(async move { two.break_lock("r", owner).await });
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
    while count(&sql, waiting).await < 2 && !breaking.is_finished() {
        tokio::time::sleep(MS).await;
    }
    locking.batch_execute("COMMIT").await.unwrap();
    assert!(!breaking.await.unwrap().unwrap());
    assert!(taking.await.unwrap().unwrap().is_held() && beside.is_held());
}

/// Its lock does not end with its ttl, so it is given back for as long as that takes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_is_given_back_however_long_its_server_stands_still() {
    const TTL: Duration = Duration::from_millis(300);
    let mut server = Server::start(&[]);
    let one = polylock::connect(session(&server)).node_timeout(50 * MS).lazy().unwrap();
    let held = one.acquire("r", Acquire::ttl(TTL).auto_extend(false)).await.unwrap();
    tokio::task::block_in_place(|| server.order("pause"));
    assert!(tokio::time::timeout(LIMIT, held.lost()).await.unwrap().is_some());
    // Elsewhere it would have ended by itself by then. The session lives: its heartbeat has longer.
    tokio::time::sleep(3 * TTL).await;
    tokio::task::block_in_place(|| server.order("resume"));
    let two = manager(&session(&server));
    two.acquire("r", long().wait(LIMIT)).await.expect("it is left");
}

/// The heartbeat stands in line behind those who wait for the table: the leases are lost for it, and nobody gets in before their
/// holders know.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_locks_the_table_costs_leases_and_no_exclusion() {
    let server = Server::start(&[]);
    let locks = manager(&session(&server));
    let (sql, locking) = (server.sql().await, server.sql().await);
    let held = locks.acquire("r", long()).await.unwrap();
    let id: i64 = sql.query_one("SELECT lock_id FROM polylock_session", &[]).await.unwrap().get(0);
    locking.batch_execute("BEGIN; LOCK TABLE polylock_session").await.unwrap();
    let tries = (0..12).map(|number| {
        let locks = locks.clone();
        tokio::spawn(async move { locks.try_acquire(&format!("s{number}"), long()).await })
    });
    for one in tries.collect::<Vec<_>>() {
        assert_eq!(one.await.unwrap().unwrap_err().kind(), ErrorKind::Unavailable);
    }
    let free = format!("SELECT pg_try_advisory_lock({id})");
    let began = Instant::now();
    while !sql.query_one(&free, &[]).await.unwrap().get::<_, bool>(0) {
        assert!(began.elapsed() < LIMIT, "it is left");
        tokio::time::sleep(MS).await;
    }
    assert_eq!(held.loss(), Some(polylock::LossReason::Expired));
}
