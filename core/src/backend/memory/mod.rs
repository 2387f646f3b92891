//! Locks inside one process; the reference model for the tests of the other backends.
//!
//! The whole store is one mutex around a map, and no step blocks or can be cancelled halfway, so every
//! answer is certain. A lease that expired is taken over by the next attempt. Fencing tokens come from one
//! counter for the whole store, seeded with the wall clock's microseconds, so that entries need not be kept.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, SystemTime},
};

use tokio::sync::watch;

use super::{Answer, Attempt, Backend, Capabilities, Claim, Extension, Guarantee, Holder, Release, Watch};
use crate::{
    OwnerToken, Resource, Result,
    clock::{self, Instant},
    engine::driver::Driver,
};

/// `memory:` makes a store of its own, `memory:NAME` shares one among the managers of this process.
#[derive(Debug)]
pub(crate) struct MemoryBackend(Arc<Store>);

#[derive(Debug, Default)]
struct Store(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    held: HashMap<Resource, Held>,
    watched: HashMap<Resource, watch::Sender<u64>>,
    last_token: u64,
}

#[derive(Debug)]
struct Held {
    owner: OwnerToken,
    fencing_token: u64,
    expires: Instant,
    since: SystemTime,
    label: Option<Arc<str>>,
}

impl MemoryBackend {
    /// A store of its own if `name` is empty.
    pub(crate) fn new(name: &str) -> Self {
        static NAMED: LazyLock<Mutex<HashMap<String, Weak<Store>>>> = LazyLock::new(Mutex::default);
        if name.is_empty() {
            return Self(Arc::default());
        }
        let mut named = NAMED.lock().unwrap_or_else(PoisonError::into_inner);
        named.retain(|_, store| store.strong_count() > 0);
        if let Some(store) = named.get(name).and_then(Weak::upgrade) {
            return Self(store);
        }
        let store = Arc::default();
        named.insert(name.to_owned(), Arc::downgrade(&store));
        Self(store)
    }
}

impl Store {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take(&mut self, claim: &Claim) -> Attempt {
        let now = Instant::now();
        if let Some(held) = self.held.get(&claim.resource).filter(|held| held.expires > now) {
            return if held.owner == claim.owner {
                Attempt::Granted { fencing_token: held.fencing_token, since: now }
            } else {
                Attempt::held_for(Some(held.expires.since(now)))
            };
        }
        self.last_token = (self.last_token + 1).max(clock::unix_micros());
        self.held.insert(
            claim.resource.clone(),
            Held {
                owner: claim.owner,
                fencing_token: self.last_token,
                expires: now.after(claim.ttl),
                since: SystemTime::now(),
                label: claim.label.clone(),
            },
        );
        Attempt::Granted { fencing_token: self.last_token, since: now }
    }

    fn extend(&mut self, claim: &Claim, ttl: Duration) -> Extension {
        let now = Instant::now();
        match self.held.get_mut(&claim.resource) {
            Some(held) if held.owner == claim.owner && held.expires > now => {
                held.expires = now.after(ttl);
                Extension::Extended { since: now }
            }
            _ => Extension::Lost,
        }
    }

    fn release(&mut self, claim: &Claim) -> Release {
        let Entry::Occupied(entry) = self.held.entry(claim.resource.clone()) else { return Release::NotHeld };
        if entry.get().owner != claim.owner {
            return Release::NotHeld;
        }
        let expired = entry.remove().expires <= Instant::now();
        if let Some(watched) = self.watched.get(&claim.resource) {
            watched.send_modify(|changes| *changes += 1);
        }
        if expired { Release::NotHeld } else { Release::Released }
    }
}

impl Backend for MemoryBackend {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            guarantee: Guarantee::Fenced,
            fencing: true,
            across_processes: false,
            across_hosts: false,
            inspection: true,
        }
    }

    fn check_reachable<'a>(&'a self, _: &'a Driver) -> Answer<'a, Result<()>> {
        Box::pin(async { Ok(()) })
    }

    fn settles_within(&self, _: Duration) -> Duration {
        Duration::ZERO
    }

    fn try_acquire<'a>(&'a self, claim: &'a Claim, _: &'a Driver) -> Answer<'a, Attempt> {
        Box::pin(async { self.0.state().take(claim) })
    }

    fn extend<'a>(&'a self, claim: &'a Claim, ttl: Duration, _: &'a Driver) -> Answer<'a, Extension> {
        Box::pin(async move { self.0.state().extend(claim, ttl) })
    }

    fn release<'a>(&'a self, claim: &'a Claim, _: &'a Driver) -> Answer<'a, Release> {
        Box::pin(async { self.0.state().release(claim) })
    }

    fn inspect<'a>(&'a self, resource: &'a Resource, _: &'a Driver) -> Answer<'a, Result<Option<Holder>>> {
        Box::pin(async {
            let now = Instant::now();
            let state = self.0.state();
            let held = state.held.get(resource).filter(|held| held.expires > now);
            Ok(held.map(|held| Holder {
                owner: held.owner.to_string(),
                fencing_token: Some(held.fencing_token),
                expires_in: Some(held.expires.since(now)),
                since: Some(held.since),
                host: None,
                pid: Some(std::process::id()),
                label: held.label.as_deref().map(str::to_owned),
            }))
        })
    }

    fn watch(&self, resource: &Resource) -> Watch {
        let mut state = self.0.state();
        let watched = state.watched.entry(resource.clone()).or_insert_with(|| watch::Sender::new(0));
        let mut changes = watched.subscribe();
        // It may have been released since the caller last looked.
        changes.mark_changed();
        Watch::new(changes, Watching { store: Arc::clone(&self.0), resource: resource.clone() })
    }
}

/// Forgets a watched resource when its last watch is gone.
struct Watching {
    store: Arc<Store>,
    resource: Resource,
}

impl Drop for Watching {
    fn drop(&mut self) {
        let mut state = self.store.state();
        // This watch's own receiver may be dropped before or after this; one left over costs one entry,
        // which the next watch of the resource uses again.
        if state.watched.get(&self.resource).is_some_and(|watched| watched.receiver_count() == 0) {
            state.watched.remove(&self.resource);
        }
    }
}
