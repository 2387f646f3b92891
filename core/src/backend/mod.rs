//! What the engine asks of a place where locks are kept.
//!
//! A backend takes, extends and releases; it has no timers of its own, retries nothing beyond one attempt,
//! and says honestly when it does not know what happened. Everything else (waiting, renewal, deadlines, the
//! signal of loss, undoing) is the engine's and the same for all backends.

pub(crate) mod file;
pub(crate) mod memory;
pub(crate) mod postgres;
mod quiet;
pub(crate) mod redis;
mod tls;
pub(crate) mod zookeeper;

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

pub(crate) use crate::inspection::Holder;
use crate::{
    Error, ErrorKind, LossReason, Mode, OwnerToken, Resource, Result, clock::Instant, engine::driver::Driver,
    metrics::NodeStats, mutant::mutant, pattern::Pattern,
};

/// How long a backend has at least to answer before it is called out of reach.
pub(crate) const FAIR_CHANCE: Duration = Duration::from_secs(1);

/// A server's name, and what it said to a question: see [`Backend::ask_each`].
pub(crate) type Said = (String, Result<Vec<String>>);

/// The answer of a backend, to be awaited.
pub(crate) type Answer<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A place where locks are kept.
///
/// No answer may outlast the time that the claim allows by much, and every future may be dropped at any
/// await point: the engine then undoes the claim by [`Backend::release`].
pub(crate) trait Backend: Send + Sync + fmt::Debug {
    /// What metrics call it.
    fn system(&self) -> &'static str;

    /// The servers that it may ask, by the names that errors give them.
    fn servers(&self) -> Vec<String> {
        self.nodes().into_iter().map(|(name, _)| name).collect()
    }

    /// Those of them of which it counts what they answer.
    fn nodes(&self) -> Vec<(String, &NodeStats)> {
        Vec::new()
    }

    /// What it can do and promise.
    fn capabilities(&self) -> Capabilities;

    /// Finds out whether it can be used at all.
    fn check_reachable<'a>(&'a self, driver: &'a Driver) -> Answer<'a, Result<()>>;

    /// The longest time after sending at which an attempt, given up by the caller, may still be granted.
    fn settles_within(&self, ttl: Duration) -> Duration;

    /// Whether what it grants stays past its ttl until it is released, as long as the session lives that holds it.
    fn outlasts_ttl(&self) -> bool {
        false
    }

    /// Tries once to take the lock. Asking again with the same owner token, while it holds, is `Granted`.
    fn try_acquire<'a>(&'a self, claim: &'a Claim, driver: &'a Driver) -> Answer<'a, Attempt>;

    /// Makes the lease last until `ttl` from now. Never creates one that lapsed; never deletes anything.
    fn extend<'a>(&'a self, claim: &'a Claim, ttl: Duration, driver: &'a Driver) -> Answer<'a, Extension>;

    /// Frees the lock if it is still this claim's. What a majority freed is free: the rest is freed in the background,
    /// as far as it can be reached.
    fn release<'a>(&'a self, claim: &'a Claim, driver: &'a Driver) -> Answer<'a, Release>;

    /// Who holds the resource now, or `None` if it is free; of several holders the one that may stay longest.
    fn inspect<'a>(&'a self, resource: &'a Resource, driver: &'a Driver) -> Answer<'a, Result<Option<Holder>>>;

    /// The holders of the resources that match, in any order; when it has found `limit` it need not look further.
    /// Asked only of a backend that says that it is capable of it.
    fn list<'a>(
        &'a self,
        _pattern: &'a Pattern,
        _limit: usize,
        _driver: &'a Driver,
    ) -> Answer<'a, Result<Vec<Holder>>> {
        Box::pin(async { Err(Error::new(ErrorKind::Unsupported, "this backend cannot list its locks")) })
    }

    /// Takes the lock away from `owner`, and from nobody else; says whether it was that one's. Comparing and freeing
    /// are one step where the lock is kept. Wakes waiters as a release does.
    /// Asked only of a backend that says that it is capable of it.
    fn break_lock<'a>(
        &'a self,
        _resource: &'a Resource,
        _owner: &'a str,
        _driver: &'a Driver,
    ) -> Answer<'a, Result<bool>> {
        Box::pin(async { Err(Error::new(ErrorKind::Unsupported, "this backend cannot break a lock")) })
    }

    /// Makes what `owner` holds, whoever that is, last until `ttl` from now, if it holds all of `resources`; says whether it did. For
    /// one who was told of a lock that another process holds.
    fn extend_for<'a>(
        &'a self,
        _resources: &'a [Resource],
        _owner: &'a str,
        _ttl: Duration,
        _driver: &'a Driver,
    ) -> Answer<'a, Result<bool>> {
        Box::pin(async { Err(Error::new(ErrorKind::Unsupported, "this backend extends no lock of others")) })
    }

    /// Asks each server a question of its own language (the words of a command, or one text of SQL), for whoever checks a
    /// deployment: the server's name and the texts in its answer. Nothing where there is no server.
    fn ask_each<'a>(&'a self, _question: &'a [&'a str], _driver: &'a Driver) -> Answer<'a, Vec<Said>> {
        Box::pin(async { Vec::new() })
    }

    /// Gives up the place of `turn` in the line for `resource`, if it has one, and wakes the next.
    fn leave<'a>(&'a self, _resource: &'a Resource, _turn: &'a Turn, _driver: &'a Driver) -> Answer<'a, ()> {
        Box::pin(async {})
    }

    /// Reports, from now on, what may have freed `resource`.
    fn watch(&self, resource: &Resource) -> Watch;

    /// Has `lease` told as soon as the backend itself learns that it is gone; at once if it knows already.
    fn on_loss(&self, _claim: &Claim, _lease: Weak<dyn Losable>) {}

    /// Reads what was answered to those whose thread or loop may not run again, so that it is known. Does not block.
    fn look(&self) {}

    /// Waits for what is on its way in the background, beyond what was answered: as long as a server may take to answer.
    fn drain(&self) -> Answer<'_, ()> {
        Box::pin(async {})
    }

    /// Lets go of connections. Nothing is asked afterwards.
    fn close(&self) {}
}

/// What can be lost.
pub(crate) trait Losable: Send + Sync {
    /// It is not held any more, or not certain to be.
    fn gone(self: Arc<Self>, why: LossReason);
}

/// What a backend can do and promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// What it promises as deployed.
    pub guarantee: Guarantee,
    /// Each lease has a fencing token.
    pub fencing: bool,
    /// Processes other than this one are excluded.
    pub across_processes: bool,
    /// Other hosts are excluded.
    pub across_hosts: bool,
    /// Resources can be held shared.
    pub shared: bool,
    /// Resources can be semaphores.
    pub semaphore: bool,
    /// Several resources can be taken at once.
    pub several: bool,
    /// [`Acquire::fair`](crate::Acquire::fair) works.
    pub fair: bool,
    /// [`inspect`](crate::LockManager::inspect) works.
    pub inspection: bool,
    /// [`list`](crate::LockManager::list) works.
    pub listing: bool,
    /// [`break_lock`](crate::LockManager::break_lock) works.
    pub breaking: bool,
}

/// How far exclusion can be relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Guarantee {
    /// Mostly; a failure of the server may give a lock to two.
    BestEffort,
    /// While clocks run at one speed and servers keep their memory.
    Lease,
    /// Always, where the resource checks the fencing token.
    Fenced,
}

/// One attempt to take a lock, and afterwards the lease that came of it.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    /// What is claimed: at least one, sorted, and one alone unless the backend can do several.
    pub(crate) resources: Arc<[Resource]>,
    pub(crate) mode: Mode,
    pub(crate) owner: OwnerToken,
    pub(crate) ttl: Duration,
    /// What [`Holder::label`] will say.
    pub(crate) label: Option<Arc<str>>,
    /// Its place in the line, if it is to be served in order.
    pub(crate) turn: Option<Box<Turn>>,
    /// Should it be busy, another attempt of the same caller follows soon.
    pub(crate) waits: bool,
    /// What most of several servers decided waits a moment for the others.
    pub(crate) thorough: bool,
    /// Should it fail, what a minority of several servers granted is given back before it is told of.
    pub(crate) gives_back: bool,
    /// What its backend notes of it.
    pub(crate) progress: Arc<Progress>,
}

impl Claim {
    /// The first of the resources, for backends that do one at a time.
    pub(crate) fn resource(&self) -> &Resource {
        &self.resources[0]
    }
}

/// A waiter's place in the line of all processes.
///
/// The line is in the order in which waiters came. They tell how long ago that was, so that it does not matter when they come up in
/// the line of their own process, nor whether their place was lost meanwhile. Exclusion never rests on the line.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn {
    /// The same for all attempts of one acquisition.
    pub(crate) number: OwnerToken,
    /// How long it has waited.
    pub(crate) waited: Duration,
    /// Not to be held up by the line: the nodes do not agree on who is first.
    pub(crate) insists: bool,
}

impl Turn {
    /// How long a place is kept for somebody who does not ask: long against the pauses of a waiter, who asks
    /// several times a second. Who comes back later than that gets the place again.
    pub(crate) const STAYS: Duration = Duration::from_secs(1);
}

/// What is known of one claim on several nodes; clones of the claim share it.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Nodes that are known to hold, as bits.
    pub(crate) holders: AtomicU32,
    /// Nodes that are to be sent an attempt of which it is not known what became, as bits.
    in_doubt: AtomicU64,
    /// Nodes that anything was sent to that may be granted, as bits. They stay.
    sent: AtomicU32,
    /// The backend keeps `in_doubt` and `sent`.
    tracked: AtomicBool,
    /// Nodes at which the background sees to it that nothing is left, as bits.
    pursued: AtomicU32,
    /// Nodes at which a release has not found it, as bits.
    missed: AtomicU32,
    /// It is given up: nothing of it may be granted any more.
    pub(crate) over: AtomicBool,
    /// The token that was agreed on; 0 before.
    pub(crate) fencing_token: AtomicU64,
    /// The number of the permit that is held, where permits are numbered.
    pub(crate) permit: OnceLock<u32>,
    /// The session that holds it, where one does: the lease ends with that. To be set before the grant is answered.
    pub(crate) session: OnceLock<Arc<SessionEnd>>,
    /// What it has in ZooKeeper.
    pub(crate) contention: zookeeper::Contention,
    /// What went wrong last with an attempt that goes on, for the case that its caller's time is over first.
    trouble: Mutex<Option<Error>>,
}

/// When a session ends unless its server is heard again; shared by the leases that it holds.
#[derive(Debug)]
pub(crate) struct SessionEnd(AtomicU64);

impl SessionEnd {
    pub(crate) fn until(at: Instant) -> Arc<Self> {
        Arc::new(Self(AtomicU64::new(nanos(at))))
    }

    pub(crate) fn at(&self) -> Instant {
        Instant::from_boot(Duration::from_nanos(self.0.load(Ordering::Acquire)))
    }

    /// Moves the end to `at`, never back. Says no if it was over at `now`: then it stays over, since the holders know.
    pub(crate) fn move_on(&self, now: Instant, at: Instant) -> bool {
        let moved = self
            .0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |end| (nanos(now) < end).then(|| end.max(nanos(at))));
        moved.is_ok()
    }

    /// It is over now.
    pub(crate) fn end(&self) {
        self.0.store(0, Ordering::Release);
    }
}

fn nanos(at: Instant) -> u64 {
    u64::try_from(at.since_boot().as_nanos()).unwrap_or(u64::MAX)
}

impl Progress {
    /// Goes on, though this went wrong.
    pub(crate) fn meets(&self, trouble: Error) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(trouble);
    }

    /// What went wrong last.
    pub(crate) fn trouble(&self) -> Option<Error> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(crate) fn add_holder(&self, node: usize) {
        self.holders.fetch_or(1 << node, Ordering::Relaxed);
    }

    pub(crate) fn holds(&self, node: usize) -> bool {
        self.holders.load(Ordering::Relaxed) & (1 << node) != 0
    }

    // These are in one order for everybody: either whoever sends sees that it is over, or whoever ended it sees that it
    // was sent. So once it is over, a node to which nothing was sent grants nothing: what is sent there from then on was
    // seen to be over when it was written, and so says itself that it is too late. That holds as well for an attempt
    // that is yet to be sent, by a caller who may or may not go on.

    /// To be called by a backend that tells of each attempt before it sends it, and of its end.
    pub(crate) fn track(&self) {
        self.tracked.store(true, Ordering::SeqCst);
    }

    /// Whether it is certain that nothing is on its way any more. Asked when it is over, as all that asks for doubts.
    pub(crate) fn is_certain(&self) -> bool {
        self.tracked.load(Ordering::SeqCst) && !self.has_doubts()
    }

    /// Whether nothing was sent that may have been granted. Asked when it is over.
    pub(crate) fn is_unsent(&self) -> bool {
        self.tracked.load(Ordering::SeqCst) && self.sent.load(Ordering::SeqCst) == 0
    }

    /// To be called before an attempt is handed to what will send it to `node`. Where another is on its way yet, the end
    /// of one does not tell of the other: such a node stays in doubt, by a bit in the upper half.
    pub(crate) fn doubt(&self, node: usize) {
        let (one, two) = (1 << node, 1 << (node + 32));
        let doubt = |doubts: u64| Some(if doubts & one == 0 { doubts | one } else { doubts | two });
        let _ = self.in_doubt.fetch_update(Ordering::SeqCst, Ordering::SeqCst, doubt);
    }

    /// To be called before anything is written for `node` that may be granted. Says no if it is over: then nothing may.
    pub(crate) fn sends(&self, node: usize) -> bool {
        if self.is_over() {
            return false;
        }
        self.sent.fetch_or(1 << node, Ordering::SeqCst);
        !self.is_over()
    }

    /// What was sent to `node` has come to its end; of no avail if it was not alone.
    pub(crate) fn resolve(&self, node: usize) {
        let (one, two) = (1 << node, 1 << (node + 32));
        let resolve = |doubts: u64| (doubts & two == 0).then_some(doubts & !one);
        let _ = self.in_doubt.fetch_update(Ordering::SeqCst, Ordering::SeqCst, resolve);
    }

    pub(crate) fn is_in_doubt(&self, node: usize) -> bool {
        self.doubts() & (1 << node) != 0 && !mutant!("D11")
    }

    /// Whether `node` is known to have nothing of it: nothing was sent there, or it came to nothing. Asked when it is over.
    pub(crate) fn is_clear(&self, node: usize) -> bool {
        self.tracked.load(Ordering::SeqCst) && !self.is_in_doubt(node) && !self.holds(node)
    }

    /// Whether any node is in doubt.
    pub(crate) fn has_doubts(&self) -> bool {
        self.doubts() != 0 && !mutant!("D11")
    }

    fn doubts(&self) -> u64 {
        let sent = u64::from(self.sent.load(Ordering::SeqCst));
        self.in_doubt.load(Ordering::SeqCst) & (sent | sent << 32)
    }

    /// Says whether this is the first time for `node`.
    pub(crate) fn pursue(&self, node: usize) -> bool {
        self.pursued.fetch_or(1 << node, Ordering::Relaxed) & (1 << node) == 0
    }

    /// A release has come back from `node` without having found it.
    pub(crate) fn miss(&self, node: usize) {
        self.missed.fetch_or(1 << node, Ordering::Relaxed);
    }

    /// Whether [`miss`](Self::miss) was told of `node`.
    pub(crate) fn is_missed(&self, node: usize) -> bool {
        self.missed.load(Ordering::Relaxed) & (1 << node) != 0
    }

    pub(crate) fn give_up(&self) {
        self.over.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }
}

/// Outcome of [`Backend::try_acquire`].
#[derive(Debug)]
pub(crate) enum Attempt {
    Granted {
        fencing_token: u64,
        /// When the request was sent: the ttl counts from here.
        since: Instant,
    },
    /// Somebody else holds it.
    Busy {
        /// When it will be free unless it is extended, if the backend knows.
        free_in: Option<Duration>,
        /// It is in use as something that is not a lock of ours.
        foreign: bool,
        /// Nobody holds it: several attempts stood in each other's way, and should come back at random times.
        contended: bool,
        /// A part of the claim may have been, or may yet be, granted: it is to be undone.
        residue: bool,
    },
    /// It was certainly not granted.
    Refused(Error),
    /// It may have been granted, or may yet be.
    Unknown(Error),
}

impl Attempt {
    /// Somebody else's, with a certain answer.
    pub(crate) fn held_for(free_in: Option<Duration>) -> Self {
        Self::Busy { free_in, foreign: false, contended: false, residue: false }
    }
}

/// Outcome of [`Backend::extend`].
#[derive(Debug)]
pub(crate) enum Extension {
    Extended {
        /// When the request was sent: the ttl counts from here.
        since: Instant,
    },
    /// It is certainly not ours any more.
    Lost,
    /// It may have been extended or not; the old deadline stands.
    Unknown(Error),
}

/// What became of a lease that was released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// It was ours and is free now.
    Released,
    /// It was not ours any more; nothing was changed.
    NotHeld,
    /// The backend did not answer. It is being released in the background, and ends with its ttl at the latest, or with the
    /// session where one holds it.
    Unknown,
}

impl Release {
    /// The stable name: `released`, `not_held` or `unknown`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Released => "released",
            Self::NotHeld => "not_held",
            Self::Unknown => "unknown",
        }
    }
}

/// Tells a waiter that it is worth trying again. A hint: the engine bounds every wait by a timer as well.
pub(crate) struct Watch {
    changes: Option<tokio::sync::watch::Receiver<u64>>,
    /// Ends the watching when dropped.
    _guard: Option<Box<dyn Send>>,
}

impl Watch {
    /// A watch that never reports anything.
    pub(crate) fn nothing() -> Self {
        Self { changes: None, _guard: None }
    }

    /// Reports each change of the counter behind `changes`; `guard` is dropped with the watch.
    pub(crate) fn new(changes: tokio::sync::watch::Receiver<u64>, guard: impl Send + 'static) -> Self {
        Self { changes: Some(changes), _guard: Some(Box::new(guard)) }
    }

    /// Waits for a change since the watch was made or this last returned.
    pub(crate) async fn changed(&mut self) {
        let gone = match &mut self.changes {
            Some(changes) => changes.changed().await.is_err(),
            None => true,
        };
        if gone {
            self.changes = None;
            std::future::pending::<()>().await;
        }
    }
}
