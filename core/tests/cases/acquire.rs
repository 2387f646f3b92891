//! Who gets in, who waits and how long.

use std::time::{Duration, Instant};

use polylock::{
    Acquire, ErrorKind, Release,
    host::{CompletionQueue, Started},
};

use super::{ANSWERED, LONG, SLACK, Store, long, ms, soon, until_waiting};

pub async fn excludes(store: Store) {
    let (one, two, name) = (store.manager(), store.manager(), store.name("r"));
    let lease = soon(&one, &name).await;
    assert!(lease.is_held());
    assert_eq!(lease.resource().as_str(), name);
    assert!(lease.remaining() > LONG / 2 && lease.remaining() < LONG);
    for locks in [&one, &two] {
        assert!(locks.try_acquire(&name, long()).await.unwrap().is_none());
    }
    let other = two.try_acquire(&store.name("other"), long()).await.unwrap();
    assert!(other.is_some(), "another name is another lock");
    assert_eq!(lease.release().await.unwrap(), Release::Released);
    assert!(two.try_acquire(&name, long()).await.unwrap().is_some());
}

pub async fn hands_over_to_another_manager(store: Store) {
    let (one, two, name) = (store.manager(), store.manager(), store.name("r"));
    for _ in 0..5 {
        let first = soon(&one, &name).await;
        let waiter = tokio::spawn({
            let (two, name) = (two.clone(), name.clone());
            async move { soon(&two, &name).await }
        });
        until_waiting(&two, &name, 1).await;
        assert!(!waiter.is_finished());
        first.release().await.unwrap();
        let second = waiter.await.unwrap();
        assert!(second.is_held() && second.fencing_token() > first.fencing_token());
        assert_eq!(second.release().await.unwrap(), Release::Released);
    }
}

pub async fn serves_in_order(store: Store) {
    let (locks, name) = (store.manager(), store.name("r"));
    let holder = soon(&locks, &name).await;
    let (order, mut served) = tokio::sync::mpsc::unbounded_channel();
    for number in 0..6 {
        let (locks, name, order) = (locks.clone(), name.clone(), order.clone());
        let wait_for = locks.clone();
        let waits_for = name.clone();
        tokio::spawn(async move {
            let lease = soon(&locks, &name).await;
            order.send(number).unwrap();
            lease.release().await.unwrap();
        });
        until_waiting(&wait_for, &waits_for, number + 1).await;
    }
    drop(order);
    holder.release().await.unwrap();
    for number in 0..6 {
        assert_eq!(served.recv().await, Some(number));
    }
    assert_eq!(served.recv().await, None);
}

pub async fn times_out(store: Store) {
    let (one, two, name) = (store.manager(), store.manager(), store.name("r"));
    let lease = soon(&one, &name).await;
    for (locks, wait) in [(&one, ms(0)), (&one, ANSWERED), (&two, ms(0)), (&two, ANSWERED)] {
        let asked = Instant::now();
        let error = locks.acquire(&name, long().wait(wait)).await.unwrap_err();
        let took = asked.elapsed();
        // Waiting for no time at all is too short for an answer that takes a round trip.
        let may_be = error.kind() == ErrorKind::Timeout || wait.is_zero() && error.kind() == ErrorKind::Unavailable;
        assert!(may_be, "{error:?}");
        assert_eq!(error.resource(), Some(name.as_str()));
        assert!(took >= wait && took < wait + SLACK, "{took:?} instead of {wait:?}");
    }
    assert!(lease.is_held());
    lease.release().await.unwrap();
    soon(&two, &name).await;
}

pub async fn is_not_reentrant(store: Store) {
    let (locks, name) = (store.manager(), store.name("r"));
    let lease = soon(&locks, &name).await;
    assert!(locks.try_acquire(&name, long()).await.unwrap().is_none());
    let error = locks.acquire(&name, long().wait(ANSWERED)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(lease.is_held());
}

pub async fn tries_once(store: Store) {
    let (one, two, name) = (store.manager(), store.manager(), store.name("r"));
    let lease = one.try_acquire(&name, long()).await.unwrap().expect("it is free");
    let asked = Instant::now();
    // What the options say about waiting does not count.
    assert!(two.try_acquire(&name, long().wait(LONG)).await.unwrap().is_none());
    assert!(two.try_acquire(&name, long().wait_forever()).await.unwrap().is_none());
    let error = two.acquire(&name, long().no_wait()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(asked.elapsed() < SLACK);
    lease.release().await.unwrap();
    assert!(two.try_acquire(&name, long()).await.unwrap().is_some());
}

pub async fn those_in_line_time_out(store: Store) {
    let (locks, name) = (store.manager(), store.name("r"));
    let lease = locks.acquire(&name, long()).await.unwrap();
    let waiters: Vec<_> = (0..30)
        .map(|_| {
            let (locks, name) = (locks.clone(), name.clone());
            tokio::spawn(async move { locks.acquire(&name, long().wait(ANSWERED)).await.unwrap_err() })
        })
        .collect();
    for waiter in waiters {
        // Not `Unavailable`: the backend is well, only the time was too short.
        let error = waiter.await.unwrap();
        assert_eq!(error.kind(), ErrorKind::Timeout, "{error:?}");
    }
    lease.release().await.unwrap();
}

/// The first in line waits on a queue that nobody turns.
pub async fn who_stands_still_is_passed(store: Store) {
    let (locks, name) = (store.manager(), store.name("r"));
    let lease = soon(&locks, &name).await;
    let queue = CompletionQueue::new().unwrap();
    let operation = {
        let (locks, name, driver) = (locks.clone(), name.clone(), queue.driver());
        async move { locks.acquire_by(&name, long(), &driver).await }
    };
    let Started::Pending(still) = queue.start(Box::pin(operation)).unwrap() else { panic!("it is held") };
    // What it has asked is answered: else it might be granted yet.
    while locks.metrics().unwrap().total("polylock.attempts", &[("answer", "busy")]) < 1.0 {
        assert!(queue.turn().is_empty());
        tokio::time::sleep(ms(1)).await;
    }
    let behind: Vec<_> = (2..=4)
        .map(|_| {
            let (locks, name) = (locks.clone(), name.clone());
            tokio::spawn(async move {
                let lease = soon(&locks, &name).await;
                lease.release().await
            })
        })
        .collect();
    until_waiting(&locks, &name, 4).await;
    lease.release().await.unwrap();
    let released = Instant::now();
    for waiter in behind {
        assert_eq!(waiter.await.unwrap().unwrap(), Release::Released);
    }
    let waited = released.elapsed();
    assert!(waited < ms(3000) + SLACK, "{waited:?}");
    assert_eq!((locks.waiting(&name).unwrap(), queue.pending()), (1, 1));
    // It comes to life.
    let turning = tokio::task::spawn_blocking(move || {
        loop {
            if let Some((id, acquired)) = queue.turn_within(LONG).pop() {
                break (id, acquired.unwrap());
            }
        }
    });
    let (id, lease) = turning.await.unwrap();
    assert_eq!((id, lease.release().await.unwrap()), (still, Release::Released));
}

/// It was granted to somebody who is not polled any more.
pub async fn a_grant_that_nobody_collects_ends_with_its_ttl(store: Store) {
    let (locks, other, name) = (store.manager(), store.manager(), store.name("r"));
    assert_eq!(soon(&locks, &name).await.release().await.unwrap(), Release::Released);
    let queue = CompletionQueue::new().unwrap();
    let operation = {
        let (name, driver) = (name.clone(), queue.driver());
        async move { locks.acquire_by(&name, Acquire::ttl(ms(1000)), &driver).await }
    };
    if let Started::Done(lease) = queue.start(Box::pin(operation)).unwrap() {
        return drop(lease); // this backend grants at once
    }
    // Until it is granted, or is not sent because nobody turns the queue.
    let asked = Instant::now();
    while other.inspect(&name).await.unwrap().is_none() && asked.elapsed() < ms(2000) {
        tokio::time::sleep(ms(1)).await;
    }
    let lease = other.acquire(&name, long().wait(ms(20_000))).await.unwrap();
    assert_eq!(lease.release().await.unwrap(), Release::Released);
}

pub async fn refuses_bad_arguments(store: Store) {
    let locks = store.manager();
    for name in ["", "a\0b", &"x".repeat(1025)] {
        let acquired = locks.acquire(name, long()).await.map(drop);
        let tried = locks.try_acquire(name, long()).await.map(drop);
        let inspected = locks.inspect(name).await.map(drop);
        for error in [acquired, tried, inspected].map(Result::unwrap_err) {
            assert_eq!((error.kind(), error.argument()), (ErrorKind::InvalidArgument, Some("resource")));
        }
    }
    let name = store.name("r");
    for (options, argument) in [
        (Acquire::ttl(Duration::ZERO), "ttl"),
        (Acquire::ttl(ms(2)), "ttl"),
        (Acquire::ttl(Duration::MAX), "ttl"),
        (long().wait(Duration::MAX), "wait"),
        (long().max_hold(Duration::ZERO), "max_hold"),
        (long().label(&"x".repeat(257)), "label"),
    ] {
        let error = locks.acquire(&name, options).await.unwrap_err();
        assert_eq!((error.kind(), error.argument()), (ErrorKind::InvalidArgument, Some(argument)));
    }
    // The longest name and strange ones are good names, and different ones.
    let strange = ["x".repeat(1024 - name.len()), "\u{1F512} %2e/../\\\n".to_owned(), "A".to_owned(), "a".to_owned()];
    let mut leases = Vec::new();
    for end in strange {
        leases.push(locks.try_acquire(&format!("{name}{end}"), long()).await.unwrap().expect("it is free"));
    }
    for lease in leases {
        assert_eq!(lease.release().await.unwrap(), Release::Released);
    }
}
