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
use crate::{Resource, Result, engine::driver::Driver};

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

// Every step is a few quick system calls on a local file system, so it is done in place: to hand it to another
// thread would cost more. No step can be cancelled halfway, and every answer is certain.
impl Backend for FileBackend {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            guarantee: Guarantee::Fenced,
            fencing: true,
            across_processes: true,
            across_hosts: false,
            inspection: true,
        }
    }

    fn check_reachable<'a>(&'a self, _: &'a Driver) -> Answer<'a, Result<()>> {
        Box::pin(async { self.0.make_ready() })
    }

    fn settles_within(&self, _: Duration) -> Duration {
        Duration::ZERO
    }

    fn try_acquire<'a>(&'a self, claim: &'a Claim, _: &'a Driver) -> Answer<'a, Attempt> {
        Box::pin(async { self.0.entry(&claim.resource).take(&self.0, claim) })
    }

    fn extend<'a>(&'a self, claim: &'a Claim, ttl: Duration, _: &'a Driver) -> Answer<'a, Extension> {
        Box::pin(async move { self.0.entry(&claim.resource).extend(claim, ttl) })
    }

    fn release<'a>(&'a self, claim: &'a Claim, _: &'a Driver) -> Answer<'a, Release> {
        Box::pin(async { self.0.entry(&claim.resource).give_back(claim) })
    }

    fn inspect<'a>(&'a self, resource: &'a Resource, _: &'a Driver) -> Answer<'a, Result<Option<Holder>>> {
        Box::pin(async {
            self.0.make_ready()?;
            self.0.entry(resource).holder()
        })
    }

    fn watch(&self, resource: &Resource) -> Watch {
        let entry = self.0.entry(resource);
        Watch::new(entry.watch(), Watching(entry))
    }
}

/// Ends the watching when dropped.
struct Watching(Arc<Entry>);

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.unwatch();
    }
}
