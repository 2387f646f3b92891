//! Who drives a connection: the engine, and for one turn whoever sends a request.
//!
//! A request that is left to the engine costs the wake of another thread before it is written. So who sends one also takes a
//! turn at the connection, which writes it. That wakes nobody; whatever comes afterwards wakes the engine, which reads it.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures_util::task::AtomicWaker;

use super::connection::{Driven, OnMessage};

/// A connection that several may drive.
pub(super) struct Driving {
    work: Mutex<Work>,
    bell: Arc<Bell>,
}

struct Work {
    /// `None` once it has ended.
    driven: Option<Driven>,
    on_message: OnMessage,
}

impl Driving {
    pub(super) fn new(driven: Driven, on_message: OnMessage) -> Arc<Self> {
        let bell = Arc::new(Bell { engine: AtomicWaker::new(), state: AtomicU8::new(OPEN) });
        Arc::new(Self { work: Mutex::new(Work { driven: Some(driven), on_message }), bell })
    }

    /// Drives it until it has ended.
    pub(super) async fn until_ended(&self) {
        poll_fn(|cx| {
            self.bell.engine.register(cx.waker());
            let mut work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
            self.turn(&mut work)
        })
        .await;
    }

    /// Polls `asking`, which sends something, for the first time, and then has that written.
    pub(super) fn send<F: Future>(&self, mut asking: Pin<&mut F>, cx: &mut Context<'_>) -> Poll<F::Output> {
        // If another has its turn, it sees what is sent, or the engine does.
        let Ok(mut work) = self.work.try_lock() else { return asking.poll(cx) };
        let hushed = Hushed::new(&self.bell);
        let answer = asking.as_mut().poll(cx);
        hushed.forget();
        if self.turn(&mut work).is_ready() {
            // For the engine to see.
            self.bell.engine.wake();
        }
        answer
    }

    /// Writes what there is to write and reads what there is to read; ready when the connection has ended.
    fn turn(&self, work: &mut MutexGuard<'_, Work>) -> Poll<()> {
        let Work { driven, on_message } = &mut **work;
        let waker = Waker::from(Arc::clone(&self.bell));
        loop {
            let Some(connection) = driven else { return Poll::Ready(()) };
            match connection.poll_message(&mut Context::from_waker(&waker)) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(message))) => on_message(message),
                Poll::Ready(Some(Err(_)) | None) => *driven = None,
            }
        }
    }
}

/// Wakes the engine.
struct Bell {
    engine: AtomicWaker,
    state: AtomicU8,
}

/// It is rung.
const OPEN: u8 = 0;
/// Somebody has a turn, and looks at everything.
const HUSHED: u8 = 1;
/// And it would have been rung.
const RUNG: u8 = 2;

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        loop {
            match self.state.compare_exchange(HUSHED, RUNG, Ordering::AcqRel, Ordering::Acquire) {
                Err(OPEN) => return self.engine.wake(),
                Ok(_) | Err(RUNG) => return,
                Err(_) => {}
            }
        }
    }
}

/// Keeps the bell from being rung until it is dropped; then it is rung if it would have been.
struct Hushed<'a>(&'a Bell);

impl<'a> Hushed<'a> {
    fn new(bell: &'a Bell) -> Self {
        bell.state.store(HUSHED, Ordering::Release);
        Self(bell)
    }

    /// To be called right before a turn, which sees what it would have been rung for.
    fn forget(&self) {
        self.0.state.swap(HUSHED, Ordering::AcqRel);
    }
}

impl Drop for Hushed<'_> {
    fn drop(&mut self) {
        if self.0.state.swap(OPEN, Ordering::AcqRel) == RUNG {
            self.0.engine.wake();
        }
    }
}
