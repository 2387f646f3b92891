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
//! * *A node answers after the attempt was decided*: if the attempt was won it counts as one more holder; if it was
//!   lost the undoing reaches it.
//! * *An attempt reaches a node after the release did, or a node does not answer the release*: the lock is free, as a
//!   majority freed it. Each node that holds, or may, and has not said that it does not any more is asked again in
//!   the background until it does or the lock must have expired there (see [`release`]).
//! * *A release's answer is cut off and the second request finds nothing*: the first may have freed it, so the
//!   outcome is unknown and not "not held".
//! * *A script fails in the middle*: a part may have been done, so it is undone as if the answer had been lost.
//! * *An extension's answer is lost*: the old deadline stands. Only nodes known to hold count, and only "still ours"
//!   counts; a lock put back on a node that lost it counts from the next round on.
//! * *A server restarts without its memory*: a single one forgets the lock, and the holder learns of it at the next
//!   renewal; fencing tokens still grow, since they are seeded with the time.

mod attempt;
mod call;
mod config;
mod connection;
mod extension;
mod holder;
mod inspection;
mod keys;
mod link;
mod node;
mod open;
mod quorum;
mod release;
mod request;
mod script;
#[cfg(test)]
mod simulated;
mod subscriber;
mod tls;

use std::{fmt, sync::Arc, time::Duration};

use futures_util::{
    future::FutureExt,
    stream::{FuturesUnordered, StreamExt},
};
use redis::Value;

use self::{
    config::NodeConfig,
    keys::Key,
    node::Node,
    quorum::{Verdict, verdict},
    request::{Request, Server},
    subscriber::Subscriptions,
};
use super::{Answer, Attempt, Backend, Capabilities, Claim, Extension, Guarantee, Holder, Release, Watch};
use crate::{
    Error, Resource, Result,
    clock::Instant,
    connect::Options,
    engine::{driver::Driver, runtime},
    metrics::NodeStats,
    pattern::Pattern,
};

pub(crate) struct RedisBackend {
    nodes: Vec<Arc<dyn Server>>,
    subscriptions: Arc<Subscriptions>,
    prefix: String,
    node_timeout: Option<Duration>,
}

impl RedisBackend {
    pub(crate) fn new(urls: &[String], options: &Options) -> Result<Self> {
        const MOST_NODES: usize = 31;
        let mut nodes: Vec<Arc<dyn Server>> = Vec::new();
        for url in urls {
            let config = NodeConfig::parse(url)?;
            let same = |node: &Arc<dyn Server>| {
                node.config().address == config.address && node.config().database == config.database
            };
            if nodes.iter().any(same) {
                // Two votes of one server would be no majority of servers.
                return Err(Error::invalid("url", format!("lists {} twice", config.name)));
            }
            nodes.push(Node::new(config));
        }
        if nodes.len() > MOST_NODES {
            return Err(Error::invalid("url", format!("may list {MOST_NODES} servers at most")));
        }
        let subscriptions = Subscriptions::new(nodes.iter().map(|node| node.config().clone()).collect());
        Ok(Self { nodes, subscriptions, prefix: options.prefix.clone(), node_timeout: options.node_timeout })
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

    /// Sends a request to every node; `decide` sees the answers as they come, until it has decided. The nodes
    /// that have not answered by then are left to the background, where `late` sees their answers.
    async fn ask<D>(
        &self,
        request: &Arc<Request>,
        driver: &Driver,
        mut decide: impl FnMut(usize, request::Answer) -> Option<D>,
        late: impl Fn(usize, request::Answer) + Send + 'static,
    ) -> Option<D> {
        let ask = |(index, node): (usize, &Arc<dyn Server>)| {
            let answer = Arc::clone(node).run(Arc::clone(request), driver.clone());
            answer.map(move |answer| (index, answer))
        };
        let mut answers: FuturesUnordered<_> = self.nodes.iter().enumerate().map(ask).collect();
        while let Some((index, answer)) = answers.next().await {
            if let Some(decision) = decide(index, answer) {
                if !answers.is_empty() {
                    runtime::spawn(answers.for_each(move |(index, answer)| {
                        late(index, answer);
                        std::future::ready(())
                    }));
                }
                return Some(decision);
            }
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
        self.nodes.iter().map(|node| (node.config().name.clone(), node.stats())).collect()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            guarantee: Guarantee::Lease,
            fencing: true,
            across_processes: true,
            across_hosts: true,
            shared: true,
            semaphore: true,
            several: true,
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

    fn watch(&self, resource: &Resource) -> Watch {
        self.subscriptions.watch(Key::of(&self.prefix, resource).channel)
    }

    fn close(&self) {
        self.subscriptions.close();
        for node in &self.nodes {
            node.close();
        }
    }
}

impl fmt::Debug for RedisBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.nodes.iter().map(|node| node.config())).finish()
    }
}
