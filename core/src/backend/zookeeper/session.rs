//! One session and the connection under it, driven by a task on the engine.
//!
//! The server forgets a session, and with it all its locks, when it has not heard of it for the session's timeout. It tells
//! only those who can still reach it. So we count ourselves: the session ends at the sending of the last request that was
//! answered, plus the timeout, less the drift. Each answer moves the end on. Once it was passed the session is over for good, even if
//! the server would still have it, because the holders were told so.
//!
//! A connection that breaks takes its unanswered requests with it: they may have been carried out or not, and whoever
//! asked has to find out. The session goes on over the next connection. Watches are lost with a connection, so
//! each rings when that happens.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{mpsc, oneshot, watch},
};

use super::{
    config::Config,
    wire::{self, Decoder, Identity, Malformed, Request, code},
};
use crate::{Error, ErrorKind, Result, backend::SessionEnd, clock::Instant, engine::runtime, lease::state::Drift};

/// Rung once, when what is watched may have changed.
pub(super) type Bell = Arc<dyn Fn() + Send + Sync>;

/// A session. Dropping all its handles closes it.
pub(super) struct Session {
    requests: mpsc::UnboundedSender<Order>,
    state: watch::Receiver<State>,
    shared: Arc<Shared>,
}

struct Shared {
    config: Arc<Config>,
    drift: Drift,
    end: Arc<SessionEnd>,
    bells: Mutex<HashMap<String, Vec<Bell>>>,
}

#[derive(Clone, Debug)]
enum State {
    Connecting,
    Connected,
    Over(Error),
}

enum Order {
    Ask(Asked),
    Close,
}

struct Asked {
    request: Request,
    /// Set if the request sets a watch.
    watched: Option<String>,
    answer: oneshot::Sender<Result<Reply, Failure>>,
}

/// A request that was written and not answered yet.
struct Sent {
    xid: i32,
    at: Instant,
    watched: Option<String>,
    answer: oneshot::Sender<Result<Reply, Failure>>,
}

/// The answer to a request.
pub(super) struct Reply {
    body: Vec<u8>,
    /// When the request was sent.
    pub(super) sent: Instant,
}

impl Reply {
    pub(super) fn read<T>(&self, read: impl FnOnce(Decoder<'_>) -> Result<T, Malformed>) -> Result<T, Failure> {
        read(Decoder(&self.body)).map_err(|why| Failure::Unanswered(Error::unavailable(why.to_string())))
    }
}

/// Why there is no good answer.
#[derive(Clone, Debug)]
pub(super) enum Failure {
    /// It certainly was not carried out.
    NotSent(Error),
    /// It may have been carried out.
    Unanswered(Error),
    /// The server said no, with this code.
    Refused(i32),
}

impl Failure {
    pub(super) fn is(&self, code: i32) -> bool {
        matches!(self, Self::Refused(refused) if *refused == code)
    }

    pub(super) fn into_error(self) -> Error {
        match self {
            Self::NotSent(error) | Self::Unanswered(error) => error,
            Self::Refused(code @ (code::NO_AUTH | code::AUTH_FAILED | code::AUTH_REQUIRED)) => {
                Error::new(ErrorKind::Auth, wire::describe(code))
            }
            Self::Refused(code) => Error::unavailable(wire::describe(code)),
        }
    }
}

/// Why a connection ended.
enum End {
    /// Nobody needs the session any more.
    Closed,
    /// The session is over.
    Over(Error),
    /// It may go on over another connection.
    Cut(Error),
}

impl From<std::io::Error> for End {
    fn from(error: std::io::Error) -> Self {
        Self::Cut(Error::unavailable(error.to_string()))
    }
}

impl From<Malformed> for End {
    fn from(malformed: Malformed) -> Self {
        Self::Cut(Error::unavailable(malformed.to_string()))
    }
}

impl Session {
    /// Begins to open one.
    pub(super) fn start(config: Arc<Config>, drift: Drift) -> Arc<Self> {
        let (requests, orders) = mpsc::unbounded_channel();
        let (state_sender, state) = watch::channel(State::Connecting);
        // Holds nothing until its server has greeted it.
        let end = SessionEnd::until(Instant::now().after(config.session_timeout));
        let shared = Arc::new(Shared { config, drift, end, bells: Mutex::default() });
        runtime::spawn(run(Arc::clone(&shared), orders, state_sender));
        Arc::new(Self { requests, state, shared })
    }

    /// Waits until it has a connection.
    ///
    /// # Errors
    /// `Unavailable` or `Auth` if it is over.
    pub(super) async fn connected(&self) -> Result<()> {
        let mut state = self.state.clone();
        let state = state.wait_for(|state| !matches!(state, State::Connecting)).await.map(|state| state.clone());
        match state {
            Ok(State::Over(error)) => Err(error),
            Ok(_) => Ok(()),
            Err(_) => Err(Error::unavailable("the session has ended")),
        }
    }

    /// When what it holds is lost.
    pub(super) fn end(&self) -> &Arc<SessionEnd> {
        &self.shared.end
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(*self.state.borrow(), State::Over(_)) || Instant::now() >= self.shared.end.at()
    }

    /// Sends `request` now, in the order of the calls; the future is its answer. Fails at once where there is no connection.
    pub(super) fn ask(&self, request: Request) -> impl Future<Output = Result<Reply, Failure>> + Send + use<> {
        self.send(request, None)
    }

    /// As [`ask`](Self::ask), for a request that watches `path`: `bell` rings when that changes, or the watch was lost.
    pub(super) fn ask_and_watch(
        &self,
        request: Request,
        path: &str,
        bell: &Bell,
    ) -> impl Future<Output = Result<Reply, Failure>> + Send + use<> {
        self.shared.bells().entry(path.to_owned()).or_default().push(Arc::clone(bell));
        self.send(request, Some(path.to_owned()))
    }

    fn send(
        &self,
        request: Request,
        watched: Option<String>,
    ) -> impl Future<Output = Result<Reply, Failure>> + Send + use<> {
        let (answer, answered) = oneshot::channel();
        let sent = self.requests.send(Order::Ask(Asked { request, watched, answer }));
        async move {
            let over = || Error::unavailable("the session has ended");
            match sent {
                Ok(()) => answered.await.unwrap_or_else(|_| Err(Failure::Unanswered(over()))),
                Err(_) => Err(Failure::NotSent(over())),
            }
        }
    }

    /// Closes it in the background, after what was asked before.
    pub(super) fn close(&self) {
        // It has ended already if nobody takes this.
        let _ = self.requests.send(Order::Close);
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Session").field(&*self.state.borrow()).finish()
    }
}

impl Shared {
    fn bells(&self) -> MutexGuard<'_, HashMap<String, Vec<Bell>>> {
        self.bells.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring(&self, path: &str) {
        let bells = self.bells().remove(path);
        bells.into_iter().flatten().for_each(|bell| bell());
    }

    fn ring_all(&self) {
        let bells = std::mem::take(&mut *self.bells());
        bells.into_values().flatten().for_each(|bell| bell());
    }

    /// Until when a session with this timeout lasts if the server has heard of it at `sent`.
    fn lasts(&self, sent: Instant, timeout: Duration) -> Instant {
        self.drift.deadline(sent, timeout)
    }
}

/// Keeps the session on some connection until it is over or nobody needs it.
async fn run(shared: Arc<Shared>, mut orders: mpsc::UnboundedReceiver<Order>, state: watch::Sender<State>) {
    const FIRST_PAUSE: Duration = Duration::from_millis(20);
    const LONGEST_PAUSE: Duration = Duration::from_secs(1);
    let mut identity = Identity { timeout_ms: milliseconds(shared.config.session_timeout), ..Identity::default() };
    let mut pause = FIRST_PAUSE;
    let over = loop {
        let end = match connect(&shared, &mut identity).await {
            Ok(stream) => {
                pause = FIRST_PAUSE;
                state.send_replace(State::Connected);
                let mut link = Link::new(&shared, &mut identity, stream);
                let end = link.serve(&mut orders).await;
                state.send_replace(State::Connecting);
                link.give_up(&end);
                shared.ring_all();
                end
            }
            Err(end) => end,
        };
        match end {
            End::Closed => break Error::closed(),
            End::Over(error) => break error,
            // There is nothing to save before the first greeting; the next attempt begins another session.
            End::Cut(error) if identity.id == 0 => break error,
            End::Cut(error) if Instant::now() >= shared.end.at() => {
                break Error::unavailable("the session ended while its servers were out of reach").caused_by(error);
            }
            End::Cut(error) => {
                tracing::debug!(ensemble = ?shared.config, %error, "connection lost");
                if refuse_all(&mut orders, &error) {
                    break Error::closed();
                }
            }
        }
        tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    };
    shared.end.end();
    state.send_replace(State::Over(over.clone()));
    shared.ring_all();
    orders.close();
    refuse_all(&mut orders, &over);
}

/// Answers what was asked while there was no connection. Says whether the session is to be closed.
fn refuse_all(orders: &mut mpsc::UnboundedReceiver<Order>, error: &Error) -> bool {
    loop {
        match orders.try_recv() {
            Ok(Order::Ask(asked)) => drop(asked.answer.send(Err(Failure::NotSent(error.clone())))),
            Ok(Order::Close) | Err(mpsc::error::TryRecvError::Disconnected) => return true,
            Err(mpsc::error::TryRecvError::Empty) => return false,
        }
    }
}

/// A connection to some server of the ensemble, on which the session is open and logged in.
async fn connect(shared: &Shared, identity: &mut Identity) -> Result<TcpStream, End> {
    let config = &shared.config;
    let timeout = Duration::from_millis(u64::try_from(identity.timeout_ms).unwrap_or(0));
    let patience = (timeout / 3).clamp(Duration::from_millis(100), Duration::from_secs(3));
    let mut hosts: Vec<_> = config.hosts.iter().collect();
    fastrand::shuffle(&mut hosts);
    let mut failed = Error::unavailable(format!("no server of {config:?} answers"));
    for (host, port) in hosts {
        let error = match tokio::time::timeout(patience, greet(shared, identity, host, *port)).await {
            Ok(Err(End::Cut(error))) => error.to_string(),
            Ok(done) => return done,
            Err(_) => format!("no answer in {patience:?}"),
        };
        failed = failed.caused_by(format!("{host}:{port}: {error}"));
    }
    Err(End::Cut(failed))
}

async fn greet(shared: &Shared, identity: &mut Identity, host: &str, port: u16) -> Result<TcpStream, End> {
    let mut stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    let sent = Instant::now();
    stream.write_all(&identity.greeting()).await?;
    let len = usize::try_from(stream.read_i32().await?).map_err(|_| Malformed)?;
    if len > MOST_BYTES {
        return Err(Malformed.into());
    }
    let mut body = vec![0; len];
    stream.read_exact(&mut body).await?;
    let Some(greeted) = identity.greeted(&body)? else {
        return Err(End::Over(Error::unavailable("the session has expired")));
    };
    *identity = greeted;
    let timeout = Duration::from_millis(u64::try_from(identity.timeout_ms).unwrap_or(0));
    if !shared.end.move_on(Instant::now(), shared.lasts(sent, timeout)) {
        return Err(End::Over(overslept()));
    }
    if let Some(login) = &shared.config.login {
        stream.write_all(&wire::log_in(login)).await?;
    }
    Ok(stream)
}

fn overslept() -> Error {
    Error::unavailable("the session ended before its server answered")
}

fn milliseconds(time: Duration) -> i32 {
    i32::try_from(time.as_millis()).unwrap_or(i32::MAX)
}

/// Longer answers are not for us: somebody else's directory, or no ZooKeeper.
const MOST_BYTES: usize = 64 << 20;

/// One connection of the session.
struct Link<'a> {
    shared: &'a Shared,
    identity: &'a mut Identity,
    timeout: Duration,
    stream: TcpStream,
    incoming: BytesMut,
    unanswered: VecDeque<Sent>,
    pinged: Option<Instant>,
    next_xid: i32,
    last_sent: Instant,
    last_heard: Instant,
}

impl<'a> Link<'a> {
    fn new(shared: &'a Shared, identity: &'a mut Identity, stream: TcpStream) -> Self {
        let timeout = Duration::from_millis(u64::try_from(identity.timeout_ms).unwrap_or(0));
        let now = Instant::now();
        Self {
            shared,
            identity,
            timeout,
            stream,
            incoming: BytesMut::with_capacity(4096),
            unanswered: VecDeque::new(),
            pinged: None,
            next_xid: 1,
            last_sent: now,
            last_heard: now,
        }
    }

    async fn serve(&mut self, orders: &mut mpsc::UnboundedReceiver<Order>) -> End {
        match self.serve_until_error(orders).await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn serve_until_error(
        &mut self,
        orders: &mut mpsc::UnboundedReceiver<Order>,
    ) -> Result<std::convert::Infallible, End> {
        loop {
            let ping_at = self.last_sent.after(self.timeout / 3);
            let silent_at = self.last_heard.after(self.timeout * 2 / 3);
            let wake_at = if self.pinged.is_none() { ping_at.min(silent_at) } else { silent_at };
            tokio::select! {
                read = self.stream.read_buf(&mut self.incoming) => {
                    if read? == 0 {
                        return Err(End::Cut(Error::unavailable("the server closed the connection")));
                    }
                    self.last_heard = Instant::now();
                    self.receive()?;
                }
                order = orders.recv() => self.carry_out(order, orders).await?,
                () = tokio::time::sleep(wake_at.since(Instant::now())) => {
                    let now = Instant::now();
                    if now >= self.shared.end.at() {
                        return Err(End::Over(overslept()));
                    }
                    if now >= silent_at {
                        return Err(End::Cut(Error::unavailable("the server is silent")));
                    }
                    if self.pinged.is_none() && now >= ping_at {
                        self.pinged = Some(now);
                        self.write(&wire::ping()).await?;
                    }
                }
            }
        }
    }

    /// Writes an order and all that wait behind it.
    async fn carry_out(
        &mut self,
        order: Option<Order>,
        orders: &mut mpsc::UnboundedReceiver<Order>,
    ) -> Result<(), End> {
        let mut bytes = Vec::new();
        let mut next = order;
        loop {
            match next {
                Some(Order::Ask(asked)) => self.encode(asked, &mut bytes),
                Some(Order::Close) | None => {
                    bytes.extend(Request::close().frame(self.next_xid));
                    self.write(&bytes).await?;
                    return Err(self.wait_for_goodbye().await);
                }
            }
            next = match orders.try_recv() {
                Ok(order) => Some(order),
                Err(mpsc::error::TryRecvError::Empty) => break,
                Err(mpsc::error::TryRecvError::Disconnected) => None,
            };
        }
        self.write(&bytes).await
    }

    fn encode(&mut self, asked: Asked, bytes: &mut Vec<u8>) {
        let xid = self.next_xid;
        // Negative numbers have meanings of their own.
        self.next_xid = self.next_xid.checked_add(1).unwrap_or(1);
        bytes.extend(asked.request.frame(xid));
        self.unanswered.push_back(Sent { xid, at: Instant::now(), watched: asked.watched, answer: asked.answer });
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), End> {
        self.last_sent = Instant::now();
        match tokio::time::timeout(self.timeout * 2 / 3, self.stream.write_all(bytes)).await {
            Ok(written) => Ok(written?),
            Err(_) => Err(End::Cut(Error::unavailable("the server takes no more requests"))),
        }
    }

    /// The server answers what was asked before, and then closes the connection.
    async fn wait_for_goodbye(&mut self) -> End {
        let answers = async {
            while self.stream.read_buf(&mut self.incoming).await? > 0 {
                self.receive()?;
            }
            Ok::<(), End>(())
        };
        // Should it be late, the session expires.
        let _ = tokio::time::timeout(Duration::from_secs(1), answers).await;
        End::Closed
    }

    /// Reads all answers that have come as a whole.
    fn receive(&mut self) -> Result<(), End> {
        while let Some(head) = self.incoming.first_chunk::<4>() {
            let len = usize::try_from(i32::from_be_bytes(*head)).map_err(|_| Malformed)?;
            if len > MOST_BYTES {
                return Err(Malformed.into());
            }
            if self.incoming.len() < 4 + len {
                break;
            }
            self.incoming.advance(4);
            let answer = self.incoming.split_to(len);
            self.answered(&answer)?;
        }
        Ok(())
    }

    fn answered(&mut self, answer: &[u8]) -> Result<(), End> {
        let mut answer = Decoder(answer);
        let (xid, zxid, error) = (answer.int()?, answer.long()?, answer.int()?);
        match error {
            code::SESSION_EXPIRED => return Err(End::Over(Error::unavailable(wire::describe(error)))),
            code::AUTH_FAILED | code::AUTH_REQUIRED => {
                return Err(End::Over(Error::new(ErrorKind::Auth, wire::describe(error))));
            }
            // Another connection has our session: an old one of ours, which the server has yet to notice.
            code::SESSION_MOVED => return Err(End::Cut(Error::unavailable(wire::describe(error)))),
            _ => {}
        }
        match xid {
            wire::XID_EVENT => {
                let (_kind, _state) = (answer.int()?, answer.int()?);
                self.shared.ring(answer.text()?);
                Ok(())
            }
            wire::XID_PING => match self.pinged.take() {
                Some(sent) => self.heard(sent),
                None => Err(Malformed.into()),
            },
            // A log-in that failed ends the session, above.
            wire::XID_AUTH => Ok(()),
            _ => {
                self.identity.last_zxid = self.identity.last_zxid.max(zxid);
                let sent = self.unanswered.pop_front().filter(|sent| sent.xid == xid).ok_or(Malformed)?;
                let reply = if error == 0 {
                    Ok(Reply { body: answer.0.to_vec(), sent: sent.at })
                } else {
                    // Nothing is watched then; whoever waits for the path shall look again.
                    sent.watched.iter().for_each(|path| self.shared.ring(path));
                    Err(match error {
                        // The server had to give up waiting for the others; they may go on.
                        code::CONNECTION_LOSS | code::OPERATION_TIMEOUT => {
                            Failure::Unanswered(Error::unavailable(wire::describe(error)))
                        }
                        _ => Failure::Refused(error),
                    })
                };
                let heard = self.heard(sent.at);
                // Nobody may be waiting any more.
                drop(sent.answer.send(reply));
                heard
            }
        }
    }

    /// The server has answered what was sent then, so it has heard of the session later than that.
    fn heard(&self, sent: Instant) -> Result<(), End> {
        if self.shared.end.move_on(Instant::now(), self.shared.lasts(sent, self.timeout)) {
            Ok(())
        } else {
            Err(End::Over(overslept()))
        }
    }

    /// Tells those who wait for answers that none will come.
    fn give_up(self, end: &End) {
        let error = match end {
            End::Closed => Error::closed(),
            End::Over(error) | End::Cut(error) => error.clone(),
        };
        for sent in self.unanswered {
            drop(sent.answer.send(Err(Failure::Unanswered(error.clone()))));
        }
    }
}
