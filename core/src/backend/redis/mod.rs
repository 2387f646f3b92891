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
//! * *An extension's answer is lost*: the old deadline stands. Only nodes known to hold count, and only "still ours"
//!   counts; a lock put back on a node that lost it counts from the next round on.
//! * *A server restarts without its memory*: a single one forgets the lock, and the holder learns of it at the next
//!   renewal; fencing tokens still grow, since they are seeded with the time.

mod call;
mod config;
mod connection;
mod holder;
mod keys;
mod link;
mod node;
mod open;
mod quorum;
mod request;
mod script;
#[cfg(test)]
mod simulated;
mod subscriber;
mod tls;

use std::{
    fmt,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures_util::{
    future::FutureExt,
    stream::{FuturesUnordered, StreamExt},
};
use redis::Value;

use self::{
    call::CallError,
    config::NodeConfig,
    keys::{Key, Keys},
    node::Node,
    quorum::{Ballot, Refusal, Verdict, Vote, majority, verdict},
    request::{Request, Server},
    subscriber::Subscriptions,
};
use super::{Answer, Attempt, Backend, Capabilities, Claim, Extension, Guarantee, Holder, Release, Watch};
use crate::{
    Error, Mode, Resource, Result,
    clock::Instant,
    connect::Options,
    engine::{driver::Driver, runtime},
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
        mut decide: impl FnMut(usize, std::result::Result<Value, CallError>) -> Option<D>,
        late: impl Fn(usize, std::result::Result<Value, CallError>) + Send + 'static,
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

    async fn acquire(&self, claim: &Claim, driver: &Driver) -> Attempt {
        let since = Instant::now();
        let expires = since.after(self.node_timeout(claim.ttl));
        let keys = Keys::of(&self.prefix, &claim.resources);
        let request = Request::acquire(&keys, claim, expires);
        let (mut ballot, mut verdict) = (Ballot::new(self.nodes.len()), None);
        // Once more if a server's clock was set since we looked at it: it takes us to be too late.
        for _ in 0..2 {
            let mut clock_was_set = Vec::new();
            ballot = Ballot::new(self.nodes.len());
            verdict = self.vote(&request, claim, driver, &mut ballot, &mut clock_was_set).await;
            if verdict == Some(Verdict::Won) || clock_was_set.is_empty() || Instant::now() >= expires {
                break;
            }
            for (index, now) in clock_was_set {
                self.nodes[index].set_clock(driver, now);
            }
        }
        if verdict != Some(Verdict::Won) {
            claim.progress.give_up();
            return refused(ballot);
        }
        for index in ballot.holders() {
            claim.progress.add_holder(index);
        }
        let token = match ballot.agreed_token() {
            Some(token) => Some(token),
            None => self.raise(&keys, claim, ballot.to_raise(), &ballot.holders(), driver, expires).await,
        };
        match token {
            Some(fencing_token) => {
                claim.progress.fencing_token.store(fencing_token, Ordering::Relaxed);
                Attempt::Granted { fencing_token, since }
            }
            None => Attempt::Unknown(Error::unavailable("the nodes did not agree on a fencing token in time")),
        }
    }

    /// Asks for grants until the ballot is decided. Nodes whose clock was set are noted with the time they show.
    async fn vote(
        &self,
        request: &Arc<Request>,
        claim: &Claim,
        driver: &Driver,
        ballot: &mut Ballot,
        clock_was_set: &mut Vec<(usize, i64)>,
    ) -> Option<Verdict> {
        let decide = |index: usize, answer| {
            if let Ok(value) = &answer
                && let Some([-2, now, _]) = numbers(value).as_deref()
            {
                clock_was_set.push((index, *now));
            }
            match ballot.cast(index, vote(&self.nodes[index].config().name, answer)) {
                Verdict::Open => None,
                decided => Some(decided),
            }
        };
        let progress = Arc::clone(&claim.progress);
        let late = move |index, answer| {
            if matches!(vote("", answer), Vote::Granted { .. }) {
                progress.add_holder(index);
            }
        };
        self.ask(request, driver, decide, late).await
    }

    /// Writes `token` back to the nodes that hold, until a majority has it; see [`quorum`].
    async fn raise(
        &self,
        keys: &Keys,
        claim: &Claim,
        mut token: u64,
        holders: &[usize],
        driver: &Driver,
        expires: Instant,
    ) -> Option<u64> {
        while Instant::now() < expires {
            let request = Request::raise(keys, claim, token, expires);
            let raises =
                holders.iter().map(|index| Arc::clone(&self.nodes[*index]).run(Arc::clone(&request), driver.clone()));
            let (mut confirmed, mut higher) = (0, token);
            for answer in futures_util::future::join_all(raises).await {
                match answer.as_ref().map(numbers).ok().flatten().as_deref() {
                    Some([1, _]) => confirmed += 1,
                    Some([-1, above]) => higher = higher.max(u64::try_from(*above).unwrap_or(0)),
                    _ => {}
                }
            }
            if confirmed >= majority(self.nodes.len()) {
                return Some(token);
            }
            if higher == token {
                return None;
            }
            token = higher;
        }
        None
    }

    async fn extend_all(&self, claim: &Claim, ttl: Duration, driver: &Driver) -> Extension {
        let since = Instant::now();
        let expires = since.after(self.node_timeout(ttl));
        let keys = Keys::of(&self.prefix, &claim.resources);
        let request = Request::extend(&keys, claim, ttl, expires);
        let nodes = self.nodes.len();
        let (mut yes, mut no, mut lost, mut errors) = (0, 0, 0, Vec::new());
        let mut missing = Vec::new();
        let decide = |index, answer: std::result::Result<Value, CallError>| {
            match answer.as_ref().map(number) {
                Ok(Some(1)) if claim.progress.holds(index) => yes += 1,
                Ok(Some(1)) => {
                    // Ours all along, but its grant was never heard of: it counts from the next round on.
                    claim.progress.add_holder(index);
                    no += 1;
                }
                Ok(Some(gone)) => {
                    if gone == -1 {
                        missing.push(index);
                    }
                    no += 1;
                    lost += 1;
                }
                Ok(None) | Err(_) => no += 1,
            }
            if let Err(error) = answer {
                errors.push(error.into_error());
            }
            match verdict(nodes, yes, no) {
                Verdict::Open => None,
                decided => Some(decided),
            }
        };
        match self.ask(&request, driver, decide, |_, _| {}).await {
            Some(Verdict::Won) => {
                self.repair(&keys, claim, ttl, &missing);
                Extension::Extended { since }
            }
            // Lost for certain when the nodes that said so leave too few for a majority.
            _ if nodes - lost < majority(nodes) => Extension::Lost,
            _ => Extension::Unknown(out_of_reach(errors)),
        }
    }

    /// Puts the lock back, in the background, where it is missing though a majority holds.
    fn repair(&self, keys: &Keys, claim: &Claim, ttl: Duration, missing: &[usize]) {
        let token = claim.progress.fencing_token.load(Ordering::Relaxed);
        if claim.mode != Mode::Exclusive || missing.is_empty() {
            return;
        }
        let request = Request::repair(keys, claim, token, ttl, Instant::now().after(self.node_timeout(ttl)));
        for &index in missing {
            let answer = Arc::clone(&self.nodes[index]).run(Arc::clone(&request), Driver::engine());
            let progress = Arc::clone(&claim.progress);
            runtime::spawn(async move {
                if answer.await.is_ok_and(|value| number(&value) == Some(1)) {
                    progress.add_holder(index);
                }
            });
        }
    }

    async fn release_all(&self, claim: &Claim, driver: &Driver) -> Release {
        claim.progress.give_up();
        let expires = Instant::now().after(self.node_timeout(claim.ttl));
        let request = Request::release(&Keys::of(&self.prefix, &claim.resources), claim, expires);
        let nodes = self.nodes.len();
        let (mut released, mut not_held, mut unknown) = (0, 0, 0);
        let decide = |_, answer: std::result::Result<Value, CallError>| {
            match answer.as_ref().map(number) {
                Ok(Some(1)) => released += 1,
                Ok(Some(_)) => not_held += 1,
                Ok(None) | Err(_) => unknown += 1,
            }
            if released >= majority(nodes) {
                Some(Release::Released)
            } else if not_held >= majority(nodes) {
                Some(Release::NotHeld)
            } else {
                None
            }
        };
        let decided = self.ask(&request, driver, decide, |_, _| {}).await;
        decided.unwrap_or(match (unknown, released) {
            (0, 0) => Release::NotHeld,
            (0, _) => Release::Released,
            _ => Release::Unknown,
        })
    }

    async fn inspect_all(&self, resource: &Resource, driver: &Driver) -> Result<Option<Holder>> {
        let expires = Instant::now().after(self.node_timeout(Duration::from_secs(30)));
        let request = Request::inspect(&self.prefix, resource, expires);
        let asks = self.nodes.iter().map(|node| Arc::clone(node).run(Arc::clone(&request), driver.clone()));
        let (mut holders, mut free, mut errors) = (Vec::<Holder>::new(), 0, Vec::new());
        for answer in futures_util::future::join_all(asks).await {
            match answer {
                Ok(value) => match holder::read(&value) {
                    Some(holder) => holders.push(holder),
                    None => free += 1,
                },
                Err(error) => errors.push(error.into_error()),
            }
        }
        let needed = majority(self.nodes.len());
        if holders.len() + free < needed {
            return Err(out_of_reach(errors));
        }
        // Held is what a majority of the nodes agrees on.
        let held = |holder: &&Holder| holders.iter().filter(|other| other.owner == holder.owner).count() >= needed;
        let Some(holder) = holders.iter().find(held) else { return Ok(None) };
        // And until that majority is gone: an extension may still be on its way to the others.
        let same = holders.iter().filter(|other| other.owner == holder.owner);
        let mut lasting: Vec<_> = same.map(|holder| holder.expires_in.unwrap_or(Duration::MAX)).collect();
        lasting.sort_unstable();
        let expires_in = lasting.into_iter().rev().nth(needed - 1).filter(|left| *left < Duration::MAX);
        Ok(Some(Holder { expires_in, ..holder.clone() }))
    }
}

/// What a node's answer to an attempt means.
fn vote(node: &str, answer: std::result::Result<Value, CallError>) -> Vote {
    let numbers = match answer {
        Ok(value) => numbers(&value),
        Err(error) if error.is_ambiguous() => return Vote::Unknown(error.into_error()),
        Err(error) => return Vote::Failed(error.into_error()),
    };
    let ttl = |ms: i64| u64::try_from(ms).ok().map(Duration::from_millis);
    match numbers.as_deref() {
        Some([1, counter, _]) => Vote::Granted { counter: u64::try_from(*counter).unwrap_or(0) },
        Some([0, _, left]) => Vote::Busy { free_in: ttl(*left), foreign: false },
        Some([-3, _, left]) => Vote::Busy { free_in: ttl(*left), foreign: true },
        Some([-2, ..]) => Vote::Failed(Error::unavailable(format!("{node}: too late"))),
        _ => Vote::Unknown(Error::unavailable(format!("{node}: an answer of another kind"))),
    }
}

/// What the engine makes of an attempt that did not get its majority.
fn refused(ballot: Ballot) -> Attempt {
    let residue = ballot.leaves_residue();
    match ballot.refusal() {
        Refusal::Busy { free_in, foreign, contended } => Attempt::Busy { free_in, foreign, contended, residue },
        Refusal::OutOfReach(errors) => {
            let fatal = errors.iter().find(|error| !error.is_retryable()).cloned();
            match fatal {
                Some(error) if !residue => Attempt::Refused(error),
                _ if residue => Attempt::Unknown(out_of_reach(errors)),
                _ => Attempt::Refused(out_of_reach(errors)),
            }
        }
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
        }
    }

    fn check_reachable<'a>(&'a self, driver: &'a Driver) -> Answer<'a, Result<()>> {
        Box::pin(async {
            let expires = Instant::now().after(open::OPEN_TIMEOUT);
            let pings = self.nodes.iter().map(|node| Arc::clone(node).check(driver.clone(), expires));
            let mut errors = Vec::new();
            for answer in futures_util::future::join_all(pings).await {
                if let Err(error) = answer {
                    errors.push(error.into_error());
                }
            }
            if self.nodes.len() - errors.len() >= majority(self.nodes.len()) {
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
        Box::pin(self.inspect_all(resource, driver))
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
