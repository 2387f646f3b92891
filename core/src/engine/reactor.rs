//! A set of connections that one thread or one host event loop drives.
//!
//! Behind it is an epoll instance, which is a file descriptor that can itself be watched: a host loop
//! (libuv, asyncio, poll(2)) watches that one descriptor and waits and dispatches when it is readable,
//! however many connections there are. [`Reactor::notify`] makes it readable from any thread, once per turn.
//! A host to which a system call an answer matters watches the connections' sockets itself ([`Reactor::hosted`]), and
//! this descriptor for all else.
//!
//! It is there for as long as somebody may use it: its loop, the operations started there, what opens a connection for
//! it, and requests that are not answered yet. With the last of them it goes, and its connections with it, on whichever
//! thread that was. So nobody may let go of one while he holds what a [`Source`] takes to close.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};

use super::process;

/// One connection, seen from its reactor.
pub(crate) trait Source: Send + Sync {
    /// The descriptor is readable or writable or broken.
    fn ready(&self);
    /// Write what was left for the end of the turn.
    fn flush(&self);
    /// Nobody will drive it any more, and why.
    fn abandon(&self, why: &str);
}

/// Key of a [`Source`] in its reactor; 0 is the reactor's own wake-up.
pub(crate) type SourceKey = u64;
const WAKE_UP: SourceKey = 0;

pub(crate) struct Reactor {
    id: u64,
    generation: u32,
    epoll: OwnedFd,
    wake_up: OwnedFd,
    notified: AtomicBool,
    sources: Mutex<Sources>,
    /// Sockets that the host has yet to hear of; `None` if it watches none.
    offered: Option<Mutex<Vec<HostSocket>>>,
}

/// A connection's socket, which the host's event loop watches. Clones are the same.
///
/// It stays open while there is one.
#[derive(Clone)]
pub struct HostSocket {
    socket: Arc<dyn AsFd + Send + Sync>,
    key: SourceKey,
}

#[derive(Default)]
struct Sources {
    by_key: HashMap<SourceKey, Weak<dyn Source>>,
    unflushed: Vec<SourceKey>,
    last_key: SourceKey,
    /// Whoever drives it will flush before it waits.
    in_turn: bool,
}

impl Sources {
    fn insert(&mut self, source: Weak<dyn Source>) -> SourceKey {
        self.by_key.retain(|_, source| source.strong_count() > 0);
        self.last_key += 1;
        self.by_key.insert(self.last_key, source);
        self.last_key
    }
}

impl Reactor {
    pub(crate) fn new() -> io::Result<Arc<Self>> {
        Self::with(None)
    }

    /// One whose host watches each connection's socket for reading.
    pub(crate) fn hosted() -> io::Result<Arc<Self>> {
        Self::with(Some(Mutex::default()))
    }

    fn with(offered: Option<Mutex<Vec<HostSocket>>>) -> io::Result<Arc<Self>> {
        static LAST_ID: AtomicU64 = AtomicU64::new(0);
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let wake_up = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(&epoll, &wake_up, epoll::EventData::new_u64(WAKE_UP), epoll::EventFlags::IN)?;
        Ok(Arc::new(Self {
            id: LAST_ID.fetch_add(1, Ordering::Relaxed),
            generation: process::generation(),
            epoll,
            wake_up,
            notified: AtomicBool::new(false),
            sources: Mutex::default(),
            offered,
        }))
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    fn sources(&self) -> MutexGuard<'_, Sources> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn offered(&self) -> Option<MutexGuard<'_, Vec<HostSocket>>> {
        self.offered.as_ref().map(|offered| offered.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Watches a connection's socket until [`remove`](Self::remove).
    pub(crate) fn add(&self, socket: Arc<dyn AsFd + Send + Sync>, source: Weak<dyn Source>) -> io::Result<SourceKey> {
        let Some(mut offered) = self.offered() else { return self.add_for(socket, source, epoll::EventFlags::IN) };
        let key = self.sources().insert(source);
        offered.push(HostSocket { socket, key });
        self.notify();
        Ok(key)
    }

    /// Watches `fd` until [`remove`](Self::remove); tells once of what comes, whether it is read or not.
    pub(crate) fn add_edge(&self, fd: impl AsFd, source: Weak<dyn Source>) -> io::Result<SourceKey> {
        self.add_for(fd, source, epoll::EventFlags::IN | epoll::EventFlags::ET)
    }

    fn add_for(&self, fd: impl AsFd, source: Weak<dyn Source>, events: epoll::EventFlags) -> io::Result<SourceKey> {
        let mut sources = self.sources();
        let key = sources.insert(source);
        if let Err(error) = epoll::add(&self.epoll, fd, epoll::EventData::new_u64(key), events) {
            sources.by_key.remove(&key);
            return Err(error.into());
        }
        Ok(key)
    }

    /// What the host is to watch from now on.
    pub(crate) fn take_offered(&self) -> Vec<HostSocket> {
        self.offered().map(|mut offered| std::mem::take(&mut *offered)).unwrap_or_default()
    }

    /// Watches `fd` no longer. Closing it would not do: where the child of a fork has it, too, it stays readable for ever.
    ///
    /// A host watches a connection's socket until it has seen it readable once more.
    pub(crate) fn remove(&self, fd: impl AsFd, key: SourceKey) {
        self.sources().by_key.remove(&key);
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// Also reports (or no longer reports) that a connection's socket can be written.
    pub(crate) fn watch_writable(&self, socket: impl AsFd, key: SourceKey, writable: bool) -> io::Result<()> {
        let data = epoll::EventData::new_u64(key);
        let is_read_by_host = self.offered.is_some();
        match (is_read_by_host, writable) {
            (true, true) => epoll::add(&self.epoll, socket, data, epoll::EventFlags::OUT)?,
            (true, false) => epoll::delete(&self.epoll, socket)?,
            (false, true) => {
                epoll::modify(&self.epoll, socket, data, epoll::EventFlags::IN | epoll::EventFlags::OUT)?;
            }
            (false, false) => epoll::modify(&self.epoll, socket, data, epoll::EventFlags::IN)?,
        }
        Ok(())
    }

    /// Whoever drives it promises to [`flush`](Self::flush) before it waits, so that nobody need wake it for that.
    pub(crate) fn begin_turn(&self) {
        self.sources().in_turn = true;
    }

    /// Has this turn, or the next, end with [`Source::flush`] of `key`.
    pub(crate) fn flush_later(&self, key: SourceKey) {
        let in_turn = {
            let mut sources = self.sources();
            sources.unflushed.push(key);
            sources.in_turn
        };
        if !in_turn {
            self.notify();
        }
    }

    /// Makes the descriptor readable until the next turn. From any thread.
    pub(crate) fn notify(&self) {
        if !self.notified.swap(true, Ordering::AcqRel) {
            let one = 1_u64.to_ne_bytes();
            // It cannot be full: it is written at most once between two reads.
            let _ = rustix::io::write(&self.wake_up, &one);
        }
    }

    /// Waits up to `timeout` (for ever if `None`) for something to do.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> io::Result<Events> {
        let mut events = Vec::with_capacity(16);
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(timeout.subsec_nanos()),
        });
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(Events(events)),
            Err(error) => Err(error.into()),
        }
    }

    /// Does what [`wait`](Self::wait) found.
    pub(crate) fn dispatch(&self, events: Events) {
        for event in events.0 {
            let key = event.data.u64();
            if key == WAKE_UP {
                let mut count = [0; 8];
                let _ = rustix::io::read(&self.wake_up, &mut count);
                // Cleared before the work is looked at: a later notification gives another turn.
                self.notified.store(false, Ordering::Release);
            } else if let Some(source) = self.source(key) {
                source.ready();
            }
        }
    }

    /// Does what there is to do for a socket that is readable. `false` if it is to be watched no longer.
    pub(crate) fn dispatch_socket(&self, socket: &HostSocket) -> bool {
        self.source(socket.key).map(|source| source.ready()).is_some()
    }

    /// The host cannot watch it.
    pub(crate) fn refuse(&self, socket: &HostSocket) {
        if let Some(source) = self.source(socket.key) {
            source.abandon("the event loop cannot watch it");
        }
    }

    /// Writes what was left for the end of the turn, which this is.
    pub(crate) fn flush(&self) {
        let unflushed = {
            let mut sources = self.sources();
            sources.in_turn = false;
            std::mem::take(&mut sources.unflushed)
        };
        for key in unflushed {
            if let Some(source) = self.source(key) {
                source.flush();
            }
        }
    }

    fn source(&self, key: SourceKey) -> Option<Arc<dyn Source>> {
        self.sources().by_key.get(&key).and_then(Weak::upgrade)
    }
}

impl Drop for Reactor {
    fn drop(&mut self) {
        // In the child of a fork they are the parent's connections.
        if self.generation == process::generation() {
            let sources = self.sources.get_mut().unwrap_or_else(PoisonError::into_inner);
            let abandoned = sources.by_key.values().filter_map(Weak::upgrade);
            abandoned.for_each(|source| source.abandon("the event loop that drove it has ended"));
        }
    }
}

impl AsFd for HostSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What [`Reactor::wait`] found.
pub(crate) struct Events(Vec<epoll::Event>);

impl AsFd for Reactor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}
