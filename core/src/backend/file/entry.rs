//! One resource as one process knows it: the open file, and the lease that is held through it.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use once_cell::race::OnceBox;
use tokio::sync::watch::Receiver;

use super::{
    breaking,
    directory::{Directory, error_at},
    lock_file::LockFile,
    notices::{self, Bell},
    record::{self, Record},
};
use crate::{
    Error, ErrorKind, Holder, OwnerToken, Release, Resource, Result,
    backend::{Attempt, Claim, Extension},
    clock::{self, Instant},
};

/// How often a lock file may turn out to have been replaced under our hands.
const REPLACED: u32 = 16;

/// How often a holder whose record is not there yet is looked at again.
const LOOKS: u32 = 20;

/// Tokens stay integers in a double.
const LAST_TOKEN: u64 = (1 << 53) - 1;

pub(super) struct Entry {
    path: PathBuf,
    state: Mutex<State>,
    /// Rings when the resource may have become free.
    bell: Arc<Bell>,
}

#[derive(Default)]
struct State {
    file: Option<LockFile>,
    held: Option<Held>,
    watchers: usize,
    watching: Option<notices::Watching>,
}

/// The lease that is held through the open file.
struct Held {
    owner: OwnerToken,
    expires: Instant,
    record: Record,
}

impl Entry {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, state: Mutex::default(), bell: Arc::new(Bell::new(0)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nothing would be lost with it. The caller has the only reference.
    pub(super) fn is_idle(&mut self) -> bool {
        self.state.get_mut().unwrap_or_else(PoisonError::into_inner).held.is_none()
    }

    /// See [`Backend::try_acquire`](crate::backend::Backend::try_acquire).
    pub(super) fn take(&self, directory: &Directory, resource: &Resource, claim: &Claim, least: u64) -> Attempt {
        let since = Instant::now();
        let mut state = self.state();
        if let Some(held) = state.held.as_ref().filter(|held| held.expires > since) {
            return if held.owner == claim.owner {
                Attempt::Granted { fencing_token: held.record.fencing_token, since }
            } else {
                Attempt::held_for(Some(held.expires.since(since)))
            };
        }
        // A lease of this process that expired is taken over: the file is locked still, by this very descriptor.
        state.held = None;
        let entered = loop {
            match self.lock(&mut state, directory) {
                Ok(true) => {}
                Ok(false) => return Attempt::held_for(None),
                Err(error) => break Err(error),
            }
            match self.enter(&mut state, resource, claim, least, since) {
                Ok(None) => {}
                Ok(Some(held)) => break Ok(held),
                Err(error) => break Err(error),
            }
        };
        match entered {
            Ok(held) => {
                let fencing_token = held.record.fencing_token;
                state.held = Some(held);
                Attempt::Granted { fencing_token, since }
            }
            Err(error) => {
                state.give_up();
                Attempt::Refused(error)
            }
        }
    }

    /// Locks the file that is at the path now; `false` if another process holds it.
    fn lock(&self, state: &mut State, directory: &Directory) -> Result<bool> {
        let at_path = |error| error_at(&self.path, error);
        for _ in 0..REPLACED {
            let file = self.open(state, directory)?;
            let locked = file.try_lock().map_err(at_path)?;
            if file.is_at(&self.path).map_err(|error| {
                file.unlock();
                at_path(error)
            })? {
                return Ok(locked);
            }
            // Deleted or replaced: a lock of this file excludes nobody.
            if locked {
                file.unlock();
            }
            state.file = None;
        }
        Err(error_at(&self.path, std::io::Error::other("it is being replaced again and again")))
    }

    /// The open file.
    fn open<'a>(&self, state: &'a mut State, directory: &Directory) -> Result<&'a LockFile> {
        if state.file.is_none() {
            directory.make_ready()?;
            let file = match LockFile::open(&self.path, true) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    directory.make_parents(&self.path)?;
                    LockFile::open(&self.path, true)
                }
                opened => opened,
            };
            state.file = Some(file.map_err(|error| error_at(&self.path, error))?);
            if state.watchers > 0 {
                self.listen(state);
            }
        }
        match &state.file {
            Some(file) => Ok(file),
            None => unreachable!("opened above"),
        }
    }

    /// Writes the new holder into the locked file. `None` if the file was replaced meanwhile, and is unlocked: who breaks a lock may
    /// have seen the holder before, who is dead, in a file that we had locked already.
    fn enter(
        &self,
        state: &mut State,
        resource: &Resource,
        claim: &Claim,
        least: u64,
        since: Instant,
    ) -> Result<Option<Held>> {
        let at_path = |error| error_at(&self.path, error);
        let Some(file) = &mut state.file else { unreachable!("locked by the caller") };
        let contents = file.read().map_err(at_path)?;
        if contents.foreign {
            return Err(at_path(std::io::ErrorKind::AlreadyExists.into()));
        }
        let (last, now) = (contents.last_token(), clock::unix_micros());
        let fencing_token = last.saturating_add(1).max(now).max(least);
        if fencing_token > LAST_TOKEN {
            return Err(Error::new(ErrorKind::Unsupported, "its fencing tokens are used up"));
        }
        let record = Record {
            fencing_token,
            extensions: 0,
            owner: claim.owner.to_string(),
            pid: std::process::id(),
            host: host(),
            since: now,
            ttl: claim.ttl,
            until: since.after(claim.ttl),
            label: claim.label.as_deref().map(str::to_owned),
        };
        if contents.is_new() {
            record::write_name(file.file(), resource).map_err(at_path)?;
        }
        let mut slot = file.slot;
        slot.write(file.file(), &record).map_err(at_path)?;
        file.slot = slot;
        secure(file, fencing_token, now).map_err(at_path)?;
        if !file.is_at(&self.path).map_err(at_path)? {
            file.unlock();
            state.file = None;
            return Ok(None);
        }
        Ok(Some(Held { owner: claim.owner, expires: since.after(claim.ttl), record }))
    }

    /// Raises the held record's token, which another resource of the same claim has got.
    pub(super) fn raise(&self, claim: &Claim, token: u64) -> Result<()> {
        let mut state = self.state();
        let State { file: Some(file), held: Some(held), .. } = &mut *state else { return Ok(()) };
        if held.owner == claim.owner && held.record.fencing_token < token {
            held.record.fencing_token = token;
            let mut slot = file.slot;
            let written = slot.write(file.file(), &held.record);
            file.slot = slot;
            let secured = written.and_then(|()| secure(file, token, clock::unix_micros()));
            secured.map_err(|error| error_at(&self.path, error))?;
        }
        Ok(())
    }

    /// See [`Backend::extend`](crate::backend::Backend::extend).
    pub(super) fn extend(&self, claim: &Claim, ttl: Duration) -> Extension {
        let since = Instant::now();
        let mut state = self.state();
        let State { file: Some(file), held: Some(held), .. } = &mut *state else { return Extension::Lost };
        if held.owner != claim.owner || held.expires <= since {
            return Extension::Lost;
        }
        match file.is_at(&self.path) {
            Ok(true) => {}
            Ok(false) => {
                state.give_up();
                drop(state);
                self.ring();
                return Extension::Lost;
            }
            Err(error) => return Extension::Unknown(error_at(&self.path, error)),
        }
        held.expires = since.after(ttl);
        (held.record.ttl, held.record.until) = (ttl, held.expires);
        held.record.extensions += 1;
        let mut slot = file.slot;
        match slot.write(file.file(), &held.record) {
            Ok(()) => file.slot = slot,
            // It is for inspection alone: the lock is held all the same.
            Err(error) => tracing::debug!(%error, "an extension is not in the lock file"),
        }
        Extension::Extended { since }
    }

    /// See [`Backend::release`](crate::backend::Backend::release).
    pub(super) fn give_back(&self, claim: &Claim) -> Release {
        self.free(claim.owner)
    }

    /// See [`Backend::break_lock`](crate::backend::Backend::break_lock).
    pub(super) fn break_lock(&self, owner: OwnerToken) -> Result<bool> {
        if self.state().held.is_none() {
            return breaking::break_lock(&self.path, &owner).map_err(|error| error_at(&self.path, error));
        }
        Ok(self.free(owner) == Release::Released)
    }

    /// Ends what `owner` holds here, and wakes who waits for it.
    fn free(&self, owner: OwnerToken) -> Release {
        let outcome = self.end(owner, LockFile::unlock);
        if outcome.is_some() {
            self.ring();
        }
        outcome.unwrap_or(Release::NotHeld)
    }

    /// Gives back a part of what was asked for, right after it was taken, because the rest was refused. Wakes nobody:
    /// first of all it would wake whoever asked, who would at once do the same again. Who was refused for this
    /// moment looks again by itself.
    pub(super) fn put_back(&self, claim: &Claim) {
        self.end(claim.owner, LockFile::unlock_quietly);
    }

    /// Ends what `owner` holds, if it does.
    fn end(&self, owner: OwnerToken, unlock: fn(&LockFile)) -> Option<Release> {
        let mut state = self.state();
        let held = state.held.take_if(|held| held.owner == owner)?;
        let file = state.file.as_ref()?;
        let ours = file.is_at(&self.path).unwrap_or(true);
        if let Err(error) = record::write_released(file.file(), &held.owner) {
            tracing::debug!(%error, "a release is not in the lock file");
        }
        unlock(file);
        if !ours {
            state.file = None;
        }
        Some(if ours && held.expires > Instant::now() { Release::Released } else { Release::NotHeld })
    }

    /// See [`Backend::inspect`](crate::backend::Backend::inspect). Makes nothing that is not there.
    pub(super) fn holder(&self, resource: &Resource) -> Result<Option<Holder>> {
        let at_path = |error| error_at(&self.path, error);
        let state = self.state();
        if let Some(held) = state.held.as_ref().filter(|held| held.expires > Instant::now()) {
            return Ok(Some(held.record.to_holder(resource)));
        }
        if state.held.is_some() {
            return Ok(None); // expired, and about to be given back
        }
        // Only to look: closing a file that could be written would wake everybody who waits for it.
        let file = match LockFile::open(&self.path, false) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(at_path(error)),
        };
        drop(state);
        for _ in 0..LOOKS {
            if !file.is_locked().map_err(at_path)? {
                return Ok(None);
            }
            let contents = record::Contents::read(file.file()).map_err(at_path)?;
            if let Some(record) = contents.holder() {
                return Ok(Some(record.to_holder(resource)));
            }
            // Locked, and no record yet.
            std::thread::sleep(Duration::from_micros(20));
        }
        // By a tool that does not write records, flock(1) perhaps.
        Ok(Some(Holder { host: Some(host()), ..Holder::new(resource.clone(), String::new()) }))
    }

    /// Joins those who want to hear when it may be free.
    pub(super) fn watch(&self) -> Receiver<u64> {
        let mut state = self.state();
        state.watchers += 1;
        if state.watchers == 1 {
            self.listen(&mut state);
        }
        let mut changes = self.bell.subscribe();
        // It may have been freed since the caller last looked.
        changes.mark_changed();
        changes
    }

    /// Ends a [`watch`](Self::watch).
    pub(super) fn unwatch(&self) {
        let mut state = self.state();
        state.watchers = state.watchers.saturating_sub(1);
        if state.watchers == 0 {
            state.watching = None;
        }
    }

    /// Has the bell ring for what other processes do with the file that is at the path now.
    fn listen(&self, state: &mut State) {
        match notices::watch(&self.path, &self.bell) {
            Ok(watching) => state.watching = Some(watching),
            Err(error) => tracing::debug!(%error, "waiting for a lock file goes without notices"),
        }
    }

    fn ring(&self) {
        self.bell.send_modify(|changes| *changes += 1);
    }
}

/// Has the record on the disk if the clock was set back, and so could not stand in for one that is lost when the
/// machine crashes.
fn secure(file: &LockFile, token: u64, now: u64) -> std::io::Result<()> {
    if token > now { file.file().sync_data() } else { Ok(()) }
}

impl State {
    /// Unlocks the file and forgets it.
    fn give_up(&mut self) {
        self.held = None;
        if let Some(file) = self.file.take() {
            file.unlock();
        }
    }
}

/// The name of this host, cut to what a record takes.
fn host() -> String {
    static HOST: OnceBox<String> = OnceBox::new();
    let ask = || {
        let uname = rustix::system::uname();
        Box::new(uname.nodename().to_string_lossy().chars().filter(char::is_ascii).take(64).collect())
    };
    HOST.get_or_init(ask).clone()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Mode, backend::file::directory::Place};

    struct Fixture {
        directory: Arc<Directory>,
        entry: Arc<Entry>,
        resource: Resource,
    }

    impl Fixture {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("polylock-entry-{}-{name}", std::process::id()));
            let directory = Directory::at(Place::parse(&format!("file://{}", path.display())).unwrap());
            let resource = Resource::new("r").unwrap();
            Self { entry: directory.entry(&resource), directory, resource }
        }

        fn claim(&self) -> Claim {
            Claim {
                resources: [self.resource.clone()].into(),
                mode: Mode::Exclusive,
                owner: OwnerToken::draw().unwrap(),
                ttl: Duration::from_secs(30),
                label: None,
                turn: None,
                waits: false,
                thorough: false,
                gives_back: false,
                progress: Arc::default(),
            }
        }

        fn try_take(&self, claim: &Claim) -> Attempt {
            self.entry.take(&self.directory, &self.resource, claim, 0)
        }

        fn take(&self, claim: &Claim) -> u64 {
            match self.try_take(claim) {
                Attempt::Granted { fencing_token, .. } => fencing_token,
                other => panic!("{other:?}"),
            }
        }
    }

    impl Drop for Fixture {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(self.directory.path());
        }
    }

    /// The record of who died is there until the next holder has written its own, whose file may be replaced for it.
    #[test]
    fn what_is_broken_as_it_is_taken_is_taken_again() {
        let fixture = Fixture::new("broken");
        let (dead, next) = (fixture.claim(), fixture.claim());
        fixture.take(&dead);
        let mut state = fixture.entry.state();
        state.give_up();
        assert!(fixture.entry.lock(&mut state, &fixture.directory).unwrap());
        assert!(breaking::break_lock(&fixture.entry.path, &dead.owner).unwrap());
        let entered = fixture.entry.enter(&mut state, &fixture.resource, &next, 0, Instant::now()).unwrap();
        assert!(entered.is_none());
        drop(state);
        fixture.take(&next);
        assert!(matches!(fixture.entry.extend(&next, next.ttl), Extension::Extended { .. }));
    }

    #[test]
    fn the_counter_grows_though_the_clock_was_set_back() {
        let fixture = Fixture::new("clock");
        let claim = fixture.claim();
        fixture.take(&claim);
        let ahead = {
            let mut state = fixture.entry.state();
            let record = Record {
                fencing_token: clock::unix_micros() + 3_600_000_000,
                ..state.held.as_ref().unwrap().record.clone()
            };
            let file = state.file.as_mut().unwrap();
            let mut slot = file.slot;
            slot.write(file.file(), &record).unwrap();
            record.fencing_token
        };
        assert_eq!(fixture.entry.give_back(&claim), Release::Released);
        assert_eq!(fixture.take(&fixture.claim()), ahead + 1);
    }

    #[test]
    fn stops_before_tokens_leave_the_range_of_a_double() {
        let fixture = Fixture::new("range");
        let claim = fixture.claim();
        fixture.take(&claim);
        {
            let mut state = fixture.entry.state();
            let record = Record { fencing_token: LAST_TOKEN, ..state.held.as_ref().unwrap().record.clone() };
            let file = state.file.as_mut().unwrap();
            let mut slot = file.slot;
            slot.write(file.file(), &record).unwrap();
        }
        fixture.entry.give_back(&claim);
        let refused = fixture.try_take(&fixture.claim());
        assert!(matches!(&refused, Attempt::Refused(error) if error.kind() == ErrorKind::Unsupported), "{refused:?}");
        let Ok(None) = fixture.entry.holder(&fixture.resource) else { panic!("it is locked still") };
    }

    #[test]
    fn asking_again_with_the_same_owner_is_granted_again() {
        let fixture = Fixture::new("again");
        let claim = fixture.claim();
        let token = fixture.take(&claim);
        assert_eq!(fixture.take(&claim), token);
        assert!(matches!(fixture.try_take(&fixture.claim()), Attempt::Busy { free_in: Some(_), .. }));
    }

    #[test]
    fn the_record_is_of_the_last_extension_also_if_that_was_shorter() {
        let fixture = Fixture::new("extended");
        let claim = fixture.claim();
        fixture.take(&claim);
        for seconds in [60, 10, 20, 5] {
            let ttl = Duration::from_secs(seconds);
            assert!(matches!(fixture.entry.extend(&claim, ttl), Extension::Extended { .. }));
            // As another process sees it.
            let other = Entry::new(fixture.entry.path.clone());
            let expires_in = other.holder(&fixture.resource).unwrap().unwrap().expires_in.unwrap();
            assert!(expires_in <= ttl && expires_in > ttl - Duration::from_secs(4), "{expires_in:?}");
        }
    }
}
