//! Several resources at once, shared locks and semaphores; where a backend has none of them, that it says so.

use std::time::Duration;

use polylock::{Acquire, ErrorKind, LockManager, Target};

use super::{LONG, Store, long, ms, soon};

/// Long enough to be refused, and to be refused again.
const SHORT_WAIT: Duration = Duration::from_millis(300);

async fn is_free(locks: &LockManager, target: impl Into<Target>) -> bool {
    locks.try_acquire(target, long()).await.unwrap().is_some()
}

async fn is_unsupported(locks: &LockManager, target: Target) {
    assert_eq!(locks.acquire(target, long()).await.unwrap_err().kind(), ErrorKind::Unsupported);
}

pub async fn takes_all_or_none(store: Store) {
    let (one, two) = (store.manager(), store.manager());
    let (a, b, c) = (store.name("a"), store.name("b"), store.name("c"));
    if !one.capabilities().several {
        return is_unsupported(&one, Target::all([&a, &b])).await;
    }
    let both = one.acquire([&b, &a], long()).await.unwrap();
    assert_eq!(both.resources().iter().map(ToString::to_string).collect::<Vec<_>>(), [a.clone(), b.clone()]);
    assert!(!is_free(&two, &a).await && !is_free(&two, &b).await);
    // None of them, if one is held: c stays free.
    assert!(two.try_acquire([&c, &b], long()).await.unwrap().is_none());
    assert!(is_free(&two, &c).await);

    let waiting = tokio::spawn({
        let (two, names) = (two.clone(), [b.clone(), c.clone()]);
        async move { two.acquire(names, long().wait(LONG)).await }
    });
    both.extend(Some(LONG)).await.unwrap();
    both.release().await.unwrap();
    let next = waiting.await.unwrap().unwrap();
    assert!(next.fencing_token() > both.fencing_token());
    assert!(is_free(&one, &a).await && !is_free(&one, &c).await);
    next.release().await.unwrap();
    let alone = one.acquire(&c, long()).await.unwrap();
    assert!(alone.fencing_token() > next.fencing_token());
    let twice = one.acquire([&a, &a], long()).await.unwrap_err();
    assert_eq!(twice.argument(), Some("resources"));
}

pub async fn shares(store: Store) {
    let (one, two, name) = (store.manager(), store.manager(), store.name("r"));
    if !one.capabilities().shared {
        return is_unsupported(&one, Target::shared(&name)).await;
    }
    let reader = one.acquire(Target::shared(&name), long()).await.unwrap();
    let other = two.acquire(Target::shared(&name), long().wait(LONG)).await.unwrap();
    assert!(!is_free(&two, &name).await, "a writer beside readers");
    reader.extend(None).await.unwrap();
    reader.release().await.unwrap();
    assert!(!is_free(&two, &name).await, "a writer beside a reader");
    other.release().await.unwrap();

    let writer = one.acquire(&name, long().wait(LONG)).await.unwrap();
    assert!(writer.fencing_token() > other.fencing_token());
    let refused = two.acquire(Target::shared(&name), long().wait(SHORT_WAIT)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Timeout);
    writer.release().await.unwrap();
    let expiring = Acquire::ttl(Duration::from_millis(400)).auto_extend(false);
    two.acquire(Target::shared(&name), expiring).await.unwrap().lost().await.expect("it expires");
    one.acquire(&name, long().wait(LONG)).await.expect("the reader has expired");
}

pub async fn a_waiting_writer_is_not_starved(store: Store) {
    let (one, two, name) = (store.manager(), store.manager(), store.name("r"));
    if !one.capabilities().shared {
        return is_unsupported(&one, Target::shared(&name)).await;
    }
    // Readers that come and go, and overlap, for as long as the writer waits.
    let done = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let readers: Vec<_> = (0..3)
        .map(|_| {
            let (one, name, done) = (one.clone(), name.clone(), done.clone());
            tokio::spawn(async move {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    let reader = one.acquire(Target::shared(&name), long().wait(LONG)).await.unwrap();
                    tokio::time::sleep(Duration::from_millis(40)).await;
                    reader.release().await.unwrap();
                }
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let writer = two.acquire(&name, long().wait(LONG)).await;
    done.store(true, std::sync::atomic::Ordering::Relaxed);
    writer.expect("starved").release().await.unwrap();
    for reader in readers {
        reader.await.unwrap();
    }
}

pub async fn counts_permits(store: Store) {
    let (one, two, name) = (store.manager(), store.manager(), store.name("s"));
    let permit = || Target::permit(&name, 2);
    if !one.capabilities().semaphore {
        return is_unsupported(&one, permit()).await;
    }
    let first = one.acquire(permit(), long()).await.unwrap();
    let second = two.acquire(permit(), long()).await.unwrap();
    assert!(!is_free(&one, permit()).await, "a third of two permits");
    let conflict = one.acquire(&name, long().wait(SHORT_WAIT)).await.unwrap_err();
    assert_eq!(conflict.kind(), ErrorKind::Conflict);
    let waiting = tokio::spawn({
        let (one, permit) = (one.clone(), permit());
        async move { one.acquire(permit, long().wait(LONG)).await }
    });
    second.release().await.unwrap();
    let third = waiting.await.unwrap().unwrap();
    assert!(first.is_held() && third.is_held());
    // Each permit has an expiry of its own.
    third.release().await.unwrap();
    let expiring = Acquire::ttl(Duration::from_millis(400)).auto_extend(false);
    two.acquire(permit(), expiring).await.unwrap().lost().await.expect("it expires");
    two.acquire(permit(), long().wait(LONG)).await.expect("the permit has expired");
    assert!(first.is_held());
}

/// Waits until `count` managers wait for `name`: each is where a release is heard, so its place in line is known.
async fn until_heard(locks: &LockManager, name: &str, count: u32) {
    let waiting = async || locks.inspect(name).await.unwrap().and_then(|holder| holder.waiting);
    while waiting().await != Some(count) {
        tokio::time::sleep(ms(2)).await;
    }
}

/// Whether `store` can; if not, it must say so.
async fn serves_in_turn(store: &Store, name: &str) -> bool {
    let locks = store.manager();
    for sharing in [Target::shared(name), Target::permit(name, 2)] {
        let error = locks.acquire(sharing, long().fair(true)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    }
    if !locks.capabilities().fair {
        let error = locks.acquire(name, long().fair(true)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    }
    locks.capabilities().fair
}

pub async fn serves_processes_in_order(store: Store) {
    const WAITERS: u32 = 5;
    let (locks, name) = (store.manager(), store.name("r"));
    if !serves_in_turn(&store, &name).await {
        return;
    }
    let holder = soon(&locks, &name).await;
    let (order, mut served) = tokio::sync::mpsc::unbounded_channel();
    for number in 0..WAITERS {
        let (other, its, order) = (store.manager(), name.clone(), order.clone());
        tokio::spawn(async move {
            let lease = other.acquire(&its, long().fair(true)).await.unwrap();
            order.send(number).unwrap();
            lease.release().await.unwrap();
        });
        until_heard(&locks, &name, number + 1).await;
    }
    drop(order);
    // Who tries once is in order as well: it comes before nobody.
    let late = store.manager();
    holder.release().await.unwrap();
    if let Some(lease) = late.try_acquire(&name, long().fair(true)).await.unwrap() {
        assert_eq!(served.len(), WAITERS as usize);
        lease.release().await.unwrap();
    }
    for number in 0..WAITERS {
        assert_eq!(served.recv().await, Some(number));
    }
    assert_eq!(served.recv().await, None);
    // Where it was not needed for the majority, a place in line is given up in the background.
    while !store.leftovers().is_empty() {
        tokio::time::sleep(ms(20)).await;
    }
}

pub async fn passes_over_who_left(store: Store) {
    let (locks, name) = (store.manager(), store.name("r"));
    if !serves_in_turn(&store, &name).await {
        return;
    }
    let holder = soon(&locks, &name).await;
    let others = [store.manager(), store.manager(), store.manager()];
    let [one, two, three] = others.clone().map(|other| {
        let its = name.clone();
        async move { other.acquire(&its, long().fair(true)).await.unwrap() }
    });
    let one = tokio::spawn(one);
    until_heard(&locks, &name, 1).await;
    let two = tokio::spawn(two);
    until_heard(&locks, &name, 2).await;
    let three = tokio::spawn(three);
    until_heard(&locks, &name, 3).await;
    one.abort();
    holder.release().await.unwrap();
    let lease = two.await.unwrap();
    lease.release().await.unwrap();
    three.await.unwrap().release().await.unwrap();
}
