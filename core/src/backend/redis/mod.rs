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
//!   the background until it does or the lock must have expired there ([`Pursuit`]).
//! * *A release's answer is cut off and the second request finds nothing*: the first may have freed it, so the
//!   outcome is unknown and not "not held".
//! * *A script fails in the middle*: a part may have been done, so it is undone as if the answer had been lost.
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
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::{
    future::FutureExt,
    stream::{FuturesUnordered, StreamExt},
};
use redis::Value;

use self::{
    config::NodeConfig,
    keys::{Key, Keys},
    node::Node,
    quorum::{Ballot, Refusal, Verdict, Vote, majority, verdict},
    request::{Request, Server},
    subscriber::Subscriptions,
};
use super::{Answer, Attempt, Backend, Capabilities, Claim, Extension, Guarantee, Holder, Progress, Release, Watch};
use crate::{
    Error, Mode, Resource, Result,
    clock::Instant,
    connect::Options,
    engine::{driver::Driver, runtime, timer},
};

/// How much longer an inspection waits for the others when a majority has answered.
const STRAGGLERS: Duration = Duration::from_millis(50);

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

    async fn acquire(&self, claim: &Claim, driver: &Driver) -> Attempt {
        let since = Instant::now();
        let expires = since.after(self.node_timeout(claim.ttl));
        let keys = Keys::of(&self.prefix, &claim.resources);
        let request = Request::acquire(&keys, claim, expires);
        claim.progress.track();
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
            return refused(ballot, &claim.progress);
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
        for index in 0..self.nodes.len() {
            claim.progress.doubt(index);
        }
        let decide = |index: usize, answer: request::Answer| {
            note(&claim.progress, index, &answer);
            if let Ok(answered) = &answer
                && let Some([-2, now, _]) = numbers(&answered.value).as_deref()
            {
                clock_was_set.push((index, *now));
            }
            match ballot.cast(index, vote(&self.nodes[index].config().name, answer)) {
                Verdict::Open => None,
                decided => Some(decided),
            }
        };
        let progress = Arc::clone(&claim.progress);
        let late = move |index, answer| note(&progress, index, &answer);
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
            let mut raises: FuturesUnordered<_> = holders
                .iter()
                .map(|index| Arc::clone(&self.nodes[*index]).run(Arc::clone(&request), driver.clone()))
                .collect();
            let (mut confirmed, mut higher) = (0, token);
            // Not held up by one that has just fallen silent.
            while confirmed < majority(self.nodes.len())
                && let Some(answer) = raises.next().await
            {
                match answer.as_ref().map(|answered| numbers(&answered.value)).ok().flatten().as_deref() {
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
        let mut decide = |index, answer: request::Answer| {
            match answer.as_ref().map(|answered| number(&answered.value)) {
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
        let won = Arc::new(AtomicBool::new(false));
        let token = claim.progress.fencing_token.load(Ordering::Relaxed);
        let repairs = Request::repair(&keys, claim, token, ttl, expires);
        let late = {
            let (won, claim, repairs, nodes) =
                (Arc::clone(&won), claim.clone(), Arc::clone(&repairs), self.nodes.clone());
            move |index: usize, answer: request::Answer| match answer.map(|answered| number(&answered.value)) {
                Ok(Some(1)) => claim.progress.add_holder(index),
                Ok(Some(-1)) if won.load(Ordering::Acquire) => repair(&claim, &repairs, index, &nodes[index]),
                _ => {}
            }
        };
        let decide = |index, answer| {
            let decision = decide(index, answer);
            won.store(decision == Some(Verdict::Won), Ordering::Release);
            decision
        };
        match self.ask(&request, driver, decide, late).await {
            Some(Verdict::Won) => {
                for index in missing {
                    repair(claim, &repairs, index, &self.nodes[index]);
                }
                Extension::Extended { since }
            }
            // Lost for certain when the nodes that said so leave too few for a majority.
            _ if nodes - lost < majority(nodes) => Extension::Lost,
            _ => Extension::Unknown(out_of_reach(errors)),
        }
    }

    async fn release_all(&self, claim: &Claim, driver: &Driver) -> Release {
        claim.progress.give_up();
        let expires = Instant::now().after(self.node_timeout(claim.ttl));
        let keys = Keys::of(&self.prefix, &claim.resources);
        let request = Request::release(&keys, claim, expires);
        let pursuit =
            Arc::new(Pursuit { claim: claim.clone(), keys, settles_within: self.settles_within(claim.ttl) });
        let nodes = self.nodes.len();
        let (mut released, mut not_held, mut unknown) = (0, 0, 0);
        let mut unsettled = Vec::new();
        let decide = |index, answer: request::Answer| {
            let freed = Freed::of(&claim.progress, index, answer);
            match freed {
                Freed::Ours => released += 1,
                Freed::NotOurs => not_held += 1,
                Freed::Repeated | Freed::Unanswered => unknown += 1,
            }
            unsettled.push((index, freed));
            if released >= majority(nodes) {
                Some(Release::Released)
            } else if not_held >= majority(nodes) {
                Some(Release::NotHeld)
            } else {
                None
            }
        };
        let late = {
            let (pursuit, nodes) = (Arc::clone(&pursuit), self.nodes.clone());
            move |index: usize, answer| {
                let freed = Freed::of(&pursuit.claim.progress, index, answer);
                pursuit.begin(index, &nodes[index], freed);
            }
        };
        let decided = self.ask(&request, driver, decide, late).await;
        let release = decided.unwrap_or(match (unknown, released) {
            (0, 0) => Release::NotHeld,
            (0, _) => Release::Released,
            _ => Release::Unknown,
        });
        // What is unknown as a whole is asked again as a whole.
        if nodes > 1 && release != Release::Unknown {
            for (index, freed) in unsettled {
                pursuit.begin(index, &self.nodes[index], freed);
            }
        }
        release
    }

    async fn inspect_all(&self, resource: &Resource, driver: &Driver) -> Result<Option<Holder>> {
        let expires = Instant::now().after(self.node_timeout(Duration::from_secs(30)));
        let request = Request::inspect(&self.prefix, resource, expires);
        let asks = self.nodes.iter().map(|node| Arc::clone(node).run(Arc::clone(&request), driver.clone()));
        let mut answers: FuturesUnordered<_> = asks.collect();
        let (mut holders, mut free, mut errors) = (Vec::<Holder>::new(), 0, Vec::new());
        let mut patience = None;
        // Once a majority has answered the others get a little more time: one that is silent would take all of it.
        while let Some(Some(answer)) = timer::until(patience, answers.next()).await {
            match answer {
                Ok(answered) => match holder::read(&answered.value) {
                    Some(holder) => holders.push(holder),
                    None => free += 1,
                },
                Err(error) => errors.push(error.into_error()),
            }
            if patience.is_none() && holders.len() + free >= majority(self.nodes.len()) {
                patience = Some(Instant::now().after(STRAGGLERS).min(expires));
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

/// Puts the lock back, in the background, on a node where it is missing though a majority holds.
fn repair(claim: &Claim, request: &Arc<Request>, index: usize, node: &Arc<dyn Server>) {
    if claim.mode != Mode::Exclusive {
        return;
    }
    claim.progress.doubt(index);
    let answer = Arc::clone(node).run(Arc::clone(request), Driver::engine());
    let progress = Arc::clone(&claim.progress);
    runtime::spawn(async move {
        match answer.await {
            Ok(answered) => {
                let granted = number(&answered.value) == Some(1);
                if granted {
                    progress.add_holder(index);
                }
                let left_over = granted && progress.is_over();
                if !answered.repeated && !left_over {
                    progress.resolve(index);
                }
            }
            Err(error) if !error.is_ambiguous() => progress.resolve(index),
            Err(_) => {}
        }
    });
}

/// Notes what an answer to an attempt tells of that node.
fn note(progress: &Progress, index: usize, answer: &request::Answer) {
    match answer {
        Ok(answered) => {
            let numbers = numbers(&answered.value);
            let granted = matches!(numbers.as_deref(), Some([1, ..]));
            if granted {
                progress.add_holder(index);
            }
            // A grant of what was given up meanwhile is in doubt until the release has found it.
            if !answered.repeated && numbers.is_some() && !(granted && progress.is_over()) {
                progress.resolve(index);
            }
        }
        Err(error) if !error.is_ambiguous() => progress.resolve(index),
        Err(_) => {}
    }
}

/// What a node answered to a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Freed {
    Ours,
    NotOurs,
    /// Not ours now, but the same request was sent before: that one may have freed it.
    Repeated,
    Unanswered,
}

impl Freed {
    fn of(progress: &Progress, index: usize, answer: request::Answer) -> Self {
        match answer.map(|answered| (number(&answered.value), answered.repeated)) {
            Ok((Some(1), _)) => {
                // The attempt was carried out before this, then.
                progress.resolve(index);
                Self::Ours
            }
            Ok((Some(_), true)) => Self::Repeated,
            Ok((Some(_), false)) => Self::NotOurs,
            Ok((None, _)) | Err(_) => Self::Unanswered,
        }
    }
}

/// Sees to it that nothing is left on single nodes of what a majority has freed.
struct Pursuit {
    claim: Claim,
    keys: Keys,
    settles_within: Duration,
}

impl Pursuit {
    /// Whether something may be left on a node that answered so.
    fn is_unsettled(&self, index: usize, freed: Freed) -> bool {
        let progress = &self.claim.progress;
        progress.is_in_doubt(index) || (freed == Freed::Unanswered && progress.holds(index))
    }

    /// Asks the node to release until it has, in the background, if it may still hold or get it.
    fn begin(self: &Arc<Self>, index: usize, node: &Arc<dyn Server>, mut freed: Freed) {
        const FIRST_PAUSE: Duration = Duration::from_millis(10);
        const LONGEST_PAUSE: Duration = Duration::from_secs(1);
        if !self.is_unsettled(index, freed) || !self.claim.progress.pursue(index) {
            return;
        }
        let (pursuit, node) = (Arc::clone(self), Arc::clone(node));
        runtime::spawn(async move {
            let claim = &pursuit.claim;
            let settles = Instant::now().after(pursuit.settles_within);
            let expired = settles.after(claim.ttl.mul_f64(1.1)).after(LONGEST_PAUSE);
            let mut pause = FIRST_PAUSE;
            loop {
                timer::sleep_until(Instant::now().after(pause)).await;
                let asked = Instant::now();
                // The answer to the attempt may have come meanwhile.
                if node.is_closed() || asked >= expired || !pursuit.is_unsettled(index, freed) {
                    return;
                }
                let request = Request::release(&pursuit.keys, claim, asked.after(pursuit.settles_within));
                let answer = Arc::clone(&node).run(request, Driver::engine()).await;
                freed = Freed::of(&claim.progress, index, answer);
                if freed != Freed::Unanswered && asked >= settles {
                    return;
                }
                pause = (pause * 3).min(LONGEST_PAUSE);
            }
        });
    }
}

/// What a node's answer to an attempt means.
fn vote(node: &str, answer: request::Answer) -> Vote {
    let numbers = match answer {
        Ok(answered) => numbers(&answered.value),
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
fn refused(ballot: Ballot, progress: &Progress) -> Attempt {
    let residue = ballot.leaves_residue() || progress.has_doubts();
    let nodes = ballot.nodes();
    match ballot.refusal() {
        Refusal::Busy { free_in, foreign, contended } => Attempt::Busy { free_in, foreign, contended, residue },
        Refusal::OutOfReach(errors) => {
            // What tells against one node alone may pass with the others' trouble.
            let fatal: Vec<_> = errors.iter().filter(|error| !error.is_retryable()).collect();
            let error = match fatal[..] {
                [error, ..] if fatal.len() > nodes - majority(nodes) => error.clone(),
                _ => out_of_reach(errors),
            };
            if residue { Attempt::Unknown(error) } else { Attempt::Refused(error) }
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
            let nodes = self.nodes.len();
            let mut answers: FuturesUnordered<_> =
                self.nodes.iter().map(|node| Arc::clone(node).check(driver.clone(), expires)).collect();
            let (mut yes, mut errors) = (0, Vec::new());
            while verdict(nodes, yes, errors.len()) == Verdict::Open
                && let Some(answer) = answers.next().await
            {
                match answer {
                    Ok(()) => yes += 1,
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
