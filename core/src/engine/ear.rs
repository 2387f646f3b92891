//! Waiting for a descriptor to be readable in the place where a driver waits for all else: its thread needs no other thread to
//! wake it.

use std::{
    os::fd::{AsFd, AsRawFd},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use futures_util::task::AtomicWaker;
use tokio::io::{Interest, unix::AsyncFd};

use super::{
    driver::{Driver, Kind},
    reactor::{Reactor, Source, SourceKey},
    watched::watched,
};

/// Watches a descriptor while it lives. A driver has at most one for each descriptor.
pub(crate) enum Ear<D: AsFd + AsRawFd> {
    Reactor { reactor: Weak<Reactor>, key: SourceKey, descriptor: Arc<D>, rung: Arc<Rung> },
    Tokio(AsyncFd<Arc<D>>),
}

impl<D: AsFd + AsRawFd> Ear<D> {
    /// `None` if `driver` is the engine, or cannot watch it.
    pub(crate) fn new(driver: &Driver, descriptor: &Arc<D>) -> Option<Self> {
        let descriptor = Arc::clone(descriptor);
        match &driver.0 {
            Kind::Engine => None,
            Kind::Reactor(reactor) => {
                let rung = Arc::new(Rung::default());
                let weak = Arc::downgrade(&rung);
                let key = reactor.add_edge(&*descriptor, weak).ok()?;
                Some(Self::Reactor { reactor: Arc::downgrade(reactor), key, descriptor, rung })
            }
            Kind::Tokio(handle) => {
                let _here = handle.enter();
                // It panics in a runtime that does no I/O: not to be tried again in that.
                let watch = || watched(descriptor, Interest::READABLE);
                catch_unwind(AssertUnwindSafe(watch)).ok()?.ok().map(Self::Tokio)
            }
        }
    }

    /// Ready when something came since it was ready before: perhaps it was read by now.
    pub(crate) fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Reactor { rung, .. } => {
                rung.waker.register(cx.waker());
                if rung.readable.swap(false, Ordering::AcqRel) { Poll::Ready(()) } else { Poll::Pending }
            }
            Self::Tokio(watched) => {
                match ready!(watched.poll_read_ready(cx)) {
                    Ok(mut guard) => guard.clear_ready(),
                    Err(_) => return Poll::Pending, // its runtime ends, and who waits on it
                }
                Poll::Ready(())
            }
        }
    }
}

impl<D: AsFd + AsRawFd> Drop for Ear<D> {
    fn drop(&mut self) {
        if let Self::Reactor { reactor, key, descriptor, .. } = self
            && let Some(reactor) = reactor.upgrade()
        {
            reactor.remove(&**descriptor, *key);
        }
    }
}

/// The descriptor, seen from a reactor.
#[derive(Default)]
pub(crate) struct Rung {
    readable: AtomicBool,
    waker: AtomicWaker,
}

impl Source for Rung {
    fn ready(&self) {
        self.readable.store(true, Ordering::Release);
        self.waker.wake();
    }

    fn flush(&self) {}

    fn abandon(&self, _why: &str) {}
}
