//! Sessions of the server: opened, watched over, and proved to have ended.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use tokio::sync::oneshot;
use tokio_postgres::types::Type;

use super::{id::wish_id, locks::Locks};
use crate::{
    Error, ErrorKind, LossReason, Mode, OwnerToken, Result,
    backend::postgres::{
        config::Config,
        connection::{Connection, Statement},
        failure::Failure,
    },
    clock::Instant,
    engine::{driver::Driver, runtime},
};

/// How often an idle session that holds something is asked whether it lives.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(2);
/// How long it may take to answer. With [`HEARTBEAT`] less than the server's own limit.
pub(super) const ANSWER: Duration = Duration::from_secs(4);

/// Asks for life, and whether anybody wants something broken that this session has: see break.sql.
const IS_NOTHING_WISHED: &str = "SELECT pg_try_advisory_xact_lock(1886350457, pg_backend_pid())";

/// One session of the server.
pub(super) struct Session {
    pub(super) connection: Connection,
    pub(super) locks: Arc<Locks>,
    /// The server's process for it, and when that began: together they name it for ever.
    pid: i32,
    started: i64,
}

/// The sessions in use, and those that ended without a proof that their locks are free.
pub(super) struct Sessions {
    config: Arc<Config>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// For all claims, or with `connections=dedicated` for questions.
    current: Option<Arc<Session>>,
    /// Dedicated ones that hold nothing.
    idle: Vec<Arc<Session>>,
    opening: bool,
    waiting: Vec<oneshot::Sender<Result<Arc<Session>>>>,
    /// Where each claim was sent, until it is proved that it does not hold.
    claims: HashMap<OwnerToken, Sent>,
    closed: bool,
}

/// Where a claim was sent, and which advisory locks it is.
#[derive(Clone)]
pub(super) struct Sent {
    pub(super) session: Arc<Session>,
    pub(super) mode: Mode,
    pub(super) keys: Arc<[String]>,
    /// In the order of the keys.
    pub(super) ids: Arc<[i64]>,
}

impl Session {
    /// To be awaited on the engine.
    async fn open(config: &Config) -> std::result::Result<Arc<Self>, Failure> {
        let locks = Arc::new(Locks::default());
        let on_end = {
            let locks = Arc::clone(&locks);
            move || locks.end(LossReason::Taken)
        };
        let connection = Connection::open(config, Box::new(|_| {}), on_end).await?;
        if !connection.direct {
            let why = "mode=session needs a session of its own, and a pooler stands before the server: connect to the \
                       server itself, or use lease mode (without mode=session), which works through poolers";
            return Err(Failure::NotSent(Error::new(ErrorKind::Unsupported, format!("{}: {why}", connection.peer))));
        }
        let this = "SELECT pid, (extract(epoch FROM backend_start) * 1000000)::bigint FROM pg_stat_activity \
                    WHERE pid = pg_backend_pid()";
        let failed =
            |error: &tokio_postgres::Error| Failure::NotSent(Failure::of(&connection.peer, error).into_error());
        let row = connection.client.query_typed_one(this, &[]).await.map_err(|error| failed(&error))?;
        let pid = row.try_get(0).map_err(|error| failed(&error))?;
        let started = row.try_get(1).map_err(|error| failed(&error))?;
        let session = Arc::new(Self { connection, locks, pid, started });
        runtime::spawn(keep_alive(Arc::downgrade(&session)));
        Ok(session)
    }

    /// Gives up what others want to be broken. What cannot be asked now is asked again with the next heartbeat.
    async fn grant_wishes(&self) {
        let owners: HashMap<_, _> = self.locks.owners().into_iter().map(|owner| (wish_id(owner), owner)).collect();
        let ids = owners.keys().map(i64::to_string).collect::<Vec<_>>().join(",");
        let which =
            format!("SELECT id FROM unnest('{{{ids}}}'::bigint[]) AS id WHERE NOT pg_try_advisory_xact_lock(id)");
        let wished = self.connection.texts(&which, Instant::now().after(ANSWER)).await.unwrap_or_default();
        for owner in wished.iter().filter_map(|id| owners.get(&id.parse().ok()?)) {
            self.locks.break_lease(*owner);
        }
    }

    fn is_alive(&self) -> bool {
        !self.locks.is_ended() && !self.connection.client.is_closed()
    }
}

/// Watches over a session until it ends.
async fn keep_alive(session: Weak<Session>) {
    loop {
        tokio::time::sleep(HEARTBEAT).await;
        let Some(session) = session.upgrade() else { return };
        if session.locks.is_ended() {
            return;
        }
        if session.locks.is_empty() {
            continue;
        }
        // That it is refused is a sign of life as well.
        match session.connection.texts(IS_NOTHING_WISHED, Instant::now().after(ANSWER)).await {
            Ok(answer) if answer == ["f"] => session.grant_wishes().await,
            Ok(_) | Err(Failure::Refused { .. }) => {}
            Err(failure) => {
                tracing::warn!(error = %failure.into_error(), "the session does not answer: its leases are lost");
                return session.locks.end(LossReason::Expired);
            }
        }
    }
}

impl Sessions {
    pub(super) fn new(config: Arc<Config>) -> Arc<Self> {
        Arc::new(Self { config, state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The session for a new claim.
    pub(super) async fn for_claim(self: &Arc<Self>) -> std::result::Result<Arc<Session>, Failure> {
        if !self.config.dedicated {
            return self.current().await;
        }
        let opened = {
            let mut state = self.state();
            if state.closed {
                return Err(Failure::NotSent(Error::closed()));
            }
            while let Some(session) = state.idle.pop() {
                if session.is_alive() {
                    return Ok(session);
                }
            }
            let (tell, told) = oneshot::channel();
            let config = Arc::clone(&self.config);
            runtime::spawn(async move {
                let _ = tell.send(Session::open(&config).await);
            });
            told
        };
        opened.await.unwrap_or_else(|_| Err(Failure::NotSent(Error::closed())))
    }

    /// The one session for all.
    pub(super) async fn current(self: &Arc<Self>) -> std::result::Result<Arc<Session>, Failure> {
        let opened = {
            let mut state = self.state();
            if state.closed {
                return Err(Failure::NotSent(Error::closed()));
            }
            if let Some(session) = &state.current {
                if session.is_alive() {
                    return Ok(Arc::clone(session));
                }
                state.current = None;
            }
            if !std::mem::replace(&mut state.opening, true) {
                runtime::spawn(open(Arc::downgrade(self), Arc::clone(&self.config)));
            }
            let (tell, told) = oneshot::channel();
            state.waiting.push(tell);
            told
        };
        match opened.await {
            Ok(opened) => opened.map_err(Failure::NotSent),
            Err(_) => Err(Failure::NotSent(Error::closed())),
        }
    }

    /// To be called before a claim is sent.
    pub(super) fn enter(&self, owner: OwnerToken, sent: Sent) {
        self.state().claims.insert(owner, sent);
    }

    /// Where a claim was sent, if it may hold.
    pub(super) fn sent(&self, owner: OwnerToken) -> Option<Sent> {
        self.state().claims.get(&owner).cloned()
    }

    /// It is certain that the claim does not hold.
    pub(super) fn forget(&self, sent: &Sent, owner: OwnerToken) {
        /// So many that hold nothing are kept for the next claims.
        const IDLE: usize = 4;
        sent.session.locks.forget(&sent.ids, owner);
        let mut state = self.state();
        let known = state.claims.remove(&owner).is_some();
        let reusable = self.config.dedicated && known && sent.session.is_alive();
        if reusable && !state.closed && state.idle.len() < IDLE {
            state.idle.push(Arc::clone(&sent.session));
        }
    }

    /// Ends a session whose connection has ended, and says whether the server has done so.
    pub(super) async fn is_gone(self: &Arc<Self>, ended: &Session) -> std::result::Result<bool, Failure> {
        let session = self.current().await?;
        let terminate = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                         WHERE pid = $1 AND (extract(epoch FROM backend_start) * 1000000)::bigint = $2";
        let statement = Statement { index: 11, text: terminate.to_owned(), types: vec![Type::INT4, Type::INT8] };
        let expires = Instant::now().after(ANSWER);
        let row =
            session.connection.query(&statement, &[&ended.pid, &ended.started], expires, &Driver::engine()).await?;
        Ok(row.and_then(|row| row.try_get::<_, i64>(0).ok()) == Some(0))
    }

    pub(super) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.waiting.clear();
        state.idle.clear();
        state.current = None;
        state.claims.clear();
    }
}

async fn open(sessions: Weak<Sessions>, config: Arc<Config>) {
    let opened = Session::open(&config).await.map_err(Failure::into_error);
    let Some(sessions) = sessions.upgrade() else { return };
    let mut state = sessions.state();
    state.opening = false;
    if state.closed {
        return;
    }
    state.current = opened.as_ref().ok().map(Arc::clone);
    for waiting in state.waiting.drain(..) {
        let _ = waiting.send(opened.clone());
    }
}
