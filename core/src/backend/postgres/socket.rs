//! The socket of a connection. The engine watches it, but for the times when somebody else does; whoever drives the connection
//! reads and writes.

use std::{
    io,
    net::Shutdown,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use rustix::{
    buffer::spare_capacity,
    event::{Timespec, epoll},
    net::{RecvFlags, SendFlags},
};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, unix::AsyncFd};

use crate::engine::watched::watched;

/// See the module's text.
pub(super) struct Socket {
    descriptor: Arc<Descriptor>,
    /// What the engine watches: an event queue that the socket is alone in. So any thread may say what is to wake the engine.
    watched: AsyncFd<OwnedFd>,
    wakes: Mutex<Wakes>,
    /// See [`Socket::watch`].
    by_the_engine: AtomicBool,
    /// Everything was read, and nobody has been told of more.
    drained: AtomicBool,
}

/// What wakes the engine.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Wakes {
    readable: bool,
    writable: bool,
}

/// The open file, which is closed when the last has let go of it.
pub(super) struct Descriptor(socket2::Socket);

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Socket {
    /// To be called on the engine, with a socket that does not block.
    pub(super) fn new(socket: impl Into<socket2::Socket>) -> io::Result<Arc<Self>> {
        let descriptor = Arc::new(Descriptor(socket.into()));
        let queue = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let wakes = Wakes { readable: true, writable: false };
        epoll::add(&queue, &*descriptor, epoll::EventData::new_u64(0), wakes.events())?;
        let watched = watched(queue, Interest::READABLE)?;
        Ok(Arc::new(Self {
            descriptor,
            watched,
            wakes: Mutex::new(wakes),
            by_the_engine: AtomicBool::new(false),
            drained: AtomicBool::new(false),
        }))
    }

    pub(super) fn descriptor(&self) -> &Arc<Descriptor> {
        &self.descriptor
    }

    /// From now on whoever finds nothing to do is not woken for that: the engine waits by [`ready`](Self::ready).
    pub(super) fn watch(&self) {
        self.by_the_engine.store(true, Ordering::Release);
    }

    /// Waits for something to do. To be asked again only once nothing is left to do.
    pub(super) async fn ready(&self) -> io::Result<()> {
        self.watched.readable().await?.clear_ready();
        self.take_event();
        self.has_more();
        Ok(())
    }

    /// Has both sides find the end, though the file is open for as long as somebody refers to it.
    pub(super) fn close(&self) {
        let _ = SockRef::from(&*self.descriptor).shutdown(Shutdown::Both);
    }

    /// Somebody was told that there is something to read.
    pub(super) fn has_more(&self) {
        self.drained.store(false, Ordering::Release);
    }

    /// Whether what comes wakes the engine. If it does again, what has come before does as well.
    pub(super) fn wake_engine(&self, for_reading: bool) {
        self.change(|wakes| wakes.readable = for_reading);
    }

    fn change(&self, change: impl FnOnce(&mut Wakes)) {
        let mut wakes = self.wakes.lock().unwrap_or_else(PoisonError::into_inner);
        let before = *wakes;
        change(&mut wakes);
        if *wakes != before {
            // It can only fail for a descriptor that is not there.
            let _ = epoll::modify(
                self.watched.get_ref(),
                &*self.descriptor,
                epoll::EventData::new_u64(0),
                wakes.events(),
            );
        }
    }

    /// Nothing could be done; has it called again when that may be.
    fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.by_the_engine.load(Ordering::Acquire) {
            return Poll::Pending;
        }
        ready!(self.watched.poll_read_ready(cx))?.clear_ready();
        self.take_event();
        Poll::Ready(Ok(()))
    }

    /// Empties the queue, which reports only what is new in it.
    fn take_event(&self) {
        let mut events = Vec::with_capacity(1);
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let _ = epoll::wait(self.watched.get_ref(), spare_capacity(&mut events), Some(&now));
    }
}

impl Wakes {
    fn events(self) -> epoll::EventFlags {
        let mut events = epoll::EventFlags::ET;
        events.set(epoll::EventFlags::IN, self.readable);
        events.set(epoll::EventFlags::OUT, self.writable);
        events
    }
}

/// The socket as a stream.
pub(super) struct Bytes(pub(super) Arc<Socket>);

impl AsyncRead for Bytes {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let socket = &self.0;
        loop {
            // Said before it reads: what comes after that is told of, and unsays it.
            if socket.by_the_engine.load(Ordering::Acquire) && socket.drained.swap(true, Ordering::AcqRel) {
                return Poll::Pending;
            }
            match rustix::net::recv(&*socket.descriptor, into.initialize_unfilled(), RecvFlags::empty()) {
                Ok((read, _)) => {
                    into.advance(read);
                    socket.has_more(); // perhaps: the end, for one, is not told of a second time
                    return Poll::Ready(Ok(()));
                }
                Err(rustix::io::Errno::AGAIN) => ready!(socket.poll_ready(cx))?,
                Err(rustix::io::Errno::INTR) => socket.has_more(),
                Err(error) => {
                    socket.has_more();
                    return Poll::Ready(Err(error.into()));
                }
            }
        }
    }
}

impl AsyncWrite for Bytes {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let socket = &self.0;
        loop {
            match rustix::net::send(&*socket.descriptor, bytes, SendFlags::NOSIGNAL) {
                Ok(written) => {
                    socket.change(|wakes| wakes.writable = false);
                    return Poll::Ready(Ok(written));
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => {
                    socket.change(|wakes| wakes.writable = true);
                    ready!(socket.poll_ready(cx))?;
                }
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(&*self.0.descriptor).shutdown(Shutdown::Write))
    }
}
