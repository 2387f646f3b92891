//! The lease as its holder has it.

use std::{
    fmt,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::FutureExt;
use tokio::sync::Notify;

use super::state::{LeaseState, LossReason, Step};
use crate::{
    Error, ErrorKind, Mode, OwnerToken, Release, Resource, Result,
    backend::{Claim, Extension, Losable},
    clock::Instant,
    engine::{
        driver::Driver,
        runtime,
        timer::{self, Alarm, AlarmKey},
    },
    events::{Event, EventKind},
    manager::Manager,
    metrics::{Ended, Renewed, Series},
    options,
    target::Names,
    undo,
};

/// A held lock.
///
/// It is renewed in the background (unless [`Acquire::auto_extend`](crate::Acquire::auto_extend) was turned
/// off) until it is released, dropped or lost. Dropping it releases it in the background; prefer
/// [`release`](Self::release), which says what became of it. May be used from several threads at once.
///
/// In the child of a fork a lease is disowned: it stays the parent's, every use answers `Forked`, and dropping
/// it sends nothing.
pub struct Lease {
    /// `None` only while it is being dropped.
    held: Option<Arc<Held>>,
}

/// The lease as the engine has it.
pub(crate) struct Held {
    pub(crate) manager: Arc<Manager>,
    pub(crate) claim: Claim,
    grant: Grant,
    inner: Mutex<Inner>,
    /// Something changed: an extension is over, the lease was lost or released.
    changed: Notify,
}

/// What a backend granted.
pub(crate) struct Grant {
    pub(crate) fencing_token: u64,
    /// When it was asked for.
    pub(crate) since: Instant,
    /// Where the lease is counted.
    pub(crate) series: Arc<Series>,
}

struct Inner {
    state: LeaseState,
    alarm: Option<(Instant, AlarmKey)>,
    on_lost: Vec<Box<dyn FnOnce(LossReason) + Send>>,
    /// Why the last extension came to nothing, if it did.
    failure: Option<Error>,
}

impl Lease {
    /// Takes over what a backend granted, and arms its alarms.
    pub(crate) fn new(manager: Arc<Manager>, claim: Claim, grant: Grant, state: LeaseState) -> Self {
        let inner = Inner { state, alarm: None, on_lost: Vec::new(), failure: None };
        let held = Arc::new(Held { manager, claim, grant, inner: Mutex::new(inner), changed: Notify::new() });
        held.manager.leases.insert(&held);
        held.look();
        let weak = Arc::downgrade(&held);
        held.manager.backend.on_loss(&held.claim, weak);
        Self { held: Some(held) }
    }

    fn held(&self) -> &Arc<Held> {
        match &self.held {
            Some(held) => held,
            None => unreachable!("taken out by drop alone"),
        }
    }

    /// The lease, if it belongs to this process.
    fn own(&self) -> Result<&Arc<Held>> {
        let held = self.held();
        held.manager.check_process().map_err(|error| error.on(&Names(&held.claim.resources).to_string()))?;
        Ok(held)
    }

    /// What is locked; the first of several.
    pub fn resource(&self) -> &Resource {
        self.held().claim.resource()
    }

    /// All that is locked, sorted.
    pub fn resources(&self) -> &[Resource] {
        &self.held().claim.resources
    }

    /// How it is held.
    pub fn mode(&self) -> Mode {
        self.held().claim.mode
    }

    /// Proves ownership to the backend.
    pub fn owner_token(&self) -> &OwnerToken {
        &self.held().claim.owner
    }

    /// Greater than every earlier holder's of this resource, and below 2^53. Hand it to what you protect, and let
    /// that refuse a smaller one than it has seen.
    pub fn fencing_token(&self) -> u64 {
        self.held().grant.fencing_token
    }

    /// Until when the holder may act. In the past once the lease was lost or released.
    pub fn deadline(&self) -> Instant {
        match self.own() {
            Ok(held) => held.inner().state.deadline(),
            Err(_) => Instant::now(),
        }
    }

    /// How long the holder may still act; zero once the lease was lost or released. Asks the clock, no server.
    pub fn remaining(&self) -> Duration {
        let Ok(held) = self.own() else { return Duration::ZERO };
        let (now, inner) = (Instant::now(), held.inner());
        if inner.state.is_held(now) { inner.state.deadline().since(now) } else { Duration::ZERO }
    }

    /// Whether the holder may act now. Asks the clock, no server.
    pub fn is_held(&self) -> bool {
        self.own().is_ok_and(|held| held.inner().state.is_held(Instant::now()))
    }

    /// Why the lease was lost, if it was. Asks the clock, so that a process that was paused past the deadline
    /// learns of it before any alarm could ring.
    pub fn loss(&self) -> Option<LossReason> {
        self.own().ok().and_then(|held| held.inner().state.lost(Instant::now()))
    }

    /// What kept the lease from being extended, if its deadline passed for that.
    pub fn last_failure(&self) -> Option<Error> {
        self.own().ok().and_then(|held| held.last_failure())
    }

    /// Waits until the lease is lost, no longer than to its deadline; `None` once it was released instead.
    pub fn lost(&self) -> impl Future<Output = Option<LossReason>> + Send + 'static {
        let held = self.own().map(Arc::clone);
        async move {
            let held = held.ok()?;
            loop {
                let changed = held.changed.notified();
                let mut changed = std::pin::pin!(changed);
                changed.as_mut().enable();
                let (lost, ended) = {
                    let inner = held.inner();
                    (inner.state.lost(Instant::now()), inner.state.is_given_up())
                };
                if lost.is_some() || ended {
                    return lost;
                }
                // The alarm at the deadline rings `changed` as well.
                changed.await;
            }
        }
    }

    /// Calls `listener` once if the lease is lost: no later than at its deadline, never after a release.
    ///
    /// It runs on an engine thread (or here, if the lease is lost already) and must be quick and not wait.
    pub fn on_lost(&self, listener: impl FnOnce(LossReason) + Send + 'static) {
        let Ok(held) = self.own() else { return };
        let lost = {
            let mut inner = held.inner();
            if inner.state.is_given_up() {
                return;
            }
            match inner.state.told() {
                Some(reason) => reason,
                None => return inner.on_lost.push(Box::new(listener)),
            }
        };
        listener(lost);
    }

    /// Makes the lease last until `ttl` from now (its own ttl if `None`), which is also the ttl of later renewals.
    ///
    /// # Errors
    /// `Lost` if it is not held any more, `Unavailable` if the backend did not answer (the old deadline stands),
    /// `InvalidArgument` for `ttl`, `Forked`, `Closed`.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the lease with its old or its new deadline.
    pub async fn extend(&self, ttl: Option<Duration>) -> Result<()> {
        self.extend_by(ttl, &Driver::here()).await
    }

    /// As [`extend`](Self::extend), on connections that `driver` drives.
    #[doc(hidden)]
    pub async fn extend_by(&self, ttl: Option<Duration>, driver: &Driver) -> Result<()> {
        let held = self.own()?;
        if let Some(ttl) = ttl {
            options::check_ttl(ttl)?;
        }
        held.extend(ttl, driver).await.map_err(|error| error.on(&Names(&held.claim.resources).to_string()))
    }

    /// Leaves it to its ttl: it is not renewed any more, nobody is told when it ends, and neither dropping it nor
    /// closing the manager releases it. For a holder that wants the lock to stay taken without it.
    #[doc(hidden)]
    pub fn leave(&self) -> Result<()> {
        let held = self.own()?;
        if held.begin_release(Ended::Released) {
            held.end_release();
        }
        Ok(())
    }

    /// Frees the lock, in one round. Renewal stops first, and one that is on its way is waited out. Calling it
    /// again is harmless and answers [`Release::NotHeld`].
    ///
    /// # Errors
    /// `Forked`. A server that does not answer is not an error: see [`Release::Unknown`].
    ///
    /// # Cancel safety
    /// Dropping the future leaves the release to the background.
    pub async fn release(&self) -> Result<Release> {
        self.release_by(&Driver::here()).await
    }

    /// As [`release`](Self::release), on connections that `driver` drives.
    #[doc(hidden)]
    pub async fn release_by(&self, driver: &Driver) -> Result<Release> {
        Ok(self.end_by(driver).await?.unwrap_or(Release::NotHeld))
    }

    /// As [`release_by`](Self::release_by), but `None` if it had been released or lost before: then
    /// [`Release::NotHeld`] means that it was taken, and nobody had noticed.
    #[doc(hidden)]
    pub async fn end_by(&self, driver: &Driver) -> Result<Option<Release>> {
        Ok(self.own()?.release(driver).await)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(held) = self.held.take() else { return };
        if held.manager.check_process().is_err() {
            // The parent's: its sockets and event queues must not be taken apart here.
            std::mem::forget(held);
        } else if held.begin_release(Ended::Dropped) {
            undo::in_background(&held.manager, held.claim.clone(), Instant::now());
            held.end_release();
        }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("resources", &self.resources())
            .field("fencing_token", &self.fencing_token())
            .field("remaining", &self.remaining())
            .finish_non_exhaustive()
    }
}

impl Held {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn last_failure(&self) -> Option<Error> {
        let inner = self.inner();
        let expired = inner.state.lost(Instant::now()) == Some(LossReason::Expired);
        expired.then(|| inner.failure.clone()).flatten()
    }

    /// The error of what only the holder may do.
    fn not_held(&self) -> Error {
        let error = Error::new(ErrorKind::Lost, "the lease is not held any more");
        self.last_failure().into_iter().fold(error, Error::caused_by)
    }

    /// Does what is due now, and sets the alarm for what is due next.
    fn look(self: &Arc<Self>) {
        let now = Instant::now();
        let mut inner = self.inner();
        let step = inner.state.at(now);
        let next = match step {
            Step::WaitUntil(at) => Some(at),
            Step::Renew => Some(inner.state.end()),
            Step::Lose(_) | Step::Rest => None,
        };
        let replaced = match inner.alarm {
            // One that is about to ring, or has, is no use any more.
            Some((at, _)) if Some(at) == next && at > now => None,
            other => {
                inner.alarm = None;
                if let Some(at) = next {
                    inner.alarm = timer::set(at, Arc::clone(self) as Arc<dyn Alarm>).map(|key| (at, key));
                }
                other
            }
        };
        drop(inner);
        cancel_alarm(replaced);
        match step {
            Step::Renew => {
                let held = Arc::clone(self);
                runtime::spawn(async move { held.renew().await });
            }
            Step::Lose(reason) => self.tell_lost(reason),
            Step::WaitUntil(_) | Step::Rest => {}
        }
    }

    async fn renew(self: Arc<Self>) {
        if let Err(error) = self.finish_extension(None, &Driver::engine()).await {
            tracing::debug!(resource = %Names(&self.claim.resources), %error, "not renewed");
        }
    }

    async fn extend(self: &Arc<Self>, ttl: Option<Duration>, driver: &Driver) -> Result<()> {
        loop {
            let changed = self.changed.notified();
            let mut changed = std::pin::pin!(changed);
            changed.as_mut().enable();
            {
                let mut inner = self.inner();
                if inner.state.begin_extension(Instant::now()) {
                    break;
                }
                if !inner.state.is_extending() {
                    drop(inner);
                    self.lapse();
                    return Err(self.not_held());
                }
            }
            changed.await; // a renewal is on its way
        }
        self.finish_extension(ttl, driver).await
    }

    /// Asks the backend; the state has been told that an extension has begun.
    async fn finish_extension(self: &Arc<Self>, ttl: Option<Duration>, driver: &Driver) -> Result<()> {
        /// Tells the state when the extension is over, also when it was cancelled.
        struct Over<'a>(&'a Arc<Held>);
        impl Drop for Over<'_> {
            fn drop(&mut self) {
                self.0.inner().state.extension_unknown();
                self.0.changed.notify_waiters();
                self.0.look();
            }
        }
        let over = Over(self);
        let ttl = ttl.unwrap_or_else(|| self.inner().state.ttl());
        let outcome = self.manager.backend.extend(&self.claim, ttl, driver).await;
        let now = Instant::now();
        let (step, remaining) = {
            let mut inner = self.inner();
            let remaining = inner.state.deadline().since(now);
            match outcome {
                Extension::Extended { since } => {
                    let counts = inner.state.extended(now, since, ttl);
                    if counts {
                        inner.failure = None;
                    }
                    drop(inner);
                    let extended = if counts { Renewed::Extended } else { Renewed::Lost };
                    self.note_extension(extended, remaining, now, None);
                    return if counts { Ok(()) } else { Err(self.not_held()) };
                }
                Extension::Unknown(error) => {
                    inner.failure = Some(error.clone());
                    drop(inner);
                    self.note_extension(Renewed::Failed, remaining, now, Some(&error));
                    return Err(error);
                }
                Extension::Lost => (inner.state.taken(now), remaining),
            }
        };
        self.note_extension(Renewed::Lost, remaining, now, Some(&self.not_held()));
        if let Step::Lose(reason) = step {
            self.tell_lost(reason);
        }
        drop(over);
        Err(self.not_held())
    }

    /// Signals the loss and frees what may be left of the lease.
    fn tell_lost(self: &Arc<Self>, reason: LossReason) {
        let (listeners, alarm) = {
            let mut inner = self.inner();
            (std::mem::take(&mut inner.on_lost), inner.alarm.take())
        };
        cancel_alarm(alarm);
        let (counters, series) = (&self.manager.counters, &self.grant.series);
        counters.lost(series, reason);
        counters.ended(series, self.grant.since, Ended::Lost);
        let failure = self.last_failure();
        self.manager.subscribers.tell(|| {
            let error = failure.as_ref().map(ToString::to_string);
            Event { reason: Some(reason), error, ..self.event(EventKind::Lost) }
        });
        self.changed.notify_waiters();
        for listener in listeners {
            listener(reason);
        }
        let error = failure.as_ref().map(tracing::field::display);
        tracing::warn!(resource = %Names(&self.claim.resources), reason = reason.name(), error, "lease lost");
        self.manager.leases.remove(&self.claim.owner);
        undo::in_background(&self.manager, self.claim.clone(), Instant::now());
    }

    /// It is not to be held any more. Tells the holder, unless it knows or has given it up; says whether that was so.
    pub(crate) fn ends(self: &Arc<Self>, why: LossReason) -> bool {
        let step = self.inner().state.gone(why);
        if let Step::Lose(reason) = step {
            self.tell_lost(reason);
        }
        matches!(step, Step::Lose(_))
    }

    /// Tells the holder of a loss that it has found out before the alarm rang.
    fn lapse(self: &Arc<Self>) {
        let lapsed = self.inner().state.lapse(Instant::now());
        if let Some(reason) = lapsed {
            self.tell_lost(reason);
        }
    }

    /// Stops renewal and the signal of loss. Says whether there is anything to release.
    fn begin_release(self: &Arc<Self>, ended: Ended) -> bool {
        self.lapse();
        let (alarm, given_up) = {
            let mut inner = self.inner();
            let ended = inner.state.told().is_some() || inner.state.is_given_up();
            inner.state.begin_release();
            inner.on_lost.clear();
            (inner.alarm.take(), !ended)
        };
        cancel_alarm(alarm);
        if given_up {
            self.manager.counters.ended(&self.grant.series, self.grant.since, ended);
            self.manager.subscribers.tell(|| self.event(EventKind::Released));
        }
        given_up
    }

    fn event(&self, kind: EventKind) -> Event {
        Event {
            fencing_token: Some(self.grant.fencing_token),
            duration: Some(Instant::now().since(self.grant.since)),
            ..Event::new(kind, &self.claim.resources, self.claim.mode)
        }
    }

    /// An extension was answered, when the lease had `remaining` left.
    fn note_extension(&self, extended: Renewed, remaining: Duration, now: Instant, error: Option<&Error>) {
        self.manager.counters.extended(&self.grant.series, extended, remaining, now);
        self.manager.subscribers.tell(|| match extended {
            Renewed::Extended => self.event(EventKind::Extended),
            Renewed::Lost | Renewed::Failed => {
                Event { error: error.map(ToString::to_string), ..self.event(EventKind::ExtensionFailed) }
            }
        });
    }

    fn end_release(&self) {
        self.inner().state.released();
        self.changed.notify_waiters();
        self.manager.leases.remove(&self.claim.owner);
        for resource in self.claim.resources.iter() {
            self.manager.waiters.nudge(resource);
        }
    }

    /// Ends it without waiting for a server, which is asked once if that can be done without waiting, too.
    pub(crate) fn abandon(self: &Arc<Self>) {
        if self.begin_release(Ended::Released) {
            let _ = self.manager.backend.release(&self.claim, &Driver::engine()).now_or_never();
        }
        self.end_release();
    }

    /// See [`Lease::end_by`].
    pub(crate) async fn release(self: &Arc<Self>, driver: &Driver) -> Option<Release> {
        /// Leaves the release to the background if it could not be finished here.
        struct Unfinished<'a>(Option<&'a Arc<Held>>);
        impl Drop for Unfinished<'_> {
            fn drop(&mut self) {
                if let Some(held) = self.0 {
                    undo::in_background(&held.manager, held.claim.clone(), Instant::now());
                    held.end_release();
                }
            }
        }
        if !self.begin_release(Ended::Released) {
            return None;
        }
        let mut unfinished = Unfinished(Some(self));
        loop {
            let changed = self.changed.notified();
            let mut changed = std::pin::pin!(changed);
            changed.as_mut().enable();
            if !self.inner().state.is_extending() {
                break;
            }
            changed.await;
        }
        let outcome = self.manager.backend.release(&self.claim, driver).await;
        if outcome != Release::Unknown {
            unfinished.0 = None;
            self.end_release();
        }
        // Closing the manager meanwhile gives it back as well: whichever comes first.
        (outcome != Release::NotHeld || !self.manager.is_closed()).then_some(outcome)
    }
}

impl Losable for Held {
    fn gone(self: Arc<Self>, why: LossReason) {
        self.ends(why);
    }
}

impl Alarm for Held {
    fn ring(self: Arc<Self>) {
        self.look();
    }
}

fn cancel_alarm(alarm: Option<(Instant, AlarmKey)>) {
    if let Some((_, key)) = alarm {
        timer::cancel(key);
    }
}
