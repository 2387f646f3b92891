//! What is counted and told of leases.

use std::time::Duration;

use polylock::{Acquire, Event, EventKind, Events, LockManager};

use super::{ANSWERED, LONG, SLACK, Store, long, ms};

fn total(locks: &LockManager, name: &str, labels: &[(&str, &str)]) -> f64 {
    locks.metrics().unwrap().total(name, labels)
}

pub async fn counts(store: Store) {
    let (one, two, name) = (store.manager(), store.manager(), store.name("r"));
    let kind = ("template", "r:{id}");
    let lease = one.acquire(&name, long().template(kind.1)).await.unwrap();
    let held = [("template", kind.1)];
    assert_eq!(total(&one, "polylock.acquire.duration", &[kind, ("outcome", "acquired")]), 1.0);
    assert_eq!((total(&one, "polylock.held", &held), total(&one, "polylock.held", &[])), (1.0, 1.0));
    assert_eq!(total(&one, "polylock.attempts", &[("answer", "granted")]), 1.0);
    lease.extend(None).await.unwrap();
    assert_eq!(total(&one, "polylock.extensions", &[("outcome", "extended")]), 1.0);
    assert!(total(&one, "polylock.renewal.remaining.min", &[]) > LONG.as_secs_f64() / 2.0);

    assert!(two.try_acquire(&name, long()).await.unwrap().is_none());
    assert_eq!(total(&two, "polylock.acquire.duration", &[("outcome", "contended")]), 1.0);
    two.acquire(&name, long().wait(ANSWERED)).await.unwrap_err();
    assert_eq!(total(&two, "polylock.acquire.duration", &[("outcome", "timeout")]), 1.0);
    assert!(total(&two, "polylock.attempts", &[("answer", "busy")]) >= 2.0);
    {
        let waiting = two.acquire(&name, long());
        assert!(tokio::time::timeout(ms(100), waiting).await.is_err());
    }
    assert_eq!(total(&two, "polylock.acquire.duration", &[("outcome", "cancelled")]), 1.0);
    assert_eq!(total(&two, "polylock.acquiring", &[]), 0.0);

    lease.release().await.unwrap();
    assert_eq!(total(&one, "polylock.hold.duration", &[kind, ("end", "released")]), 1.0);
    assert_eq!(total(&one, "polylock.held", &[]), 0.0);
    drop(one.acquire(&name, long()).await.unwrap());
    assert_eq!(total(&one, "polylock.hold.duration", &[("end", "dropped")]), 1.0);
    let expires = Acquire::ttl(ms(400)).auto_extend(false).wait(Duration::from_secs(20));
    two.acquire(&name, expires).await.unwrap().lost().await.expect("it expires");
    assert_eq!(total(&two, "polylock.lost", &[("reason", "expired")]), 1.0);
    assert_eq!(total(&two, "polylock.held", &[]), 0.0);

    let metrics = one.metrics().unwrap();
    for point in &metrics.get("polylock.node.up").unwrap().points {
        assert!(point.labels.iter().any(|(label, node)| *label == "node" && !node.is_empty()));
    }
    assert!(!metrics.to_prometheus().contains(&name), "a name is a label");
    one.close().await;
    assert_eq!(one.metrics().unwrap().total("polylock.acquire.duration", &[("outcome", "acquired")]), 2.0);
}

/// Takes events until it has `count`.
async fn take(events: &Events, count: usize) -> Vec<Event> {
    let mut all = Vec::new();
    while all.len() < count {
        let batch = tokio::time::timeout(SLACK, events.next()).await.expect("an event is missing");
        all.extend(batch.expect("the manager is open"));
    }
    all
}

pub async fn tells(store: Store) {
    let (one, two, name) = (store.manager(), store.manager(), store.name("r"));
    let events = one.events().unwrap();
    let unheard = one.events().unwrap();
    drop(unheard);
    let lease = one.acquire(&name, long()).await.unwrap();
    lease.extend(None).await.unwrap();
    lease.release().await.unwrap();
    let other = two.acquire(&name, long()).await.unwrap();
    one.acquire(&name, long().wait(ANSWERED)).await.unwrap_err();
    other.release().await.unwrap();
    let expires = Acquire::ttl(ms(400)).auto_extend(false).wait(Duration::from_secs(20));
    let lost = one.acquire(&name, expires).await.unwrap();
    let reason = lost.lost().await;
    assert!(lost.extend(None).await.is_err());

    use EventKind::{Acquired, Contended, Extended, Lost, Released};
    let told = take(&events, 6).await;
    // Only after a server that took its time it meets others of its own again.
    let mut kinds: Vec<_> = told.iter().map(|event| event.kind).collect();
    kinds.dedup();
    assert_eq!(kinds, [Acquired, Extended, Released, Contended, Acquired, Lost]);
    assert_eq!((told[0].resources[0].as_str(), told[0].fencing_token), (&*name, Some(lease.fencing_token())));
    assert!(told[0].duration.is_some() && told[3].fencing_token.is_none());
    let last = told.last().unwrap();
    assert_eq!((last.fencing_token, last.reason), (Some(lost.fencing_token()), reason));
    assert_eq!(events.missed(), 0);
    one.close().await;
    assert!(events.next().await.is_none());
}
