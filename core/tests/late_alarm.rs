//! A loss that the holder finds out by itself, because the engine's alarm is late. Alone in its process: one alarm holds up
//! all the others.

use std::{
    sync::mpsc::{Receiver, channel},
    time::Duration,
};

use polylock::{Acquire, ErrorKind, Lease, LockManager, LossReason, Release};

/// The first lease has to be listened to before it is over.
const TTL: Duration = Duration::from_secs(1);

/// A lease that is not renewed, and what it tells of its loss.
async fn short(locks: &LockManager, name: &str) -> (Lease, Receiver<LossReason>) {
    let lease = locks.acquire(name, Acquire::ttl(TTL).auto_extend(false)).await.unwrap();
    let (tell, told) = channel();
    lease.on_lost(move |reason| tell.send(reason).unwrap());
    (lease, told)
}

async fn is_over(lease: &Lease) {
    while lease.is_held() {
        tokio::time::sleep(TTL / 100).await;
    }
}

#[tokio::test]
async fn whoever_finds_out_first_tells() {
    let locks = polylock::connect("memory:").await.unwrap();
    let first = locks.acquire("first", Acquire::ttl(TTL).auto_extend(false)).await.unwrap();
    let (go_on, held_up) = channel::<()>();
    let (rings, rung) = channel();
    first.on_lost(move |_| {
        rings.send(()).unwrap();
        let _ = held_up.recv(); // holds up the thread of the alarms
    });
    // Before that, so that their alarms are due while it is held up.
    let (released, released_told) = short(&locks, "released").await;
    let (extended, extended_told) = short(&locks, "extended").await;
    let (dropped, dropped_told) = short(&locks, "dropped").await;
    tokio::task::spawn_blocking(move || rung.recv()).await.unwrap().unwrap();
    for lease in [&released, &extended, &dropped] {
        is_over(lease).await;
    }

    assert_eq!(released.release().await.unwrap(), Release::NotHeld);
    assert_eq!(released_told.try_recv(), Ok(LossReason::Expired));
    assert_eq!(extended.extend(None).await.unwrap_err().kind(), ErrorKind::Lost);
    assert_eq!(extended_told.try_recv(), Ok(LossReason::Expired));
    drop(dropped);
    assert_eq!(dropped_told.try_recv(), Ok(LossReason::Expired));

    go_on.send(()).unwrap();
}
