//! Servers that are managed by others: a cluster while its slots move, and a primary behind sentinels that fails.

use std::time::Duration;

use polylock::{Acquire, ErrorKind, Guarantee, LockManager, Release};

use super::{NODE_TIMEOUT, eventually, fresh, long, ms, server::Server, soon};

/// What a busy machine may need for a fail-over or for a cluster to come up.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn connect(url: String) -> LockManager {
    polylock::connect(url).node_timeout(NODE_TIMEOUT).lazy().expect("no manager")
}

/// Three primaries, each with a third of the slots.
pub struct Cluster(pub Vec<Server>);

const THIRDS: [(u16, u16); 3] = [(0, 5460), (5461, 10922), (10923, 16383)];

impl Cluster {
    pub async fn start() -> Self {
        let nodes: Vec<Server> = (0..3).map(|_| Server::of_a_cluster()).collect();
        for (node, (first, last)) in nodes.iter().zip(THIRDS) {
            let _: () = node.ask(&["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &last.to_string()]);
        }
        for (index, node) in nodes.iter().enumerate() {
            let _: () = node.ask(&["CLUSTER", "SET-CONFIG-EPOCH", &(index + 1).to_string()]);
            if index > 0 {
                let first = &nodes[0];
                let _: () = node.ask(&["CLUSTER", "MEET", "127.0.0.1", &first.port.to_string(), first.bus()]);
            }
        }
        let is_up = |node: &Server| {
            let info: String = node.ask(&["CLUSTER", "INFO"]);
            info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3")
        };
        eventually(PATIENCE, "the cluster is up", || nodes.iter().all(is_up)).await;
        Self(nodes)
    }

    pub fn url(&self) -> String {
        let hosts: Vec<String> = self.0.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
        format!("redis+cluster://{}", hosts.join(","))
    }

    pub fn id(&self, index: usize) -> String {
        self.0[index].ask(&["CLUSTER", "MYID"])
    }

    pub fn slot(&self, name: &str) -> u16 {
        self.0[0].ask(&["CLUSTER", "KEYSLOT", name])
    }

    /// Which node has the slot of a name.
    pub fn index(&self, name: &str) -> usize {
        let slot = self.slot(name);
        THIRDS.iter().position(|(first, last)| (*first..=*last).contains(&slot)).expect("no node")
    }

    /// Begins to move a slot.
    pub fn set_out(&self, slot: u16, from: usize, to: usize) {
        let slot = slot.to_string();
        let _: () = self.0[to].ask(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &self.id(from)]);
        let _: () = self.0[from].ask(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &self.id(to)]);
    }

    /// Moves what is in the slot.
    pub fn carry(&self, slot: u16, from: usize, to: usize) {
        let keys: Vec<String> = self.0[from].ask(&["CLUSTER", "GETKEYSINSLOT", &slot.to_string(), "100"]);
        let port = self.0[to].port.to_string();
        for key in keys {
            let _: String = self.0[from].ask(&["MIGRATE", "127.0.0.1", &port, &key, "0", "5000"]);
        }
    }

    /// Ends the move.
    pub fn arrive(&self, slot: u16, to: usize) {
        let (slot, id) = (slot.to_string(), self.id(to));
        for node in [to, 0, 1, 2] {
            let _: () = self.0[node].ask(&["CLUSTER", "SETSLOT", &slot, "NODE", &id]);
        }
    }
}

/// A name whose keys are at this node.
fn name_at(cluster: &Cluster, index: usize) -> String {
    loop {
        let name = fresh("r");
        if cluster.index(&name) == index {
            return name;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_keeps_locks_wherever_their_slots_are() {
    let cluster = Cluster::start().await;
    let (one, two) = (connect(cluster.url()), connect(cluster.url()));
    assert_eq!(one.capabilities().guarantee, Guarantee::BestEffort);
    for index in 0..3 {
        let name = name_at(&cluster, index);
        let lease = soon(&one, &name).await;
        assert!(cluster.0[index].get(&name).is_some());
        assert!(two.try_acquire(&name, long()).await.unwrap().is_none());
        lease.extend(None).await.unwrap();
        // A waiter is woken, wherever it listens.
        let waiter = tokio::spawn({
            let (two, name) = (two.clone(), name.clone());
            async move { two.acquire(&name, long()).await }
        });
        tokio::time::sleep(ms(50)).await;
        assert_eq!(lease.release().await.unwrap(), Release::Released);
        let lease = tokio::time::timeout(PATIENCE, waiter).await.expect("never woken").unwrap().unwrap();
        assert_eq!(lease.release().await.unwrap(), Release::Released);
    }
    for name in ["{tag}:1", "{tag}:2"] {
        let lease = one.acquire(polylock::Target::shared(name), long()).await.unwrap();
        lease.release().await.unwrap();
    }
}

/// A cluster or a primary behind sentinels may be one of those that a Redlock votes by.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redlock_of_a_cluster_a_primary_behind_sentinels_and_a_server() {
    let (cluster, primary, single) = (Server::of_a_cluster(), Server::start(), Server::start());
    let _: () = cluster.ask(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]);
    let works = || cluster.ask::<String>(&["CLUSTER", "INFO"]).contains("cluster_state:ok");
    eventually(PATIENCE, "the cluster is up", works).await;
    let sentinel = Server::sentinel(&format!("sentinel monitor mymaster 127.0.0.1 {} 1\n", primary.port));
    // The others do not tell how long they have been up, so the single one would be taken for one that was restarted.
    let urls = format!(
        "redis+cluster://127.0.0.1:{}?longest_ttl=0,redis+sentinel://127.0.0.1:{}/mymaster?longest_ttl=0,{}?longest_ttl=0",
        cluster.port,
        sentinel.port,
        single.url()
    );
    let (one, two) = (connect(urls.clone()), connect(urls));
    assert_eq!(one.capabilities().guarantee, Guarantee::BestEffort);
    let name = fresh("r");
    let lease = soon(&one, &name).await;
    let everywhere = || [&cluster, &primary, &single].iter().all(|server| server.get(&name).is_some());
    eventually(PATIENCE, "all of them have it", everywhere).await;
    assert!(two.try_acquire(&name, long()).await.unwrap().is_none());
    // A majority is left without it.
    cluster.kill();
    lease.extend(None).await.unwrap();
    assert!(two.try_acquire(&name, long()).await.unwrap().is_none());
    assert_eq!(lease.release().await.unwrap(), Release::Released);
    assert_eq!(soon(&two, &name).await.release().await.unwrap(), Release::Released);
    let error = one.acquire(["a", "b"], long()).await.unwrap_err();
    assert!(error.to_string().contains("slots of the cluster"), "{error}");
}

/// Two votes of one cluster, or of one primary, would be no majority, whatever the URL calls them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_cluster_or_primary_by_two_names() {
    let cluster = Cluster::start().await;
    let (primary, single) = (Server::start(), Server::start());
    let sentinel = Server::sentinel(&format!("sentinel monitor mymaster 127.0.0.1 {} 1\n", primary.port));
    let seed = |index: usize| format!("redis+cluster://127.0.0.1:{}", cluster.0[index].port);
    let name = name_at(&cluster, 2);
    let behind = format!("redis+sentinel://127.0.0.1:{}/mymaster", sentinel.port);
    let lists = [
        [seed(0), seed(1), single.url()],
        [seed(0), single.url(), cluster.0[2].url()],
        [primary.url(), behind.clone(), single.url()],
        [behind.replace("127.0.0.1", "localhost"), behind, single.url()],
    ];
    for urls in lists {
        let error = connect(urls.join(",")).acquire(&name, long()).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.argument()),
            (ErrorKind::InvalidArgument, Some("url")),
            "{urls:?}: {error:?}"
        );
        assert!(error.to_string().contains("lists one server twice"), "{error}");
        let clean = || cluster.0.iter().chain([&primary, &single]).all(|server| server.keys().is_empty());
        eventually(PATIENCE, "no key is left", clean).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_at_once_are_of_one_slot() {
    let cluster = Cluster::start().await;
    let locks = connect(cluster.url());
    let lease = locks.acquire(["{order}:1", "{order}:2"], long()).await.unwrap();
    assert_eq!(lease.release().await.unwrap(), Release::Released);
    let calls = || cluster.0.iter().map(Server::scripts).sum::<u64>();
    let before = calls();
    let error = locks.acquire(["order:1", "order:2"], long()).await.unwrap_err();
    assert_eq!((error.kind(), error.argument()), (ErrorKind::InvalidArgument, Some("resources")), "{error:?}");
    assert_eq!(calls(), before, "something was sent");
    // And all primaries are looked at for a list.
    let names: Vec<String> = (0..3).map(|index| name_at(&cluster, index)).collect();
    let mut leases = Vec::new();
    for name in &names {
        leases.push(soon(&locks, name).await);
    }
    let mut listed: Vec<String> =
        locks.list("*", 100).await.unwrap().iter().map(|holder| holder.resource.as_str().to_owned()).collect();
    listed.sort();
    let mut names = names;
    names.sort();
    assert_eq!(listed, names);
    for lease in leases {
        assert_eq!(lease.release().await.unwrap(), Release::Released);
    }
}

/// A slot moves while its lock is held and while it is free; nobody else gets in, and nothing is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_moves_under_a_lease() {
    let cluster = Cluster::start().await;
    let (one, two) = (connect(cluster.url()), connect(cluster.url()));
    let (from, to) = (0, 1);
    let name = name_at(&cluster, from);
    let slot = cluster.slot(&name);
    let lease = one.acquire(&name, Acquire::ttl(Duration::from_secs(30)).auto_extend(false)).await.unwrap();
    assert!(two.try_acquire(&name, long()).await.unwrap().is_none());

    cluster.set_out(slot, from, to);
    lease.extend(None).await.expect("before its key has moved");
    cluster.carry(slot, from, to);
    let error = cluster.0[from].try_ask::<Option<String>>(&["GET", &name]).unwrap_err();
    assert_eq!(error.code(), Some("ASK"), "{error:?}");
    // The key is there already, and the slot here: ASK.
    lease.extend(None).await.expect("after its key has moved");
    // Taking a lock needs all its keys at one place: it waits for the end of the move.
    match two.try_acquire(&name, long()).await {
        Ok(None) => {}
        Ok(Some(_)) => panic!("two hold it"),
        Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}"),
    }
    let waiter = tokio::spawn({
        let (two, name) = (two.clone(), name.clone());
        async move { two.acquire(&name, long()).await }
    });
    tokio::time::sleep(ms(200)).await;
    cluster.arrive(slot, to);
    lease.extend(None).await.expect("after the slot has moved");
    assert!(lease.is_held() && !waiter.is_finished());
    assert_eq!(lease.release().await.unwrap(), Release::Released);
    let next = tokio::time::timeout(PATIENCE, waiter).await.expect("never woken").unwrap().unwrap();
    assert!(next.fencing_token() > lease.fencing_token());
    assert!(cluster.0[to].get(&name).is_some());
    // A released key that was on its way.
    cluster.set_out(slot, to, from);
    cluster.carry(slot, to, from);
    assert_eq!(next.release().await.unwrap(), Release::Released);
    cluster.arrive(slot, from);
    soon(&one, &name).await.release().await.unwrap();
    // And one that sees the cluster for the first time, by a server that has nothing to do with it.
    let stranger = connect(format!("redis+cluster://127.0.0.1:{}", cluster.0[2].port));
    soon(&stranger, &name).await.release().await.unwrap();
}

/// Sentinels, a primary and its replica.
pub struct Watched {
    pub servers: Vec<Server>,
    pub sentinels: Vec<Server>,
}

impl Watched {
    /// With a password at the servers.
    pub async fn start(password: Option<&str>) -> Self {
        let login: Vec<&str> =
            password.map_or(Vec::new(), |password| vec!["--requirepass", password, "--masterauth", password]);
        let primary = Server::with(&login, &[]);
        let port = primary.port.to_string();
        let replica = Server::with(&[&login[..], &["--replicaof", "127.0.0.1", &port]].concat(), &[]);
        let sentinels = (0..3)
            .map(|_| {
                Server::sentinel(&format!(
                    "sentinel monitor mymaster 127.0.0.1 {port} 2\n\
                 sentinel down-after-milliseconds mymaster 500\n\
                 sentinel failover-timeout mymaster 5000\n{}",
                    password.map_or(String::new(), |password| format!("sentinel auth-pass mymaster {password}\n")),
                ))
            })
            .collect();
        let watched = Self { servers: vec![primary, replica], sentinels };
        let knows = |sentinel: &Server| {
            let state: Vec<String> = sentinel.ask(&["SENTINEL", "MASTER", "mymaster"]);
            let value = |name: &str| state.iter().position(|part| part == name).map(|index| state[index + 1].clone());
            value("num-slaves").as_deref() == Some("1") && value("num-other-sentinels").as_deref() == Some("2")
        };
        eventually(PATIENCE, "the sentinels know all", || watched.sentinels.iter().all(knows)).await;
        watched
    }

    pub fn url(&self, login: &str) -> String {
        let hosts: Vec<String> = self.sentinels.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
        format!("redis+sentinel://{login}{}/mymaster", hosts.join(","))
    }
}

async fn follows(kill: bool) {
    let watched = Watched::start(Some("sesame")).await;
    let (one, two) = (connect(watched.url(":sesame@")), connect(watched.url(":sesame@")));
    let [primary, replica] = &watched.servers[..] else { unreachable!() };
    let name = fresh("r");
    let lease = one.acquire(&name, Acquire::ttl(Duration::from_secs(60))).await.unwrap();
    assert!(two.try_acquire(&name, long()).await.unwrap().is_none());
    eventually(PATIENCE, "the replica has it", || replica.get(&name).is_some()).await;
    if kill {
        primary.kill();
    } else {
        // It is demoted, and goes on as a replica.
        let _: () = watched.sentinels[0].ask(&["SENTINEL", "FAILOVER", "mymaster"]);
    }
    // It cuts everybody off as it is promoted.
    let is_primary =
        || replica.try_ask(&["ROLE"]).is_ok_and(|role: redis::Value| format!("{role:?}").contains("master"));
    eventually(PATIENCE, "the replica is promoted", is_primary).await;
    // The lease goes on at the new primary.
    let deadline = lease.deadline();
    eventually(PATIENCE, "it is extended there", || lease.deadline() > deadline).await;
    assert!(two.try_acquire(&name, long()).await.unwrap().is_none(), "two hold it");
    let waiter = tokio::spawn({
        let (two, name) = (two.clone(), name.clone());
        async move { two.acquire(&name, long()).await }
    });
    assert_eq!(lease.release().await.unwrap(), Release::Released);
    let next = tokio::time::timeout(PATIENCE, waiter).await.expect("never woken").unwrap().unwrap();
    assert!(next.fencing_token() > lease.fencing_token());
    assert!(replica.get(&name).is_some());
    assert_eq!(next.release().await.unwrap(), Release::Released);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_primary_is_followed_to_its_replica() {
    follows(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_demoted_primary_is_followed_to_its_replica() {
    follows(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_that_do_not_help_are_named() {
    let watched = Watched::start(None).await;
    let url = watched.url("").replace("mymaster", "other");
    let error = connect(url).try_acquire(fresh("r"), long()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(format!("{error:?}").contains("knows no master \"other\""), "{error:?}");
    // Also to somebody who does not wait for as long as they are asked.
    let url = watched.url("").replace("mymaster", "other");
    let error = connect(url).acquire(fresh("r"), long().wait(ms(200))).await.unwrap_err();
    assert!(format!("{error:?}").contains("knows no master \"other\""), "{error:?}");
    let cluster = Server::of_a_cluster();
    let url = format!("redis+cluster://127.0.0.1:{}", cluster.port);
    let error = connect(url).acquire(fresh("r"), long().wait(ms(200))).await.unwrap_err();
    assert!(format!("{error:?}").contains("no map of the cluster"), "{error:?}");
    // One of them is enough.
    let port = watched.sentinels[0].port;
    let one = connect(format!("redis+sentinel://127.0.0.1:1,127.0.0.1:{port}/mymaster"));
    soon(&one, &fresh("r")).await.release().await.unwrap();
}

/// As many name one as another: nobody goes to and fro between the two.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinels_that_disagree() {
    let (one, other) = (Server::start(), Server::start());
    let sentinel = |server: &Server, epoch: u32| {
        let port = server.port;
        Server::sentinel(&format!("sentinel monitor m 127.0.0.1 {port} 2\nsentinel config-epoch m {epoch}\n"))
    };
    let (first, second, later) = (sentinel(&one, 1), sentinel(&other, 1), sentinel(&other, 2));
    let cases = [
        ([&first, &second].to_vec(), &one),
        ([&second, &first].to_vec(), &other),
        ([&first, &later].to_vec(), &other),
        ([&first, &second, &later].to_vec(), &other),
    ];
    for protocol in ["", "?protocol=3"] {
        for (sentinels, primary) in &cases {
            let hosts: Vec<String> = sentinels.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
            for _ in 0..4 {
                let locks = connect(format!("redis+sentinel://{}/m{protocol}", hosts.join(",")));
                let name = fresh("r");
                let lease = soon(&locks, &name).await;
                assert!(primary.get(&name).is_some(), "{hosts:?}");
                assert_eq!(lease.release().await.unwrap(), Release::Released);
            }
        }
    }
}

/// What they name is not the primary any more: nothing is granted there, and all goes on once they know better.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sentinel_names_a_demoted_primary() {
    let old = Server::start();
    let new = Server::with(&["--replicaof", "127.0.0.1", &old.port.to_string()], &[]);
    let linked = || old.ask::<String>(&["INFO", "replication"]).contains("state=online");
    eventually(PATIENCE, "it replicates", linked).await;
    // One of two that would be needed: it changes nothing by itself.
    let sentinel = Server::sentinel(&format!("sentinel monitor m 127.0.0.1 {} 2\n", old.port));
    let locks = connect(format!("redis+sentinel://127.0.0.1:{}/m", sentinel.port));
    let name = fresh("r");
    let lease = locks.acquire(&name, Acquire::ttl(Duration::from_secs(60))).await.unwrap();
    eventually(PATIENCE, "the replica has it", || new.get(&name).is_some()).await;
    let _: () = new.ask(&["REPLICAOF", "NO", "ONE"]);
    let _: () = old.ask(&["REPLICAOF", "127.0.0.1", &new.port.to_string()]);
    let other = fresh("r");
    let error = locks.try_acquire(&other, long()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    assert_eq!(lease.extend(None).await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(lease.is_held());
    let waiter = tokio::spawn({
        let (locks, other) = (locks.clone(), other.clone());
        async move { locks.acquire(&other, long().wait(PATIENCE)).await }
    });
    let _: () = sentinel.ask(&["SENTINEL", "REMOVE", "m"]);
    let _: () = sentinel.ask(&["SENTINEL", "MONITOR", "m", "127.0.0.1", &new.port.to_string(), "2"]);
    let next = waiter.await.unwrap().unwrap();
    assert!(new.get(&other).is_some());
    lease.extend(None).await.unwrap();
    // Without any sentinel the primary that is known goes on.
    sentinel.kill();
    tokio::time::sleep(ms(1500)).await;
    assert_eq!(next.release().await.unwrap(), Release::Released);
    assert_eq!(lease.release().await.unwrap(), Release::Released);
    soon(&locks, &name).await.release().await.unwrap();
}

/// Sentinels may have a password of their own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinels_have_their_own_log_in() {
    let primary = Server::with(&["--requirepass", "sesame"], &[]);
    let sentinel = Server::sentinel(&format!(
        "requirepass open\nsentinel monitor mymaster 127.0.0.1 {} 1\nsentinel auth-pass mymaster sesame\n",
        primary.port
    ));
    let url = format!("redis+sentinel://:sesame@127.0.0.1:{}/mymaster", sentinel.port);
    for wrong in [url.clone(), format!("{url}?sentinel_password=shut")] {
        let error = connect(wrong).try_acquire(fresh("r"), long()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Auth, "{error:?}");
        assert!(!format!("{error:?}").contains("sesame") && !format!("{error:?}").contains("shut"), "{error:?}");
    }
    let locks = connect(format!("{url}?sentinel_password=open"));
    soon(&locks, &fresh("r")).await.release().await.unwrap();
    let error = connect(format!("{url}?sentinel_password=open").replace("sesame", "other"));
    let error = error.try_acquire(fresh("r"), long()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Auth, "{error:?}");
}

/// A grant that no replica has is no grant.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_waits_for_its_replicas() {
    let primary = Server::start();
    let replica = Server::with(&["--replicaof", "127.0.0.1", &primary.port.to_string()], &[]);
    let linked = || {
        let info: String = primary.ask(&["INFO", "replication"]);
        info.contains("state=online")
    };
    eventually(PATIENCE, "it replicates", linked).await;
    let locks = connect(format!("{}?replicas=1", primary.url()));
    let name = fresh("r");
    let lease = locks.acquire(&name, Acquire::ttl(Duration::from_secs(30))).await.unwrap();
    assert!(replica.get(&name).is_some(), "granted before the replica had it");
    lease.extend(None).await.unwrap();
    replica.stop();
    let error = lease.extend(None).await.unwrap_err();
    assert!(format!("{error:?}").contains("0 of 1 replicas have it"), "{error:?}");
    let other = fresh("r");
    let error = locks.try_acquire(&other, long()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(format!("{error:?}").contains("0 of 1 replicas have it"), "{error:?}");
    eventually(PATIENCE, "it was given back", || primary.get(&other).is_none()).await;
    assert!(lease.is_held());
    replica.resume();
    let lease = locks.acquire(&other, long().wait(PATIENCE)).await.unwrap();
    assert_eq!(lease.release().await.unwrap(), Release::Released);
}
