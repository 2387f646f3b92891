//! The life of a lease: extended, renewed, lost, released.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::Duration,
};

use polylock::{Acquire, ErrorKind, Instant, LossReason, Release};

use super::{LONG, SLACK, Store, long, ms, soon};

/// A lease that is over soon unless it is extended by hand. A server's answer on a busy machine fits in well.
fn short() -> Acquire {
    Acquire::ttl(ms(1000)).auto_extend(false).wait(Duration::from_secs(20))
}

async fn sleep_until(at: Instant) {
    tokio::time::sleep(at.since(Instant::now())).await;
}

pub async fn releases_once(store: Store) {
    let (locks, name) = (store.manager(), store.name("r"));
    let lease = soon(&locks, &name).await;
    assert_eq!(lease.release().await.unwrap(), Release::Released);
    assert!(!lease.is_held());
    assert_eq!(lease.remaining(), Duration::ZERO);
    assert_eq!(lease.release().await.unwrap(), Release::NotHeld);
    let next = soon(&locks, &name).await;
    assert_eq!(lease.release().await.unwrap(), Release::NotHeld);
    assert_eq!(lease.extend(None).await.unwrap_err().kind(), ErrorKind::Lost);
    assert!(next.is_held());
    assert!(locks.try_acquire(&name, long()).await.unwrap().is_none());
}

pub async fn releases_when_dropped(store: Store) {
    let (one, two, name) = (store.manager(), store.manager(), store.name("r"));
    for _ in 0..10 {
        drop(soon(&one, &name).await);
        drop(soon(&two, &name).await);
    }
    soon(&one, &name).await;
}

pub async fn extends(store: Store) {
    let (locks, name) = (store.manager(), store.name("r"));
    let ttl = Duration::from_secs(20);
    let lease = locks.acquire(&name, Acquire::ttl(ttl).auto_extend(false)).await.unwrap();
    let before = lease.deadline();
    tokio::time::sleep(ms(20)).await;
    lease.extend(None).await.unwrap();
    assert!(lease.deadline() > before);
    assert!(lease.deadline() <= Instant::now().after(ttl));
    assert!(lease.is_held());
    assert_eq!(lease.release().await.unwrap(), Release::Released);
}

pub async fn extends_to_another_ttl(store: Store) {
    let (one, two, name) = (store.manager(), store.manager(), store.name("r"));
    let lease = one.acquire(&name, Acquire::ttl(Duration::from_secs(10)).auto_extend(false)).await.unwrap();
    lease.extend(Some(LONG)).await.unwrap();
    assert!(lease.remaining() > LONG / 2);
    let expires_in = two.inspect(&name).await.unwrap().expect("it is held").expires_in.expect("it expires");
    assert!(expires_in > LONG / 2 && expires_in <= LONG, "{expires_in:?}");
    // A shorter one counts as well.
    lease.extend(Some(ms(1500))).await.unwrap();
    assert!(lease.remaining() <= ms(1500));
    assert_eq!(lease.lost().await, Some(LossReason::Expired));
    soon(&two, &name).await;
    let error = lease.extend(Some(ms(1))).await.unwrap_err();
    assert_eq!(error.argument(), Some("ttl"));
}

pub async fn does_not_extend_what_expired(store: Store) {
    let (one, two, name) = (store.manager(), store.manager(), store.name("r"));
    let lease = one.acquire(&name, short()).await.unwrap();
    assert_eq!(lease.lost().await, Some(LossReason::Expired));
    assert_eq!(lease.extend(None).await.unwrap_err().kind(), ErrorKind::Lost);
    let next = soon(&two, &name).await;
    assert_eq!(lease.extend(Some(LONG)).await.unwrap_err().kind(), ErrorKind::Lost);
    assert!(!lease.is_held() && next.is_held());
    assert_eq!(two.inspect(&name).await.unwrap().expect("it is held").owner, next.owner_token().as_str());
    next.release().await.unwrap();
    assert_eq!(lease.extend(None).await.unwrap_err().kind(), ErrorKind::Lost);
    assert_eq!(two.inspect(&name).await.unwrap(), None, "extending made a lease");
}

pub async fn does_not_release_the_next_holder(store: Store) {
    let (one, two, name) = (store.manager(), store.manager(), store.name("r"));
    let lease = one.acquire(&name, short()).await.unwrap();
    assert_eq!(lease.lost().await, Some(LossReason::Expired));
    let next = soon(&two, &name).await;
    assert_eq!(lease.release().await.unwrap(), Release::NotHeld);
    drop(lease);
    // What is released in the background must have come by then.
    one.close().await;
    assert!(store.manager().try_acquire(&name, long()).await.unwrap().is_none());
    assert!(next.is_held());
    assert_eq!(next.release().await.unwrap(), Release::Released);
}

pub async fn renews_in_the_background(store: Store) {
    let (one, two, name) = (store.manager(), store.manager(), store.name("r"));
    let ttl = ms(1500);
    let began = Instant::now();
    let lease = one.acquire(&name, Acquire::ttl(ttl)).await.unwrap();
    while Instant::now() < began.after(ttl * 7 / 2) {
        assert!(lease.is_held());
        assert!(two.try_acquire(&name, long()).await.unwrap().is_none());
        tokio::time::sleep(ms(50)).await;
    }
    assert!(lease.deadline() > began.after(ttl * 3));
    assert_eq!(lease.loss(), None);
    assert_eq!(lease.release().await.unwrap(), Release::Released);
}

pub async fn expires_without_renewal(store: Store) {
    let (one, two, name) = (store.manager(), store.manager(), store.name("r"));
    let lease = one.acquire(&name, short()).await.unwrap();
    let (rang, ring) = mpsc::channel();
    lease.on_lost(move |reason| rang.send((reason, Instant::now())).expect("nobody listens"));
    let deadline = lease.deadline();
    let next = soon(&two, &name).await;
    assert!(Instant::now() >= deadline, "there were two holders");
    assert!(!lease.is_held() && lease.remaining().is_zero());
    assert_eq!(lease.loss(), Some(LossReason::Expired));
    assert_eq!(lease.lost().await, Some(LossReason::Expired));
    let (reason, at) = ring.recv_timeout(SLACK).expect("no signal");
    assert_eq!(reason, LossReason::Expired);
    assert!(at >= deadline && at < deadline.after(SLACK), "{:?} late", at.since(deadline));
    assert!(next.fencing_token() > lease.fencing_token());
    // Who asks to be told after the loss is told at once.
    let late = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&late);
    lease.on_lost(move |_| told.store(true, Ordering::SeqCst));
    assert!(late.load(Ordering::SeqCst));
}

pub async fn is_silent_after_release(store: Store) {
    let (locks, name) = (store.manager(), store.name("r"));
    let lease = locks.acquire(&name, short()).await.unwrap();
    let (rang, ring) = mpsc::channel();
    lease.on_lost(move |reason| {
        let _ = rang.send(reason);
    });
    let (deadline, lost) = (lease.deadline(), lease.lost());
    assert_eq!(lease.release().await.unwrap(), Release::Released);
    assert_eq!(lost.await, None);
    sleep_until(deadline.after(ms(100))).await;
    assert_eq!(ring.try_recv().ok(), None);
    assert_eq!((lease.loss(), lease.lost().await), (None, None));
}

pub async fn ends_at_max_hold(store: Store) {
    let (one, two, name) = (store.manager(), store.manager(), store.name("r"));
    let (ttl, max_hold) = (ms(1500), ms(2000));
    let began = Instant::now();
    let lease = one.acquire(&name, Acquire::ttl(ttl).max_hold(max_hold)).await.unwrap();
    assert_eq!(lease.lost().await, Some(LossReason::MaxHold));
    let held = Instant::now().since(began);
    assert!(held >= max_hold && held < max_hold + ttl + SLACK, "{held:?}");
    soon(&two, &name).await;
}

pub async fn tokens_grow(store: Store) {
    let (one, two, name) = (store.manager(), store.manager(), store.name("r"));
    let mut last = 0;
    for round in 0..100 {
        let locks = if round % 3 == 0 { &one } else { &two };
        let lease = soon(locks, &name).await;
        let token = lease.fencing_token();
        assert!(token > last, "{token} after {last}");
        assert!(token < 1 << 53);
        last = token;
        match round % 4 {
            0 => drop(lease),
            _ => assert_eq!(lease.release().await.unwrap(), Release::Released),
        }
        if round % 10 == 0 {
            let short_lived = locks.acquire(&name, Acquire::ttl(ms(30)).auto_extend(false)).await.unwrap();
            assert!(short_lived.fencing_token() > last);
            last = short_lived.fencing_token();
            short_lived.lost().await;
        }
    }
}
