//! What happens to leases, for whoever wants to know: batches of events, taken when it suits.
//!
//! Nobody is called from the hot path: an event is put into the queue of each subscriber, and who takes
//! them out is woken at most once in [`PAUSE`]. Without a subscriber an event costs one look at a flag and
//! is not even made. A queue that nobody empties stops growing at [`MOST`], and tells how many it missed.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use tokio::sync::Notify;

use crate::{LockManager, LossReason, Mode, Resource, Result, clock::Instant, engine::timer};

/// For so long events gather before they are handed out together.
const PAUSE: Duration = Duration::from_millis(10);

/// The events that wait for one subscriber at most.
const MOST: usize = 65_536;

/// Something that happened to a lease, or on the way to one.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// When, by the wall clock.
    pub at: SystemTime,
    /// What it is about.
    pub resources: Arc<[Resource]>,
    /// How it is, or was to be, held.
    pub mode: Mode,
    /// Of the lease, if there is one.
    pub fencing_token: Option<u64>,
    /// How long it took (acquired), has been waited (contended), or was held (lost, released).
    pub duration: Option<Duration>,
    /// Why it was lost.
    pub reason: Option<LossReason>,
    /// Why it was not extended, also when it was lost for that.
    pub error: Option<String>,
}

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EventKind {
    /// A lease was granted.
    Acquired,
    /// Somebody else holds it; once for each acquisition that meets this.
    Contended,
    /// A lease was extended, by its holder or in the background.
    Extended,
    /// An extension came to nothing; the lease may be held still.
    ExtensionFailed,
    /// A lease was lost.
    Lost,
    /// A holder gave its lease up, or dropped it.
    Released,
}

impl EventKind {
    /// Every kind.
    pub const ALL: [Self; 6] =
        [Self::Acquired, Self::Contended, Self::Extended, Self::ExtensionFailed, Self::Lost, Self::Released];

    /// The stable name, as in `extension_failed`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Acquired => "acquired",
            Self::Contended => "contended",
            Self::Extended => "extended",
            Self::ExtensionFailed => "extension_failed",
            Self::Lost => "lost",
            Self::Released => "released",
        }
    }
}

impl Event {
    pub(crate) fn new(kind: EventKind, resources: &Arc<[Resource]>, mode: Mode) -> Self {
        Self {
            kind,
            at: SystemTime::now(),
            resources: Arc::clone(resources),
            mode,
            fencing_token: None,
            duration: None,
            reason: None,
            error: None,
        }
    }
}

/// The events of a manager from the subscription on. Dropping it ends the subscription.
#[derive(Debug)]
pub struct Events(Arc<Queue>);

#[derive(Debug, Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    events: VecDeque<Event>,
    missed: u64,
    ended: bool,
}

impl Queue {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Events {
    /// The events since the last batch, oldest first: waits until there is one, and a little longer for those that come
    /// with it. `None` when the manager is closed and all were taken.
    ///
    /// # Cancel safety
    /// Dropping the future loses no event.
    pub async fn next(&self) -> Option<Vec<Event>> {
        loop {
            let changed = self.0.changed.notified();
            let (any, ended) = {
                let waiting = self.0.waiting();
                (!waiting.events.is_empty(), waiting.ended)
            };
            if any && !ended {
                timer::sleep_until(Instant::now().after(PAUSE)).await;
            }
            if any {
                return Some(std::mem::take(&mut self.0.waiting().events).into());
            }
            if ended {
                return None;
            }
            changed.await;
        }
    }

    /// How many events were lost since this was last asked, because nobody took them in time.
    pub fn missed(&self) -> u64 {
        std::mem::take(&mut self.0.waiting().missed)
    }

    /// Ends the subscription; [`next`](Self::next) hands out what has come so far.
    pub fn close(&self) {
        self.0.waiting().ended = true;
        self.0.changed.notify_one();
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.0.waiting().ended = true;
    }
}

/// Those who want to know.
#[derive(Debug, Default)]
pub(crate) struct Subscribers {
    any: AtomicBool,
    queues: Mutex<Vec<Weak<Queue>>>,
}

impl Subscribers {
    fn queues(&self) -> MutexGuard<'_, Vec<Weak<Queue>>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells them; `event` is made only if there is somebody.
    pub(crate) fn tell(&self, event: impl FnOnce() -> Event) {
        if self.any.load(Ordering::Relaxed) {
            self.tell_all(event());
        }
    }

    #[cold]
    fn tell_all(&self, event: Event) {
        let mut queues = self.queues();
        queues.retain(|queue| {
            let Some(queue) = queue.upgrade() else { return false };
            let mut waiting = queue.waiting();
            if waiting.ended {
                return false;
            }
            if waiting.events.len() >= MOST {
                waiting.missed += 1;
                return true;
            }
            waiting.events.push_back(event.clone());
            let first = waiting.events.len() == 1;
            drop(waiting);
            if first {
                queue.changed.notify_one();
            }
            true
        });
        self.any.store(!queues.is_empty(), Ordering::Relaxed);
    }

    /// There will be no other events.
    pub(crate) fn close(&self) {
        for queue in self.queues().drain(..).filter_map(|queue| queue.upgrade()) {
            queue.waiting().ended = true;
            queue.changed.notify_one();
        }
    }
}

impl LockManager {
    /// Subscribes to what happens to this manager's leases from now on.
    ///
    /// ```
    /// # use polylock::{Acquire, EventKind};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> polylock::Result<()> {
    /// let locks = polylock::connect("memory:").await?;
    /// let events = locks.events()?;
    /// locks.acquire("invoice:42", Acquire::default()).await?.release().await?;
    /// let batch = events.next().await.unwrap();
    /// assert_eq!(batch[0].kind, EventKind::Acquired);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// `Closed`, `Forked`.
    pub fn events(&self) -> Result<Events> {
        let manager = self.open()?;
        let queue = Arc::new(Queue::default());
        let mut queues = manager.subscribers.queues();
        queues.push(Arc::downgrade(&queue));
        manager.subscribers.any.store(true, Ordering::Relaxed);
        drop(queues);
        if manager.is_closed() {
            queue.waiting().ended = true;
        }
        Ok(Events(queue))
    }
}
