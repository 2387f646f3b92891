//! The primary that sentinels name, as one server.
//!
//! Sentinels are asked at the first use, whenever the primary fails or says that it is none, and every second while it is
//! used: a primary that is cut off from its sentinels goes on as if nothing had happened until its clients look away. They
//! may disagree for a moment, so the address that most of them name is taken, or that of the latest fail-over; and the
//! server found there has to say itself that it is a primary ([`Role::Primary`](super::config::Role)). During a fail-over
//! a request is tried again while its time lasts.
//!
//! A replica that is promoted may lack what the primary had granted last, unless the URL asks for `replicas`.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::{
    future::{self, BoxFuture, FutureExt},
    stream::{FuturesUnordered, StreamExt},
};
use redis::Value;

use super::{
    call::{CallError, Elsewhere, Reply},
    config::{Address, NodeConfig},
    node::Node,
    open::OPEN_TIMEOUT,
    request::{Answer, Answered, Errand, Server, counted},
    restart::Run,
    subscriber::Locate,
};
use crate::{
    clock::Instant,
    engine::{driver::Driver, runtime, timer},
    metrics::NodeStats,
};

/// How long the word of the sentinels is taken for granted.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// How much longer the others are waited for when one sentinel has answered.
const STRAGGLERS: Duration = Duration::from_millis(100);

const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

pub(super) struct SentinelServer {
    sentinels: Vec<Arc<Node>>,
    master: String,
    /// The log-in, without an address.
    server: NodeConfig,
    primary: Mutex<Primary>,
    closed: AtomicBool,
    stats: NodeStats,
}

#[derive(Default)]
struct Primary {
    node: Option<Arc<Node>>,
    /// When the sentinels were last asked; `None` if they are to be asked before the next request.
    asked: Option<Instant>,
}

impl SentinelServer {
    pub(super) fn new(sentinels: Vec<NodeConfig>, master: String, server: NodeConfig) -> Arc<Self> {
        let sentinels = sentinels.into_iter().map(Node::new).collect();
        Arc::new(Self {
            sentinels,
            master,
            server,
            primary: Mutex::default(),
            closed: AtomicBool::new(false),
            stats: NodeStats::default(),
        })
    }

    fn primary(&self) -> MutexGuard<'_, Primary> {
        self.primary.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The primary, as far as is known.
    async fn node(self: &Arc<Self>, expires: Instant) -> Result<Arc<Node>, CallError> {
        {
            let mut primary = self.primary();
            let now = Instant::now();
            if let (Some(node), Some(asked)) = (&primary.node, primary.asked) {
                let node = Arc::clone(node);
                if now.since(asked) > ASK_AGAIN {
                    primary.asked = Some(now);
                    let server = Arc::clone(self);
                    runtime::spawn(async move { drop(server.find(now.after(OPEN_TIMEOUT)).await) });
                }
                return Ok(node);
            }
        }
        self.find(expires).await
    }

    /// Asks the sentinels, and goes where they say.
    async fn find(self: &Arc<Self>, expires: Instant) -> Result<Arc<Node>, CallError> {
        let address = self.ask(expires).await?;
        let mut primary = self.primary();
        if self.is_closed() {
            return Err(CallError::not_sent(&self.master, "the manager is closed"));
        }
        primary.asked = Some(Instant::now());
        match &primary.node {
            Some(node) if node.address() == &address => Ok(Arc::clone(node)),
            _ => {
                tracing::debug!(master = self.master, %address, "the primary is here now");
                // Whoever still waits for the earlier one's answer keeps it until then.
                Ok(Arc::clone(primary.node.insert(Node::new(self.server.at(address)))))
            }
        }
    }

    /// The address that most of the sentinels name. If as many name another one, theirs who know of the later fail-over
    /// counts, or theirs who come first in the URL: all managers shall go to the same place, and stay there.
    async fn ask(&self, expires: Instant) -> Result<Address, CallError> {
        let ask = |(index, sentinel): (usize, &Arc<Node>)| {
            let answer = self.sentinel(sentinel, "GET-MASTER-ADDR-BY-NAME", expires);
            let sentinel = Arc::clone(sentinel);
            answer.map(move |answer| (index, sentinel, answer))
        };
        let mut answers: FuturesUnordered<_> = self.sentinels.iter().enumerate().map(ask).collect();
        let (mut named, mut errors) = (Vec::<(usize, Address)>::new(), Vec::new());
        let mut until = expires;
        while let Some(Some((index, sentinel, answer))) = timer::until(Some(until), answers.next()).await {
            match self.address(&sentinel, answer) {
                Ok(address) => {
                    named.push((index, address));
                    until = until.min(Instant::now().after(STRAGGLERS));
                }
                Err(error) => errors.push(error),
            }
        }
        named.sort_unstable_by_key(|(index, _)| *index);
        let voices = |address: &Address| named.iter().filter(|(_, other)| other == address).count();
        let most = named.iter().map(|(_, address)| voices(address)).max();
        let most: Vec<_> = named.iter().filter(|(_, address)| Some(voices(address)) == most).collect();
        if let [(_, first), others @ ..] = &most[..] {
            if others.iter().all(|(_, other)| other == first) {
                return Ok(first.clone());
            }
            let epochs = most.iter().map(|(index, _)| self.epoch(&self.sentinels[*index], expires));
            let epochs = future::join_all(epochs).await;
            let latest = epochs.iter().copied().max();
            let index = epochs.iter().position(|epoch| Some(*epoch) == latest).unwrap_or(0);
            return Ok(most[index].1.clone());
        }
        let fatal = errors.iter().position(|error| !error.is_retryable());
        let error = match fatal {
            Some(index) => errors.swap_remove(index),
            None => super::out_of_reach(errors),
        };
        Err(CallError::NotSent(error))
    }

    /// Asks one sentinel about the primary.
    fn sentinel(&self, sentinel: &Arc<Node>, what: &str, expires: Instant) -> BoxFuture<'static, Reply> {
        let mut command = redis::cmd("SENTINEL");
        command.arg(what).arg(&self.master);
        Arc::clone(sentinel).command(command, Driver::engine(), expires)
    }

    /// Which fail-over a sentinel knows of; 0 if it does not tell.
    async fn epoch(&self, sentinel: &Arc<Node>, expires: Instant) -> u64 {
        let patience = expires.min(Instant::now().after(STRAGGLERS));
        let Ok(state) = self.sentinel(sentinel, "MASTER", patience).await else { return 0 };
        let fields: Vec<_> = match &state {
            Value::Array(parts) => parts.chunks_exact(2).map(|pair| (text(&pair[0]), text(&pair[1]))).collect(),
            Value::Map(pairs) => pairs.iter().map(|(name, value)| (text(name), text(value))).collect(),
            _ => Vec::new(),
        };
        let epoch = fields.into_iter().find(|(name, _)| *name == Some("config-epoch"));
        epoch.and_then(|(_, epoch)| epoch?.parse().ok()).unwrap_or(0)
    }

    fn address(&self, sentinel: &Arc<Node>, answer: Reply) -> Result<Address, crate::Error> {
        let parts = match answer.map_err(CallError::into_error)? {
            Value::Array(parts) => parts,
            _ => Vec::new(),
        };
        let address = match &parts[..] {
            [host, port] => text(host).map(str::to_owned).zip(text(port).and_then(|port| port.parse().ok())),
            _ => None,
        };
        let (host, port) = address.ok_or_else(|| {
            crate::Error::unavailable(format!("{}: knows no master {:?}", sentinel.name(), self.master))
        })?;
        Ok(Address::Tcp(host, port))
    }

    /// It failed: the sentinels are to be asked before the next request.
    fn doubt(&self, node: &Arc<Node>) {
        let mut primary = self.primary();
        if primary.node.as_ref().is_some_and(|current| Arc::ptr_eq(current, node)) {
            primary.asked = None;
        }
    }

    async fn run(self: Arc<Self>, request: Errand, driver: Driver) -> Answer {
        let expires = request.expires;
        let (mut unanswered, mut earlier, mut pause) = (None, None, FIRST_PAUSE);
        loop {
            let error = match self.node(expires).await {
                Ok(node) => match Arc::clone(&node).run(request.clone(), driver.clone(), false).await {
                    Ok(Answered { value, repeated }) => {
                        super::clock_was_set(&value).map(|now| node.set_clock(&driver, now));
                        return Ok(Answered { value, repeated: repeated || unanswered.is_some() });
                    }
                    Err(error) => {
                        self.doubt(&node);
                        error
                    }
                },
                Err(error) => error,
            };
            let passes = match &error {
                CallError::NotSent(error) => error.is_retryable(),
                CallError::Unanswered(_) | CallError::Elsewhere(Elsewhere::Primary, _) => true,
                _ => false,
            };
            let again = Instant::now().after(pause);
            if matches!(error, CallError::Unanswered(_)) {
                unanswered = Some(error.clone());
            }
            if !passes || again >= expires || self.is_closed() {
                // What was sent before may have been carried out.
                return Err(unanswered.unwrap_or_else(|| error.or_before(earlier, expires)));
            }
            request.meets(&error);
            earlier = Some(error);
            timer::sleep_until(again).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

impl Server for SentinelServer {
    fn name(&self) -> &str {
        &self.master
    }

    fn known_run(&self) -> Option<Run> {
        None
    }

    fn any_run(&self, like: &mut dyn FnMut(Run) -> bool) -> bool {
        self.primary().node.as_ref().is_some_and(|node| node.any_run(like))
    }

    fn stats(&self) -> &NodeStats {
        &self.stats
    }

    fn run(self: Arc<Self>, request: Errand, driver: Driver) -> BoxFuture<'static, Answer> {
        async move { counted(&self.stats, Self::run(Arc::clone(&self), request, driver)).await }.boxed()
    }

    /// Done as soon as it is known, in [`run`](Self::run).
    fn set_clock(&self, _: &Driver, _: i64) -> i64 {
        0
    }

    fn command(self: Arc<Self>, command: redis::Cmd, driver: Driver, expires: Instant) -> BoxFuture<'static, Reply> {
        async move {
            let node = self.node(expires).await?;
            let reply = Arc::clone(&node).command(command, driver, expires).await;
            if matches!(reply, Err(CallError::NotSent(_) | CallError::Unanswered(_) | CallError::Elsewhere(..))) {
                self.doubt(&node);
            }
            reply
        }
        .boxed()
    }

    fn parts(self: Arc<Self>, _: Instant) -> BoxFuture<'static, Result<Vec<Arc<dyn Server>>, CallError>> {
        async { Ok(vec![self as Arc<dyn Server>]) }.boxed()
    }

    fn look(&self) {
        let node = self.primary().node.clone();
        node.iter().for_each(|node| node.look());
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    fn close(&self) {
        self.closed.store(true, Ordering::Release);
        let node = self.primary().node.take();
        for node in self.sentinels.iter().chain(&node) {
            node.close();
        }
    }
}

/// Weak, as the subscriptions do not keep it.
pub(super) struct Located(pub(super) std::sync::Weak<SentinelServer>);

impl Locate for Located {
    fn locate(&self) -> BoxFuture<'_, Result<NodeConfig, CallError>> {
        async {
            let server = self.0.upgrade().ok_or_else(|| CallError::not_sent("sentinel", "the manager is closed"))?;
            let address = server.ask(Instant::now().after(OPEN_TIMEOUT)).await?;
            Ok(server.server.at(address))
        }
        .boxed()
    }
}

/// A name or an address; neither is to be guessed at.
fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        _ => None,
    }
}
