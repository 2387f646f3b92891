//! Locks among the processes of one host, in files: what is there where there is no server.
//!
//! One lock file per resource, locked by `flock` while the lease is held ([`lock_file`]). The system frees
//! the lock of a process that ends, however it ends. The engine ends a lease that is not extended by releasing
//! it; a holder that is stopped (SIGSTOP, a suspended laptop) cannot do that, and keeps the lock until it
//! goes on: nobody else gets in before it has noticed.
//!
//! # Fencing tokens
//!
//! The counter is in the file ([`record`]), and no file is ever deleted. A token is one more than the last, and at
//! least the wall clock's microseconds. That is why no acquisition waits for the disk: what a process has written
//! outlives the process without any `fsync`; only a crash of the *machine* may lose the last writes, and
//! afterwards the clock has passed every token that it gave before. It had not if it was set back: then the
//! token is not the clock's, and such a record is on the disk before its token is given. What is left is a machine
//! without a battery-backed clock that crashes and starts with its clock in the past.
//!
//! # After a fork
//!
//! The child shares the open files, and with them the locks. It never unlocks and never closes them by itself;
//! see [`crate::host::inherited_fds`].

mod breaking;
mod directory;
mod entry;
mod lock_file;
mod name;
mod notices;
mod record;

use std::{sync::Arc, time::Duration};

use self::{
    directory::{Directory, Place},
    entry::Entry,
};
use super::{Answer, Attempt, Backend, Capabilities, Claim, Extension, Guarantee, Holder, Release, Watch};
use crate::{OwnerToken, Resource, Result, clock::Instant, engine::driver::Driver, pattern::Pattern};

/// Locks in the files of a directory.
#[derive(Debug)]
pub(crate) struct FileBackend(Arc<Directory>);

impl FileBackend {
    /// For `file:///directory`, `file:///directory?network=allow`. Touches nothing yet.
    ///
    /// # Errors
    /// `InvalidArgument` naming `url`.
    pub(crate) fn new(url: &str) -> Result<Self> {
        Ok(Self(Directory::at(Place::parse(url)?)))
    }
}

/// Of several resources, each is a lock of its own: taken in their common order, and given back if one is busy.
impl FileBackend {
    fn take(&self, claim: &Claim) -> Attempt {
        let (mut token, mut first) = (0, None);
        for (index, resource) in claim.resources.iter().enumerate() {
            match self.0.entry(resource).take(&self.0, resource, claim, token) {
                Attempt::Granted { fencing_token, since } => {
                    token = fencing_token;
                    first.get_or_insert(since);
                }
                other => {
                    for taken in &claim.resources[..index] {
                        self.0.entry(taken).put_back(claim);
                    }
                    return other;
                }
            }
        }
        // One token for all: the largest, which the last one has.
        for resource in claim.resources.iter().rev().skip(1) {
            if let Err(error) = self.0.entry(resource).raise(claim, token) {
                self.give_back(claim);
                return Attempt::Refused(error);
            }
        }
        Attempt::Granted { fencing_token: token, since: first.unwrap_or_else(Instant::now) }
    }

    fn extend(&self, claim: &Claim, ttl: Duration) -> Extension {
        let mut first = None;
        for resource in claim.resources.iter() {
            match self.0.entry(resource).extend(claim, ttl) {
                Extension::Extended { since } => first.get_or_insert(since),
                other => return other,
            };
        }
        Extension::Extended { since: first.unwrap_or_else(Instant::now) }
    }

    fn give_back(&self, claim: &Claim) -> Release {
        let outcomes = claim.resources.iter().map(|resource| {
            let outcome = self.0.entry(resource).give_back(claim);
            self.0.tidy(resource);
            outcome
        });
        // Each is given back, whatever became of the others.
        outcomes.fold(Release::Released, |all, one| if one == Release::Released { all } else { one })
    }
}

// Every step is a few quick system calls on a local file system, so it is done in place: to hand it to another
// thread would cost more. No step can be cancelled halfway, and every answer is certain.
impl Backend for FileBackend {
    fn system(&self) -> &'static str {
        "file"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            guarantee: Guarantee::Fenced,
            fencing: true,
            across_processes: true,
            across_hosts: false,
            shared: false,
            semaphore: false,
            several: true,
            fair: false,
            inspection: true,
            listing: true,
            breaking: true,
        }
    }

    fn check_reachable<'a>(&'a self, _: &'a Driver) -> Answer<'a, Result<()>> {
        Box::pin(async { self.0.make_ready() })
    }

    fn settles_within(&self, _: Duration) -> Duration {
        Duration::ZERO
    }

    fn try_acquire<'a>(&'a self, claim: &'a Claim, _: &'a Driver) -> Answer<'a, Attempt> {
        Box::pin(async { self.take(claim) })
    }

    fn extend<'a>(&'a self, claim: &'a Claim, ttl: Duration, _: &'a Driver) -> Answer<'a, Extension> {
        Box::pin(async move { self.extend(claim, ttl) })
    }

    fn release<'a>(&'a self, claim: &'a Claim, _: &'a Driver) -> Answer<'a, Release> {
        Box::pin(async { self.give_back(claim) })
    }

    fn inspect<'a>(&'a self, resource: &'a Resource, _: &'a Driver) -> Answer<'a, Result<Option<Holder>>> {
        Box::pin(async {
            self.0.make_ready()?;
            self.0.entry(resource).holder(resource)
        })
    }

    fn list<'a>(&'a self, pattern: &'a Pattern, limit: usize, _: &'a Driver) -> Answer<'a, Result<Vec<Holder>>> {
        Box::pin(async move {
            self.0.make_ready()?;
            let named = match pattern.only() {
                Some(resource) => vec![resource],
                None => self.0.resources(pattern)?,
            };
            let mut holders = Vec::new();
            for (index, resource) in named.iter().enumerate() {
                // Others have a turn now and then: each look is a few system calls.
                if index % 64 == 63 {
                    tokio::task::yield_now().await;
                }
                holders.extend(self.0.entry(resource).holder(resource)?);
                if holders.len() >= limit {
                    break;
                }
            }
            Ok(holders)
        })
    }

    fn break_lock<'a>(&'a self, resource: &'a Resource, owner: &'a str, _: &'a Driver) -> Answer<'a, Result<bool>> {
        Box::pin(async move {
            self.0.make_ready()?;
            // What holds without a record of ours, by flock(1) perhaps, has no owner to name.
            OwnerToken::parse(owner).map_or(Ok(false), |owner| self.0.entry(resource).break_lock(owner))
        })
    }

    fn watch(&self, resource: &Resource) -> Watch {
        let entry = self.0.entry(resource);
        Watch::new(entry.watch(), Watching(entry))
    }

    fn close(&self) {
        self.0.close_idle();
    }
}

/// Ends the watching when dropped.
struct Watching(Arc<Entry>);

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.unwatch();
    }
}
