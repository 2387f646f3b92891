//! One session, kept over whatever connection there is by a task on the engine.
//!
//! The ensemble forgets a session, and with it all its locks, when it has not heard of it for the session's timeout. It tells
//! only those who can still reach it. So we count ourselves: what a session holds is held until the last moment that is
//! proven ([`proof`](super::proof)) plus the timeout, less the drift. While it holds anything, writes that change nothing move that on.
//! What was not proven in time is lost for good, even if the session turns out to live: the holders were told so.
//!
//! A connection that breaks takes its unanswered requests with it: they may have been carried out or not, and whoever
//! asked has to find out. The session goes on over the next connection. Watches are lost with a connection, so
//! each rings when that happens.

use std::{
    collections::HashMap,
    fmt,
    future::Future,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::{mpsc, oneshot, watch};

use super::{
    config::Config,
    link::{self, End, Link},
    wire::{self, Decoder, Identity, Malformed, Request, code},
};
use crate::{
    Error, ErrorKind, LossReason, OwnerToken, Result,
    backend::{Losable, SessionEnd},
    clock::Instant,
    engine::runtime,
    lease::state::Drift,
};

/// Rung once, when what is watched may have changed, if it is still there.
pub(super) type Bell = Arc<dyn Fn() + Send + Sync>;

type Bells = HashMap<String, Vec<Weak<dyn Fn() + Send + Sync>>>;

/// A session. Dropping all its handles closes it.
pub(super) struct Session {
    requests: mpsc::UnboundedSender<Order>,
    state: watch::Receiver<State>,
    shared: Arc<Shared>,
}

/// What the session's handles and its task have in common.
pub(super) struct Shared {
    pub(super) config: Arc<Config>,
    drift: Drift,
    /// As the servers have it; what we ask for before they have spoken.
    timeout_ms: AtomicU64,
    /// Until when what is held is held. Another one once that has passed.
    end: Mutex<Arc<SessionEnd>>,
    bells: Mutex<Bells>,
    /// Why there is no connection.
    trouble: Mutex<Option<Error>>,
    /// To be told when the servers say that the session is over.
    leases: Mutex<HashMap<OwnerToken, Weak<dyn Losable>>>,
}

#[derive(Clone, Debug)]
enum State {
    Connecting,
    Connected,
    Over(Error),
}

pub(super) enum Order {
    Ask(Asked),
    Close,
}

pub(super) struct Asked {
    pub(super) request: Request,
    /// Set if the request sets a watch.
    pub(super) watched: Option<String>,
    pub(super) answer: oneshot::Sender<Result<Reply, Failure>>,
}

/// The answer to a request.
pub(super) struct Reply {
    pub(super) body: Vec<u8>,
    /// When the request was sent.
    pub(super) sent: Instant,
}

impl Reply {
    pub(super) fn read<T>(&self, read: impl FnOnce(Decoder<'_>) -> Result<T, Malformed>) -> Result<T, Failure> {
        read(Decoder(&self.body)).map_err(|why| Failure::Unanswered(Error::unavailable(why.to_string())))
    }
}

/// Why there is no good answer.
#[derive(Clone, Debug)]
pub(super) enum Failure {
    /// It certainly was not carried out.
    NotSent(Error),
    /// It may have been carried out.
    Unanswered(Error),
    /// The server said no, with this code.
    Refused(i32),
}

impl Failure {
    pub(super) fn is(&self, code: i32) -> bool {
        matches!(self, Self::Refused(refused) if *refused == code)
    }

    pub(super) fn into_error(self) -> Error {
        match self {
            Self::NotSent(error) | Self::Unanswered(error) => error,
            Self::Refused(code @ (code::NO_AUTH | code::AUTH_FAILED | code::AUTH_REQUIRED)) => {
                Error::new(ErrorKind::Auth, wire::describe(code))
            }
            Self::Refused(code) => Error::unavailable(wire::describe(code)),
        }
    }
}

impl Session {
    /// Begins to open one.
    pub(super) fn start(config: Arc<Config>, drift: Drift) -> Arc<Self> {
        let (requests, orders) = mpsc::unbounded_channel();
        let (state_sender, state) = watch::channel(State::Connecting);
        let shared = Arc::new(Shared {
            drift,
            timeout_ms: AtomicU64::new(u64::try_from(config.session_timeout.as_millis()).unwrap_or(u64::MAX)),
            // It holds nothing yet.
            end: Mutex::new(SessionEnd::until(Instant::now())),
            config,
            bells: Mutex::default(),
            leases: Mutex::default(),
            trouble: Mutex::default(),
        });
        runtime::spawn(run(Arc::clone(&shared), orders, state_sender));
        Arc::new(Self { requests, state, shared })
    }

    /// Waits until it has a connection.
    ///
    /// # Errors
    /// `Unavailable` or `Auth` if it is over.
    pub(super) async fn connected(&self) -> Result<()> {
        let mut state = self.state.clone();
        let state = state.wait_for(|state| !matches!(state, State::Connecting)).await.map(|state| state.clone());
        match state {
            Ok(State::Over(error)) => Err(error),
            Ok(_) => Ok(()),
            Err(_) => Err(Error::unavailable("the session has ended")),
        }
    }

    /// Why it has no connection, if it has none.
    pub(super) fn trouble(&self) -> Option<Error> {
        self.shared.trouble().clone()
    }

    /// When what it holds now is lost. It counts as holding something for as long as somebody has this.
    pub(super) fn end(&self) -> Arc<SessionEnd> {
        Arc::clone(&self.shared.end())
    }

    /// How long its servers keep it without hearing of it.
    pub(super) fn timeout(&self) -> Duration {
        self.shared.timeout()
    }

    /// Has `lease` told when the session is over; at once if it is.
    pub(super) fn tell(&self, owner: OwnerToken, lease: Weak<dyn Losable>) {
        self.shared.leases().insert(owner, lease);
        // Asked after it was entered: ending either finds it there, or is seen here.
        if self.is_over() {
            self.shared.tell_leases();
        }
    }

    /// There is nothing to tell any more.
    pub(super) fn forget(&self, owner: OwnerToken) {
        self.shared.leases().remove(&owner);
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(*self.state.borrow(), State::Over(_))
    }

    /// Sends `request` now, in the order of the calls; the future is its answer. Fails at once where there is no connection.
    pub(super) fn ask(&self, request: Request) -> impl Future<Output = Result<Reply, Failure>> + Send + use<> {
        self.send(request, None)
    }

    /// As [`ask`](Self::ask), for a request that watches `path`: `bell` rings when that changes, or the watch was lost.
    pub(super) fn ask_and_watch(
        &self,
        request: Request,
        path: &str,
        bell: &Bell,
    ) -> impl Future<Output = Result<Reply, Failure>> + Send + use<> {
        {
            let mut bells = self.shared.bells();
            let bells = bells.entry(path.to_owned()).or_default();
            bells.retain(|other| other.strong_count() > 0);
            bells.push(Arc::downgrade(bell));
        }
        self.send(request, Some(path.to_owned()))
    }

    fn send(
        &self,
        request: Request,
        watched: Option<String>,
    ) -> impl Future<Output = Result<Reply, Failure>> + Send + use<> {
        let (answer, answered) = oneshot::channel();
        let sent = self.requests.send(Order::Ask(Asked { request, watched, answer }));
        async move {
            let over = || Error::unavailable("the session has ended");
            match sent {
                Ok(()) => answered.await.unwrap_or_else(|_| Err(Failure::Unanswered(over()))),
                Err(_) => Err(Failure::NotSent(over())),
            }
        }
    }

    /// Closes it in the background, after what was asked before.
    pub(super) fn close(&self) {
        // It has ended already if nobody takes this.
        let _ = self.requests.send(Order::Close);
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Session").field(&*self.state.borrow()).finish()
    }
}

impl Shared {
    fn end(&self) -> MutexGuard<'_, Arc<SessionEnd>> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn trouble(&self) -> MutexGuard<'_, Option<Error>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms.load(Ordering::Relaxed))
    }

    pub(super) fn set_timeout(&self, timeout_ms: i32) {
        self.timeout_ms.store(u64::try_from(timeout_ms).unwrap_or(0), Ordering::Relaxed);
    }

    /// Whether there may be a lease that ends with the session.
    pub(super) fn holds(&self) -> bool {
        Arc::strong_count(&self.end()) > 1
    }

    /// The leader has certainly heard of the session, at `heard` or later.
    pub(super) fn proven(&self, heard: Instant) {
        let (now, until) = (Instant::now(), self.drift.deadline(heard, self.timeout()));
        let mut end = self.end();
        if !end.move_on(now, until) {
            *end = SessionEnd::until(until);
        }
    }

    fn bells(&self) -> MutexGuard<'_, Bells> {
        self.bells.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leases(&self) -> MutexGuard<'_, HashMap<OwnerToken, Weak<dyn Losable>>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell_leases(&self) {
        let leases = std::mem::take(&mut *self.leases());
        leases.into_values().filter_map(|lease| lease.upgrade()).for_each(|lease| lease.gone(LossReason::Taken));
    }

    pub(super) fn ring(&self, path: &str) {
        let bells = self.bells().remove(path);
        bells.into_iter().flatten().filter_map(|bell| bell.upgrade()).for_each(|bell| bell());
    }

    fn ring_all(&self) {
        let bells = std::mem::take(&mut *self.bells());
        bells.into_values().flatten().filter_map(|bell| bell.upgrade()).for_each(|bell| bell());
    }
}

/// Keeps the session on some connection until it is over or nobody needs it.
async fn run(shared: Arc<Shared>, mut orders: mpsc::UnboundedReceiver<Order>, state: watch::Sender<State>) {
    const FIRST_PAUSE: Duration = Duration::from_millis(5);
    const LONGEST_PAUSE: Duration = Duration::from_secs(1);
    let mut identity = Identity::asking_for(shared.timeout());
    let mut last_heard = Instant::now();
    let mut pause = FIRST_PAUSE;
    let over = loop {
        let end = match link::connect(&shared, &mut identity).await {
            Ok(connected) => {
                pause = FIRST_PAUSE;
                *shared.trouble() = None;
                state.send_replace(State::Connected);
                let mut link = Link::new(&shared, &mut identity, connected);
                let end = link.serve(&mut orders).await;
                state.send_replace(State::Connecting);
                last_heard = link.give_up(&end);
                shared.ring_all();
                end
            }
            Err(end) => end,
        };
        match end {
            End::Closed => break Error::closed(),
            End::Over(error) => break error,
            // There is nothing to save before the first greeting; the next attempt begins another session.
            End::Cut(error) if identity.is_new() => break error,
            End::Cut(error) if Instant::now() >= last_heard.after(shared.timeout()) => {
                break Error::unavailable("the session ended while its servers were out of reach").caused_by(error);
            }
            End::Cut(error) => {
                tracing::debug!(ensemble = ?shared.config, %error, "connection lost");
                *shared.trouble() = Some(error.clone());
                if refuse_all(&mut orders, &error) {
                    break Error::closed();
                }
            }
        }
        tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    };
    shared.end().end();
    state.send_replace(State::Over(over.clone()));
    shared.tell_leases();
    shared.ring_all();
    orders.close();
    refuse_all(&mut orders, &over);
}

/// Answers what was asked while there was no connection. Says whether the session is to be closed.
fn refuse_all(orders: &mut mpsc::UnboundedReceiver<Order>, error: &Error) -> bool {
    loop {
        match orders.try_recv() {
            Ok(Order::Ask(asked)) => drop(asked.answer.send(Err(Failure::NotSent(error.clone())))),
            Ok(Order::Close) | Err(mpsc::error::TryRecvError::Disconnected) => return true,
            Err(mpsc::error::TryRecvError::Empty) => return false,
        }
    }
}
