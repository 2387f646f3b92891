//! Locks inside one process; the reference model for the tests of the other backends.
//!
//! The whole store is one mutex around a map, and no step blocks or can be cancelled halfway, so every
//! answer is certain. A lease that expired is taken over by the next attempt. Fencing tokens come from one
//! counter for the whole store, seeded with the wall clock's microseconds, so that entries need not be kept.

mod queue;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, SystemTime},
};

use tokio::sync::watch;

use self::queue::Queue;
use super::{Answer, Attempt, Backend, Capabilities, Claim, Extension, Guarantee, Holder, Release, Turn, Watch};
use crate::{
    Mode, OwnerToken, Resource, Result,
    clock::{self, Instant},
    engine::{driver::Driver, process::PerProcess},
    pattern::Pattern,
};

/// `memory:` makes a store of its own, `memory:NAME` shares one among the managers of this process.
#[derive(Debug)]
pub(crate) struct MemoryBackend(Arc<Store>);

#[derive(Debug, Default)]
struct Store(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    locks: HashMap<Resource, Lock>,
    /// Those who wait to be served in order; there while somebody does.
    queues: HashMap<Resource, Queue>,
    watched: HashMap<Resource, watch::Sender<u64>>,
    last_token: u64,
}

/// One resource and who holds it; there while somebody does, or waits to hold it alone.
#[derive(Debug)]
struct Lock {
    mode: Mode,
    holders: Vec<Held>,
    /// Somebody waits to hold it exclusively: until then, nobody else comes to share it.
    writer_until: Instant,
}

#[derive(Debug)]
struct Held {
    owner: OwnerToken,
    fencing_token: u64,
    expires: Instant,
    since: SystemTime,
    label: Option<Arc<str>>,
}

/// How long a refused writer keeps new readers out; it asks again well before.
const WRITER_WAITS: Duration = Duration::from_millis(600);

impl MemoryBackend {
    /// A store of its own if `name` is empty.
    pub(crate) fn new(name: &str) -> Self {
        static NAMED: PerProcess<Mutex<HashMap<String, Weak<Store>>>> = PerProcess::new(Mutex::default);
        if name.is_empty() {
            return Self(Arc::default());
        }
        let named = NAMED.get();
        let mut named = named.lock().unwrap_or_else(PoisonError::into_inner);
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

impl Lock {
    fn new(mode: Mode, now: Instant) -> Self {
        Self { mode, holders: Vec::new(), writer_until: now }
    }

    fn held_by(&self, owner: OwnerToken) -> Option<&Held> {
        self.holders.iter().find(|held| held.owner == owner)
    }

    /// Forgets who has expired.
    fn expire(&mut self, now: Instant) {
        self.holders.retain(|held| held.expires > now);
    }

    /// Why `mode` cannot come in, if it cannot. Expired holders have been forgotten.
    fn refuse(&mut self, mode: Mode, now: Instant) -> Option<Attempt> {
        let first = self.holders.iter().map(|held| held.expires).min();
        let last = self.holders.iter().map(|held| held.expires).max();
        let (Some(first), Some(last)) = (first, last) else {
            let waits = mode == Mode::Shared && self.writer_until > now;
            return waits.then(|| Attempt::held_for(Some(self.writer_until.since(now))));
        };
        let free = match (self.mode, mode) {
            (Mode::Shared, Mode::Shared) if self.writer_until > now => self.writer_until,
            (Mode::Shared, Mode::Shared) => return None,
            (Mode::Permit { .. }, Mode::Permit { of }) if self.holders.len() < of as usize => return None,
            (Mode::Permit { .. }, Mode::Permit { .. }) => first,
            (Mode::Shared, Mode::Exclusive) => {
                self.writer_until = now.after(WRITER_WAITS);
                last
            }
            (Mode::Exclusive, Mode::Exclusive | Mode::Shared) => last,
            (Mode::Permit { .. }, _) | (_, Mode::Permit { .. }) => {
                let free_in = Some(last.since(now));
                return Some(Attempt::Busy { free_in, foreign: true, contended: false, residue: false });
            }
        };
        Some(Attempt::held_for(Some(free.since(now))))
    }
}

impl State {
    /// Takes it, if it is this waiter's turn.
    fn take_in_turn(&mut self, claim: &Claim, turn: &Turn) -> Attempt {
        let (now, resource) = (Instant::now(), claim.resource());
        let first = self.queues.get_mut(resource).and_then(|queue| queue.is_before(turn, now));
        let is_held = self.locks.get(resource).is_some_and(|lock| lock.holders.iter().any(|held| held.expires > now));
        let attempt = match first {
            Some(until) if !is_held => Attempt::held_for(Some(until.since(now))),
            _ => self.take(claim),
        };
        if matches!(attempt, Attempt::Granted { .. }) {
            self.leave(resource, turn);
        } else if claim.waits {
            self.queues.entry(resource.clone()).or_default().stay(turn, now);
        }
        attempt
    }

    /// Says whether it was there.
    fn leave(&mut self, resource: &Resource, turn: &Turn) -> bool {
        let Some(queue) = self.queues.get_mut(resource) else { return false };
        let left = queue.leave(turn);
        if queue.is_empty() {
            self.queues.remove(resource);
        }
        left
    }

    fn take(&mut self, claim: &Claim) -> Attempt {
        let now = Instant::now();
        for resource in claim.resources.iter() {
            let Some(lock) = self.locks.get_mut(resource) else { continue };
            lock.expire(now);
            if let Some(held) = lock.held_by(claim.owner) {
                return Attempt::Granted { fencing_token: held.fencing_token, since: now };
            }
            if let Some(refusal) = lock.refuse(claim.mode, now) {
                return refusal;
            }
        }
        self.last_token = (self.last_token + 1).max(clock::unix_micros());
        for resource in claim.resources.iter() {
            let lock = self.locks.entry(resource.clone()).or_insert_with(|| Lock::new(claim.mode, now));
            lock.mode = claim.mode;
            lock.holders.push(Held {
                owner: claim.owner,
                fencing_token: self.last_token,
                expires: now.after(claim.ttl),
                since: SystemTime::now(),
                label: claim.label.clone(),
            });
        }
        Attempt::Granted { fencing_token: self.last_token, since: now }
    }

    fn extend(&mut self, claim: &Claim, ttl: Duration) -> Extension {
        let now = Instant::now();
        for resource in claim.resources.iter() {
            let Some(lock) = self.locks.get_mut(resource) else { return Extension::Lost };
            match lock.holders.iter_mut().find(|held| held.owner == claim.owner && held.expires > now) {
                Some(held) => held.expires = now.after(ttl),
                None => return Extension::Lost,
            }
        }
        Extension::Extended { since: now }
    }

    fn release(&mut self, claim: &Claim) -> Release {
        let now = Instant::now();
        // Each is freed, whatever became of the others.
        let mut outcome = Release::Released;
        for resource in claim.resources.iter() {
            if !self.free(resource, claim.owner, now) {
                outcome = Release::NotHeld;
            }
        }
        outcome
    }

    /// Takes `owner` off `resource` and wakes who waits for it. Says whether it held.
    fn free(&mut self, resource: &Resource, owner: OwnerToken, now: Instant) -> bool {
        let held = self.locks.get_mut(resource).and_then(|lock| {
            let index = lock.holders.iter().position(|held| held.owner == owner)?;
            Some(lock.holders.swap_remove(index))
        });
        if self.locks.get(resource).is_some_and(|lock| lock.holders.is_empty() && lock.writer_until <= now) {
            self.locks.remove(resource);
        }
        self.wake(resource);
        held.is_some_and(|held| held.expires > now)
    }

    fn wake(&self, resource: &Resource) {
        if let Some(watched) = self.watched.get(resource) {
            watched.send_modify(|changes| *changes += 1);
        }
    }

    /// Who holds `resource` now.
    fn holders<'a>(&'a self, resource: &'a Resource) -> impl Iterator<Item = Holder> + 'a {
        let now = Instant::now();
        let waiting = self.watched.get(resource).map_or(0, watch::Sender::receiver_count);
        let lock = self.locks.get(resource).into_iter();
        let holders = lock.flat_map(|lock| lock.holders.iter().map(|held| (lock.mode, held)));
        holders.filter(move |(_, held)| held.expires > now).map(move |(mode, held)| Holder {
            mode: mode.name(),
            fencing_token: Some(held.fencing_token),
            expires_in: Some(held.expires.since(now)),
            since: Some(held.since),
            pid: Some(std::process::id()),
            label: held.label.as_deref().map(str::to_owned),
            waiting: u32::try_from(waiting).ok(),
            ..Holder::new(resource.clone(), held.owner.to_string())
        })
    }
}

impl Backend for MemoryBackend {
    fn system(&self) -> &'static str {
        "memory"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            guarantee: Guarantee::Fenced,
            fencing: true,
            across_processes: false,
            across_hosts: false,
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
        Box::pin(async { Ok(()) })
    }

    fn settles_within(&self, _: Duration) -> Duration {
        Duration::ZERO
    }

    fn try_acquire<'a>(&'a self, claim: &'a Claim, _: &'a Driver) -> Answer<'a, Attempt> {
        Box::pin(async {
            let mut state = self.0.state();
            match &claim.turn {
                Some(turn) => state.take_in_turn(claim, turn),
                None => state.take(claim),
            }
        })
    }

    fn extend<'a>(&'a self, claim: &'a Claim, ttl: Duration, _: &'a Driver) -> Answer<'a, Extension> {
        Box::pin(async move { self.0.state().extend(claim, ttl) })
    }

    fn release<'a>(&'a self, claim: &'a Claim, _: &'a Driver) -> Answer<'a, Release> {
        Box::pin(async { self.0.state().release(claim) })
    }

    fn inspect<'a>(&'a self, resource: &'a Resource, _: &'a Driver) -> Answer<'a, Result<Option<Holder>>> {
        Box::pin(async { Ok(self.0.state().holders(resource).max_by_key(|holder| holder.expires_in)) })
    }

    fn list<'a>(&'a self, pattern: &'a Pattern, limit: usize, _: &'a Driver) -> Answer<'a, Result<Vec<Holder>>> {
        Box::pin(async move {
            let state = self.0.state();
            let named = state.locks.keys().filter(|resource| pattern.matches(resource.as_str()));
            Ok(named.flat_map(|resource| state.holders(resource)).take(limit).collect())
        })
    }

    fn break_lock<'a>(&'a self, resource: &'a Resource, owner: &'a str, _: &'a Driver) -> Answer<'a, Result<bool>> {
        Box::pin(async move {
            let owner = OwnerToken::parse(owner);
            Ok(owner.is_some_and(|owner| self.0.state().free(resource, owner, Instant::now())))
        })
    }

    fn leave<'a>(&'a self, resource: &'a Resource, turn: &'a Turn, _: &'a Driver) -> Answer<'a, ()> {
        Box::pin(async {
            let mut state = self.0.state();
            if state.leave(resource, turn) {
                state.wake(resource);
            }
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
