//! Who drives a connection: whoever waits for an answer, and the engine.
//!
//! A request that is left to the engine costs two wakes of another thread: one to write it, one for the answer. So who asks
//! takes turns at the connection: one to write, and one when its own thread finds that there is something to read. Of
//! several who ask at the same time one listens for the others.
//!
//! # What can happen meanwhile
//!
//! * *Who listens is held up* (its event loop is blocked, nobody polls it), and a notice or the end of the session is
//!   waiting: it listens alone for [`ALONE`] at most, then the engine does as well.
//! * *Others ask meanwhile*: the engine listens as well from then on.
//! * *It goes away*: the engine is told to listen again, also to what has come before.
//! * *Something comes in the middle of a turn*: the turn reads until there is nothing; what comes after that wakes again.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use futures_util::task::AtomicWaker;

use super::{
    connection::{Driven, OnMessage},
    socket::{Descriptor, Socket},
};
use crate::{
    clock::Instant,
    engine::{
        driver::{Driver, DriverId},
        ear::Ear,
        timer::{self, Alarm},
    },
};

/// How long somebody listens alone. Many answers take less.
const ALONE: Duration = Duration::from_millis(5);

/// Whose ear it is; `None` of who cannot listen.
type KnownEar = (DriverId, Option<Ear<Descriptor>>);

/// A connection that several may drive.
pub(super) struct Driving {
    work: Mutex<Work>,
    socket: Arc<Socket>,
    bell: Arc<Bell>,
    /// Somebody listens.
    heard: AtomicBool,
    /// Of who listened last, for when the same one comes again.
    ear: Mutex<Option<KnownEar>>,
    /// Until when the engine leaves it to others.
    alone: Arc<Alone>,
}

struct Work {
    /// `None` once it has ended.
    driven: Option<Driven>,
    on_message: OnMessage,
}

impl Driving {
    pub(super) fn new(driven: Driven, socket: Arc<Socket>, on_message: OnMessage) -> Arc<Self> {
        socket.watch();
        Arc::new(Self {
            work: Mutex::new(Work { driven: Some(driven), on_message }),
            alone: Arc::new(Alone { socket: Arc::downgrade(&socket), is_set: AtomicBool::new(false) }),
            socket,
            bell: Arc::default(),
            heard: AtomicBool::new(false),
            ear: Mutex::default(),
        })
    }

    /// Drives it until it has ended. To be awaited on the engine.
    pub(super) async fn until_ended(&self) {
        while !self.has_ended() {
            self.called().await;
        }
    }

    fn ear(&self) -> MutexGuard<'_, Option<KnownEar>> {
        self.ear.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the server find the end at once, whoever refers to the socket.
    pub(super) fn close(&self) {
        self.socket.close();
    }

    /// Takes the engine's turn, and says whether that was the last.
    fn has_ended(&self) -> bool {
        let mut work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        self.turn(&mut work).is_ready()
    }

    /// Waits for something that the engine has to do.
    async fn called(&self) {
        tokio::select! {
            () = self.bell.rung() => {}
            ready = self.socket.ready() => {
                if ready.is_err() {
                    std::future::pending::<()>().await; // the engine ends, and this with it
                }
            }
        }
    }

    /// Sends what `asking` sends, and waits for what comes of it, with a thread or an event loop as its `driver`.
    pub(super) async fn ask<F: Future>(&self, asking: F, driver: &Driver) -> F::Output {
        let mut asking = std::pin::pin!(asking);
        let mut listener = None;
        poll_fn(|cx| {
            loop {
                if let Poll::Ready(answer) = self.move_on(asking.as_mut(), cx) {
                    return Poll::Ready(answer);
                }
                if listener.is_none() {
                    listener = Listener::new(self, driver);
                }
                // Also when it has just begun to listen, for what came before that.
                if listener.as_mut().is_none_or(|listener| listener.poll_readable(cx).is_pending()) {
                    return Poll::Pending;
                }
            }
        })
        .await
    }

    /// Polls `asking`, and takes a turn, which writes what that sent and reads what has come.
    fn move_on<F: Future>(&self, mut asking: Pin<&mut F>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let Ok(mut work) = self.work.try_lock() else {
            // Another has its turn, and may be past what is sent or has come here: the engine's comes after it.
            let answer = asking.poll(cx);
            self.bell.ring();
            return answer;
        };
        let hushed = Hushed::new(&self.bell);
        if let Poll::Ready(answer) = asking.as_mut().poll(cx) {
            return Poll::Ready(answer);
        }
        hushed.forget();
        if self.turn(&mut work).is_ready() {
            // For the engine to see.
            self.bell.ring();
        }
        drop(hushed);
        drop(work);
        asking.poll(cx)
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
                Poll::Ready(Some(Err(_)) | None) => {
                    *driven = None;
                    self.socket.close();
                }
            }
        }
    }
}

/// The one who listens.
struct Listener<'a> {
    driving: &'a Driving,
    /// `None` only while it is being made or dropped.
    ear: Option<KnownEar>,
}

impl<'a> Listener<'a> {
    /// `None` if another does, or it is left to the engine.
    fn new(driving: &'a Driving, driver: &Driver) -> Option<Self> {
        if driver.is_engine() || driving.heard.swap(true, Ordering::AcqRel) {
            driving.alone.end();
            return None;
        }
        let mut listener = Self { driving, ear: driving.ear().take() };
        if listener.ear.as_ref().is_none_or(|(id, _)| *id != driver.id()) {
            listener.ear = None; // before there is another at the same place
            listener.ear = Some((driver.id(), Ear::new(driver, driving.socket.descriptor())));
        }
        let listens = listener.ear.as_ref().is_some_and(|(_, ear)| ear.is_some());
        if listens {
            driving.alone.begin();
        }
        listens.then_some(listener)
    }

    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some((_, Some(ear))) = &mut self.ear else { return Poll::Pending };
        let readable = ear.poll_readable(cx);
        if readable.is_ready() {
            self.driving.socket.has_more();
        }
        readable
    }
}

impl Drop for Listener<'_> {
    fn drop(&mut self) {
        *self.driving.ear() = self.ear.take();
        self.driving.heard.store(false, Ordering::Release);
    }
}

/// The time for which who listens does so alone. It outlasts an answer, as another question may follow.
struct Alone {
    /// Weak, as an alarm does not keep a socket open.
    socket: Weak<Socket>,
    is_set: AtomicBool,
}

impl Alone {
    fn begin(self: &Arc<Self>) {
        if self.is_set.swap(true, Ordering::AcqRel) {
            return;
        }
        self.wake_engine(false);
        if timer::set(Instant::now().after(ALONE), Arc::clone(self) as Arc<dyn Alarm>).is_none() {
            self.end();
        }
    }

    /// The engine listens, also to what has come before.
    fn end(&self) {
        self.wake_engine(true);
    }

    fn wake_engine(&self, for_reading: bool) {
        if let Some(socket) = self.socket.upgrade() {
            socket.wake_engine(for_reading);
        }
    }
}

impl Alarm for Alone {
    fn ring(self: Arc<Self>) {
        self.forgotten();
    }

    fn forgotten(&self) {
        self.end();
        self.is_set.store(false, Ordering::Release);
    }
}

/// Has the engine take a turn.
#[derive(Default)]
struct Bell {
    engine: AtomicWaker,
    rung: AtomicBool,
    state: AtomicU8,
}

/// It can be heard.
const OPEN: u8 = 0;
/// Somebody has a turn, and looks at everything.
const HUSHED: u8 = 1;
/// And it would have been rung.
const RUNG: u8 = 2;

impl Bell {
    fn ring(&self) {
        self.rung.store(true, Ordering::Release);
        self.engine.wake();
    }

    /// Waits until it is rung.
    async fn rung(&self) {
        poll_fn(|cx| {
            self.engine.register(cx.waker());
            if self.rung.swap(false, Ordering::AcqRel) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        loop {
            match self.state.compare_exchange(HUSHED, RUNG, Ordering::AcqRel, Ordering::Acquire) {
                Err(OPEN) => return self.ring(),
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
            self.0.ring();
        }
    }
}
