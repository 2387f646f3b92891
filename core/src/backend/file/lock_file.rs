//! One open lock file: opening it safely, locking it, ringing its bell.
//!
//! The lock is `flock` of the whole file. It belongs to the open file description: the system frees it when the
//! last descriptor is closed, and so when the holder dies however it dies. Three traps, and what is done:
//!
//! * *The file is deleted or replaced, and somebody else locks the new one.* Nothing here ever deletes a lock
//!   file; whoever got the lock compares its file with the one at the path, and starts over if they differ.
//! * *Somebody looks who holds it* by trying for a shared lock, and an attempt at that moment is refused. So an
//!   attempt that is refused tries for a shared lock too: if it gets that, nobody held the lock.
//! * *A fork shares the description.* Unlocking in the child would free the parent's lock, so a file of another
//!   process is neither unlocked nor closed here (see [`process::inherited_fds`]); and the parent always
//!   unlocks before it closes, or a child could keep the lock.

use std::{
    fs::{self, File, Metadata, OpenOptions, TryLockError},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
    time::Duration,
};

use rustix::fs::{OFlags, Timespec, Timestamps, UTIME_NOW, futimens};

use super::record::{Contents, Slot};
use crate::engine::process;

/// How often an attempt that nobody stands against is repeated.
const COLLISIONS: u32 = 64;

#[derive(Debug)]
pub(super) struct LockFile {
    /// `None` only while it is being dropped.
    file: Option<File>,
    generation: u32,
    id: FileId,
    /// Where the next record goes; right while the lock is held.
    pub(super) slot: Slot,
}

/// Device and inode: not given to another file while this one is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileId(u64, u64);

impl FileId {
    fn of(metadata: &Metadata) -> Self {
        Self(metadata.dev(), metadata.ino())
    }
}

impl LockFile {
    /// Opens the file at `path`: made if it is missing if it is `to_write`, else to be looked at only.
    pub(super) fn open(path: &Path, to_write: bool) -> io::Result<Self> {
        // Nor wait for the other end should it be a named pipe.
        let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = OpenOptions::new()
            .read(true)
            .write(to_write)
            .create(to_write)
            .custom_flags(flags.bits().cast_signed())
            .mode(0o666)
            .open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::IsADirectory, "not a regular file"));
        }
        process::share(&file, &metadata);
        let id = FileId::of(&metadata);
        Ok(Self { file: Some(file), generation: process::generation(), id, slot: Slot::default() })
    }

    pub(super) fn file(&self) -> &File {
        match &self.file {
            Some(file) => file,
            None => unreachable!("taken out by drop alone"),
        }
    }

    /// Whether `path` still leads to this file.
    pub(super) fn is_at(&self, path: &Path) -> io::Result<bool> {
        match fs::symlink_metadata(path) {
            Ok(metadata) => Ok(FileId::of(&metadata) == self.id),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Takes the lock; `false` if somebody holds it.
    pub(super) fn try_lock(&self) -> io::Result<bool> {
        for collision in 0..COLLISIONS {
            match self.file().try_lock() {
                Ok(()) => return Ok(true),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(error),
            }
            if self.is_locked()? {
                return Ok(false);
            }
            // Somebody looks at the same moment; two that try like this must not stay in step.
            if collision > 2 {
                std::thread::sleep(Duration::from_micros(fastrand::u64(1..50)));
            }
        }
        Ok(false)
    }

    /// Whether somebody else holds the lock. Not for a file whose lock is held through this one.
    pub(super) fn is_locked(&self) -> io::Result<bool> {
        match self.file().try_lock_shared() {
            Ok(()) => self.file().unlock().map(|()| false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Reads the records, and notes where the next one goes.
    pub(super) fn read(&mut self) -> io::Result<Contents> {
        let contents = Contents::read(self.file())?;
        self.slot = contents.next_slot();
        Ok(contents)
    }

    /// Gives the lock back, without telling anybody.
    pub(super) fn unlock_quietly(&self) {
        if let Err(error) = self.file().unlock() {
            tracing::error!(%error, "a lock file cannot be unlocked");
        }
    }

    /// Gives the lock back and wakes those who watch the file.
    pub(super) fn unlock(&self) {
        self.unlock_quietly();
        // After the unlocking, or they would find it locked. Setting the times says nothing but "look", so it may
        // come when the next holder is already there; writing a record does not wake anybody.
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        if let Err(error) = futimens(self.file(), &Timestamps { last_access: now, last_modification: now }) {
            tracing::debug!(%error, "waiters of other processes are not woken");
        }
    }
}

impl Drop for LockFile {
    fn drop(&mut self) {
        let Some(file) = self.file.take() else { return };
        if self.generation == process::generation() {
            process::unshare(&file);
        } else {
            std::mem::forget(file);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use rustix::io::{FdFlags, fcntl_setfd};

    use super::*;

    /// A child that shares the open file, as after a fork.
    struct Sharer(Child);

    impl Sharer {
        fn of(file: &LockFile) -> Self {
            // One at a time, or another test's child would inherit this file as well.
            static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
            let _one = ONE.lock();
            fcntl_setfd(file.file(), FdFlags::empty()).unwrap();
            let child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
            fcntl_setfd(file.file(), FdFlags::CLOEXEC).unwrap();
            Self(child)
        }

        fn end(mut self) {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }

    fn path(name: &str) -> std::path::PathBuf {
        std::env::temp_dir().join(format!("polylock-lock-file-{}-{name}", std::process::id()))
    }

    #[test]
    fn a_release_frees_it_though_a_child_has_it_open() {
        let path = path("release");
        let (one, two) = (LockFile::open(&path, true).unwrap(), LockFile::open(&path, true).unwrap());
        assert!(one.try_lock().unwrap());
        let sharer = Sharer::of(&one);
        assert!(!two.try_lock().unwrap());
        one.unlock();
        assert!(two.try_lock().unwrap());
        sharer.end();
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_child_neither_unlocks_nor_closes() {
        let path = path("child");
        let (mut one, two) = (LockFile::open(&path, true).unwrap(), LockFile::open(&path, true).unwrap());
        assert!(one.try_lock().unwrap());
        // What this process would be if the file were its parent's.
        one.generation += 1;
        drop(one);
        assert!(!two.try_lock().unwrap());
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn closing_alone_keeps_the_lock_for_a_child() {
        let path = path("close");
        let (one, two) = (LockFile::open(&path, true).unwrap(), LockFile::open(&path, true).unwrap());
        assert!(one.try_lock().unwrap());
        let sharer = Sharer::of(&one);
        drop(one); // as if it had been killed
        assert!(!two.try_lock().unwrap(), "so why would children have to close it?");
        sharer.end();
        assert!(two.try_lock().unwrap());
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn looking_does_not_stand_in_the_way() {
        let path = path("look");
        let (one, two) = (LockFile::open(&path, true).unwrap(), LockFile::open(&path, false).unwrap());
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    two.is_locked().unwrap();
                }
            });
            for _ in 0..2000 {
                assert!(one.try_lock().unwrap());
                one.unlock();
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        fs::remove_file(path).unwrap();
    }
}
