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
mod link;
mod node;
mod open;
mod quorum;
mod script;
mod subscriber;
mod tls;

use std::{
    fmt,
    sync::{Arc, LazyLock, atomic::Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::{
    future::{BoxFuture, FutureExt},
    stream::{FuturesUnordered, StreamExt},
};
use redis::Value;

use self::{
    call::CallError,
    config::NodeConfig,
    connection::Connection,
    node::Node,
    quorum::{Ballot, Refusal, Verdict, Vote, majority, verdict},
    subscriber::Subscriptions,
};
use super::{Answer, Attempt, Backend, Capabilities, Claim, Extension, Guarantee, Holder, Progress, Release, Watch};
use crate::{
    Error, Mode, Resource, Result,
    clock::{self, Instant},
    connect::Options,
    engine::{driver::Driver, runtime},
};

/// The fence outlives its last use by this at least: long against any ttl, and against clocks that are set back.
const FENCE_OUTLIVES: Duration = Duration::from_secs(30 * 24 * 3600);

pub(crate) struct RedisBackend {
    nodes: Vec<Arc<Node>>,
    subscriptions: Arc<Subscriptions>,
    prefix: String,
    node_timeout: Option<Duration>,
}

impl RedisBackend {
    pub(crate) fn new(urls: &[String], options: &Options) -> Result<Self> {
        const MOST_NODES: usize = 31;
        let mut nodes: Vec<Arc<Node>> = Vec::new();
        for url in urls {
            let config = NodeConfig::parse(url)?;
            let same = |node: &Arc<Node>| {
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
        let subscriptions = Subscriptions::new(&nodes);
        Ok(Self { nodes, subscriptions, prefix: options.prefix.clone(), node_timeout: options.node_timeout })
    }

    /// How long one node may take to answer.
    fn node_timeout(&self, ttl: Duration) -> Duration {
        const SHORTEST: Duration = Duration::from_millis(50);
        self.node_timeout.unwrap_or(if self.nodes.len() == 1 {
            (ttl / 3).clamp(SHORTEST, Duration::from_secs(2))
        } else {
            (ttl / 20).clamp(SHORTEST, Duration::from_millis(500))
        })
    }

    /// Asks every node; `decide` sees the answers as they come, until it has decided. The nodes that have
    /// not answered by then are left to the background.
    async fn ask<T: Send + 'static, D>(
        &self,
        ask: impl Fn(usize, Arc<Node>) -> BoxFuture<'static, (usize, T)>,
        mut decide: impl FnMut(usize, T) -> Option<D>,
        late: impl Fn(usize, T) + Send + 'static,
    ) -> Option<D> {
        let mut answers: FuturesUnordered<_> =
            self.nodes.iter().enumerate().map(|(index, node)| ask(index, Arc::clone(node))).collect();
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
        let request = Arc::new(AcquireRequest {
            keys: Keys::of(&self.prefix, &claim.resources),
            mode: claim.mode,
            owner: claim.owner.to_string(),
            ttl: millis(claim.ttl),
            proposed: clock::unix_micros().to_string(),
            holder: holder_record(claim.label.as_deref()),
            outlives: millis(FENCE_OUTLIVES.max(claim.ttl.saturating_mul(2))),
            expires,
        });
        let mut ballot = Ballot::new(self.nodes.len());
        let progress = Arc::clone(&claim.progress);
        let driver = driver.clone();
        let ask = |index, node| {
            let (request, progress, driver) = (Arc::clone(&request), Arc::clone(&progress), driver.clone());
            async move { (index, request.send(&node, &progress, &driver).await) }.boxed()
        };
        let known = Arc::clone(&claim.progress);
        let late = move |index, vote| {
            if matches!(vote, Vote::Granted { .. }) {
                known.add_holder(index);
            }
        };
        let decide = |index, vote| match ballot.cast(index, vote) {
            Verdict::Open => None,
            decided => Some(decided),
        };
        if self.ask(ask, decide, late).await != Some(Verdict::Won) {
            claim.progress.give_up();
            return refused(ballot);
        }
        for index in ballot.holders() {
            claim.progress.add_holder(index);
        }
        let token = match ballot.agreed_token() {
            Some(token) => Some(token),
            None => self.raise(claim, &request.keys, ballot.to_raise(), &ballot.holders(), &driver, expires).await,
        };
        match token {
            Some(fencing_token) => {
                claim.progress.fencing_token.store(fencing_token, Ordering::Relaxed);
                Attempt::Granted { fencing_token, since }
            }
            None => Attempt::Unknown(Error::unavailable("the nodes did not agree on a fencing token in time")),
        }
    }

    /// Writes `token` back to the nodes that hold, until a majority has it; see [`quorum`].
    async fn raise(
        &self,
        claim: &Claim,
        keys: &Keys,
        mut token: u64,
        holders: &[usize],
        driver: &Driver,
        expires: Instant,
    ) -> Option<u64> {
        let owner = match Sharing::of(claim.mode) {
            Some(sharing) => format!("{}{}", sharing.kind, claim.owner),
            None => claim.owner.to_string(),
        };
        while Instant::now() < expires {
            let text = token.to_string();
            let args = |_: &Connection| vec![owner.clone().into_bytes(), text.clone().into_bytes()];
            let keys = keys.locks_and_fences();
            let raises =
                holders.iter().map(|index| self.nodes[*index].run(&script::RAISE, &keys, args, driver, expires));
            let mut confirmed = 0;
            let mut higher = token;
            for answer in futures_util::future::join_all(raises).await {
                match answer.as_ref().map(|(value, _)| numbers(value)).ok().flatten().as_deref() {
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
        let keys = Arc::new(Keys::of(&self.prefix, &claim.resources));
        let (owner, ttl_text, sharing) = (claim.owner.to_string(), millis(ttl), Sharing::of(claim.mode));
        let ask = |index, node: Arc<Node>| {
            let (keys, owner, ttl, driver) = (Arc::clone(&keys), owner.clone(), ttl_text.clone(), driver.clone());
            async move {
                let (script, kind) = match &sharing {
                    Some(sharing) => (&script::SHARE_EXTEND, Some(sharing.kind)),
                    None => (&script::EXTEND, None),
                };
                let args = |_: &Connection| {
                    let args = [owner.as_str(), &ttl].into_iter().chain(kind);
                    args.map(|arg| arg.as_bytes().to_vec()).collect()
                };
                let answer = node.run(script, &keys.locks(), args, &driver, expires).await;
                (index, answer.map(|(value, _)| number(&value)))
            }
            .boxed()
        };
        let nodes = self.nodes.len();
        let (mut yes, mut no, mut lost, mut errors) = (0, 0, 0, Vec::new());
        let mut missing = Vec::new();
        let decide = |index, answer: std::result::Result<Option<i64>, CallError>| {
            match answer {
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
                Ok(None) => no += 1,
                Err(error) => {
                    no += 1;
                    errors.push(error.into_error());
                }
            }
            match verdict(nodes, yes, no) {
                Verdict::Open => None,
                decided => Some(decided),
            }
        };
        match self.ask(ask, decide, |_, _| {}).await {
            Some(Verdict::Won) => {
                self.repair(claim, ttl, &missing);
                Extension::Extended { since }
            }
            // Lost for certain when the nodes that said so leave too few for a majority.
            _ if nodes - lost < majority(nodes) => Extension::Lost,
            _ => Extension::Unknown(out_of_reach(errors)),
        }
    }

    /// Puts the lock back, in the background, where it is missing though a majority holds.
    fn repair(&self, claim: &Claim, ttl: Duration, missing: &[usize]) {
        if self.nodes.len() == 1 || claim.mode != Mode::Exclusive {
            return;
        }
        let expires = Instant::now().after(self.node_timeout(ttl));
        for &index in missing {
            let (node, claim) = (Arc::clone(&self.nodes[index]), claim.clone());
            let keys = Keys::of(&self.prefix, &claim.resources);
            runtime::spawn(async move {
                let token = claim.progress.fencing_token.load(Ordering::Relaxed);
                if claim.progress.is_over() || token == 0 {
                    return;
                }
                let args = |connection: &Connection| {
                    [
                        claim.owner.to_string(),
                        millis(ttl),
                        token.to_string(),
                        connection.server_time(expires).to_string(),
                        millis(FENCE_OUTLIVES.max(ttl.saturating_mul(2))),
                    ]
                    .map(String::into_bytes)
                    .to_vec()
                };
                let keys = keys.locks_and_fences();
                if let Ok((value, _)) = node.run(&script::REPAIR, &keys, args, &Driver::engine(), expires).await
                    && number(&value) == Some(1)
                {
                    claim.progress.add_holder(index);
                }
            });
        }
    }

    async fn release_all(&self, claim: &Claim, driver: &Driver) -> Release {
        claim.progress.give_up();
        let expires = Instant::now().after(self.node_timeout(claim.ttl));
        let keys = Arc::new(Keys::of(&self.prefix, &claim.resources));
        let (owner, sharing) = (claim.owner.to_string(), Sharing::of(claim.mode));
        let ask = |index, node: Arc<Node>| {
            let (keys, owner, driver) = (Arc::clone(&keys), owner.clone(), driver.clone());
            async move {
                let (script, kind) = match &sharing {
                    Some(sharing) => (&script::SHARE_RELEASE, Some(sharing.kind)),
                    None => (&script::RELEASE, None),
                };
                let args = |_: &Connection| {
                    let channels = keys.all.iter().map(|key| key.channel.as_str());
                    let args = std::iter::once(owner.as_str()).chain(kind).chain(channels);
                    args.map(|arg| arg.as_bytes().to_vec()).collect()
                };
                let answer = node.run(script, &keys.locks(), args, &driver, expires).await;
                (index, answer.ok().and_then(|(value, _)| number(&value)))
            }
            .boxed()
        };
        let nodes = self.nodes.len();
        let (mut released, mut not_held, mut unknown) = (0, 0, 0);
        let decide = |_, answer| {
            match answer {
                Some(1) => released += 1,
                Some(_) => not_held += 1,
                None => unknown += 1,
            }
            if released >= majority(nodes) {
                Some(Release::Released)
            } else if not_held >= majority(nodes) {
                Some(Release::NotHeld)
            } else {
                None
            }
        };
        let decided = self.ask(ask, decide, |_, _| {}).await;
        decided.unwrap_or(match (unknown, released) {
            (0, 0) => Release::NotHeld,
            (0, _) => Release::Released,
            _ => Release::Unknown,
        })
    }

    async fn inspect_all(&self, resource: &Resource, driver: &Driver) -> Result<Option<Holder>> {
        let expires = Instant::now().after(self.node_timeout(Duration::from_secs(30)));
        let keys = Keys::of(&self.prefix, std::slice::from_ref(resource));
        let keys = keys.locks_and_fences();
        let asks = self.nodes.iter().map(|node| node.run(&script::INSPECT, &keys, |_| Vec::new(), driver, expires));
        let (mut holders, mut free, mut errors) = (Vec::<Holder>::new(), 0, Vec::new());
        for answer in futures_util::future::join_all(asks).await {
            match answer {
                Ok((value, _)) => match read_holder(&value) {
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

/// The keys of one resource.
struct Key {
    lock: String,
    fence: String,
    /// There while somebody waits to hold exclusively what is held shared.
    writer: String,
    channel: String,
}

impl Key {
    fn of(prefix: &str, resource: &Resource) -> Self {
        let lock = format!("{prefix}{resource}");
        // The same cluster slot as the lock: its own hash tag if it has one, else all of it.
        let tagged = match lock.split_once('{').and_then(|(_, rest)| rest.split_once('}')) {
            Some((tag, _)) if !tag.is_empty() => lock.clone(),
            _ => format!("{{{lock}}}"),
        };
        let side = |what| format!("polylock:{what}:{tagged}");
        Self { fence: side("fence"), writer: side("writer"), channel: side("wake"), lock }
    }
}

/// The keys of all resources of a claim.
struct Keys {
    all: Vec<Key>,
}

impl Keys {
    fn of(prefix: &str, resources: &[Resource]) -> Self {
        Self { all: resources.iter().map(|resource| Key::of(prefix, resource)).collect() }
    }

    fn locks(&self) -> Vec<&str> {
        self.all.iter().map(|key| key.lock.as_str()).collect()
    }

    fn locks_and_fences(&self) -> Vec<&str> {
        let fences = self.all.iter().map(|key| key.fence.as_str());
        self.all.iter().map(|key| key.lock.as_str()).chain(fences).collect()
    }

    /// What `acquire.lua` and `share.lua` take.
    fn with_writer(&self) -> Vec<&str> {
        let mut keys = self.locks_and_fences();
        keys.extend(self.all.iter().map(|key| key.writer.as_str()));
        keys
    }
}

/// How a lock with several holders is kept.
#[derive(Clone, Copy)]
struct Sharing {
    kind: &'static str,
    /// How many may hold; 0 for any number.
    limit: u32,
}

impl Sharing {
    fn of(mode: Mode) -> Option<Self> {
        match mode {
            Mode::Exclusive => None,
            Mode::Shared => Some(Self { kind: "shared:", limit: 0 }),
            Mode::Permit { of } => Some(Self { kind: "permit:", limit: of }),
        }
    }
}

/// One attempt, as it is sent to each node.
struct AcquireRequest {
    keys: Keys,
    mode: Mode,
    owner: String,
    ttl: String,
    proposed: String,
    holder: String,
    outlives: String,
    expires: Instant,
}

impl AcquireRequest {
    async fn send(&self, node: &Arc<Node>, progress: &Progress, driver: &Driver) -> Vote {
        let (script, keys, sharing) = match (self.mode, self.keys.all.len()) {
            (Mode::Exclusive, 1) => (&script::ACQUIRE, self.keys.with_writer(), None),
            (Mode::Exclusive, _) => (&script::ACQUIRE_ALL, self.keys.locks_and_fences(), None),
            (mode, _) => (&script::SHARE, self.keys.with_writer(), Sharing::of(mode)),
        };
        let args = |connection: &Connection| {
            // An attempt that is over must not be granted anywhere any more.
            let not_after = if progress.is_over() { 0 } else { connection.server_time(self.expires) };
            let mut args = vec![
                self.owner.clone().into_bytes(),
                self.ttl.clone().into_bytes(),
                self.proposed.clone().into_bytes(),
                not_after.to_string().into_bytes(),
                self.holder.clone().into_bytes(),
                self.outlives.clone().into_bytes(),
            ];
            if let Some(sharing) = sharing {
                args.extend([sharing.kind.as_bytes().to_vec(), sharing.limit.to_string().into_bytes()]);
            }
            args
        };
        let mut answer = node.run(script, &keys, &args, driver, self.expires).await;
        if let Ok((value, _)) = &answer
            && let Some([-2, now, _]) = numbers(value).as_deref()
            && !progress.is_over()
        {
            // The server's clock was set since we looked at it.
            node.set_clock(driver, *now);
            answer = node.run(script, &keys, &args, driver, self.expires).await;
        }
        let answer = match answer {
            Ok((value, _)) => numbers(&value),
            Err(error) if error.is_ambiguous() => return Vote::Unknown(error.into_error()),
            Err(error) => return Vote::Failed(error.into_error()),
        };
        let ttl = |ms: i64| u64::try_from(ms).ok().map(Duration::from_millis);
        match answer.as_deref() {
            Some([1, counter, _]) => Vote::Granted { counter: u64::try_from(*counter).unwrap_or(0) },
            Some([0, _, left]) => Vote::Busy { free_in: ttl(*left), foreign: false },
            Some([-3, _, left]) => Vote::Busy { free_in: ttl(*left), foreign: true },
            Some([-2, ..]) => Vote::Failed(Error::unavailable(format!("{}: too late", node.config().name))),
            _ => Vote::Unknown(Error::unavailable(format!("{}: an answer of another kind", node.config().name))),
        }
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

fn millis(duration: Duration) -> String {
    // Redis counts whole milliseconds; rounding up keeps the lock at least as long as its holder thinks.
    duration.as_nanos().div_ceil(1_000_000).to_string()
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

/// Who holds, for [`Holder`]: milliseconds since 1970, process id, host and label, a line each.
fn holder_record(label: Option<&str>) -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
    static HOST: LazyLock<String> =
        LazyLock::new(|| rustix::system::uname().nodename().to_string_lossy().into_owned());
    let host = &*HOST;
    format!("{since}\n{}\n{host}\n{}", std::process::id(), label.unwrap_or(""))
}

fn read_holder(value: &Value) -> Option<Holder> {
    let Value::Array(parts) = value else { return None };
    let [owner, Value::Int(left), token, fence_owner, record] = &parts[..] else { return None };
    let text = |value: &Value| match value {
        Value::BulkString(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        Value::SimpleString(text) => Some(text.clone()),
        _ => None,
    };
    let mut holder = Holder {
        owner: text(owner)?,
        fencing_token: None,
        expires_in: u64::try_from(*left).ok().map(Duration::from_millis),
        since: None,
        host: None,
        pid: None,
        label: None,
    };
    // The fence tells of its last owner, which another library's lock is not.
    if text(fence_owner).as_deref() == Some(&holder.owner) {
        holder.fencing_token = text(token).and_then(|token| token.parse().ok());
        let record = text(record).unwrap_or_default();
        let mut lines = record.splitn(4, '\n');
        let since = lines.next().and_then(|since| since.parse().ok());
        holder.since = since.map(|since| UNIX_EPOCH + Duration::from_millis(since));
        holder.pid = lines.next().and_then(|pid| pid.parse().ok());
        holder.host = lines.next().map(str::to_owned);
        holder.label = lines.next().filter(|label| !label.is_empty()).map(str::to_owned);
    }
    Some(holder)
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
            let pings = self.nodes.iter().map(|node| node.ping(driver, expires));
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
