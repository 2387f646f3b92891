//! One connection of a session: the greeting, and then requests and answers in one order.

use std::{collections::VecDeque, time::Duration};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{mpsc, oneshot},
};

use super::{
    proof::{self, Proof},
    session::{Asked, Failure, Order, Reply, Shared},
    tls::{self, Stream},
    wire::{self, Decoder, Identity, Malformed, Request, code},
};
use crate::{Error, ErrorKind, Result, clock::Instant};

/// Longer answers are not for us: somebody else's directory, or no ZooKeeper.
const MOST_BYTES: usize = 64 << 20;

/// Why a connection ended.
pub(super) enum End {
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

/// A connection on which the session is open.
pub(super) struct Connected {
    stream: Box<dyn Stream>,
    /// As errors name it.
    server: String,
    /// When that was asked for.
    greeted: Instant,
}

/// A connection to some server of the ensemble, on which the session is open and logged in.
pub(super) async fn connect(shared: &Shared, identity: &mut Identity) -> Result<Connected, End> {
    let config = &shared.config;
    // One that has leases to keep must not lose all its time on one server.
    let patience = shared.timeout() / if identity.is_new() { 3 } else { 6 };
    let patience = patience.clamp(Duration::from_millis(200), Duration::from_secs(3));
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

async fn greet(shared: &Shared, identity: &mut Identity, host: &str, port: u16) -> Result<Connected, End> {
    let socket = TcpStream::connect((host, port)).await?;
    socket.set_nodelay(true)?;
    let mut stream = match &shared.config.tls {
        Some(tls) => tls::secure(socket, host, tls).await?,
        None => Box::new(socket),
    };
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
    if greeted.timeout_ms < identity.timeout_ms && !identity.is_new() {
        // What was promised to the leases may be too much already.
        return Err(End::Over(Error::unavailable("the servers allow different session timeouts")));
    }
    *identity = greeted;
    shared.set_timeout(identity.timeout_ms);
    if let Some(login) = &shared.config.login {
        stream.write_all(&wire::log_in(login)).await?;
    }
    Ok(Connected { stream, server: format!("{host}:{port}"), greeted: sent })
}

/// A request that was written and not answered yet.
struct Sent {
    xid: i32,
    at: Instant,
    is_write: bool,
    watched: Option<String>,
    answer: oneshot::Sender<Result<Reply, Failure>>,
}

/// One connection of the session.
pub(super) struct Link<'a> {
    shared: &'a Shared,
    identity: &'a mut Identity,
    timeout: Duration,
    server: String,
    stream: Box<dyn Stream>,
    incoming: BytesMut,
    unanswered: VecDeque<Sent>,
    pinged: Option<Instant>,
    next_xid: i32,
    proof: Proof,
    last_sent: Instant,
    last_write: Instant,
    last_heard: Instant,
    /// When the last request was sent that was answered.
    answered: Instant,
}

impl<'a> Link<'a> {
    pub(super) fn new(shared: &'a Shared, identity: &'a mut Identity, connected: Connected) -> Self {
        let (timeout, now) = (shared.timeout(), Instant::now());
        Self {
            shared,
            identity,
            timeout,
            server: connected.server,
            stream: connected.stream,
            incoming: BytesMut::with_capacity(4096),
            unanswered: VecDeque::new(),
            pinged: None,
            next_xid: 1,
            proof: Proof::new(connected.greeted, timeout),
            last_sent: connected.greeted,
            // Over another connection: what is held is to be proven soon.
            last_write: connected.greeted,
            last_heard: now,
            answered: connected.greeted,
        }
    }

    pub(super) async fn serve(&mut self, orders: &mut mpsc::UnboundedReceiver<Order>) -> End {
        match self.serve_until_error(orders).await {
            Ok(never) => match never {},
            Err(End::Cut(error)) => End::Cut(Error::unavailable(format!("{}: {error}", self.server))),
            Err(end) => end,
        }
    }

    async fn serve_until_error(
        &mut self,
        orders: &mut mpsc::UnboundedReceiver<Order>,
    ) -> Result<std::convert::Infallible, End> {
        loop {
            // Half of the timeout is then left at least for another connection.
            let silent_at = self.last_heard.after(self.timeout / 2);
            let wake_at = self.beats_at().map_or(silent_at, |beats_at| beats_at.min(silent_at));
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
                    if Instant::now() >= silent_at {
                        return Err(End::Cut(Error::unavailable("the server is silent")));
                    }
                    self.beat().await?;
                }
            }
        }
    }

    /// When the server is to hear of us unless there is something to ask before; `None` while it owes an answer to that.
    fn beats_at(&self) -> Option<Instant> {
        let last = if self.shared.holds() { self.last_write } else { self.last_sent };
        self.pinged.is_none().then(|| last.after(proof::delay(self.timeout)))
    }

    /// Tells the server that we are there: by a ping, or by a write while there are leases to prove.
    async fn beat(&mut self) -> Result<(), End> {
        let now = Instant::now();
        if self.beats_at().is_none_or(|at| now < at) {
            return Ok(());
        }
        if !self.shared.holds() {
            self.pinged = Some(now);
            self.proof.sent(now);
            return self.write(&wire::ping()).await;
        }
        let mut bytes = Vec::new();
        let (answer, _) = oneshot::channel();
        self.encode(Asked { request: Request::nothing(), watched: None, answer }, &mut bytes);
        self.write(&bytes).await
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
        let (at, is_write) = (Instant::now(), asked.request.is_write());
        self.proof.sent(at);
        if is_write {
            self.last_write = at;
        }
        self.unanswered.push_back(Sent { xid, at, is_write, watched: asked.watched, answer: asked.answer });
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
                Some(sent) => {
                    self.answered = self.answered.max(sent);
                    Ok(())
                }
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
                self.answered = self.answered.max(sent.at);
                if sent.is_write && error == 0 {
                    // Before the answer is given: whoever gets a lock by it asks until when it is held.
                    self.shared.proven(self.proof.written(sent.at));
                }
                // Nobody may be waiting any more.
                drop(sent.answer.send(reply));
                Ok(())
            }
        }
    }

    /// Tells those who wait for answers that none will come. Answers when the last request was sent that was answered.
    pub(super) fn give_up(self, end: &End) -> Instant {
        let error = match end {
            End::Closed => Error::closed(),
            End::Over(error) | End::Cut(error) => error.clone(),
        };
        for sent in self.unanswered {
            drop(sent.answer.send(Err(Failure::Unanswered(error.clone()))));
        }
        self.answered
    }
}
