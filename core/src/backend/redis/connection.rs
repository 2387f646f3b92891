//! A socket and its link, driven by whoever is nearest.
//!
//! A request is written at once if nothing is on its way, else at the end of the driver's turn, so that many
//! callers share one system call. What can happen to a request, and what its caller is told:
//!
//! * the connection is broken before it was taken: `NotSent`;
//! * it was taken and the connection broke, or no answer came in time: `Unanswered`. Then the connection is *reset*,
//!   not closed: a reset makes the server throw away what it has not read yet, so that a late request cannot
//!   be carried out after the caller gave up;
//! * its caller went away: the answer is read and dropped, and the connection goes on.

use std::{
    future::{self, Future},
    io,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicI64, Ordering},
    },
    task::Poll,
    time::Duration,
};

use redis::Value;
use socket2::{SockRef, Socket};
use tokio::{
    io::{
        Interest,
        unix::{AsyncFd, AsyncFdReadyGuard},
    },
    sync::{Notify, oneshot},
};

use super::{
    call::{CallError, Reply},
    link::{Link, Received, To},
    request::Errand,
    round::Ticket,
    script::Name,
    wire,
};
use crate::{
    clock::Instant,
    engine::{
        driver::{Driver, Kind},
        process,
        reactor::{Reactor, Source, SourceKey},
        runtime,
        timer::{self, Alarm, AlarmKey},
        watched::watched,
    },
};

/// A connection that has not been used for this long is looked at before it is.
const STALE_AFTER: Duration = Duration::from_millis(500);

/// Output of this length is written before the turn ends, so that the server begins while we go on.
const CHUNK: usize = 4 * 1024;

/// What a connection does with messages that nobody asked for.
pub(super) type OnPush = Box<dyn Fn(Value) + Send + Sync>;

pub(super) struct Connection {
    /// What errors call the server.
    peer: String,
    generation: u32,
    state: Mutex<State>,
    attached: OnceLock<Attached>,
    on_push: Option<OnPush>,
    /// What to add to [`Instant::since_boot`] to get the server's clock, in ms, at the earliest.
    server_clock: AtomicI64,
}

struct State {
    /// `None` once the connection is broken.
    socket: Option<Arc<Socket>>,
    tls: Option<Box<rustls::ClientConnection>>,
    link: Link,
    /// What was read last; kept for its memory.
    input: Vec<u8>,
    /// The socket took less than there was: it is watched for becoming writable.
    blocked: bool,
    /// Several answers came at once: so many callers are at work, and so will write at once.
    crowded: bool,
    /// A flush has been asked for.
    flush_due: bool,
    broken: Option<String>,
    on_broken: Option<Arc<Notify>>,
    last_used: Instant,
    watchdog: Option<AlarmKey>,
    watchdog_at: Option<Instant>,
}

/// Who drives the connection.
enum Attached {
    Reactor(Weak<Reactor>, SourceKey),
    /// A task; this wakes it to flush, or to go away.
    Task(Arc<Notify>),
}

impl Connection {
    /// Takes over a connected, non-blocking socket.
    pub(super) fn new(
        peer: &str,
        socket: Socket,
        tls: Option<Box<rustls::ClientConnection>>,
        on_push: Option<OnPush>,
    ) -> Arc<Self> {
        Arc::new(Self {
            peer: peer.to_owned(),
            generation: process::generation(),
            state: Mutex::new(State {
                socket: Some(Arc::new(socket)),
                tls,
                link: Link::default(),
                input: Vec::new(),
                blocked: false,
                crowded: false,
                flush_due: false,
                broken: None,
                on_broken: None,
                last_used: Instant::now(),
                watchdog: None,
                watchdog_at: None,
            }),
            attached: OnceLock::new(),
            on_push,
            server_clock: AtomicI64::new(0),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has `driver` drive it from now on. Once.
    pub(super) fn attach(self: &Arc<Self>, driver: &Driver) -> io::Result<()> {
        let socket = self.state().socket.clone().ok_or(io::ErrorKind::NotConnected)?;
        let notify = Arc::new(Notify::new());
        let task = || drive(Driving(Arc::clone(self)), Arc::clone(&socket), Arc::clone(&notify));
        let attached = match &driver.0 {
            Kind::Reactor(reactor) => {
                let source = Arc::downgrade(self) as Weak<dyn Source>;
                Attached::Reactor(Arc::downgrade(reactor), reactor.add(Arc::clone(&socket) as _, source)?)
            }
            Kind::Tokio(handle) => {
                drop(handle.spawn(task()));
                Attached::Task(notify)
            }
            Kind::Engine => {
                runtime::spawn(task());
                Attached::Task(notify)
            }
        };
        let _ = self.attached.set(attached);
        if self.is_broken() {
            // By its driver, which was ahead of this: nobody was told to let go of the socket.
            self.part_with(&socket, false);
        }
        Ok(())
    }

    /// Sends a command and waits for its answer. Dropping the future drops the answer, not the command.
    pub(super) async fn call(self: &Arc<Self>, command: &[u8], expires: Instant) -> Reply {
        self.answer_to(false, |output| output.extend_from_slice(command), expires).await
    }

    /// As [`call`](Self::call), for a script; `asks` is for a server of a cluster that is only about to get the keys.
    pub(super) async fn run(self: &Arc<Self>, request: &Errand, name: Name, asks: bool) -> Reply {
        let server_time = self.server_time(request.expires);
        self.answer_to(asks, |output| request.encode(name, server_time, output), request.expires).await
    }

    async fn answer_to(self: &Arc<Self>, asks: bool, encode: impl FnOnce(&mut Vec<u8>), expires: Instant) -> Reply {
        let (caller, answer) = oneshot::channel();
        {
            let mut state = self.state();
            if let Some(why) = &state.broken {
                return Err(CallError::not_sent(&self.peer, why));
            }
            if asks {
                // Nothing may come between the word and the request that it is for.
                let (nobody, _) = oneshot::channel();
                let word = |output: &mut Vec<u8>| output.extend_from_slice(b"*1\r\n$6\r\nASKING\r\n");
                state.link.request(word, To::Caller(nobody), expires);
            }
            self.send(state, |link| link.request(encode, To::Caller(caller), expires), expires);
        }
        match answer.await {
            Ok(reply) => reply,
            Err(_) => Err(CallError::unanswered(&self.peer, "the connection went away")),
        }
    }

    /// Sends what a ticket is for, unless the connection is broken: then it gives the ticket back.
    pub(super) fn take(self: &Arc<Self>, ticket: Ticket) -> Result<(), Ticket> {
        let mut state = self.state();
        if state.is_stale() {
            drop(state);
            self.read();
            state = self.state();
        }
        if state.broken.is_some() {
            return Err(ticket);
        }
        let request = ticket.errand();
        let server_time = self.server_time(request.expires);
        self.send(state, |link| link.ticket(ticket, &request, server_time), request.expires);
        Ok(())
    }

    /// Has the link `queue` something, and sees to its being written.
    fn send(self: &Arc<Self>, mut state: MutexGuard<'_, State>, queue: impl FnOnce(&mut Link), expires: Instant) {
        let alone = state.link.is_idle() && !state.crowded;
        queue(&mut state.link);
        self.watch_for(&mut state, expires);
        let now = alone || state.link.queued() >= CHUNK;
        self.write_soon(state, now);
    }

    /// Sends a request whose answers come as pushes.
    pub(super) fn command(self: &Arc<Self>, request: &[u8]) {
        let mut state = self.state();
        if state.broken.is_none() {
            state.link.command(request);
            self.write_soon(state, true);
        }
    }

    /// Writes now, or at the end of the driver's turn.
    fn write_soon(&self, mut state: MutexGuard<'_, State>, now: bool) {
        if now {
            self.write(state);
        } else if !state.flush_due && !state.blocked {
            state.flush_due = true;
            drop(state);
            match self.attached.get() {
                Some(Attached::Task(notify)) => notify.notify_one(),
                Some(Attached::Reactor(reactor, key)) => {
                    if let Some(reactor) = reactor.upgrade() {
                        reactor.flush_later(*key);
                    }
                }
                None => {}
            }
        }
    }

    /// Rings when the answer that is due first has not come.
    fn watch_for(self: &Arc<Self>, state: &mut State, expires: Instant) {
        if state.watchdog_at.is_some_and(|at| at <= expires) {
            return;
        }
        let watchdog = timer::set(expires, Arc::clone(self) as Arc<dyn Alarm>);
        state.watchdog_at = Some(expires);
        if let Some(earlier) = std::mem::replace(&mut state.watchdog, watchdog) {
            timer::cancel(earlier);
        }
    }

    /// Writes as much as the socket takes.
    fn write(&self, mut state: MutexGuard<'_, State>) {
        state.flush_due = false;
        state.last_used = Instant::now();
        match state.write() {
            Ok(()) => self.watch_writable(state),
            Err(error) => self.break_off(state, &format!("writing failed: {error}")),
        }
    }

    fn watch_writable(&self, mut state: MutexGuard<'_, State>) {
        let blocked = state.wants_write();
        if blocked == state.blocked {
            return;
        }
        state.blocked = blocked;
        match self.attached.get() {
            Some(Attached::Reactor(reactor, key)) => {
                let reactor = reactor.upgrade();
                if let (Some(reactor), Some(socket)) = (&reactor, &state.socket) {
                    let _ = reactor.watch_writable(&**socket, *key, blocked);
                }
                // Before the reactor, which closes this connection if it goes here.
                drop(state);
            }
            Some(Attached::Task(notify)) => notify.notify_one(),
            None => {}
        }
    }

    /// Reads what has come and hands it out.
    pub(super) fn read(&self) {
        let mut state = self.state();
        let mut received = Vec::new();
        let outcome = state.read(&mut received);
        state.last_used = Instant::now();
        if !received.is_empty() {
            state.crowded = received.iter().map(Received::answers).sum::<usize>() > 1;
        }
        match outcome {
            Ok(()) if state.link.is_idle() && state.tls.is_none() => drop(state),
            Ok(()) => self.write(state), // TLS may have something to say; requests may have been left
            Err(why) => self.break_off(state, &why),
        }
        for message in received {
            match message {
                Received::Reply(to, value) => to.reply(&self.peer, CallError::check(&self.peer, value)),
                Received::Push(value) => match &self.on_push {
                    Some(on_push) => on_push(value),
                    None => tracing::debug!(peer = self.peer, "an unexpected message"),
                },
            }
        }
    }

    /// Gives the connection up; a reset if a request is on its way.
    fn break_off(&self, mut state: MutexGuard<'_, State>, why: &str) {
        if state.broken.is_some() {
            return;
        }
        state.broken = Some(why.to_owned());
        if let Some(broken) = state.on_broken.take() {
            broken.notify_one();
        }
        let socket = state.socket.take();
        let reset = !state.link.is_idle();
        let failed = state.link.fail();
        drop(state);
        if let Some(socket) = socket {
            self.part_with(&socket, reset);
        }
        for to in failed {
            to.reply(&self.peer, Err(CallError::unanswered(&self.peer, why)));
        }
    }

    /// Ends the socket, and has who drives the connection let go of it.
    ///
    /// Others may hold it open: a host until its next turn, which may be long in coming, and the child of a fork, which
    /// knows nothing of it. So the server is told now.
    fn part_with(&self, socket: &Socket, reset: bool) {
        if self.generation != process::generation() {
            return; // in the child of a fork it is the parent's
        }
        if reset {
            let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
        }
        // Either makes it readable, too: by that a host learns that it has ended.
        if !reset || rustix::net::connect_unspec(socket).is_err() {
            let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
        }
        match self.attached.get() {
            Some(Attached::Task(notify)) => notify.notify_one(),
            Some(Attached::Reactor(reactor, key)) => {
                if let Some(reactor) = reactor.upgrade() {
                    reactor.remove(socket, *key);
                }
            }
            None => {}
        }
    }

    /// Has `broken` notified when it breaks, or now if it has.
    pub(super) fn on_broken(&self, broken: Arc<Notify>) {
        let mut state = self.state();
        if state.broken.is_some() {
            broken.notify_one();
        } else {
            state.on_broken = Some(broken);
        }
    }

    /// Closes it; what is on its way is `Unanswered`.
    pub(super) fn close(&self, why: &str) {
        self.break_off(self.state(), why);
    }

    /// Whether it can be used; one that was idle for long is looked at.
    pub(super) fn is_alive(&self) -> bool {
        let state = self.state();
        if state.broken.is_some() {
            return false;
        }
        let stale = state.is_stale();
        drop(state);
        if stale {
            // The server may have closed it while nobody was looking.
            self.read();
        }
        self.state().broken.is_none()
    }

    fn wants_write(&self) -> bool {
        let state = self.state();
        state.broken.is_none() && state.wants_write()
    }

    pub(super) fn is_broken(&self) -> bool {
        self.state().broken.is_some()
    }

    /// Drives it from here while `work` runs; nobody drives it afterwards.
    pub(super) async fn drive_here<F: Future>(self: &Arc<Self>, work: F) -> F::Output {
        let socket = self.state().socket.clone();
        let mut work = std::pin::pin!(work);
        let Some(socket) = socket else { return work.await };
        // Both ends are seen by polling in turn: first the work (which sends), then the socket (which answers).
        let watched = watch(socket);
        let Ok(fd) = watched else {
            self.close("it cannot be watched");
            return work.await;
        };
        loop {
            let interest =
                if self.wants_write() { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
            tokio::select! {
                biased;
                output = &mut work => return output,
                ready = fd.ready(interest) => self.serve(ready),
            }
            if self.is_broken() {
                return work.await;
            }
        }
    }

    /// Reads and writes what the socket is ready for.
    fn serve(&self, ready: io::Result<AsyncFdReadyGuard<'_, Arc<Socket>>>) {
        let Ok(mut ready) = ready else { return self.close("it cannot be watched") };
        let readiness = ready.ready();
        if readiness.is_writable() {
            self.flush();
            if self.wants_write() {
                ready.clear_ready_matching(tokio::io::Ready::WRITABLE);
            }
        }
        if readiness.is_readable() || readiness.is_read_closed() {
            self.read();
            ready.clear_ready_matching(tokio::io::Ready::READABLE);
        }
    }

    /// It leads to one server, which can be asked for several things at once.
    pub(super) fn is_to_one_server(&self) {
        self.state().link.is_to_one_server();
    }

    /// Notes the server's clock, now that its answer is here: it showed `server_ms` at some point before. Answers by how many ms that is
    /// more than was expected.
    pub(super) fn set_server_clock(&self, server_ms: i64) -> i64 {
        // Counted from the answer, the estimate is never ahead of the server, however slow the answer was: a request
        // is given less time, never more. One that is refused for that is sent once more.
        // Both are rounded so that the fractions do not make it more, either.
        let answered = i64::try_from(Instant::now().since_boot().as_millis()).unwrap_or(0);
        let clock = server_ms - answered - 1;
        clock.saturating_sub(self.server_clock.swap(clock, Ordering::Relaxed))
    }

    /// What the server's clock will show at `at`, in ms; never more.
    pub(super) fn server_time(&self, at: Instant) -> i64 {
        let at = i64::try_from(at.since_boot().as_millis()).unwrap_or(i64::MAX / 2);
        at.saturating_add(self.server_clock.load(Ordering::Relaxed))
    }
}

impl State {
    /// Not used for so long that the server may have closed it while nobody was looking.
    fn is_stale(&self) -> bool {
        self.link.is_idle() && Instant::now().since(self.last_used) > STALE_AFTER
    }

    fn wants_write(&self) -> bool {
        !self.link.output().is_empty() || self.tls.as_ref().is_some_and(|tls| tls.wants_write())
    }

    fn write(&mut self) -> io::Result<()> {
        let Some(socket) = &self.socket else { return Err(io::ErrorKind::NotConnected.into()) };
        self.link.close_batches();
        match &mut self.tls {
            Some(tls) => wire::write_tls(tls, socket, &mut self.link),
            None => wire::write(socket, &mut self.link),
        }
    }

    fn read(&mut self, received: &mut Vec<Received>) -> Result<(), String> {
        let Some(socket) = &self.socket else { return Err("the connection is closed".into()) };
        match &mut self.tls {
            Some(tls) => wire::read_tls(tls, socket, &mut self.link, received),
            None => wire::read(socket, &mut self.input, &mut self.link, received),
        }
    }
}

impl Source for Connection {
    fn ready(&self) {
        if self.state().blocked {
            self.write(self.state());
        }
        self.read();
    }

    fn flush(&self) {
        self.write(self.state());
    }

    fn abandon(&self, why: &str) {
        self.close(why);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(socket) = state.socket.take() {
            let reset = !state.link.is_idle();
            self.part_with(&socket, reset);
        }
    }
}

/// Looks whether an answer is overdue.
impl Alarm for Connection {
    fn ring(self: Arc<Self>) {
        {
            let mut state = self.state();
            (state.watchdog, state.watchdog_at) = (None, None);
            if state.broken.is_some() || state.link.next_expiry().is_none_or(|at| at > Instant::now()) {
                if state.broken.is_none()
                    && let Some(next) = state.link.next_expiry()
                {
                    self.watch_for(&mut state, next);
                }
                return;
            }
        }
        // The answer may be there already, with nobody at hand to read it.
        self.read();
        let mut state = self.state();
        match state.link.next_expiry() {
            Some(at) if at <= Instant::now() => self.break_off(state, "no answer in time"),
            Some(at) => self.watch_for(&mut state, at),
            None => {}
        }
    }
}

/// Registers the socket with the tokio runtime that this is called on.
fn watch(socket: Arc<Socket>) -> io::Result<AsyncFd<Arc<Socket>>> {
    watched(socket, Interest::READABLE | Interest::WRITABLE)
}

/// A connection that a task drives. The runtime may go away under the task, or before it has begun.
struct Driving(Arc<Connection>);

impl Drop for Driving {
    fn drop(&mut self) {
        self.0.close("the runtime that drove it has ended");
    }
}

/// Drives a connection on a tokio runtime until it breaks.
async fn drive(driving: Driving, socket: Arc<Socket>, notify: Arc<Notify>) {
    let connection = &driving.0;
    let fd = match watch(socket) {
        Ok(fd) => fd,
        Err(error) => return connection.close(&format!("it cannot be watched: {error}")),
    };
    while !connection.is_broken() {
        let interest =
            if connection.wants_write() { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        tokio::select! {
            biased;
            () = notify.notified() => {
                behind_the_others().await;
                connection.flush();
            }
            ready = fd.ready(interest) => connection.serve(ready),
        }
    }
}

/// Goes to the end of the runtime's queue. A runtime of several threads wakes a task before those that wait already, so that
/// each of them would have what it asks for written alone. Not tokio's `yield_now`, which also lets pass who comes later.
async fn behind_the_others() {
    let mut there = false;
    future::poll_fn(|context| {
        if std::mem::replace(&mut there, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
