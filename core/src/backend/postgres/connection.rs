//! One connection: opened, greeted and [driven](super::driving) on the engine; its answers may be awaited anywhere.

use std::{
    fmt,
    future::{Future, poll_fn},
    io,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::{Either, join3, select};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
};
use tokio_postgres::{
    AsyncMessage, Client, NoTls, Row, SimpleQueryMessage, SimpleQueryRow,
    error::SqlState,
    types::{ToSql, Type},
};

use super::{
    config::{Config, Server},
    driving::Driving,
    failure::{Failure, chain},
    socket::{Bytes, Socket},
    tls::{self, Stream, Trouble},
};
use crate::{
    Error, ErrorKind,
    clock::Instant,
    engine::{
        driver::Driver,
        process::{self, SharedSocket},
        runtime,
        timer::until,
    },
};

/// A statement, and its number among those that a connection prepares.
pub(super) struct Statement {
    pub(super) index: usize,
    pub(super) text: String,
    pub(super) types: Vec<Type>,
}

/// The most statements with a number.
pub(super) const STATEMENTS: usize = 16;

/// What comes without being asked for.
pub(super) type OnMessage = Box<dyn FnMut(AsyncMessage) + Send>;

/// See the module's text. Dropping it closes the socket.
pub(super) struct Connection {
    pub(super) client: Client,
    /// What errors call the server.
    pub(super) peer: String,
    /// Nobody stands between us and our session: no pooler that hands out others from one transaction to the next.
    pub(super) direct: bool,
    /// The server's clock less ours, in µs.
    clock: AtomicI64,
    prepared: [OnceLock<tokio_postgres::Statement>; STATEMENTS],
    /// Something was not answered in time: nothing more is to be sent here.
    stuck: AtomicBool,
    users: AtomicUsize,
    /// Of the process that opened it: in another it is not to be ended.
    generation: u32,
    driving: Arc<Driving>,
    on_engine: tokio::task::AbortHandle,
}

pub(super) type Driven = tokio_postgres::Connection<Box<dyn Stream>, tokio_postgres::tls::NoTlsStream>;

impl Connection {
    /// Opens one to the first server of the list that can be written to. To be awaited on the engine.
    ///
    /// `on_message` is told what comes without being asked for, `on_end` that the connection has ended.
    pub(super) async fn open(
        config: &Config,
        on_message: OnMessage,
        on_end: impl FnOnce() + Send + 'static,
    ) -> Result<Self, Failure> {
        let mut failures = Vec::new();
        for server in &config.servers {
            let (client, driven, socket, greeting) =
                match tokio::time::timeout(config.connect_timeout(), open_at(config, server)).await {
                    Ok(Ok(opened)) => opened,
                    Ok(Err(failure)) => {
                        failures.push(failure);
                        continue;
                    }
                    Err(_) => {
                        failures.push(Failure::not_sent(&server.to_string(), "no connection in time"));
                        continue;
                    }
                };
            let driving = Driving::new(driven, socket, on_message);
            let engines = Arc::clone(&driving);
            let on_engine = runtime::engine().map_err(Failure::NotSent)?.handle().spawn(async move {
                engines.until_ended().await;
                on_end();
            });
            return Ok(Self {
                client,
                peer: server.to_string(),
                direct: greeting.direct,
                clock: AtomicI64::new(greeting.clock),
                prepared: Default::default(),
                stuck: AtomicBool::new(false),
                users: AtomicUsize::new(0),
                generation: process::generation(),
                driving,
                on_engine: on_engine.abort_handle(),
            });
        }
        Err(worst(failures))
    }

    /// Sends a statement that answers one row at most. `driver` is who waits for that.
    pub(super) async fn query(
        &self,
        statement: &Statement,
        params: &[&(dyn ToSql + Sync)],
        expires: Instant,
        driver: &Driver,
    ) -> Result<Option<Row>, Failure> {
        let mut rows = self.query_all(statement, params, expires, driver).await?;
        Ok(rows.pop())
    }

    /// Sends a statement.
    pub(super) async fn query_all(
        &self,
        statement: &Statement,
        params: &[&(dyn ToSql + Sync)],
        expires: Instant,
        driver: &Driver,
    ) -> Result<Vec<Row>, Failure> {
        if self.client.is_closed() {
            return Err(Failure::not_sent(&self.peer, "the connection is closed"));
        }
        let _used = Used::new(&self.users);
        let answer = async {
            if self.direct {
                let prepared = self.prepare(statement).await?;
                return self.client.query(&prepared, params).await;
            }
            // A pooler may give each transaction another session, so nothing is prepared for a later one.
            let typed: Vec<_> = params.iter().copied().zip(statement.types.iter().cloned()).collect();
            self.client.query_typed(&statement.text, &typed).await
        };
        self.in_time(answer, expires, driver).await
    }

    /// Has `statement` be sent by the first poll of what [`query`](Self::query) answers.
    pub(super) async fn prepared(
        &self,
        statement: &Statement,
        expires: Instant,
        driver: &Driver,
    ) -> Result<(), Failure> {
        match self.prepared[statement.index].get() {
            Some(_) => Ok(()),
            // In a box, as it is large and rare.
            None => Box::pin(self.in_time(self.prepare(statement), expires, driver)).await.map(drop),
        }
    }

    /// Several who come first prepare one each, and the first is kept: nobody waits for another, who may have stopped.
    async fn prepare(&self, statement: &Statement) -> Result<tokio_postgres::Statement, tokio_postgres::Error> {
        let kept = &self.prepared[statement.index];
        if let Some(prepared) = kept.get() {
            return Ok(prepared.clone());
        }
        let prepared = self.client.prepare_typed(&statement.text, &statement.types).await?;
        Ok(kept.get_or_init(|| prepared).clone())
    }

    /// What is answered, if that is in time.
    async fn in_time<A>(
        &self,
        asking: impl Future<Output = Result<A, tokio_postgres::Error>>,
        expires: Instant,
        driver: &Driver,
    ) -> Result<A, Failure> {
        match until(Some(expires), self.driving.ask(asking, driver)).await {
            Some(answer) => answer.map_err(|error| Failure::of(&self.peer, &error)),
            None => {
                self.stuck.store(true, Ordering::Relaxed);
                Err(Failure::TimedOut(Error::unavailable(format!("{}: no answer in time", self.peer))))
            }
        }
    }

    /// Sends statements without parameters, as one transaction.
    pub(super) async fn execute(&self, text: &str, expires: Instant) -> Result<(), Failure> {
        self.in_time(self.client.batch_execute(text), expires, &Driver::engine()).await
    }

    /// Sends a query without parameters; gives the values of its rows, one after the other.
    pub(super) async fn texts(&self, text: &str, expires: Instant) -> Result<Vec<String>, Failure> {
        let answer = self.in_time(self.client.simple_query(text), expires, &Driver::engine()).await?;
        let rows = answer.into_iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        let values = |row: SimpleQueryRow| {
            (0..row.len()).map(|column| row.get(column).unwrap_or_default().to_owned()).collect::<Vec<_>>()
        };
        Ok(rows.flat_map(values).collect())
    }

    /// Whether more may be sent here.
    pub(super) fn is_usable(&self) -> bool {
        !self.stuck.load(Ordering::Relaxed) && !self.client.is_closed()
    }

    /// How many wait for an answer.
    pub(super) fn users(&self) -> usize {
        self.users.load(Ordering::Relaxed)
    }

    /// The server's time at `at`, in us since 1970; later than the truth by the quickest round trip at most.
    pub(super) fn server_time(&self, at: Instant) -> i64 {
        boot_micros(at).saturating_add(self.clock.load(Ordering::Relaxed))
    }

    /// The server said that it was `now` after we asked at `asked`, and answered just now.
    pub(super) fn set_server_time(&self, now: i64, asked: Instant) {
        let [least, most] = [Instant::now(), asked].map(|at| now.saturating_sub(boot_micros(at)));
        self.clock.store(closest(self.clock.load(Ordering::Relaxed), least, most), Ordering::Relaxed);
    }
}

/// How far the server's clock is ahead of ours, which was `known` and is `least` to `most` by an answer. One that was long under
/// way says little, and would let a request that was given up be granted for as long: so what is known stays where it can be
/// right.
fn closest(known: i64, least: i64, most: i64) -> i64 {
    if (least..=most).contains(&known) { known } else { most }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.generation == process::generation() {
            // Also where the server does not take our goodbye.
            self.driving.close();
            self.on_engine.abort();
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("peer", &self.peer).field("direct", &self.direct).finish_non_exhaustive()
    }
}

/// Counts as a user while it lives.
struct Used<'a>(&'a AtomicUsize);

impl<'a> Used<'a> {
    fn new(users: &'a AtomicUsize) -> Self {
        users.fetch_add(1, Ordering::Relaxed);
        Self(users)
    }
}

impl Drop for Used<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What the first statement found out.
struct Greeting {
    direct: bool,
    clock: i64,
}

async fn open_at(config: &Config, server: &Server) -> Result<(Client, Driven, Arc<Socket>, Greeting), Failure> {
    let peer = server.to_string();
    let (socket, stream) = connect(server, config).await.map_err(|trouble| match trouble {
        Trouble::Io(error) => Failure::not_sent(&peer, chain(&error)),
        Trouble::Url(error) => Failure::NotSent(error),
    })?;
    let (client, mut driven) =
        config.login.connect_raw(stream, NoTls).await.map_err(|error| log_in(&peer, &error))?;
    let greeting = {
        let greeting = std::pin::pin!(greet(&client, &peer, config.servers.len() > 1));
        let driving =
            std::pin::pin!(async { while let Some(Ok(_)) = poll_fn(|cx| driven.poll_message(cx)).await {} });
        match select(greeting, driving).await {
            Either::Left((greeting, _)) => greeting?,
            // It broke; the statement knows why.
            Either::Right(((), greeting)) => greeting.await?,
        }
    };
    Ok((client, driven, socket, greeting))
}

/// What a failed log-in means: nothing of a caller's was sent.
fn log_in(peer: &str, error: &tokio_postgres::Error) -> Failure {
    match Failure::of(peer, error) {
        Failure::Broken(_)
            if error.to_string() == "authentication error" || chain(error).contains("password missing") =>
        {
            Failure::NotSent(Error::new(ErrorKind::Auth, format!("{peer}: {}", chain(error))))
        }
        failure => Failure::NotSent(failure.into_error()),
    }
}

async fn greet(client: &Client, peer: &str, among_others: bool) -> Result<Greeting, Failure> {
    let told = backend_pid(client).await;
    let pid = told.unwrap_or(0);
    let params: [(&(dyn ToSql + Sync), Type); 1] = [(&pid, Type::INT4)];
    let ask = || client.query_typed_one(include_str!("sql/welcome.sql"), &params);
    let mut asked = Instant::now();
    let answer = match ask().await {
        // The user's limit for statements is too short even for this: it is lifted for one transaction. Sent at once,
        // as there may be a limit for idle transactions, too.
        Err(error) if error.code() == Some(&SqlState::QUERY_CANCELED) => {
            asked = Instant::now();
            let lift = "BEGIN; SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0";
            let (_, answer, _) = join3(client.batch_execute(lift), ask(), client.batch_execute("COMMIT")).await;
            answer
        }
        answer => answer,
    };
    let row = answer.map_err(|error| Failure::NotSent(Failure::of(peer, &error).into_error()))?;
    let read = |error: tokio_postgres::Error| Failure::not_sent(peer, chain(&error));
    if row.try_get::<_, bool>("replica").map_err(read)? {
        let why = "it is a replica, which takes no locks; name the primary, or all hosts";
        return Err(Failure::not_sent(peer, why));
    }
    // Alone it can still say who holds.
    if among_others && row.try_get::<_, bool>("read_only").map_err(read)? {
        return Err(Failure::not_sent(peer, "it can only be read (default_transaction_read_only)"));
    }
    let now: i64 = row.try_get("now").map_err(read)?;
    let pid: i32 = row.try_get("pid").map_err(read)?;
    Ok(Greeting { direct: told == Some(pid), clock: now.saturating_sub(boot_micros(asked)) })
}

/// The process id that the log-in told. The client keeps it to itself but for cancelling: so we have it write
/// a request to cancel, to nobody, and read it there.
async fn backend_pid(client: &Client) -> Option<i32> {
    let (mut here, there) = tokio::io::duplex(64);
    client.cancel_token().cancel_query_raw(there, NoTls).await.ok()?;
    let mut request = [0; 16];
    here.read_exact(&mut request).await.ok()?;
    Some(i32::from_be_bytes([request[8], request[9], request[10], request[11]]))
}

async fn connect(server: &Server, config: &Config) -> Result<(Arc<Socket>, Box<dyn Stream>), Trouble> {
    match server {
        Server::Unix(path) => {
            let socket = Socket::new(UnixStream::connect(path).await?.into_std()?)?;
            let shared = SharedSocket::new(&**socket.descriptor());
            let stream = Box::new(Bytes(Arc::clone(&socket)));
            Ok((socket, Box::new(Closing { _shared: shared, stream })))
        }
        Server::Tcp { host, address, port } => {
            let socket = TcpStream::connect((address.as_str(), *port)).await?;
            socket.set_nodelay(true)?;
            // A server that vanished without a word is noticed within some 10 s.
            let keepalive =
                TcpKeepalive::new().with_time(Duration::from_secs(5)).with_interval(Duration::from_secs(2));
            let options = SockRef::from(&socket);
            #[cfg(target_os = "linux")]
            options.set_tcp_user_timeout(Some(Duration::from_secs(10)))?;
            options.set_tcp_keepalive(&keepalive)?;
            let socket = Socket::new(socket.into_std()?)?;
            let shared = SharedSocket::new(&**socket.descriptor());
            let stream = tls::secure(Bytes(Arc::clone(&socket)), host, config).await?;
            Ok((socket, Box::new(Closing { _shared: shared, stream })))
        }
    }
}

/// A stream that a child of a fork closes: a session that was left open there would keep its locks for as long as the child
/// lives, though the parent were killed.
struct Closing {
    /// Before the stream, so that it ends first.
    _shared: SharedSocket,
    stream: Box<dyn Stream>,
}

impl AsyncRead for Closing {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl AsyncWrite for Closing {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The failure that says most: one that trying again does not cure.
fn worst(mut failures: Vec<Failure>) -> Failure {
    if failures.len() == 1 {
        return failures.remove(0);
    }
    let errors: Vec<_> = failures.into_iter().map(Failure::into_error).collect();
    if let Some(fatal) = errors.iter().find(|error| !error.is_retryable()) {
        return Failure::NotSent(fatal.clone());
    }
    let none = Error::unavailable("none of the servers can be used");
    Failure::NotSent(errors.into_iter().fold(none, |error, cause| error.caused_by(cause)))
}

fn boot_micros(at: Instant) -> i64 {
    i64::try_from(at.since_boot().as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_was_long_under_way_takes_nothing_from_what_is_known_of_the_clock() {
        assert_eq!(closest(1_010, 1_000, 4_000), 1_010);
        // A quicker one says more.
        assert_eq!(closest(4_000, 1_000, 1_010), 1_010);
        // It was set.
        assert_eq!(closest(1_010, 900_000, 900_100), 900_100);
    }
}
