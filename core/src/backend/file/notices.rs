//! News from the file system: wakes those who wait for a lock of another process.
//!
//! One inotify descriptor per engine, read by a task of the engine; started by the first wait. It reports
//! that a lock file was rung ([`LockFile::unlock`](super::lock_file::LockFile::unlock)), that a process that
//! had it open has gone, or that it was deleted or moved. Where the system gives no inotify, or no more
//! watches, nothing is reported: the engine looks again by itself after a bounded time.

use std::{
    collections::HashMap,
    io,
    mem::MaybeUninit,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use rustix::{
    fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags},
    io::Errno,
};
use tokio::{io::Interest, sync::watch};

use crate::{
    clock::Instant,
    engine::{process, runtime, timer, watched::watched},
};

/// What may mean that a lock is free. Unlinking changes the link count and so is `ATTRIB`.
const EVENTS: WatchFlags = WatchFlags::ATTRIB
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::DONT_FOLLOW);

/// The system tells of a close before it frees the lock, so who was woken by it is woken again this much later.
const AFTER_CLOSE: [Duration; 3] = [Duration::from_millis(1), Duration::from_millis(4), Duration::from_millis(20)];

/// Counts what has happened to one file.
pub(super) type Bell = watch::Sender<u64>;

struct Notices {
    generation: u32,
    inotify: OwnedFd,
    stopped: AtomicBool,
    bells: Mutex<HashMap<i32, Vec<Weak<Bell>>>>,
}

static NOTICES: ArcSwapOption<Notices> = ArcSwapOption::const_empty();

/// Rings `bell` for what happens to one file, until dropped.
pub(super) struct Watching {
    notices: Arc<Notices>,
    key: i32,
    bell: Weak<Bell>,
}

/// Rings `bell` from now on for what happens to the file at `path`.
pub(super) fn watch(path: &Path, bell: &Arc<Bell>) -> io::Result<Watching> {
    let notices = Notices::get()?;
    let bell = Arc::downgrade(bell);
    let key = {
        // Under the lock: another watch of the same file that ends now must not end this one.
        let mut bells = notices.bells();
        let key = inotify::add_watch(&notices.inotify, path, EVENTS)?;
        bells.entry(key).or_default().push(Weak::clone(&bell));
        key
    };
    Ok(Watching { notices, key, bell })
}

impl Drop for Watching {
    fn drop(&mut self) {
        if self.notices.generation != process::generation() {
            return;
        }
        let mut bells = self.notices.bells();
        let Some(others) = bells.get_mut(&self.key) else { return };
        if let Some(own) = others.iter().position(|bell| bell.ptr_eq(&self.bell)) {
            others.swap_remove(own);
        }
        if others.is_empty() {
            bells.remove(&self.key);
            // Fails if the file is gone, and the watch with it.
            let _ = inotify::remove_watch(&self.notices.inotify, self.key);
        }
    }
}

impl Notices {
    /// The notices of this process, started if they do not run yet.
    fn get() -> io::Result<Arc<Self>> {
        loop {
            let current = NOTICES.load_full();
            match &current {
                Some(notices) if notices.is_usable() => return Ok(Arc::clone(notices)),
                _ => {}
            }
            let new = Arc::new(Self {
                generation: process::generation(),
                inotify: inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?,
                stopped: AtomicBool::new(false),
                bells: Mutex::default(),
            });
            let before = NOTICES.compare_and_swap(&current, Some(Arc::clone(&new)));
            if before.as_ref().map(Arc::as_ptr) == current.as_ref().map(Arc::as_ptr) {
                if let Some(old) = current.filter(|old| old.generation != new.generation) {
                    // The parent's: not to be taken apart here.
                    std::mem::forget(old);
                }
                runtime::spawn(run(Source(Arc::clone(&new))));
                return Ok(new);
            }
        }
    }

    fn is_usable(&self) -> bool {
        self.generation == process::generation() && !self.stopped.load(Ordering::Acquire)
    }

    fn bells(&self) -> MutexGuard<'_, HashMap<i32, Vec<Weak<Bell>>>> {
        self.bells.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring(&self, key: i32) {
        let bells = self.bells().get(&key).cloned().unwrap_or_default();
        ring_all(&bells);
    }

    /// Reads what has happened; returns the files that somebody closed.
    fn take(&self) -> io::Result<Vec<i32>> {
        let mut closed = Vec::new();
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = Reader::new(&self.inotify, &mut buffer);
        loop {
            let event = match events.next() {
                Ok(event) => event,
                Err(Errno::AGAIN) => return Ok(closed),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let (key, what) = (event.wd(), event.events());
            if what.contains(ReadFlags::QUEUE_OVERFLOW) {
                let bells: Vec<_> = self.bells().values().flatten().cloned().collect();
                ring_all(&bells);
            }
            self.ring(key);
            if what.contains(ReadFlags::CLOSE_WRITE) && !closed.contains(&key) {
                closed.push(key);
            }
        }
    }
}

fn ring_all(bells: &[Weak<Bell>]) {
    for bell in bells.iter().filter_map(Weak::upgrade) {
        bell.send_modify(|changes| *changes += 1);
    }
}

/// The notices as their task has them.
struct Source(Arc<Notices>);

impl AsRawFd for Source {
    fn as_raw_fd(&self) -> RawFd {
        self.0.inotify.as_raw_fd()
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        // The engine was shut down: the next one starts anew.
        self.0.stopped.store(true, Ordering::Release);
    }
}

async fn run(source: Source) {
    let source = match watched(source, Interest::READABLE) {
        Ok(source) => source,
        Err(error) => return tracing::warn!(%error, "waiting for lock files goes without notices"),
    };
    loop {
        let Ok(mut ready) = source.readable().await else { return };
        ready.clear_ready();
        let notices = &source.get_ref().0;
        match notices.take() {
            Ok(closed) if closed.is_empty() => {}
            Ok(closed) => {
                runtime::spawn(ring_again(Arc::clone(notices), closed));
            }
            Err(error) => return tracing::warn!(%error, "waiting for lock files goes without notices"),
        }
    }
}

async fn ring_again(notices: Arc<Notices>, closed: Vec<i32>) {
    for pause in AFTER_CLOSE {
        timer::sleep_until(Instant::now().after(pause)).await;
        for key in &closed {
            notices.ring(*key);
        }
    }
}
