//! Futures dropped at every step, waiters cancelled, managers closed: nothing leaks and nobody waits for ever.

use std::{
    future::{Future, poll_fn},
    task::Poll,
};

use polylock::{ErrorKind, Release};

use super::{Store, long, soon, until_waiting};

/// Polls `future` at most `polls` times, as its wakers ask for it, and drops it; `None` if it was not ready by then.
pub(super) async fn cut_short<F: Future>(polls: u32, future: F) -> Option<F::Output> {
    if polls == 0 {
        return None;
    }
    let mut future = std::pin::pin!(future);
    let mut left = polls;
    poll_fn(|context| {
        left -= 1;
        match future.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

pub async fn survives_cancelled_acquisitions(store: Store) {
    let (one, two, name) = (store.manager(), store.manager(), store.name("r"));
    for polls in 0.. {
        assert!(polls < 200, "it is never ready");
        let won = cut_short(polls, one.acquire(&name, long())).await;
        let done = won.is_some();
        if let Some(lease) = won {
            assert!(two.try_acquire(&name, long()).await.unwrap().is_none());
            lease.unwrap().release().await.unwrap();
        }
        // Its ttl is long, so what was granted must be given back, or this waits in vain.
        let next = soon(&two, &name).await;
        assert_eq!(next.release().await.unwrap(), Release::Released);
        assert_eq!(one.waiting(&name).unwrap(), 0);
        if done {
            return;
        }
    }
}

pub async fn survives_cancelled_waits(store: Store) {
    let (one, two, name) = (store.manager(), store.manager(), store.name("r"));
    for polls in 1.. {
        assert!(polls < 200, "it is never ready");
        let holder = soon(&two, &name).await;
        let wait = tokio::spawn({
            let (one, name) = (one.clone(), name.clone());
            async move { cut_short(polls, one.acquire(&name, long())).await }
        });
        // Freed while it waits, or after it has been dropped.
        while one.waiting(&name).unwrap() == 0 && !wait.is_finished() {
            tokio::task::yield_now().await;
        }
        holder.release().await.unwrap();
        let won = wait.await.unwrap();
        let done = won.is_some();
        drop(won);
        let next = soon(&two, &name).await;
        assert_eq!(next.release().await.unwrap(), Release::Released);
        if done {
            return;
        }
    }
}

pub async fn survives_cancelled_releases(store: Store) {
    let (one, two, name) = (store.manager(), store.manager(), store.name("r"));
    for polls in 0.. {
        assert!(polls < 200, "it is never ready");
        let lease = soon(&one, &name).await;
        let done = cut_short(polls, lease.release()).await;
        // A release that was not even begun leaves the lease as it is.
        assert_eq!(lease.is_held(), polls == 0);
        if polls == 0 {
            assert_eq!(lease.release().await.unwrap(), Release::Released);
        }
        let next = soon(&two, &name).await;
        assert!(next.is_held() && !lease.is_held());
        assert_eq!(next.release().await.unwrap(), Release::Released);
        if done.is_some() {
            return;
        }
    }
}

pub async fn cancelled_waiter_leaves_the_line(store: Store) {
    let (locks, name) = (store.manager(), store.name("r"));
    let holder = soon(&locks, &name).await;
    let mut waiters = Vec::new();
    for waiting in 1..=4 {
        let (manager, resource) = (locks.clone(), name.clone());
        waiters.push(tokio::spawn(async move { soon(&manager, &resource).await }));
        until_waiting(&locks, &name, waiting).await;
    }
    let last = waiters.pop().unwrap();
    // The first, who talks to the backend, and one in the middle.
    for index in [0, 2] {
        waiters[index].abort();
    }
    until_waiting(&locks, &name, 2).await;
    holder.release().await.unwrap();
    let second = waiters.swap_remove(1).await.unwrap();
    assert!(second.is_held() && !last.is_finished());
    second.release().await.unwrap();
    assert!(last.await.unwrap().is_held());
}

pub async fn closing_ends_everything(store: Store) {
    let (one, two, name) = (store.manager(), store.manager(), store.name("r"));
    let (lease, other) = (soon(&one, &name).await, soon(&one, &store.name("other")).await);
    let waiters: Vec<_> = (1..=3)
        .map(|_| {
            let (one, name) = (one.clone(), name.clone());
            tokio::spawn(async move { one.acquire(&name, long()).await.map(drop) })
        })
        .collect();
    until_waiting(&one, &name, 3).await;
    drop(other);
    one.close().await;
    for waiter in waiters {
        assert_eq!(waiter.await.unwrap().unwrap_err().kind(), ErrorKind::Closed);
    }
    assert!(!lease.is_held());
    assert_eq!((lease.loss(), lease.release().await.unwrap()), (None, Release::NotHeld));
    // What was held is free as soon as closing is over; what was on its way to a waiter, soon.
    assert!(two.try_acquire(&store.name("other"), long()).await.unwrap().is_some());
    soon(&two, &name).await;
    one.close().await;
    assert_eq!(one.try_acquire(&name, long()).await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(one.inspect(&name).await.unwrap_err().kind(), ErrorKind::Closed);
}
