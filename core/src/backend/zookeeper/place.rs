//! Places in the lines of resources: contenders of ours, and what is known of them.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use tokio::sync::watch;

use super::session::{Bell, Session};
use crate::{Mode, Resource, clock::Instant};

/// How long a watch is trusted without a look.
const LONGEST_TRUST: Duration = Duration::from_secs(5);

/// The contenders of one claim, one for each of its resources; made together or not at all.
pub(super) struct Place {
    pub(super) session: Arc<Session>,
    pub(super) resources: Arc<[Resource]>,
    pub(super) mode: Mode,
    /// Their directories, in the order of the resources.
    pub(super) directories: Vec<String>,
    /// Their paths, in the same order.
    pub(super) paths: Vec<String>,
    /// The transaction that made them.
    pub(super) token: u64,
    /// Rung when it is worth looking again.
    pub(super) bell: Bell,
    rung: Arc<AtomicBool>,
    inner: Mutex<Inner>,
}

struct Inner {
    /// What is being watched, unless the bell was rung.
    watched: Option<String>,
    /// When it was last seen how it stands.
    looked: Instant,
    /// When it is deleted if no attempt has come back for it.
    kept_until: Instant,
    is_tended: bool,
    settled: bool,
    /// When it got its turn, by the wall clock.
    since: SystemTime,
}

impl Place {
    pub(super) fn new(
        session: &Arc<Session>,
        resources: &Arc<[Resource]>,
        mode: Mode,
        directories: Vec<String>,
        (paths, token): (Vec<String>, u64),
        changes: &Arc<Changes>,
    ) -> Arc<Self> {
        let rung = Arc::new(AtomicBool::new(false));
        let bell: Bell = {
            let (rung, changes, resources) = (Arc::clone(&rung), Arc::clone(changes), Arc::clone(resources));
            Arc::new(move || {
                rung.store(true, Ordering::Release);
                resources.iter().for_each(|resource| changes.tell(resource));
            })
        };
        let inner = Inner {
            watched: None,
            looked: Instant::now(),
            kept_until: Instant::now(),
            is_tended: false,
            settled: false,
            since: SystemTime::now(),
        };
        Arc::new(Self {
            session: Arc::clone(session),
            resources: Arc::clone(resources),
            mode,
            directories,
            paths,
            token,
            bell,
            rung,
            inner: Mutex::new(inner),
        })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a watch on `path` is to be set now: not if the one that was set is still there.
    pub(super) fn begins_to_watch(&self, path: &str) -> bool {
        let mut inner = self.inner();
        if inner.watched.as_deref() == Some(path) && !self.rung.load(Ordering::Acquire) {
            return false;
        }
        self.rung.store(false, Ordering::Release);
        inner.watched = Some(path.to_owned());
        true
    }

    /// The watch could not be set.
    pub(super) fn watches_nothing(&self) {
        self.inner().watched = None;
    }

    /// How it stands was seen just now.
    pub(super) fn looked(&self, now: Instant) {
        self.inner().looked = now;
    }

    /// Whether the server will tell when looking again is worth it. Now and then it is looked at all the same.
    pub(super) fn is_undisturbed(&self, now: Instant) -> bool {
        let inner = self.inner();
        inner.watched.is_some() && !self.rung.load(Ordering::Acquire) && now.since(inner.looked) < LONGEST_TRUST
    }

    /// It is kept until then. Says whether somebody has to be told to tend it.
    pub(super) fn keep_until(&self, at: Instant) -> bool {
        let mut inner = self.inner();
        inner.kept_until = at;
        !std::mem::replace(&mut inner.is_tended, true)
    }

    pub(super) fn kept_until(&self) -> Instant {
        self.inner().kept_until
    }

    pub(super) fn since(&self) -> SystemTime {
        self.inner().since
    }

    pub(super) fn gets_its_turn(&self) {
        self.inner().since = SystemTime::now();
    }

    /// It is held or deleted: not to be tended any more.
    pub(super) fn settle(&self) {
        self.inner().settled = true;
    }

    pub(super) fn is_settled(&self) -> bool {
        self.inner().settled
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Place").field(&self.paths).finish()
    }
}

/// Places that wait for the next attempt of their caller.
#[derive(Default)]
pub(super) struct Parked(Mutex<Places>);

type Places = HashMap<(Arc<[Resource]>, Mode), Arc<Place>>;

impl Parked {
    fn map(&self) -> MutexGuard<'_, Places> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers the one that was there before.
    pub(super) fn put(&self, place: &Arc<Place>) -> Option<Arc<Place>> {
        self.map().insert((Arc::clone(&place.resources), place.mode), Arc::clone(place))
    }

    pub(super) fn take(&self, resources: &Arc<[Resource]>, mode: Mode) -> Option<Arc<Place>> {
        self.map().remove(&(Arc::clone(resources), mode))
    }

    /// Takes this one out, if `still` says so. Says whether it was there.
    pub(super) fn take_this(&self, place: &Arc<Place>, still: impl FnOnce() -> bool) -> bool {
        let (key, mut map) = ((Arc::clone(&place.resources), place.mode), self.map());
        let found = map.get(&key).is_some_and(|parked| Arc::ptr_eq(parked, place)) && still();
        if found {
            map.remove(&key);
        }
        found
    }

    pub(super) fn take_all_of(&self, resource: &Resource) -> Vec<Arc<Place>> {
        let mut taken = Vec::new();
        self.map().retain(|(resources, _), place| {
            let stays = !resources.contains(resource);
            if !stays {
                taken.push(Arc::clone(place));
            }
            stays
        });
        taken
    }

    pub(super) fn clear(&self) {
        self.map().clear();
    }
}

/// Who is to be told of changes of which resource.
#[derive(Default)]
pub(super) struct Changes(Mutex<HashMap<Resource, watch::Sender<u64>>>);

impl Changes {
    fn map(&self) -> MutexGuard<'_, HashMap<Resource, watch::Sender<u64>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, resource: &Resource) {
        if let Some(changes) = self.map().get(resource) {
            changes.send_modify(|changes| *changes += 1);
        }
    }

    pub(super) fn subscribe(&self, resource: &Resource) -> watch::Receiver<u64> {
        let mut map = self.map();
        let mut changes = map.entry(resource.clone()).or_insert_with(|| watch::Sender::new(0)).subscribe();
        // A bell may have rung before this.
        changes.mark_changed();
        changes
    }

    /// A receiver of this resource is gone or about to be; one entry left over is used by the next one.
    pub(super) fn unsubscribe(&self, resource: &Resource) {
        let mut map = self.map();
        if map.get(resource).is_some_and(|changes| changes.receiver_count() == 0) {
            map.remove(resource);
        }
    }
}
