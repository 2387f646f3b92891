//! Taking a lock from another process that holds it.
//!
//! The system frees a `flock` only for its holder. So the lock *file* is replaced by one of the same contents: the old
//! one is locked still, but nobody looks at it any more, and its holder finds that out at its next extension.
//!
//! # What can happen between any two steps
//!
//! * *The holder gives it back, and another takes it, before the file is replaced*: afterwards the old file says so
//!   (whoever holds it writes into it first), and it is put back. Meanwhile the new file is locked by us, so nobody
//!   was granted anything on it. The other would learn of a loss only if it extended just then, microseconds after
//!   its grant.
//! * *This process ends halfway*: before the replacing nothing has changed; after it the lock is broken, and a file
//!   with a name that no resource has is left over.
//! * *Somebody waits*: the old file's watchers are woken, find that it is not the one at the path, and go there.

use std::{
    fs, io,
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
};

use rustix::fs::{CWD, RenameFlags, Timespec, Timestamps, UTIME_NOW, futimens, renameat_with};

use super::{
    lock_file::LockFile,
    record::{self, Contents},
};
use crate::OwnerToken;

/// Takes the lock at `path` from `owner`; `false` if that one does not hold it.
pub(super) fn break_lock(path: &Path, owner: &OwnerToken) -> io::Result<bool> {
    let old = match LockFile::open(path, false) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        opened => opened?,
    };
    if !is_held_by(&old, owner)? {
        return Ok(false);
    }
    let beside = Beside(path.with_file_name(format!(".break-{:016x}", fastrand::u64(..))));
    let new = LockFile::open(&beside.0, true)?;
    let metadata = old.file().metadata()?;
    let mut contents = vec![0; usize::try_from(metadata.len()).unwrap_or(0)];
    old.file().read_exact_at(&mut contents, 0)?;
    new.file().write_all_at(&contents, 0)?;
    record::write_released(new.file(), owner)?;
    new.file().set_permissions(metadata.permissions())?;
    if new.file().metadata()?.uid() != metadata.uid() {
        std::os::unix::fs::fchown(new.file(), Some(metadata.uid()), Some(metadata.gid()))?;
    }
    if !new.try_lock()? {
        return Err(io::Error::other("a file that was just made is locked"));
    }
    exchange(path, &beside.0)?;
    // Replaced under our hands, by somebody who breaks it as well: what is beside now is not what we looked at.
    let broken = old.is_at(&beside.0)? && is_held_by(&old, owner)?;
    if !broken {
        exchange(path, &beside.0)?;
    }
    new.unlock();
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    if let Err(error) = futimens(old.file(), &Timestamps { last_access: now, last_modification: now }) {
        tracing::debug!(%error, "waiters of a broken lock are not woken");
    }
    Ok(broken)
}

fn is_held_by(file: &LockFile, owner: &OwnerToken) -> io::Result<bool> {
    let holder = Contents::read(file.file())?.holder();
    Ok(holder.is_some_and(|record| record.owner == owner.as_str()) && file.is_locked()?)
}

fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).map_err(|error| match error {
        rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS => {
            io::Error::new(io::ErrorKind::Unsupported, "this file system cannot exchange two files")
        }
        error => error.into(),
    })
}

/// A file that is gone afterwards.
struct Beside(std::path::PathBuf);

impl Drop for Beside {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            tracing::debug!(%error, "a file is left over: {}", self.0.display());
        }
    }
}
