//! Locks on Redis or Valkey: one server, or Redlock over several independent ones.
//!
//! The lock is a string at exactly the resource's name (after the prefix), `SET` if absent with the owner token as its
//! value, freed and extended only while that is still its value. So it excludes, and is excluded by, the
//! other libraries that do the same. Beside it stands `polylock:fence:{name}`, which outlives it.
//!
//! # What can happen between any two steps
//!
//! * *An attempt's answer is lost*: it is `Unknown`; the engine undoes it on every node, again and again until
//!   [`Backend::settles_within`] is over. A request that is carried out later than that finds its `not after` passed
//!   on the server's clock and does nothing.
//! * *It is given up before a connection is there to send it on*: what was not sent to a node is not in doubt there,
//!   and there is nothing to undo where nothing was sent at all (see [`Progress`](super::Progress)).
//! * *It is given up while an answer is on its way, or closing ends it whose caller does not go on*: what the answer tells is
//!   noted where it is read, so that the undoing need not go on for as long as something might come of it.
//! * *The undoing overtakes the attempt*, which goes by another connection: it finds nothing, and the grant that comes
//!   then is given back as soon as its answer is read, as well as when the undoing looks again.
//! * *A node answers after the attempt was decided*: if the attempt was won it counts as one more holder; if it was
//!   lost the undoing reaches it.
//! * *An attempt reaches a node after the release did, or a node does not answer the release*: the lock is free, as a
//!   majority freed it. Each node that holds, or may, and has not said that it does not any more is asked again in
//!   the background until it does or the lock must have expired there (see [`release`]).
//! * *The manager is closed before a slow node has the release*: a closed connection is reset, and the release lost with
//!   it. So closing waits for the nodes that are being asked, as long as one may take to answer; what a node has
//!   not released by then expires.
//! * *A release's answer is cut off and the second request finds nothing*: the first may have freed it, so the
//!   outcome is unknown and not "not held".
//! * *A script fails in the middle*: a part may have been done, so it is undone as if the answer had been lost.
//! * *An extension's answer is lost*: the old deadline stands. Only nodes known to hold count, and only "still ours"
//!   counts; a lock put back on a node that lost it counts from the next round on.
//! * *A server restarts without its memory*: a single one forgets the lock, and the holder learns of it at the next
//!   renewal; fencing tokens still grow, since they are seeded with the time. One of several sits out until
//!   what it forgot must have expired (see [`restart`]).

mod attempt;
mod batch;
mod call;
mod cluster;
mod config;
mod connection;
mod extension;
mod holder;
mod inspection;
mod keys;
mod leave;
mod link;
mod node;
mod open;
mod quorum;
mod release;
mod request;
mod restart;
mod round;
mod script;
mod sentinel;
#[cfg(test)]
mod simulated;
mod slot;
mod subscriber;
mod wire;

use std::{
    collections::HashSet,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::stream::{FuturesUnordered, StreamExt};
use redis::Value;
use tokio_util::task::TaskTracker;

use self::{
    cluster::Cluster,
    config::{Config, Place},
    keys::{Key, Side},
    node::Node,
    quorum::{Verdict, verdict},
    request::{Request, Server},
    round::Answers,
    sentinel::SentinelServer,
    subscriber::{Locate, Subscriptions},
};
use super::{
    Answer, Attempt, Backend, Capabilities, Claim, Extension, Guarantee, Holder, Release, Said, Turn, Watch,
};
use crate::{
    Error, Resource, Result,
    clock::Instant,
    connect::Options,
    engine::{driver::Driver, timer},
    metrics::NodeStats,
    mutant::mutant,
    pattern::Pattern,
};

pub(crate) struct RedisBackend {
    nodes: Arc<[Arc<dyn Server>]>,
    subscriptions: Arc<Subscriptions>,
    prefix: String,
    node_timeout: Option<Duration>,
    /// How long a restarted server sits out at least; zero if servers keep their memory.
    longest_ttl: Duration,
    /// The longest ttl that was asked for, in ms.
    longest_asked: AtomicU64,
    /// A replica takes over if the server fails, and may lack what was granted last.
    managed: bool,
    /// Resources are in different slots of a cluster.
    slots: bool,
    /// What goes on after the answer: closing waits for it.
    background: TaskTracker,
    /// Nothing was asked for yet, so the connections are yet to be opened.
    untried: AtomicBool,
    /// A bit for each node that did not answer within that moment, and so is not waited for.
    behind: Arc<AtomicU32>,
}

impl RedisBackend {
    pub(crate) fn new(urls: &[String], options: &Options) -> Result<Self> {
        const MOST_NODES: usize = 31;
        let mut longest_ttl = Duration::ZERO;
        let (mut nodes, mut places) = (Vec::<Arc<dyn Server>>::new(), Vec::<Arc<dyn Locate>>::new());
        let mut named = HashSet::new();
        let (mut managed, mut slots) = (false, false);
        for url in urls {
            let Config { place, longest_ttl: longest } = Config::parse(url)?;
            longest_ttl = longest_ttl.max(longest);
            let names = place.names();
            if let Some((name, _)) = names.intersection(&named).next() {
                // Two votes of one server would be no majority of servers.
                return Err(Error::invalid("url", format!("lists {name} twice")));
            }
            named.extend(names);
            match place {
                Place::One(config) => {
                    places.push(Arc::new(config.clone()));
                    nodes.push(Node::new(config));
                }
                Place::Sentinel { sentinels, master, server } => {
                    let server = SentinelServer::new(sentinels, master, server);
                    places.push(Arc::new(sentinel::Located(Arc::downgrade(&server))));
                    nodes.push(server);
                    managed = true;
                }
                Place::Cluster(seeds) => {
                    let cluster = Cluster::new(seeds);
                    places.push(Arc::new(cluster::Anywhere(Arc::downgrade(&cluster))));
                    nodes.push(cluster);
                    (managed, slots) = (true, true);
                }
            }
        }
        if nodes.len() > MOST_NODES {
            return Err(Error::invalid("url", format!("may list {MOST_NODES} servers at most")));
        }
        let (subscriptions, nodes) = (Subscriptions::new(places), nodes.into());
        Ok(Self {
            nodes,
            subscriptions,
            prefix: options.prefix.clone(),
            node_timeout: options.node_timeout,
            longest_ttl,
            longest_asked: AtomicU64::new(0),
            managed,
            slots,
            background: TaskTracker::new(),
            untried: AtomicBool::new(true),
            behind: Arc::default(),
        })
    }

    /// The error of resources that no one server of a cluster has.
    fn in_several_slots(&self, resources: &[Resource]) -> Option<Error> {
        let slot = |resource: &Resource| slot::of(Key::of(&self.prefix, resource).lock());
        let apart = |pair: &&[Resource]| slot(&pair[0]) != slot(&pair[1]);
        let pair = resources.windows(2).filter(|_| self.slots).find(apart)?;
        let (one, two) = (&pair[0], &pair[1]);
        let why = format!(
            "names {one:?} and {two:?}, which are in different slots of the cluster; a common part in braces, as in \
             {{account}}:1 and {{account}}:2, puts them into one"
        );
        Some(Error::invalid("resource", why))
    }

    /// How long a restarted server does not vote, now that somebody asks for `ttl`; see [`restart`].
    fn sits_out(&self, ttl: Duration) -> Duration {
        // Where all are needed for a majority, one that forgot cannot make one without those that did not.
        if self.nodes.len() <= 2 || self.longest_ttl.is_zero() || mutant!("R13") {
            return Duration::ZERO;
        }
        let ttl = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        let asked = self.longest_asked.fetch_max(ttl, Ordering::Relaxed).max(ttl);
        self.longest_ttl.max(Duration::from_millis(asked))
    }

    /// The error of a list that has one server under two names: two votes of one would be no majority of servers.
    fn named_twice(&self) -> Option<Error> {
        let (one, two) = restart::twins(&self.nodes)?;
        let (one, two) = (self.nodes[one].name(), self.nodes[two].name());
        Some(Error::invalid("url", format!("lists one server twice: {one} is {two}")))
    }

    /// How long one node may take to answer.
    fn node_timeout(&self, ttl: Duration) -> Duration {
        const SHORTEST: Duration = Duration::from_millis(50);
        self.node_timeout.unwrap_or(if self.nodes.len() == 1 {
            (ttl / 3).clamp(SHORTEST, Duration::from_secs(2))
        } else {
            // A silent node costs nothing while a majority answers, so there is no hurry to give it up.
            (ttl / 5).clamp(SHORTEST, Duration::from_millis(500))
        })
    }

    /// How long what is decided waits for the other nodes. The connections of a first attempt are opened for it, one
    /// a little after the other: a program that looks at its servers right afterwards shall find the lock on each, as it
    /// does later, when a request is on its way to all nodes before any has answered.
    fn grace(&self, claim: &Claim, first: bool) -> Duration {
        const LONGEST: Duration = Duration::from_millis(50);
        if first || claim.thorough { LONGEST.min(claim.ttl / 20) } else { Duration::ZERO }
    }

    /// Sends a request to every node; `decide` sees the answers as they come, until it has decided. The nodes that
    /// have not answered by then are waited for during `grace`, unless they were behind the last time. If there are any,
    /// `late` makes what sees their answers, wherever they are read.
    async fn ask<D, L>(
        &self,
        request: &Arc<Request>,
        driver: &Driver,
        mut decide: impl FnMut(usize, request::Answer) -> Option<D>,
        late: impl FnOnce(&D) -> L,
        grace: Duration,
    ) -> Option<D>
    where
        L: Fn(usize, request::Answer) + Send + Sync + 'static,
    {
        let grace = if mutant!("D16") { Duration::MAX } else { grace };
        let mut answers = Answers::ask(self.nodes.iter().enumerate(), request, driver);
        let mut missing = (1_u32 << self.nodes.len()) - 1;
        while missing != 0 {
            let (index, answer) = answers.next().await;
            missing &= !(1 << index);
            let Some(decision) = decide(index, answer) else { continue };
            if missing == 0 {
                return Some(decision);
            }
            let late = late(&decision);
            if grace.is_zero() {
                answers.leave(late);
                return Some(decision);
            }
            let until = Instant::now().after(grace);
            while missing & !self.behind.load(Ordering::Relaxed) != 0
                && let Some((index, answer)) = timer::until(Some(until), answers.next()).await
            {
                missing &= !(1 << index);
                late(index, answer);
            }
            self.behind.fetch_or(missing, Ordering::Relaxed);
            if missing != 0 {
                let behind = Arc::clone(&self.behind);
                answers.leave(move |index, answer| {
                    if Instant::now() < until {
                        behind.fetch_and(!(1 << index), Ordering::Relaxed);
                    }
                    late(index, answer);
                });
            }
            return Some(decision);
        }
        None
    }
}

/// One error of those of several nodes.
fn out_of_reach(mut errors: Vec<Error>) -> Error {
    if errors.len() == 1 {
        return errors.remove(0);
    }
    let error = Error::unavailable("too few nodes answered");
    errors.into_iter().fold(error, |error, cause| error.caused_by(cause))
}

/// What a server's clock shows that took a request to be too late.
fn clock_was_set(answer: &Value) -> Option<i64> {
    match numbers(answer).as_deref() {
        Some([-2, now]) => Some(*now),
        _ => None,
    }
}

fn number(value: &Value) -> Option<i64> {
    match value {
        Value::Int(number) => Some(*number),
        _ => None,
    }
}

fn numbers(value: &Value) -> Option<Vec<i64>> {
    match value {
        Value::Array(parts) => parts.iter().map(number).collect(),
        _ => None,
    }
}

impl Backend for RedisBackend {
    fn system(&self) -> &'static str {
        if self.nodes.len() == 1 { "redis" } else { "redlock" }
    }

    fn nodes(&self) -> Vec<(String, &NodeStats)> {
        self.nodes.iter().map(|node| (node.name().to_owned(), node.stats())).collect()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            guarantee: if self.managed { Guarantee::BestEffort } else { Guarantee::Lease },
            fencing: true,
            across_processes: true,
            across_hosts: true,
            shared: true,
            semaphore: true,
            several: true,
            fair: true,
            inspection: true,
            listing: true,
            breaking: true,
        }
    }

    fn check_reachable<'a>(&'a self, driver: &'a Driver) -> Answer<'a, Result<()>> {
        Box::pin(async {
            let expires = Instant::now().after(open::OPEN_TIMEOUT);
            let nodes = self.nodes.len();
            let mut answers: FuturesUnordered<_> = self
                .nodes
                .iter()
                .map(|node| Arc::clone(node).command(redis::cmd("PING"), driver.clone(), expires))
                .collect();
            let (mut yes, mut errors) = (0, Vec::new());
            while verdict(nodes, yes, errors.len()) == Verdict::Open
                && let Some(answer) = answers.next().await
            {
                match answer {
                    Ok(_) => yes += 1,
                    Err(error) => errors.push(error.into_error()),
                }
            }
            if let Some(error) = self.named_twice() {
                return Err(error);
            }
            if verdict(nodes, yes, errors.len()) == Verdict::Won {
                return Ok(());
            }
            let fatal = errors.iter().position(|error| !error.is_retryable());
            Err(fatal.map(|index| errors.swap_remove(index)).unwrap_or_else(|| out_of_reach(errors)))
        })
    }

    fn settles_within(&self, ttl: Duration) -> Duration {
        // Servers refuse what comes later; a little more for their clocks.
        self.node_timeout(ttl) + Duration::from_millis(50)
    }

    fn try_acquire<'a>(&'a self, claim: &'a Claim, driver: &'a Driver) -> Answer<'a, Attempt> {
        Box::pin(self.acquire(claim, driver))
    }

    fn extend<'a>(&'a self, claim: &'a Claim, ttl: Duration, driver: &'a Driver) -> Answer<'a, Extension> {
        Box::pin(self.extend_all(claim, ttl, driver))
    }

    fn release<'a>(&'a self, claim: &'a Claim, driver: &'a Driver) -> Answer<'a, Release> {
        Box::pin(self.release_all(claim, driver))
    }

    fn inspect<'a>(&'a self, resource: &'a Resource, driver: &'a Driver) -> Answer<'a, Result<Option<Holder>>> {
        Box::pin(async { Ok(self.holders(resource, driver).await?.into_iter().next()) })
    }

    fn list<'a>(&'a self, pattern: &'a Pattern, limit: usize, driver: &'a Driver) -> Answer<'a, Result<Vec<Holder>>> {
        Box::pin(self.list_all(pattern, limit, driver))
    }

    fn break_lock<'a>(
        &'a self,
        resource: &'a Resource,
        owner: &'a str,
        driver: &'a Driver,
    ) -> Answer<'a, Result<bool>> {
        Box::pin(self.break_everywhere(resource, owner, driver))
    }

    fn extend_for<'a>(
        &'a self,
        resources: &'a [Resource],
        owner: &'a str,
        ttl: Duration,
        driver: &'a Driver,
    ) -> Answer<'a, Result<bool>> {
        Box::pin(self.extend_everywhere(resources, owner, ttl, driver))
    }

    fn ask_each<'a>(&'a self, question: &'a [&'a str], driver: &'a Driver) -> Answer<'a, Vec<Said>> {
        Box::pin(self.ask_servers(question, driver))
    }

    fn leave<'a>(&'a self, resource: &'a Resource, turn: &'a Turn, driver: &'a Driver) -> Answer<'a, ()> {
        Box::pin(self.leave_line(resource, turn, driver))
    }

    fn watch(&self, resource: &Resource) -> Watch {
        self.subscriptions.watch(Key::of(&self.prefix, resource).side(Side::Wake))
    }

    fn look(&self) {
        self.nodes.iter().for_each(|node| node.look());
    }

    fn drain(&self) -> Answer<'_, ()> {
        Box::pin(self.drain_background())
    }

    fn close(&self) {
        self.subscriptions.close();
        for node in self.nodes.iter() {
            node.close();
        }
    }
}

impl fmt::Debug for RedisBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.nodes.iter().map(|node| node.name())).finish()
    }
}
