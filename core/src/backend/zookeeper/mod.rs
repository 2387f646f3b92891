//! Locks in ZooKeeper.
//!
//! Each resource has a directory, each claim a *contender* in it: an ephemeral sequential node, whose name has the owner token of
//! the attempt that made it. Who is first in the order of the sequence holds ([`line`] says what that means for shared locks and
//! permits). The fencing token is the transaction that created the node, which grows over the whole ensemble.
//!
//! # Attempts and places
//!
//! The engine tries, is refused, waits and tries again with a new owner token. Here the place in line survives that: an attempt that is
//! refused and will be followed by another leaves its contender *parked*, with a watch on the one contender that it waits for,
//! and the next attempt for the same resources goes on with it. So processes are served in the order in which they came, and a hand-over wakes one
//! waiter, however many there are (permits: all who wait). When it is its turn, the attempt writes its own owner token into the node. A parked
//! contender is deleted when the waiter leaves, and when no attempt has come back for it within [`KEPT`]: a stalled waiter loses its place, nothing else.
//! A single try is not parked: it deletes its contender at once.
//!
//! Several resources at once: one transaction makes a contender in each line, so that the order is the same in all of them and
//! nobody waits in a circle.
//!
//! # What can happen between any two steps
//!
//! * *The answer to a creation is lost*: the owner token in the name finds the contender; it is deleted, never adopted.
//! * *The caller goes away*: the attempt goes on, on the engine, and undoes itself when it sees that it is over.
//! * *The session ends*: its contenders are deleted by the ensemble. Its leases have ended before ([`session`]), and nothing of an old session is adopted by a new one.
//! * *The directory is deleted*, being empty: it is made again. Its numbers start anew, but then nobody is in line, and the
//!   fencing token does not depend on them.
//! * *The contender that we wait for is gone before we watch it*: we look again.
//! * *A server that lags behind answers*: it does not serve a session that has seen more than it has; a look comes after our own creation
//!   in the session's order, so it sees everybody who is before us.
//! * *The ttl of a lease passes*: the engine releases it. The ensemble knows the session's timeout only.

mod config;
mod line;
mod name;
mod place;
mod record;
mod session;
mod wire;

use std::{
    fmt,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, SystemTime},
};

use futures_util::future::join_all;
use tokio::sync::{oneshot, watch};

use self::{
    config::Config,
    line::Standing,
    place::{Changes, Parked, Place},
    session::{Failure, Session},
    wire::{Kind, Request, code},
};
use super::{Answer, Attempt, Backend, Capabilities, Claim, Extension, Guarantee, Holder, Release, Watch};
use crate::{
    Error, Resource, Result,
    clock::Instant,
    connect::Options,
    engine::{driver::Driver, runtime, timer},
    lease::state::Drift,
};

/// How long a parked contender waits for its waiter, who looks several times a second.
const KEPT: Duration = Duration::from_secs(2);

/// What one claim has in ZooKeeper.
#[derive(Debug, Default)]
pub(crate) struct Contention(Mutex<Stage>);

#[derive(Clone, Debug, Default)]
enum Stage {
    #[default]
    New,
    /// An attempt is on its way; the channel closes when it is over.
    Trying(watch::Receiver<()>),
    /// Refused; another attempt may have taken the place over.
    Parked(Arc<Place>),
    /// It holds, or has contenders that are to be deleted.
    Has(Arc<Place>),
    /// It may have contenders that we do not know.
    Unsure,
    /// It has nothing, and gets nothing any more.
    Over,
}

impl Contention {
    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What became of an attempt.
enum Outcome {
    Granted {
        place: Arc<Place>,
        since: Instant,
    },
    Parked(Arc<Place>),
    Busy {
        foreign: bool,
    },
    /// Nothing was made.
    Refused(Error),
    /// Something may be left of it: this, or what is not known.
    Left(Option<Arc<Place>>, Error),
}

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

    fn is_closed(&self) -> bool {
        self.session.lock().unwrap_or_else(PoisonError::into_inner).closed
    }

    fn directories(&self, resources: &[Resource]) -> Vec<String> {
        resources.iter().map(|resource| name::directory(&self.config.root, resource)).collect()
    }

    async fn acquire(self: Arc<Self>, claim: Claim) -> Attempt {
        let (_until_over, trying) = watch::channel(());
        {
            let mut stage = claim.progress.contention.stage();
            if !matches!(*stage, Stage::New) {
                return Attempt::Refused(Error::closed()); // given up before it began
            }
            *stage = Stage::Trying(trying);
        }
        let outcome = self.contend(&claim).await;
        let (stage, attempt) = match outcome {
            Outcome::Granted { place, since } => {
                // To be told before the engine looks, and before the claim can be seen to hold.
                let _ = claim.progress.session.set(Arc::clone(place.session.end()));
                let fencing_token = place.token;
                (Stage::Has(place), Attempt::Granted { fencing_token, since })
            }
            Outcome::Parked(place) => (Stage::Parked(place), Attempt::held_for(None)),
            Outcome::Busy { foreign } => {
                let busy = Attempt::Busy { free_in: None, foreign, contended: false, residue: false };
                (Stage::Over, busy)
            }
            Outcome::Refused(error) => (Stage::Over, Attempt::Refused(error)),
            Outcome::Left(place, error) => (place.map_or(Stage::Unsure, Stage::Has), Attempt::Unknown(error)),
        };
        // Whoever gives it up from now on finds the stage; who did before waits for us to be over, and finds it then.
        *claim.progress.contention.stage() = stage;
        attempt
    }

    async fn contend(self: &Arc<Self>, claim: &Claim) -> Outcome {
        let session = match self.connected().await {
            Ok(session) => session,
            Err(error) => return Outcome::Refused(error),
        };
        if claim.progress.is_over() {
            return Outcome::Refused(Error::closed());
        }
        let parked = if claim.waits { self.parked.take(&claim.resources, claim.mode) } else { None };
        let (parked, outdated): (Vec<_>, Vec<_>) =
            parked.into_iter().partition(|place| Arc::ptr_eq(&place.session, &session));
        self.delete_in_background(outdated);
        let (place, made_at) = match parked.into_iter().next() {
            Some(place) => (place, None),
            None => match self.make_place(&session, claim).await {
                Ok((place, sent)) => (place, Some(sent)),
                Err(Failure::Unanswered(error)) => return Outcome::Left(None, error),
                Err(failure) => return Outcome::Refused(failure.into_error()),
            },
        };
        let waits = claim.waits && !claim.progress.is_over();
        match self.look(&place, waits).await {
            Ok(Standing::First) => {}
            Ok(Standing::Behind { foreign: false, .. }) if waits => {
                self.park(&place);
                return Outcome::Parked(place);
            }
            Ok(standing) => {
                let foreign = matches!(standing, Standing::Behind { foreign: true, .. });
                return match self.delete(&place).await {
                    Ok(_) if standing == Standing::Gone => {
                        Outcome::Refused(Error::unavailable("our contender was deleted"))
                    }
                    Ok(_) => Outcome::Busy { foreign },
                    Err(error) => Outcome::Left(Some(place), error),
                };
            }
            Err(failure) => return Outcome::Left(Some(place), failure.into_error()),
        }
        place.settle();
        if let Some(since) = made_at {
            return Outcome::Granted { place, since };
        }
        // An earlier attempt made it.
        match self.write(&place, claim, claim.ttl).await {
            Ok(since) => Outcome::Granted { place, since },
            Err(failure) => Outcome::Left(Some(place), failure.into_error()),
        }
    }

    /// Gets in line. Answers also when the request for that was sent.
    async fn make_place(&self, session: &Arc<Session>, claim: &Claim) -> Result<(Arc<Place>, Instant), Failure> {
        const MOST_TRIES: u32 = 4;
        let directories = self.directories(&claim.resources);
        let prefixes: Vec<_> =
            directories.iter().map(|directory| name::contender(directory, claim.mode, claim.owner)).collect();
        let (data, acl) = (record::write(claim, claim.ttl, SystemTime::now()), self.config.acl());
        let mut tries = 0;
        loop {
            let made = match &prefixes[..] {
                [prefix] => {
                    let create = Request::create(prefix, &data, acl, Kind::EphemeralSequential);
                    match session.ask(create).await {
                        Ok(reply) => {
                            let (path, stat) = reply.read(|answer| answer.placed())?;
                            Ok((vec![path], stat.created_zxid, reply.sent))
                        }
                        Err(failure) => Err(failure),
                    }
                }
                _ => match session.ask(Request::create_all(&prefixes, &data, acl)).await {
                    Ok(reply) => match reply.read(|answer| answer.created())? {
                        Ok(paths) => {
                            let stat = session.ask(Request::stat(&paths[0])).await;
                            // They are there, whatever became of this question.
                            let unanswered = |failure: Failure| Failure::Unanswered(failure.into_error());
                            let stat = stat.map_err(unanswered)?.read(|answer| answer.stat())?;
                            Ok((paths, stat.created_zxid, reply.sent))
                        }
                        Err(code) => Err(Failure::Refused(code)),
                    },
                    Err(failure) => Err(failure),
                },
            };
            match made {
                Ok((paths, zxid, sent)) => {
                    let token = u64::try_from(zxid).unwrap_or(0);
                    let (resources, changes) = (&claim.resources, &self.changes);
                    let place = Place::new(session, resources, claim.mode, directories, (paths, token), changes);
                    return Ok((place, sent));
                }
                // The server deletes an empty directory now and then, even right after we made it.
                Err(failure) if failure.is(code::NO_NODE) && tries < MOST_TRIES => {
                    tries += 1;
                    for directory in &directories {
                        self.make_directory(session, directory).await?;
                    }
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    /// Nothing of a claim's is made here: what fails was not sent, as far as the claim is concerned.
    async fn make_directory(&self, session: &Session, directory: &str) -> Result<(), Failure> {
        let make =
            async |path: &str, kind| match session.ask(Request::create(path, b"", self.config.acl(), kind)).await {
                Err(failure) if failure.is(code::NODE_EXISTS) => Ok(()),
                Err(Failure::Unanswered(error)) => Err(Failure::NotSent(error)),
                made => made.map(drop),
            };
        match make(directory, Kind::Container).await {
            Err(failure) if failure.is(code::NO_NODE) => {}
            made => return made,
        }
        let root = &self.config.root;
        for (end, _) in root.match_indices('/').skip(1).chain([(root.len(), "")]) {
            make(&root[..end], Kind::Persistent).await?;
        }
        make(directory, Kind::Container).await
    }

    /// How it stands in the line where it is worst; if it `waits`, what it waits for is watched.
    async fn look(&self, place: &Place, waits: bool) -> Result<Standing<'static>, Failure> {
        let session = &place.session;
        'again: loop {
            for (directory, path) in place.directories.iter().zip(&place.paths) {
                let any_change = waits && matches!(place.mode, crate::Mode::Permit { .. });
                let listed = if any_change && place.begins_to_watch(directory) {
                    session.ask_and_watch(Request::children(directory, true), directory, &place.bell).await
                } else {
                    session.ask(Request::children(directory, false)).await
                };
                let children = match listed {
                    Ok(reply) => reply.read(|answer| answer.children())?,
                    Err(failure) if failure.is(code::NO_NODE) => return Ok(Standing::Gone),
                    Err(failure) => return Err(failure),
                };
                let own = path.strip_prefix(directory).and_then(|path| path.strip_prefix('/')).unwrap_or(path);
                match line::standing(&children, own, place.mode) {
                    Standing::First => {}
                    Standing::Gone => return Ok(Standing::Gone),
                    Standing::Behind { watch: Some(before), foreign } => {
                        let before = format!("{directory}/{before}");
                        if waits && place.begins_to_watch(&before) {
                            let watched = Request::data(&before, true);
                            match session.ask_and_watch(watched, &before, &place.bell).await {
                                Ok(_) => {}
                                Err(failure) => {
                                    place.watches_nothing();
                                    if failure.is(code::NO_NODE) {
                                        continue 'again;
                                    }
                                    return Err(failure);
                                }
                            }
                        }
                        return Ok(Standing::Behind { watch: None, foreign });
                    }
                    Standing::Behind { watch: None, foreign } => {
                        return Ok(Standing::Behind { watch: None, foreign });
                    }
                }
            }
            return Ok(Standing::First);
        }
    }

    /// Says in the contenders who holds and for how long. Answers when that was sent.
    async fn write(&self, place: &Place, claim: &Claim, ttl: Duration) -> Result<Instant, Failure> {
        let data = record::write(claim, ttl, place.since);
        let reply = place.session.ask(Request::set_all(&place.paths, &data)).await?;
        match reply.read(|answer| answer.all_set())? {
            Ok(()) => Ok(reply.sent),
            Err(code) => Err(Failure::Refused(code)),
        }
    }

    /// Keeps the place for the next attempt.
    fn park(self: &Arc<Self>, place: &Arc<Place>) {
        let is_new = place.keep_until(Instant::now().after(KEPT));
        if let Some(other) = self.parked.put(place) {
            self.delete_in_background(vec![other]);
        }
        if is_new {
            runtime::spawn(tend(Arc::downgrade(self), Arc::clone(place)));
        }
    }

    /// Deletes the contenders; says how many were there.
    async fn delete(&self, place: &Place) -> Result<usize> {
        let session = self.connected().await?;
        let answers = join_all(place.paths.iter().map(|path| session.ask(Request::delete(path)))).await;
        let mut deleted = 0;
        for answer in answers {
            match answer {
                Ok(_) => deleted += 1,
                Err(failure) if failure.is(code::NO_NODE) => {}
                Err(failure) => return Err(failure.into_error()),
            }
        }
        place.settle();
        Ok(deleted)
    }

    fn delete_in_background(self: &Arc<Self>, places: Vec<Arc<Place>>) {
        let ensemble = Arc::clone(self);
        if !places.is_empty() {
            runtime::spawn(async move {
                for place in places {
                    ensemble.delete_surely(&place).await;
                }
            });
        }
    }

    /// Deletes again and again, until the session that made them must be gone too.
    async fn delete_surely(&self, place: &Place) {
        const PAUSE: Duration = Duration::from_millis(200);
        let expires = Instant::now().after(self.config.session_timeout * 2);
        while !self.is_closed() && Instant::now() < expires {
            match self.delete(place).await {
                Ok(_) => return,
                Err(error) => tracing::debug!(?place, %error, "not deleted yet"),
            }
            timer::sleep_until(Instant::now().after(PAUSE)).await;
        }
    }

    async fn release(self: Arc<Self>, claim: Claim) -> Release {
        claim.progress.give_up();
        let contention = &claim.progress.contention;
        if self.is_closed() {
            return Release::Released; // with the session
        }
        loop {
            let stage = {
                let mut stage = contention.stage();
                if matches!(*stage, Stage::New) {
                    *stage = Stage::Over;
                }
                stage.clone()
            };
            let place = match stage {
                Stage::New | Stage::Over => return Release::Released,
                Stage::Trying(mut until_over) => {
                    // The attempt closes the channel when it is over, or is lost with the engine.
                    while until_over.changed().await.is_ok() {}
                    let mut stage = contention.stage();
                    if matches!(*stage, Stage::Trying(_)) {
                        *stage = Stage::Unsure;
                    }
                    continue;
                }
                Stage::Parked(place) if self.parked.take_this(&place, || true) => place,
                Stage::Parked(_) => {
                    *contention.stage() = Stage::Over;
                    return Release::Released; // the next attempt has the place
                }
                Stage::Has(place) => place,
                Stage::Unsure => return self.sweep(&claim).await,
            };
            *contention.stage() = Stage::Has(Arc::clone(&place));
            return match self.delete(&place).await {
                Ok(deleted) => {
                    *contention.stage() = Stage::Over;
                    if deleted == place.paths.len() { Release::Released } else { Release::NotHeld }
                }
                Err(error) => {
                    tracing::debug!(?place, %error, "not released");
                    Release::Unknown
                }
            };
        }
    }

    /// Looks for contenders of the claim's owner and deletes them.
    async fn sweep(&self, claim: &Claim) -> Release {
        let found = async {
            let session = self.connected().await?;
            let mut found = 0;
            for directory in self.directories(&claim.resources) {
                let children = match session.ask(Request::children(&directory, false)).await {
                    Ok(reply) => reply.read(|answer| answer.children()).map_err(Failure::into_error)?,
                    Err(failure) if failure.is(code::NO_NODE) => continue,
                    Err(failure) => return Err(failure.into_error()),
                };
                let ours = children.iter().filter_map(|child| name::Contender::read(child));
                for contender in ours.filter(|contender| contender.owner == claim.owner.as_str()) {
                    match session.ask(Request::delete(&format!("{directory}/{}", contender.name))).await {
                        Ok(_) => found += 1,
                        Err(failure) if failure.is(code::NO_NODE) => {}
                        Err(failure) => return Err(failure.into_error()),
                    }
                }
            }
            Ok::<usize, Error>(found)
        };
        match found.await {
            Ok(0) => Release::NotHeld,
            Ok(_) => {
                *claim.progress.contention.stage() = Stage::Over;
                Release::Released
            }
            Err(error) => {
                tracing::debug!(owner = %claim.owner, %error, "not released");
                Release::Unknown
            }
        }
    }

    async fn extend(self: Arc<Self>, claim: Claim, ttl: Duration) -> Extension {
        let Stage::Has(place) = claim.progress.contention.stage().clone() else { return Extension::Lost };
        if let Err(error) = place.session.connected().await {
            // Its contenders went with the session.
            tracing::debug!(?place, %error, "not extended");
            return Extension::Lost;
        }
        match self.write(&place, &claim, ttl).await {
            Ok(since) => Extension::Extended { since },
            Err(failure) if failure.is(code::NO_NODE) => Extension::Lost,
            Err(failure) => Extension::Unknown(failure.into_error()),
        }
    }

    async fn inspect(self: Arc<Self>, resource: Resource) -> Result<Option<Holder>> {
        let session = self.connected().await?;
        let directory = name::directory(&self.config.root, &resource);
        loop {
            let children = match session.ask(Request::children(&directory, false)).await {
                Ok(reply) => reply.read(|answer| answer.children()).map_err(Failure::into_error)?,
                Err(failure) if failure.is(code::NO_NODE) => return Ok(None),
                Err(failure) => return Err(failure.into_error()),
            };
            let Some(first) = line::first(&children) else { return Ok(None) };
            let path = format!("{directory}/{}", first.name);
            match session.ask(Request::data(&path, false)).await {
                Ok(reply) => {
                    let (data, stat) = reply.read(|answer| answer.data()).map_err(Failure::into_error)?;
                    let modified = u64::try_from(stat.modified_ms).ok().and_then(record::at);
                    let token = u64::try_from(stat.created_zxid).ok();
                    return Ok(Some(record::read(
                        &resource,
                        &data,
                        first.owner,
                        token,
                        modified.unwrap_or_else(SystemTime::now),
                    )));
                }
                Err(failure) if failure.is(code::NO_NODE) => {} // left in between
                Err(failure) => return Err(failure.into_error()),
            }
        }
    }
}

/// Deletes a parked place when its waiter has not come back in time; there until the place is held or deleted.
async fn tend(ensemble: Weak<Ensemble>, place: Arc<Place>) {
    while !place.is_settled() {
        let kept_until = place.kept_until().max(Instant::now().after(KEPT / 4));
        timer::sleep_until(kept_until).await;
        let Some(ensemble) = ensemble.upgrade() else { return };
        if ensemble.parked.take_this(&place, || Instant::now() >= place.kept_until()) {
            ensemble.delete_surely(&place).await;
            return;
        }
    }
}

impl Backend for ZookeeperBackend {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            guarantee: Guarantee::Fenced,
            fencing: true,
            across_processes: true,
            across_hosts: true,
            shared: true,
            semaphore: true,
            several: true,
            inspection: true,
            listing: false,
            breaking: false,
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
        self.0.config.session_timeout
    }

    fn try_acquire<'a>(&'a self, claim: &'a Claim, _: &'a Driver) -> Answer<'a, Attempt> {
        Box::pin(async {
            let attempt = Arc::clone(&self.0).acquire(claim.clone());
            on_engine(self.0.timeout(claim.ttl), attempt).await.unwrap_or_else(Attempt::Unknown)
        })
    }

    fn extend<'a>(&'a self, claim: &'a Claim, ttl: Duration, _: &'a Driver) -> Answer<'a, Extension> {
        Box::pin(async move {
            let extension = Arc::clone(&self.0).extend(claim.clone(), ttl);
            on_engine(self.0.timeout(ttl), extension).await.unwrap_or_else(Extension::Unknown)
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
            let inspection = Arc::clone(&self.0).inspect(resource.clone());
            on_engine(self.0.timeout(Duration::MAX), inspection).await?
        })
    }

    fn watch(&self, resource: &Resource) -> Watch {
        let changes = self.0.changes.subscribe(resource);
        Watch::new(changes, Waiter { ensemble: Arc::downgrade(&self.0), resource: resource.clone() })
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
