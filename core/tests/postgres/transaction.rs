//! Locks and checks of fencing tokens in a transaction of the caller's.

use polylock::postgres::{CLAIM, CLAIM_TABLE, LOCK, TRY_LOCK, lock_id};
use tokio_postgres::error::SqlState;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_and_a_session_exclude_each_other() {
    let server = Server::start(&[]);
    let locks = manager(&session(&server));
    let mut sql = server.sql().await;
    let transaction = sql.transaction().await.unwrap();
    transaction.execute(LOCK, &[&lock_id("r")]).await.unwrap();
    assert!(locks.try_acquire("r", long()).await.unwrap().is_none());
    let waiting = tokio::spawn({
        let locks = locks.clone();
        async move { locks.acquire("r", long().wait(LIMIT)).await.unwrap() }
    });
    transaction.commit().await.unwrap();
    let held = waiting.await.unwrap();
    let transaction = sql.transaction().await.unwrap();
    let free = async || transaction.query_one(TRY_LOCK, &[&lock_id("r")]).await.unwrap().get::<_, bool>(0);
    assert!(!free().await);
    held.release().await.unwrap();
    assert!(free().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_holder_writes_nothing() {
    let server = Server::start(&[]);
    let (mut one, mut two) = (server.sql().await, server.sql().await);
    one.batch_execute(CLAIM_TABLE).await.unwrap();
    one.batch_execute("CREATE TABLE paid (token bigint)").await.unwrap();
    let locks = manager(&server.url);
    let token = async || {
        let lease = locks.acquire("r", long()).await.unwrap();
        let token = i64::try_from(lease.fencing_token()).unwrap();
        lease.release().await.unwrap();
        token
    };
    let (stale, fresh) = (token().await, token().await);
    let write = "INSERT INTO paid VALUES ($1)";
    // The stale holder was faster: the fresh one waits for it, and is right.
    let first = one.transaction().await.unwrap();
    first.execute(CLAIM, &[&"r", &stale]).await.unwrap();
    let second = tokio::spawn(async move {
        let second = two.transaction().await.unwrap();
        second.execute(CLAIM, &[&"r", &fresh]).await.unwrap();
        second.execute(write, &[&fresh]).await.unwrap();
        second.commit().await.unwrap();
    });
    first.execute(write, &[&stale]).await.unwrap();
    first.commit().await.unwrap();
    second.await.unwrap();
    // Now it is too late, also for what it had written before it asked.
    let late = one.transaction().await.unwrap();
    late.execute(write, &[&stale]).await.unwrap();
    let refused = late.execute(CLAIM, &[&"r", &stale]).await.unwrap_err();
    assert_eq!(refused.code(), Some(&SqlState::INVALID_TEXT_REPRESENTATION));
    let said = refused.as_db_error().unwrap().message();
    assert!(said.contains(&format!("stale fencing token {stale} of r")), "{said}");
    assert!(late.execute(write, &[&stale]).await.is_err());
    let _ = late.commit().await;
    let tokens: Vec<i64> =
        one.query("SELECT token FROM paid", &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    assert_eq!(tokens, [stale, fresh]);
    // The same holder may claim it again, and another resource is another matter.
    one.execute(CLAIM, &[&"r", &fresh]).await.unwrap();
    one.execute(CLAIM, &[&"s", &stale]).await.unwrap();
}
