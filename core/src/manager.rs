//! The manager: a backend, and the leases and waiters on it.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use rustc_hash::FxHashMap;
use tokio::sync::Notify;
use tokio_util::task::TaskTracker;

use crate::{
    Acquire, Capabilities, Error, ErrorKind, Lease, OwnerToken, Result, Target, acquire,
    backend::Backend,
    clock::Instant,
    connect::Options,
    engine::{driver::Driver, process, runtime},
    events::Subscribers,
    lease::{Held, state::Drift},
    metrics::Counters,
    options::Patience,
    undo::{self, Attempts},
    waiters::Waiters,
};

/// Makes locks on one backend. Cheap to clone; clones are the same manager.
///
/// Owns no thread of its own. Dropping it leaves its leases as they are; [`close`](Self::close) releases them.
/// In the child of a fork every use answers `Forked`: make a new one there.
#[derive(Clone)]
pub struct LockManager(Arc<Guarded>);

/// Keeps the manager from being taken apart in the child of a fork.
struct Guarded(Option<Arc<Manager>>);

impl Drop for Guarded {
    fn drop(&mut self) {
        if let Some(manager) = self.0.take()
            && manager.check_process().is_err()
        {
            std::mem::forget(manager);
        }
    }
}

/// The manager as the engine has it.
pub(crate) struct Manager {
    pub(crate) backend: Box<dyn Backend>,
    pub(crate) drift: Drift,
    pub(crate) patience: Option<Patience>,
    pub(crate) waiters: Arc<Waiters>,
    pub(crate) leases: Leases,
    /// Claims on their way.
    pub(crate) attempts: Attempts,
    /// Releases on their way in the background.
    pub(crate) undoing: TaskTracker,
    pub(crate) counters: Counters,
    pub(crate) subscribers: Subscribers,
    generation: u32,
    enrolled: AtomicBool,
    /// Closing is over: nothing is asked of the backend any more.
    over: AtomicBool,
    closed: AtomicBool,
    /// Rings when it is closed.
    bell: Notify,
}

impl LockManager {
    pub(crate) fn new(backend: Box<dyn Backend>, options: &Options) -> Self {
        runtime::enter_process();
        let counters = Counters::new(backend.system(), options.metrics);
        let manager = Manager {
            backend,
            drift: options.drift,
            patience: options.patience,
            waiters: Arc::default(),
            leases: Leases::default(),
            attempts: Attempts::default(),
            undoing: TaskTracker::new(),
            counters,
            subscribers: Subscribers::default(),
            generation: process::generation(),
            enrolled: AtomicBool::new(false),
            over: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            bell: Notify::new(),
        };
        Self(Arc::new(Guarded(Some(Arc::new(manager)))))
    }

    fn manager(&self) -> &Arc<Manager> {
        match &self.0.0 {
            Some(manager) => manager,
            None => unreachable!("taken out by drop alone"),
        }
    }

    /// The manager, open or closed, if it belongs to this process.
    pub(crate) fn own(&self) -> Result<&Arc<Manager>> {
        let manager = self.manager();
        manager.check_process()?;
        Ok(manager)
    }

    /// The manager, if it is open and belongs to this process.
    pub(crate) fn open(&self) -> Result<&Arc<Manager>> {
        let manager = self.own()?;
        if manager.is_closed() {
            return Err(Error::closed());
        }
        if !manager.enrolled.load(Ordering::Acquire) {
            runtime::engine()?.enroll(manager)?;
            manager.enrolled.store(true, Ordering::Release);
        }
        Ok(manager)
    }

    /// Acquires `target`, waiting as `options` say. Locks are not re-entrant: a holder that asks again waits.
    ///
    /// # Errors
    /// `Timeout` if it stayed in use, `Conflict` if it is in use as something else, `Unavailable` if the
    /// backend was out of reach (for all of the wait; for 30 s if the wait is for ever), `Auth`, `InvalidArgument`,
    /// `Closed`, `Forked`.
    ///
    /// # Cancel safety
    /// Dropping the future at any point leaves the line, and gives back in the background what was or
    /// will be granted.
    pub async fn acquire(&self, target: impl Into<Target>, options: Acquire) -> Result<Lease> {
        self.acquire_by(target, options, &Driver::here()).await
    }

    /// As [`acquire`](Self::acquire), on connections that `driver` drives.
    #[doc(hidden)]
    pub fn acquire_by<T: Into<Target>>(
        &self,
        target: T,
        options: Acquire,
        driver: &Driver,
    ) -> impl Future<Output = Result<Lease>> + Send + use<T> {
        // It borrows nothing: a host's event loop keeps it as it is. And it is no async function, which would have room
        // for all this twice over.
        let (locks, target, driver) = (self.clone(), target.into(), driver.clone());
        async move { acquire::acquire(locks.open()?, &target, &options, &driver).await }
    }

    /// Tries once; `None` if somebody else holds it.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire), but for `Timeout`.
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    pub async fn try_acquire(&self, target: impl Into<Target>, options: Acquire) -> Result<Option<Lease>> {
        self.try_acquire_by(target, options, &Driver::here()).await
    }

    /// As [`try_acquire`](Self::try_acquire), on connections that `driver` drives.
    #[doc(hidden)]
    pub async fn try_acquire_by(
        &self,
        target: impl Into<Target>,
        options: Acquire,
        driver: &Driver,
    ) -> Result<Option<Lease>> {
        match self.acquire_by(target, options.no_wait(), driver).await {
            Ok(lease) => Ok(Some(lease)),
            Err(error) if error.kind() == ErrorKind::Timeout => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What the backend can do and promise.
    pub fn capabilities(&self) -> Capabilities {
        self.manager().backend.capabilities()
    }

    /// Ends it: waiters get `Closed`, leases are released, connections let go. Returns when that is done; a
    /// server that does not answer is given up when its leases must have expired. Closing twice is harmless.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the manager closed, and the releases to the background.
    pub async fn close(&self) {
        let manager = self.manager();
        if manager.check_process().is_ok() {
            manager.close().await;
        }
    }

    pub(crate) fn backend(&self) -> &dyn Backend {
        &*self.manager().backend
    }
}

impl fmt::Debug for LockManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LockManager").field(&self.backend()).finish()
    }
}

impl Manager {
    /// Whether this process made it.
    pub(crate) fn check_process(&self) -> Result<()> {
        if self.generation == process::generation() { Ok(()) } else { Err(Error::forked()) }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Resolves when the manager is closed.
    pub(crate) async fn closing(&self) {
        // From here on it hears the bell.
        let bell = self.bell.notified();
        if !self.is_closed() {
            bell.await;
        }
    }

    /// Has whoever uses or awaits it be told that it is closed.
    pub(crate) fn begin_close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.bell.notify_waiters();
    }

    /// See [`LockManager::close`].
    pub(crate) async fn close(self: &Arc<Self>) {
        self.begin_close();
        self.attempts.undo_all(self);
        let engine = Driver::engine();
        let leases = self.leases.all();
        futures_util::future::join_all(leases.iter().map(|held| held.release(&engine))).await;
        for held in self.leases.all() {
            // Its release was on its way already: on a thread that may not run again before the process ends.
            undo::in_background(self, held.claim.clone(), Instant::now());
        }
        self.undoing.close();
        self.undoing.wait().await;
        self.backend.drain().await;
        self.end();
    }

    /// Of several who close it, the first to be done ends it for all: what it knew of has been undone.
    fn end(&self) {
        self.over.store(true, Ordering::Release);
        self.backend.close();
        self.subscribers.close();
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }
}

/// Once the time for closing is over, with the engine that it ran on.
impl Manager {
    /// Lets go of what closing has left. Its leases are not held any more, and whatever of them is on the server
    /// expires there: nothing is done in the background from now on, which would take a new engine.
    pub(crate) fn abandon(self: &Arc<Self>) {
        self.over.store(true, Ordering::Release); // before what is left ends in the background
        for held in self.leases.all() {
            held.abandon();
        }
        self.end();
    }
}

/// The leases that are held through a manager.
#[derive(Default)]
pub(crate) struct Leases(Mutex<FxHashMap<OwnerToken, Weak<Held>>>);

impl Leases {
    fn map(&self) -> MutexGuard<'_, FxHashMap<OwnerToken, Weak<Held>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn insert(&self, held: &Arc<Held>) {
        self.map().insert(held.claim.owner, Arc::downgrade(held));
    }

    pub(crate) fn remove(&self, owner: &OwnerToken) {
        self.map().remove(owner);
    }

    /// The lease of this owner.
    pub(crate) fn get(&self, owner: &OwnerToken) -> Option<Arc<Held>> {
        self.map().get(owner).and_then(Weak::upgrade)
    }

    fn all(&self) -> Vec<Arc<Held>> {
        self.map().values().filter_map(Weak::upgrade).collect()
    }
}
