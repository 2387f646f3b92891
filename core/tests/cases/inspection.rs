//! Looking at locks from outside, and breaking them.

use std::time::Duration;

use polylock::{ErrorKind, LossReason, Release, Seen, Target};

use super::{LONG, Store, long, ms, until_waiting};

pub async fn inspects(store: Store) {
    let (one, two, name) = (store.manager(), store.manager(), store.name("r"));
    assert!(one.capabilities().inspection);
    assert_eq!(two.inspect(&name).await.unwrap(), None);
    let lease = one.acquire(&name, long().label("50 % of \u{fc}\nall")).await.unwrap();
    for locks in [&one, &two] {
        let holder = locks.inspect(&name).await.unwrap().expect("it is held");
        assert_eq!((holder.resource.as_str(), holder.mode), (name.as_str(), "exclusive"));
        assert_eq!(holder.owner, lease.owner_token().as_str());
        assert_eq!(holder.fencing_token, Some(lease.fencing_token()));
        assert_eq!(holder.label.as_deref(), Some("50 % of \u{fc}\nall"));
        assert_eq!(holder.pid, Some(std::process::id()));
        let expires_in = holder.expires_in.expect("it expires");
        assert!(expires_in > LONG / 2 && expires_in <= LONG, "{expires_in:?}");
        let since = holder.since.expect("it has a beginning").elapsed().unwrap_or_default();
        assert!(since < Duration::from_secs(60), "{since:?}");
    }
    lease.release().await.unwrap();
    assert_eq!(two.inspect(&name).await.unwrap(), None);
}

pub async fn lists(store: Store) {
    let (one, two) = (store.manager(), store.manager());
    if !one.capabilities().listing {
        let refused = one.list("*", 1).await.unwrap_err();
        return assert_eq!(refused.kind(), ErrorKind::Unsupported);
    }
    let listed = async |pattern: &str, limit| {
        let holders = two.list(&store.name(pattern), limit).await.unwrap();
        holders.into_iter().map(|holder| holder.resource.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(listed("*", 10).await, [""; 0]);
    let names = ["a", "a:1", "a:2", "b*[?]", "{tag}:1", "{whole}", "\u{fc}"].map(|word| store.name(word));
    let mut leases = Vec::new();
    for name in &names {
        leases.push(one.acquire(name, long().label("here")).await.unwrap());
    }
    assert_eq!(listed("*", 100).await, names);
    assert_eq!(listed("a:?", 100).await, names[1..3]);
    assert_eq!(listed("a:*", 1).await.len(), 1);
    assert_eq!(listed("b\\*[\\?]", 100).await, names[3..4]);
    assert_eq!(listed("?", 100).await, [names[0].clone(), names[6].clone()]);
    assert_eq!(listed("c*", 100).await, [""; 0]);
    let holder = two.list(&store.name("a:2"), 100).await.unwrap().remove(0);
    assert_eq!(holder.owner, leases[2].owner_token().as_str());
    assert_eq!(holder.fencing_token, Some(leases[2].fencing_token()));
    assert_eq!(holder.label.as_deref(), Some("here"));
    for lease in leases.drain(2..) {
        lease.release().await.unwrap();
    }
    assert_eq!(listed("*", 100).await, names[..2]);
    for (pattern, limit, argument) in [("", 1, "pattern"), ("\\", 1, "pattern"), ("*", 0, "limit")] {
        assert_eq!(one.list(pattern, limit).await.unwrap_err().argument(), Some(argument));
    }
}

pub async fn lists_each_of_several_holders(store: Store) {
    let (one, two, name) = (store.manager(), store.manager(), store.name("r"));
    if !one.capabilities().shared || !one.capabilities().listing {
        return;
    }
    let first = one.acquire(Target::shared(&name), long()).await.unwrap();
    let second = two.acquire(Target::shared(&name), long()).await.unwrap();
    let holders = one.list(&store.name("*"), 100).await.unwrap();
    let mut owners = [first.owner_token().to_string(), second.owner_token().to_string()];
    owners.sort();
    assert_eq!(holders.iter().map(|holder| &holder.owner).collect::<Vec<_>>(), owners.iter().collect::<Vec<_>>());
    assert!(holders.iter().all(|holder| holder.mode == "shared"));
    assert!(one.break_lock(&name, Seen::Owner(first.owner_token().to_string())).await.unwrap());
    assert_eq!(first.lost().await, Some(LossReason::Taken));
    second.extend(None).await.expect("it was the other that was broken");
    assert_eq!(one.list(&store.name("*"), 100).await.unwrap().len(), 1);
}

pub async fn breaks(store: Store) {
    let (one, two, name) = (store.manager(), store.manager(), store.name("r"));
    if !one.capabilities().breaking {
        let refused = one.break_lock(&name, Seen::FencingToken(1)).await.unwrap_err();
        return assert_eq!(refused.kind(), ErrorKind::Unsupported);
    }
    let breaks = async |seen: Seen| two.break_lock(&name, seen).await.unwrap();
    assert!(!breaks(Seen::FencingToken(1)).await, "nobody holds it");
    let lease = one.acquire(&name, long()).await.unwrap();
    let token = lease.fencing_token();
    let waiting = tokio::spawn({
        let (two, name) = (two.clone(), name.clone());
        async move { two.acquire(&name, long().wait(LONG)).await }
    });
    until_waiting(&two, &name, 1).await;
    while one.inspect(&name).await.unwrap().unwrap().waiting.is_some_and(|waiting| waiting != 1) {
        tokio::time::sleep(ms(1)).await;
    }
    for wrong in [Seen::FencingToken(token - 1), Seen::FencingToken(token + 1), Seen::Owner("0".repeat(40))] {
        assert!(!breaks(wrong).await);
    }
    lease.extend(None).await.expect("none of these was it");
    assert!(breaks(Seen::FencingToken(token)).await);
    assert_eq!(lease.lost().await, Some(LossReason::Taken));
    assert_eq!(lease.release().await.unwrap(), Release::NotHeld);
    let next = waiting.await.unwrap().expect("whoever waits is woken");
    assert!(next.fencing_token() > token);
    // What was seen of the first does not hit the second.
    assert!(!breaks(Seen::FencingToken(token)).await);
    assert!(!breaks(Seen::Owner(lease.owner_token().to_string())).await);
    next.extend(None).await.expect("it was not meant");
    let holder = one.inspect(&name).await.unwrap().expect("it is held");
    assert!(breaks(Seen::from(&holder)).await);
    assert_eq!(next.lost().await, Some(LossReason::Taken));
    for (wrong, argument) in [(Seen::FencingToken(0), "fencing_token"), (Seen::Owner(String::new()), "owner")] {
        assert_eq!(two.break_lock(&name, wrong).await.unwrap_err().argument(), Some(argument));
    }
}

/// Its holder knows before the lock is free, whoever hears that it is.
pub async fn breaks_though_given_up(store: Store) {
    let (one, two, name) = (store.manager(), store.manager(), store.name("r"));
    if !one.capabilities().breaking {
        return;
    }
    let lease = one.acquire(&name, long()).await.unwrap();
    let mut breaking = Box::pin(one.break_lock(&name, Seen::Owner(lease.owner_token().to_string())));
    let broken = std::future::poll_fn(|cx| std::task::Poll::Ready(breaking.as_mut().poll(cx))).await;
    assert!(!lease.is_held(), "{broken:?}");
    drop(breaking);
    assert_eq!(lease.lost().await, Some(LossReason::Taken));
    two.acquire(&name, long().wait(LONG)).await.expect("it is freed in the background");
}
