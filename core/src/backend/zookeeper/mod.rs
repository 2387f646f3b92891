//! Locks in ZooKeeper.
//!
//! Each resource has a directory, each claim a *contender* in it: an ephemeral sequential node, whose name has the owner token of
//! the attempt that made it. Who is first in the order of the sequence holds ([`line`] says what that means for shared locks and
//! permits). The fencing token is the transaction that created the node, which grows over the whole ensemble.
//!
//! # Attempts and places
//!
//! The engine tries, is refused, waits and tries again with a new owner token. Here the place in line survives that: an attempt that is
//! refused and will be followed by another leaves its contender *parked*, with a watch on what it waits for, and the next
//! attempt for the same resources goes on with it, without a request as long as the watch is quiet ([`queue`]). So processes are served in the order in
//! which they came, and a hand-over wakes one waiter, however many there are. When it is its turn, the attempt writes its own owner token into the node. A parked
//! contender is deleted when the waiter leaves, and when no attempt has come back for it in time: a stalled waiter loses its place, nothing else.
//! A single try is not parked: it deletes its contender at once.
//!
//! Several resources at once: one transaction makes a contender in each line, so that the order is the same in all of them and
//! nobody waits in a circle.
//!
//! # What can happen between any two steps
//!
//! * *The answer to a creation is lost*: the owner token in the name finds the contender; it is deleted, never adopted ([`release`]).
//! * *The caller goes away*: the attempt goes on, on the engine, and undoes itself when it sees that it is over.
//! * *The connection breaks*: the session goes on over another one, to any server; a waiter keeps its place.
//! * *The session ends*: its contenders are deleted by the ensemble. Its leases have ended before ([`proof`]), and nothing of an old session is
//!   adopted by a new one.
//! * *The directory is deleted*, being empty: it is made again. Its numbers start anew, but then nobody is in line, and the
//!   fencing token does not depend on them.
//! * *The numbers run out*: then the transactions that made the nodes say who came first ([`line`]).
//! * *The contender that we wait for is gone before we watch it*: we look again.
//! * *A server that lags behind, or is cut off, answers*: it does not serve a session that has seen more than it has, and its answer comes after our own
//!   creation in the session's order, so it shows everybody who is before us. Who has left does not come back: what it does not show yet makes us wait, nothing else.
//! * *The ttl of a lease passes*: the engine releases it. The ensemble knows the session's timeout only.
//!
//! # Why the protocol is our own
//!
//! The `zookeeper-client` crate has its sockets and timers on async-io's global reactor, a thread that the child of a fork has not; it takes a session for
//! alive until 7/5 of its timeout, and does not say when what was answered was sent, which is what a lease is counted from.

mod attempt;
mod claim;
mod config;
mod inspection;
mod line;
mod link;
mod name;
mod place;
mod proof;
mod queue;
mod record;
mod release;
mod session;
mod tls;
mod wire;

use std::{
    fmt,
    future::Future,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use tokio::sync::oneshot;

pub(crate) use self::claim::Contention;
use self::{
    claim::Stage,
    config::Config,
    place::{Changes, Parked},
    session::{Failure, Session},
    wire::Request,
};
use super::{Answer, Attempt, Backend, Capabilities, Claim, Extension, Guarantee, Holder, Losable, Release, Watch};
use crate::{
    Error, Resource, Result,
    clock::Instant,
    connect::Options,
    engine::{driver::Driver, runtime, timer},
    lease::state::Drift,
    pattern::Pattern,
};

pub(crate) struct ZookeeperBackend(Arc<Ensemble>);

struct Ensemble {
    config: Arc<Config>,
    drift: Drift,
    node_timeout: Option<Duration>,
    session: Mutex<Slot>,
    parked: Parked,
    changes: Arc<Changes>,
}

#[derive(Default)]
struct Slot {
    session: Option<Arc<Session>>,
    closed: bool,
}

impl ZookeeperBackend {
    pub(crate) fn new(url: &str, options: &Options) -> Result<Self> {
        Ok(Self(Arc::new(Ensemble {
            config: Arc::new(Config::parse(url)?),
            drift: options.drift,
            node_timeout: options.node_timeout,
            session: Mutex::default(),
            parked: Parked::default(),
            changes: Arc::default(),
        })))
    }
}

impl fmt::Debug for ZookeeperBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.config.fmt(f)
    }
}

/// Runs `future` on the engine, to its end even if the caller goes away or stops waiting after `timeout`.
async fn on_engine<T: Send + 'static>(
    timeout: Duration,
    future: impl Future<Output = T> + Send + 'static,
) -> Result<T> {
    let (answer, answered) = oneshot::channel();
    runtime::spawn(async move { drop(answer.send(future.await)) });
    match timer::until(Some(Instant::now().after(timeout)), answered).await {
        Some(Ok(output)) => Ok(output),
        Some(Err(_)) => Err(Error::unavailable("the engine has stopped")),
        None => Err(Error::unavailable(format!("no answer in {timeout:?}"))),
    }
}

impl Ensemble {
    /// How long an operation may take.
    fn timeout(&self, ttl: Duration) -> Duration {
        self.node_timeout.unwrap_or((ttl / 3).clamp(Duration::from_millis(100), Duration::from_secs(4)))
    }

    /// The session with a connection; a new one if the last is over.
    async fn connected(&self) -> Result<Arc<Session>> {
        let session = {
            let mut slot = self.session.lock().unwrap_or_else(PoisonError::into_inner);
            if slot.closed {
                return Err(Error::closed());
            }
            match &slot.session {
                Some(session) if !session.is_over() => Arc::clone(session),
                _ => {
                    let session = Session::start(Arc::clone(&self.config), self.drift);
                    slot.session = Some(Arc::clone(&session));
                    session
                }
            }
        };
        session.connected().await?;
        Ok(session)
    }

    /// Adds to an answer that did not come in time what is known of the reason.
    fn explain(&self, error: Error) -> Error {
        let session = self.session.lock().unwrap_or_else(PoisonError::into_inner).session.clone();
        match session.and_then(|session| session.trouble()) {
            Some(trouble) => error.with_causes_of(&trouble),
            None => error,
        }
    }

    fn is_closed(&self) -> bool {
        self.session.lock().unwrap_or_else(PoisonError::into_inner).closed
    }

    fn directories(&self, resources: &[Resource]) -> Vec<String> {
        resources.iter().map(|resource| name::directory(&self.config.root, resource)).collect()
    }
}

impl Backend for ZookeeperBackend {
    fn system(&self) -> &'static str {
        "zookeeper"
    }

    fn servers(&self) -> Vec<String> {
        self.0.config.hosts.iter().map(|(host, port)| format!("{host}:{port}")).collect()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            guarantee: Guarantee::Fenced,
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

    fn check_reachable<'a>(&'a self, _: &'a Driver) -> Answer<'a, Result<()>> {
        let ensemble = Arc::clone(&self.0);
        Box::pin(async move {
            let timeout = self.0.timeout(Duration::MAX);
            on_engine(timeout, async move {
                let session = ensemble.connected().await?;
                // The log-in is judged with the first request.
                session.ask(Request::stat("/")).await.map(drop).map_err(Failure::into_error)
            })
            .await?
        })
    }

    fn settles_within(&self, _: Duration) -> Duration {
        // What a lost connection was asked may be carried out for as long as its session lives.
        let slot = self.0.session.lock().unwrap_or_else(PoisonError::into_inner);
        slot.session.as_ref().map_or(self.0.config.session_timeout, |session| session.timeout())
    }

    fn outlasts_ttl(&self) -> bool {
        true
    }

    fn try_acquire<'a>(&'a self, claim: &'a Claim, _: &'a Driver) -> Answer<'a, Attempt> {
        Box::pin(async {
            let attempt = Arc::clone(&self.0).acquire(claim.clone());
            let answer = on_engine(self.0.timeout(claim.ttl), attempt).await;
            answer.unwrap_or_else(|error| Attempt::Unknown(self.0.explain(error)))
        })
    }

    fn extend<'a>(&'a self, claim: &'a Claim, ttl: Duration, _: &'a Driver) -> Answer<'a, Extension> {
        Box::pin(async move {
            let extension = Arc::clone(&self.0).extend(claim.clone(), ttl);
            let answer = on_engine(self.0.timeout(ttl), extension).await;
            answer.unwrap_or_else(|error| Extension::Unknown(self.0.explain(error)))
        })
    }

    fn release<'a>(&'a self, claim: &'a Claim, _: &'a Driver) -> Answer<'a, Release> {
        Box::pin(async {
            let release = Arc::clone(&self.0).release(claim.clone());
            on_engine(self.0.timeout(claim.ttl), release).await.unwrap_or(Release::Unknown)
        })
    }

    fn inspect<'a>(&'a self, resource: &'a Resource, _: &'a Driver) -> Answer<'a, Result<Option<Holder>>> {
        Box::pin(async {
            let (ensemble, resource) = (Arc::clone(&self.0), resource.clone());
            let holders =
                on_engine(self.0.timeout(Duration::MAX), async move { ensemble.holders(&resource).await }).await??;
            Ok(holders.into_iter().max_by_key(|holder| holder.expires_in))
        })
    }

    fn list<'a>(&'a self, pattern: &'a Pattern, limit: usize, _: &'a Driver) -> Answer<'a, Result<Vec<Holder>>> {
        Box::pin(async move {
            let (ensemble, pattern) = (Arc::clone(&self.0), pattern.clone());
            // As long as it takes: each answer of the server is bounded, the number of locks is not.
            on_engine(Duration::MAX, async move { ensemble.list(&pattern, limit).await }).await?
        })
    }

    fn break_lock<'a>(&'a self, resource: &'a Resource, owner: &'a str, _: &'a Driver) -> Answer<'a, Result<bool>> {
        Box::pin(async {
            let (ensemble, resource, owner) = (Arc::clone(&self.0), resource.clone(), owner.to_owned());
            let breaking = async move { ensemble.break_lock(&resource, &owner).await };
            on_engine(self.0.timeout(Duration::MAX), breaking).await?
        })
    }

    fn watch(&self, resource: &Resource) -> Watch {
        let changes = self.0.changes.subscribe(resource);
        Watch::new(changes, Waiter { ensemble: Arc::downgrade(&self.0), resource: resource.clone() })
    }

    fn on_loss(&self, claim: &Claim, lease: Weak<dyn Losable>) {
        let stage = claim.progress.contention.stage().clone();
        if let Stage::Has(place) = stage {
            place.session.tell(claim.owner, lease);
        }
    }

    fn close(&self) {
        let session = {
            let mut slot = self.0.session.lock().unwrap_or_else(PoisonError::into_inner);
            slot.closed = true;
            slot.session.take()
        };
        // With it go the contenders that are still parked.
        self.0.parked.clear();
        if let Some(session) = session {
            session.close();
        }
    }
}

/// Somebody of this manager waits; leaves the line when dropped.
struct Waiter {
    ensemble: Weak<Ensemble>,
    resource: Resource,
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if let Some(ensemble) = self.ensemble.upgrade() {
            ensemble.changes.unsubscribe(&self.resource);
            let places = ensemble.parked.take_all_of(&self.resource);
            ensemble.delete_in_background(places);
        }
    }
}
