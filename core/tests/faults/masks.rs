//! Every mask of what the nodes of a quorum can do to one attempt.
//!
//! The rules: it is granted exactly if a majority grants in time; otherwise it is said to be held by another only if a node
//! said so, and out of reach only if a node was; the answer comes within the node's time; nobody else's key is
//! touched; and once the nodes are well again no key of ours is left, whether the attempt was granted and
//! released, failed, or was dropped on its way.
//!
//! Each mask is tried for a lock that is held alone and for one that is shared; others are for a semaphore of two, where it takes
//! a majority for one number, and nodes differ in which are left.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use polylock::{ErrorKind, Instant, LockManager, Release, Target};
use tokio::task::JoinSet;

use super::{
    FOREIGN, SLACK, eventually, fresh, long,
    permits::{SOMEBODY, occupy},
    proxy::{Door, Fate, Proxy, is_script},
    server::Server,
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
    /// Has given the permit of this number to somebody, and has the other one left.
    Gave(u32),
}

/// How it is tried.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Alone,
    Shared,
    Permit,
}

impl Way {
    fn target(self, name: &str) -> Target {
        match self {
            Self::Alone => Target::from(name),
            Self::Shared => Target::shared(name),
            Self::Permit => Target::permit(name, 2),
        }
    }
}

const KINDS: [Node; 6] = [Node::Healthy, Node::Refuses, Node::Silent, Node::LosesReplies, Node::Late, Node::Foreign];

const OF_PERMITS: [Node; 6] =
    [Node::Healthy, Node::Silent, Node::LosesReplies, Node::Late, Node::Gave(0), Node::Gave(1)];

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
    try_masks(3, masks, &[Way::Alone, Way::Shared]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_mask_of_permits_of_one_two_and_three_nodes_but_for_their_order() {
    let masks: Vec<_> = (1..=3).flat_map(|nodes| but_for_order(nodes, &OF_PERMITS)).collect();
    try_masks(3, masks.into_iter(), &[Way::Permit]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn masks_of_four_to_seven_nodes() {
    try_masks(7, masks_of_many(&KINDS, 60), &[Way::Alone, Way::Shared]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn masks_of_permits_of_four_to_seven_nodes() {
    try_masks(7, masks_of_many(&OF_PERMITS, 40), &[Way::Permit]).await;
}

/// Masks that differ in the order of their nodes alone count as one, and each is tried in some order. Without
/// `POLYLOCK_TEST_MASKS`, which says how many, a `few`: those first where a majority is just there, or just not.
fn masks_of_many(kinds: &[Node], few: usize) -> impl Iterator<Item = Vec<Node>> {
    let count = std::env::var("POLYLOCK_TEST_MASKS").map_or(few, |count| count.parse().expect("a number"));
    let mut random = fastrand::Rng::with_seed(0);
    let mut masks: Vec<Vec<Node>> = (4..=7).flat_map(|nodes| but_for_order(nodes, kinds)).collect();
    assert_eq!(masks.len(), 126 + 252 + 462 + 792);
    masks.iter_mut().for_each(|mask| random.shuffle(mask));
    random.shuffle(&mut masks);
    masks.sort_by_key(|mask| {
        let well = mask.iter().filter(|node| matches!(node, Node::Healthy | Node::Gave(_))).count();
        !(mask.len() / 2..=mask.len() / 2 + 1).contains(&well)
    });
    masks.into_iter().take(count)
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

/// Tries masks of so many nodes at most, in each of these ways.
async fn try_masks(nodes: usize, masks: impl Iterator<Item = Vec<Node>>, ways: &'static [Way]) {
    let servers = Arc::new(Server::several(nodes));
    // Afterwards the servers know the scripts, so that the first request of an attempt is the one that counts.
    for server in servers.iter() {
        for way in ways {
            let lease =
                patient(&[server.url()]).acquire(way.target(&fresh("warm")), long()).await.expect("it is well");
            assert_eq!(lease.release().await.unwrap(), Release::Released);
        }
    }
    let mut running = JoinSet::new();
    let mut tried = 0;
    // Kept: what is late is undone through them.
    let mut proxies = Vec::new();
    for mask in masks {
        if running.len() == AT_ONCE {
            proxies.push(running.join_next().await.expect("it is not empty").unwrap());
        }
        running.spawn(try_mask(Arc::clone(&servers), mask, ways));
        tried += 1;
    }
    while let Some(done) = running.join_next().await {
        proxies.push(done.unwrap());
    }
    assert!(tried >= 36);
    // When nothing can arrive any more, nothing may be left of any of them.
    tokio::time::sleep(NODE_TIMEOUT + SLACK / 5).await;
    for server in servers.iter() {
        let left = || -> Vec<String> {
            let of_locks = |key: &String| !key.starts_with("polylock:") && is_left(server, key);
            server.keys().into_iter().filter(of_locks).collect()
        };
        let began = Instant::now();
        while !left().is_empty() && Instant::now().since(began) < SLACK {
            tokio::time::sleep(SLACK / 100).await;
        }
        assert_eq!(left(), Vec::<String>::new());
    }
}

/// Whether a server has anything of `name`, but for what was there before.
fn is_left(server: &Server, name: &str) -> bool {
    let kind: String = server.ask(&["TYPE", name]);
    match &*kind {
        "none" => server.ask(&["EXISTS", &format!("polylock:permits:{{{name}}}")]),
        "string" => server.get(name).as_deref() != Some(FOREIGN),
        _ => {
            let holders: Vec<String> = server.ask(&["ZRANGE", name, "0", "-1"]);
            holders.iter().any(|holder| !holder.contains(SOMEBODY))
        }
    }
}

async fn until_clean(servers: &[&Server], name: &str) {
    let clean = || servers.iter().all(|server| !is_left(server, name));
    eventually(SLACK * 4, "no key is left", clean).await;
}

async fn try_mask(servers: Arc<Vec<Server>>, mask: Vec<Node>, ways: &[Way]) -> Vec<Proxy> {
    let nodes: Vec<&Server> = servers.iter().take(mask.len()).collect();
    let mut proxies = Vec::new();
    for (node, kind) in nodes.iter().zip(&mask) {
        let proxy = Proxy::before(node.port).await;
        match kind {
            Node::Healthy | Node::Foreign | Node::Gave(_) => {}
            Node::Refuses => proxy.door(Door::Slam),
            Node::Silent => proxy.door(Door::Blackhole),
            Node::LosesReplies => proxy.rule(|request| lose(is_script(request), Fate::LoseReply)),
            Node::Late => proxy.rule(|request| lose(is_script(request), Fate::Delay(NODE_TIMEOUT * 3 / 2))),
        }
        proxies.push(proxy);
    }
    let urls: Vec<String> = proxies.iter().map(Proxy::url).collect();
    // A manager for each: the first request of an attempt is the one that counts.
    let names = join_all(ways.iter().map(|way| try_in(*way, &nodes, &mask, patient(&urls)))).await;

    proxies.iter().for_each(Proxy::heal);
    for (way, locks, names) in names {
        for name in &names {
            until_clean(&nodes, name).await;
            for (node, kind) in nodes.iter().zip(&mask) {
                match kind {
                    Node::Foreign => assert_eq!(node.get(name).as_deref(), Some(FOREIGN), "{mask:?}"),
                    Node::Gave(number) => {
                        let theirs = format!("permit:{SOMEBODY} {number}");
                        // What was dropped may arrive, and be given back, after all was clean.
                        let holders: Vec<String> = node.ask(&["ZRANGE", name, "0", "-1"]);
                        assert!(holders.contains(&theirs), "{mask:?}: {holders:?}");
                    }
                    _ => {}
                }
            }
        }
        // And the same manager works at once, where nobody else is in the way.
        let next = fresh(&format!("{mask:?}:next"));
        let lease = tokio::time::timeout(SLACK * 2, locks.acquire(way.target(&next), long())).await;
        let lease = lease.unwrap_or_else(|_| panic!("{mask:?}: not after healing")).unwrap();
        let began = Instant::now();
        let released = lease.release().await.unwrap();
        // On a machine that stands still for so long a node does not answer in time, well or not.
        let in_time = Instant::now().since(began) < NODE_TIMEOUT;
        assert!(released == Release::Released || !in_time, "{mask:?} after healing: {released:?}");
        until_clean(&nodes, &next).await;
    }
    proxies
}

/// The names of what it tried, one to its end and one that was dropped on its way.
async fn try_in(way: Way, nodes: &[&Server], mask: &[Node], locks: LockManager) -> (Way, LockManager, [String; 2]) {
    // The names tell of the mask.
    let names = [fresh(&format!("{mask:?}:{way:?}")), fresh(&format!("{mask:?}:{way:?}:cancelled"))];
    for name in &names {
        for (node, kind) in nodes.iter().zip(mask) {
            match kind {
                Node::Foreign => node.ask(&["SET", name, FOREIGN, "PX", "600000"]),
                Node::Gave(number) => occupy(node, name, &number.to_string()),
                _ => {}
            }
        }
    }
    let count = |kind| mask.iter().filter(|other| **other == kind).count();
    // The nodes that give the same number: those with all of them left give the one that was drawn.
    let (healthy, gave) = (count(Node::Healthy), [count(Node::Gave(0)), count(Node::Gave(1))]);
    let draws = [(healthy + gave[1]).max(gave[0]), (healthy + gave[0]).max(gave[1])];
    let majority = mask.len() / 2 + 1;
    let began = Instant::now();
    let tried = locks.try_acquire(way.target(&names[0]), long()).await;
    let took = Instant::now().since(began);
    assert!(took < NODE_TIMEOUT + SLACK, "{mask:?} took {took:?}");
    match tried {
        Ok(Some(lease)) => {
            assert!(draws.iter().any(|agree| *agree >= majority), "{mask:?} was granted");
            assert!(lease.is_held() && lease.fencing_token() > 0);
            assert_eq!(lease.release().await.unwrap(), Release::Released, "{mask:?}");
        }
        refused => {
            assert!(draws.iter().any(|agree| *agree < majority), "{mask:?}: {refused:?}");
            let others = count(Node::Foreign) + gave[0] + gave[1];
            match refused {
                Ok(_) => assert!(others > 0, "{mask:?} was called busy"),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Unavailable, "{mask:?}: {error:?}");
                    assert!(healthy + others < mask.len(), "{mask:?}: {error:?}");
                    assert!(error.is_retryable() && !error.causes().is_empty(), "{mask:?}: {error:?}");
                }
            }
        }
    }
    // Dropped on its way, at any moment of it.
    let patience = Duration::from_micros(fastrand::u64(0..4000));
    drop(tokio::time::timeout(patience, locks.try_acquire(way.target(&names[1]), long())).await);
    (way, locks, names)
}

fn lose(applies: bool, fate: Fate) -> Fate {
    if applies { fate } else { Fate::Pass }
}

fn patient(urls: &[String]) -> LockManager {
    polylock::connect(urls.to_vec()).node_timeout(NODE_TIMEOUT).lazy().expect("no manager")
}
