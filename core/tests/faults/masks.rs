//! Every mask of what the nodes of a quorum can do to one attempt.
//!
//! The rules: it is granted exactly if a majority grants in time; otherwise it is said to be held by another only if a node
//! said so, and out of reach only if a node was; the answer comes within the node's time; nobody else's key is
//! touched; and once the nodes are well again no key of ours is left, whether the attempt was granted and
//! released, failed, or was dropped on its way.

use std::{sync::Arc, time::Duration};

use polylock::{ErrorKind, Instant, LockManager, Release};
use tokio::task::JoinSet;

use super::{
    FOREIGN, SLACK, fresh, long,
    proxy::{Door, Fate, Proxy, is_script},
    server::Server,
    until_clean,
};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Node {
    Healthy,
    Refuses,
    /// Connects, and then says nothing.
    Silent,
    /// Carries out what it is asked, but its answers are lost.
    LosesReplies,
    /// Answers when nobody waits any more.
    Late,
    /// Holds another library's key.
    Foreign,
}

const KINDS: [Node; 6] = [Node::Healthy, Node::Refuses, Node::Silent, Node::LosesReplies, Node::Late, Node::Foreign];

/// How many masks are tried at one time: they spend their time waiting.
const AT_ONCE: usize = 40;

/// How long one node may take: a healthy one must be in time, however many masks are tried and whatever else runs.
const NODE_TIMEOUT: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_mask_of_one_two_and_three_nodes() {
    let masks = (1..=3_u32).flat_map(|nodes| {
        (0..6_u32.pow(nodes)).map(move |mask| {
            let kind = |node| KINDS[(mask / 6_u32.pow(node) % 6) as usize];
            (0..nodes).map(kind).collect::<Vec<_>>()
        })
    });
    try_masks(3, masks).await;
}

/// Masks that differ in the order of their nodes alone count as one, and each is tried in some order. Without
/// `POLYLOCK_TEST_MASKS`, which says how many, a few: those first where a majority is just there, or just not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn masks_of_four_to_seven_nodes() {
    let count = std::env::var("POLYLOCK_TEST_MASKS").map_or(60, |count| count.parse().expect("a number"));
    let mut random = fastrand::Rng::with_seed(0);
    let mut masks: Vec<Vec<Node>> = (4..=7).flat_map(|nodes| but_for_order(nodes, &KINDS)).collect();
    assert_eq!(masks.len(), 126 + 252 + 462 + 792);
    masks.iter_mut().for_each(|mask| random.shuffle(mask));
    random.shuffle(&mut masks);
    masks.sort_by_key(|mask| {
        let healthy = mask.iter().filter(|node| **node == Node::Healthy).count();
        !(mask.len() / 2..=mask.len() / 2 + 1).contains(&healthy)
    });
    try_masks(7, masks.into_iter().take(count)).await;
}

/// All ways to fill so many places with these kinds, whatever their order.
fn but_for_order(places: usize, kinds: &[Node]) -> Vec<Vec<Node>> {
    let [kind, others @ ..] = kinds else { return if places == 0 { vec![vec![]] } else { vec![] } };
    (0..=places)
        .flat_map(|count| {
            let filled = move |mut rest: Vec<Node>| {
                rest.extend(std::iter::repeat_n(*kind, count));
                rest
            };
            but_for_order(places - count, others).into_iter().map(filled)
        })
        .collect()
}

/// Tries masks of so many nodes at most.
async fn try_masks(nodes: usize, masks: impl Iterator<Item = Vec<Node>>) {
    let servers = Arc::new(Server::several(nodes));
    // Afterwards the servers know the scripts, so that the first request of an attempt is the one that counts.
    for server in servers.iter() {
        let lease = patient(&[server.url()]).acquire(fresh("warm"), long()).await.expect("a healthy server");
        assert_eq!(lease.release().await.unwrap(), Release::Released);
    }
    let mut running = JoinSet::new();
    let mut tried = 0;
    // Kept: what is late is undone through them.
    let mut proxies = Vec::new();
    for mask in masks {
        if running.len() == AT_ONCE {
            proxies.push(running.join_next().await.expect("it is not empty").unwrap());
        }
        running.spawn(try_mask(Arc::clone(&servers), mask));
        tried += 1;
    }
    while let Some(done) = running.join_next().await {
        proxies.push(done.unwrap());
    }
    assert!(tried >= 36);
    // When nothing can arrive any more, nothing may be left of any of them.
    tokio::time::sleep(NODE_TIMEOUT + SLACK / 5).await;
    for server in servers.iter() {
        let ours = || -> Vec<String> {
            let is_ours = |key: &String| server.get(key).is_some_and(|owner| owner != FOREIGN);
            server.keys().into_iter().filter(is_ours).collect()
        };
        let began = Instant::now();
        while !ours().is_empty() && Instant::now().since(began) < SLACK {
            tokio::time::sleep(SLACK / 100).await;
        }
        assert_eq!(ours(), Vec::<String>::new());
    }
}

async fn try_mask(servers: Arc<Vec<Server>>, mask: Vec<Node>) -> Vec<Proxy> {
    let nodes: Vec<&Server> = servers.iter().take(mask.len()).collect();
    // The names tell of the mask.
    let (name, cancelled) = (fresh(&format!("{mask:?}")), fresh(&format!("{mask:?}:cancelled")));
    let mut proxies = Vec::new();
    for (node, kind) in nodes.iter().zip(&mask) {
        let proxy = Proxy::before(node.port).await;
        match kind {
            Node::Healthy => {}
            Node::Refuses => proxy.door(Door::Slam),
            Node::Silent => proxy.door(Door::Blackhole),
            Node::LosesReplies => proxy.rule(|request| lose(is_script(request), Fate::LoseReply)),
            Node::Late => proxy.rule(|request| lose(is_script(request), Fate::Delay(NODE_TIMEOUT * 3 / 2))),
            Node::Foreign => {
                for name in [&name, &cancelled] {
                    let _: () = node.ask(&["SET", name, FOREIGN, "PX", "600000"]);
                }
            }
        }
        proxies.push(proxy);
    }
    let urls: Vec<String> = proxies.iter().map(Proxy::url).collect();
    let locks = patient(&urls);

    let count = |kind| mask.iter().filter(|other| **other == kind).count();
    let majority = mask.len() / 2 + 1;
    let began = Instant::now();
    let tried = locks.try_acquire(&name, long()).await;
    let took = Instant::now().since(began);
    assert!(took < NODE_TIMEOUT + SLACK, "{mask:?} took {took:?}");
    match tried {
        Ok(Some(lease)) => {
            assert!(count(Node::Healthy) >= majority, "{mask:?} was granted");
            assert!(lease.is_held() && lease.fencing_token() > 0);
            assert_eq!(lease.release().await.unwrap(), Release::Released, "{mask:?}");
        }
        refused => {
            assert!(count(Node::Healthy) < majority, "{mask:?}: {refused:?}");
            match refused {
                Ok(_) => assert!(count(Node::Foreign) > 0, "{mask:?} was called busy"),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Unavailable, "{mask:?}: {error:?}");
                    assert!(count(Node::Healthy) + count(Node::Foreign) < mask.len(), "{mask:?}: {error:?}");
                    assert!(error.is_retryable() && !error.causes().is_empty(), "{mask:?}: {error:?}");
                }
            }
        }
    }
    // Dropped on its way, at any moment of it.
    let patience = Duration::from_micros(fastrand::u64(0..4000));
    drop(tokio::time::timeout(patience, locks.try_acquire(&cancelled, long())).await);

    proxies.iter().for_each(Proxy::heal);
    until_clean(&nodes, &name).await;
    until_clean(&nodes, &cancelled).await;
    for (node, kind) in nodes.iter().zip(&mask) {
        if *kind == Node::Foreign {
            for name in [&name, &cancelled] {
                assert_eq!(node.get(name).as_deref(), Some(FOREIGN), "{mask:?}");
            }
        }
    }
    // And the same manager works at once, where another library is not in the way.
    let next = fresh(&format!("{mask:?}:next"));
    let lease = tokio::time::timeout(SLACK * 2, locks.acquire(&next, long())).await;
    let lease = lease.unwrap_or_else(|_| panic!("{mask:?}: not after healing")).unwrap();
    assert_eq!(lease.release().await.unwrap(), Release::Released, "{mask:?} after healing");
    until_clean(&nodes, &next).await;
    proxies
}

fn lose(applies: bool, fate: Fate) -> Fate {
    if applies { fate } else { Fate::Pass }
}

fn patient(urls: &[String]) -> LockManager {
    polylock::connect(urls.to_vec()).node_timeout(NODE_TIMEOUT).lazy().expect("no manager")
}
