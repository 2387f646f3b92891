//! Session mode: advisory locks of one session, which the server frees when the session ends.
//!
//! All leases of a manager are locks of one session over one pipelined connection. Session locks are re-entrant: so a
//! table of this process, by the id of the lock, is asked before the server is.
//!
//! # What can happen between any two steps
//!
//! * *An attempt's answer is lost, or is an error*: the lock may be held all the same (an error does not roll it back).
//!   It is unlocked on the same connection, which works through requests in order; that answer is the proof.
//! * *The connection ends*: so do all its leases, and their holders are told at once. Whether the server has noticed
//!   is asked, and brought about, over the next connection: the old session is ended by its process id and the time
//!   of its start.
//! * *Nothing comes back any more* (a cable is pulled): a heartbeat every 2 s has 4 s to be answered, then the leases are
//!   lost. The server gives up on its side after some 11 s, so the holder knows before the next one holds.
//! * *The process is stopped* (SIGSTOP): its session lives on and holds; nobody else gets in. When it goes on, it learns from
//!   its clock that the lease has expired, and the lock is freed.
//! * *A waiter's wish to be told comes too late*: the wish is written, and then it tries once more.

use std::{
    collections::{HashMap, hash_map::Entry},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, UNIX_EPOCH},
};

use sha2::{Digest, Sha256};
use tokio::sync::oneshot;
use tokio_postgres::types::{ToSql, Type};

use super::{
    config::Config,
    connection::{Connection, Statement},
    failure::Failure,
    lease::micros,
    listener::Listener,
    make_table,
};
use crate::{
    Error, ErrorKind, OwnerToken, Resource, Result,
    backend::{Answer, Attempt, Backend, Capabilities, Claim, Extension, Guarantee, Holder, Losable, Release, Watch},
    clock::Instant,
    connect::Options,
    engine::{driver::Driver, runtime},
};

/// How often an idle session that holds something is asked whether it lives.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// How long it may take to answer. With [`HEARTBEAT`] less than the server's own limit.
const ANSWER: Duration = Duration::from_secs(4);

/// The id of the advisory lock for `name`: the first 8 bytes, in network order, of the SHA-256 of "polylock", a zero
/// byte and the name.
fn hashed(name: &str) -> i64 {
    let digest = Sha256::new().chain_update(b"polylock\0").chain_update(name.as_bytes()).finalize();
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    i64::from_be_bytes(first)
}

pub(super) struct SessionBackend {
    config: Arc<Config>,
    sessions: Arc<Sessions>,
    listener: Arc<Listener>,
    statements: Statements,
    prefix: String,
    node_timeout: Option<Duration>,
}

struct Statements {
    acquire: Statement,
    extend: Statement,
    release: Statement,
    inspect: Statement,
    make_table: String,
}

/// The session in use, and those that ended without a proof that their locks are free.
struct Sessions {
    config: Arc<Config>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    current: Option<Arc<Session>>,
    opening: bool,
    waiting: Vec<oneshot::Sender<Result<Arc<Session>>>>,
    /// Where each claim was sent, until it is proved that it does not hold.
    claims: HashMap<OwnerToken, Arc<Session>>,
    closed: bool,
}

/// One session of the server.
struct Session {
    connection: Connection,
    /// The server's process for it, and when that began: together they name it for ever.
    pid: i32,
    started: i64,
    locks: Arc<Locks>,
}

/// What a session holds or may hold.
#[derive(Default)]
struct Locks(Mutex<Held>);

#[derive(Default)]
struct Held {
    by_id: HashMap<i64, Local>,
    ended: bool,
}

struct Local {
    owner: OwnerToken,
    key: String,
    /// To be told if the session ends.
    lease: Option<Weak<dyn Losable>>,
    /// An unlocking was sent, and its answer is not known.
    unlocking: bool,
}

impl Locks {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reserves `id` for one claim of this process.
    fn reserve(&self, id: i64, key: &str, owner: OwnerToken) -> Option<Attempt> {
        let mut held = self.held();
        if held.ended {
            return Some(Attempt::Refused(Error::unavailable("the session has ended")));
        }
        match held.by_id.entry(id) {
            Entry::Vacant(entry) => {
                entry.insert(Local { owner, key: key.to_owned(), lease: None, unlocking: false });
                None
            }
            Entry::Occupied(entry) if entry.get().key != key => {
                // To wait would be a deadlock if one task held the one and asked for the other.
                let why = format!("has the same advisory lock as {:?}, which is held here", entry.get().key);
                Some(Attempt::Refused(Error::new(ErrorKind::Conflict, why)))
            }
            Entry::Occupied(_) => Some(Attempt::held_for(None)),
        }
    }

    fn forget(&self, id: i64, owner: OwnerToken) {
        let mut held = self.held();
        if held.by_id.get(&id).is_some_and(|local| local.owner == owner) {
            held.by_id.remove(&id);
        }
    }

    fn is_ended(&self) -> bool {
        self.held().ended
    }

    /// The session is over: tells the leases.
    fn end(&self) {
        let leases: Vec<_> = {
            let mut held = self.held();
            held.ended = true;
            held.by_id.values_mut().filter_map(|local| local.lease.take()).collect()
        };
        for lease in leases.iter().filter_map(Weak::upgrade) {
            lease.gone();
        }
    }
}

impl Session {
    /// To be awaited on the engine.
    async fn open(config: &Config) -> std::result::Result<Arc<Self>, Failure> {
        let locks = Arc::new(Locks::default());
        let on_end = {
            let locks = Arc::clone(&locks);
            move || locks.end()
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
        let session = Arc::new(Self { connection, pid, started, locks });
        runtime::spawn(keep_alive(Arc::downgrade(&session)));
        Ok(session)
    }

    /// Asks whether it lives.
    async fn ping(&self) -> std::result::Result<(), Failure> {
        self.connection.execute("", Instant::now().after(ANSWER)).await
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
        if session.locks.held().by_id.is_empty() {
            continue;
        }
        if let Err(failure) = session.ping().await {
            tracing::warn!(error = %failure.into_error(), "the session does not answer: its leases are lost");
            return session.locks.end();
        }
    }
}

impl Sessions {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn get(self: &Arc<Self>) -> std::result::Result<Arc<Session>, Failure> {
        let opened = {
            let mut state = self.state();
            if state.closed {
                return Err(Failure::NotSent(Error::closed()));
            }
            if let Some(session) = &state.current {
                if !session.locks.is_ended() && !session.connection.client.is_closed() {
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

    fn session_of(&self, owner: OwnerToken) -> Option<Arc<Session>> {
        self.state().claims.get(&owner).map(Arc::clone)
    }

    /// It is certain that the claim does not hold.
    fn forget(&self, session: &Session, id: i64, owner: OwnerToken) {
        session.locks.forget(id, owner);
        self.state().claims.remove(&owner);
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

impl SessionBackend {
    pub(super) fn new(config: Arc<Config>, options: &Options) -> Self {
        let with_table = |text: &str| text.replace("polylock_session", &config.table);
        let statement =
            |index, text: &str, types: &[Type]| Statement { index, text: with_table(text), types: types.to_vec() };
        const TEXT: Type = Type::TEXT;
        const INT8: Type = Type::INT8;
        let statements = Statements {
            acquire: statement(
                0,
                include_str!("sql/session_acquire.sql"),
                &[TEXT, TEXT, INT8, TEXT, Type::INT4, TEXT, Type::BOOL, INT8],
            ),
            release: statement(1, include_str!("sql/session_release.sql"), &[TEXT, INT8]),
            inspect: statement(2, include_str!("sql/session_inspect.sql"), &[TEXT, INT8, INT8]),
            extend: statement(3, include_str!("sql/session_extend.sql"), &[TEXT, TEXT, INT8]),
            make_table: with_table(include_str!("sql/session_table.sql")),
        };
        Self {
            sessions: Arc::new(Sessions { config: Arc::clone(&config), state: Mutex::default() }),
            listener: Listener::new(Arc::clone(&config)),
            statements,
            config,
            prefix: options.prefix.clone(),
            node_timeout: options.node_timeout,
        }
    }

    fn answers_within(&self, ttl: Duration) -> Duration {
        self.node_timeout.unwrap_or((ttl / 3).clamp(Duration::from_millis(250), ANSWER))
    }

    fn key(&self, resource: &Resource) -> String {
        format!("{}{resource}", self.prefix)
    }

    fn id(&self, key: &str) -> Result<i64> {
        if !self.config.literal_keys {
            return Ok(hashed(key));
        }
        key.parse().map_err(|_| Error::invalid("resource", "must be a 64-bit number, as the URL says keys=number"))
    }

    async fn acquire(&self, claim: &Claim) -> Attempt {
        const ROUNDS: usize = 3;
        let key = self.key(claim.resource());
        let id = match self.id(&key) {
            Ok(id) => id,
            Err(error) => return Attempt::Refused(error),
        };
        let session = match self.sessions.get().await {
            Ok(session) => session,
            Err(failure) => return Attempt::Refused(failure.into_error()),
        };
        if let Some(refusal) = session.locks.reserve(id, &key, claim.owner) {
            return refusal;
        }
        self.sessions.state().claims.insert(claim.owner, Arc::clone(&session));
        let (owner, ttl) = (claim.owner.as_str(), micros(claim.ttl));
        let host = rustix::system::uname();
        let host = host.nodename().to_string_lossy();
        let (pid, label) = (i32::try_from(std::process::id()).ok(), claim.label.as_deref());
        let mut made_table = false;
        for _ in 0..ROUNDS {
            let since = Instant::now();
            let expires = since.after(self.answers_within(claim.ttl));
            let want = self.listener.hears(&key);
            let params: [&(dyn ToSql + Sync); 8] = [&key, &owner, &id, &host, &pid, &label, &want, &ttl];
            let failure = match session.connection.query(&self.statements.acquire, &params, expires).await {
                Ok(Some(row)) => {
                    match (row.try_get("ok"), row.try_get::<_, Option<i64>>("token"), row.try_get("asked")) {
                        (Ok(true), Ok(Some(token)), _) if token > 0 => {
                            return Attempt::Granted { fencing_token: token.unsigned_abs(), since };
                        }
                        // Only now will its holder tell of the release: it may have been just before.
                        (Ok(false), _, Ok(true)) => continue,
                        (Ok(false), ..) => {
                            self.sessions.forget(&session, id, claim.owner);
                            return Attempt::held_for(None);
                        }
                        _ => return Attempt::Unknown(Error::unavailable("an answer of another kind")),
                    }
                }
                Ok(None) => return Attempt::Unknown(Error::unavailable("an answer of another kind")),
                Err(failure) => failure,
            };
            match failure {
                Failure::NotSent(error) => {
                    self.sessions.forget(&session, id, claim.owner);
                    return Attempt::Refused(error);
                }
                Failure::Broken(error) | Failure::TimedOut(error) => return Attempt::Unknown(error),
                Failure::Refused { .. } => {}
            }
            // The statement was rolled back, the lock was not.
            let unlock = format!("SELECT pg_advisory_unlock({id})");
            if let Err(unproved) = session.connection.execute(&unlock, Instant::now().after(ANSWER)).await {
                return Attempt::Unknown(unproved.into_error());
            }
            if failure.is_undefined_table() && !std::mem::replace(&mut made_table, true) {
                let (sql, table) = (&self.statements.make_table, &self.config.table);
                match make_table(&session.connection, sql, table).await {
                    Ok(()) => continue,
                    Err(failure) => {
                        self.sessions.forget(&session, id, claim.owner);
                        return Attempt::Refused(failure.into_error());
                    }
                }
            }
            self.sessions.forget(&session, id, claim.owner);
            if failure.is_clash() {
                return Attempt::Busy { free_in: None, foreign: false, contended: true, residue: false };
            }
            return Attempt::Refused(failure.into_error());
        }
        self.sessions.forget(&session, id, claim.owner);
        Attempt::held_for(None)
    }

    async fn extend_lease(&self, claim: &Claim, ttl: Duration) -> Extension {
        let Some(session) = self.sessions.session_of(claim.owner) else { return Extension::Lost };
        if session.locks.is_ended() {
            return Extension::Lost;
        }
        let key = self.key(claim.resource());
        let (owner, us, since) = (claim.owner.as_str(), micros(ttl), Instant::now());
        let expires = since.after(self.answers_within(ttl));
        let answer = session.connection.query(&self.statements.extend, &[&key, &owner, &us], expires).await;
        match answer {
            _ if session.locks.is_ended() => Extension::Lost,
            // Also where the row or the table is gone: it is not what locks.
            Ok(_) | Err(Failure::Refused { .. }) => Extension::Extended { since },
            Err(failure) => Extension::Unknown(failure.into_error()),
        }
    }

    async fn release_lease(&self, claim: &Claim) -> Release {
        let key = self.key(claim.resource());
        let Ok(id) = self.id(&key) else { return Release::NotHeld };
        let Some(session) = self.sessions.session_of(claim.owner) else { return Release::NotHeld };
        let before = {
            let mut held = session.locks.held();
            match held.by_id.get_mut(&id).filter(|local| local.owner == claim.owner) {
                Some(local) => std::mem::replace(&mut local.unlocking, true),
                None => false,
            }
        };
        if !session.locks.is_ended() {
            let expires = Instant::now().after(ANSWER);
            match session.connection.query(&self.statements.release, &[&key, &id], expires).await {
                Ok(Some(row)) => {
                    self.sessions.forget(&session, id, claim.owner);
                    let freed = row.try_get::<_, bool>("ok").unwrap_or(false);
                    return if freed || before { Release::Released } else { Release::NotHeld };
                }
                Err(failure) if failure.is_undefined_table() => {
                    let unlock = format!("SELECT pg_advisory_unlock({id})");
                    if session.connection.execute(&unlock, expires).await.is_ok() {
                        self.sessions.forget(&session, id, claim.owner);
                        return Release::Released;
                    }
                }
                _ => {}
            }
            if !session.locks.is_ended() {
                return Release::Unknown;
            }
        }
        match self.is_gone(&session).await {
            Ok(true) => {
                self.sessions.forget(&session, id, claim.owner);
                Release::NotHeld
            }
            Ok(false) | Err(_) => Release::Unknown,
        }
    }

    /// Ends a session whose connection has ended, and says whether the server has done so.
    async fn is_gone(&self, ended: &Session) -> std::result::Result<bool, Failure> {
        let session = self.sessions.get().await?;
        let terminate = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                         WHERE pid = $1 AND (extract(epoch FROM backend_start) * 1000000)::bigint = $2";
        let statement = Statement { index: 4, text: terminate.to_owned(), types: vec![Type::INT4, Type::INT8] };
        let expires = Instant::now().after(ANSWER);
        let row = session.connection.query(&statement, &[&ended.pid, &ended.started], expires).await?;
        Ok(row.and_then(|row| row.try_get::<_, i64>(0).ok()) == Some(0))
    }

    async fn holder(&self, resource: &Resource) -> Result<Option<Holder>> {
        let key = self.key(resource);
        let id = self.id(&key)?;
        let (high, low) = (id.cast_unsigned() >> 32, id.cast_unsigned() & 0xffff_ffff);
        let (high, low) = (high.cast_signed(), low.cast_signed());
        let session = self.sessions.get().await.map_err(Failure::into_error)?;
        for _ in 0..2 {
            let expires = Instant::now().after(self.node_timeout.unwrap_or(ANSWER));
            match session.connection.query(&self.statements.inspect, &[&key, &high, &low], expires).await {
                Ok(Some(row)) => {
                    let unreadable = |error: tokio_postgres::Error| Error::unavailable(error.to_string());
                    return read_holder(resource, &row).map(Some).map_err(unreadable);
                }
                Ok(None) => return Ok(None),
                // Somebody may hold the number all the same.
                Err(failure) if failure.is_undefined_table() => {
                    let (sql, table) = (&self.statements.make_table, &self.config.table);
                    make_table(&session.connection, sql, table).await.map_err(Failure::into_error)?;
                }
                Err(failure) => return Err(failure.into_error()),
            }
        }
        Ok(None)
    }
}

fn read_holder(resource: &Resource, row: &tokio_postgres::Row) -> std::result::Result<Holder, tokio_postgres::Error> {
    let since = row.try_get::<_, Option<i64>>("since")?;
    Ok(Holder {
        fencing_token: row.try_get::<_, Option<i64>>("token")?.and_then(|token| u64::try_from(token).ok()),
        expires_in: row
            .try_get::<_, Option<i64>>("us_left")?
            .map(|us| Duration::from_micros(us.max(0).unsigned_abs())),
        since: since.and_then(|us| u64::try_from(us).ok()).map(|us| UNIX_EPOCH + Duration::from_micros(us)),
        host: row.try_get("host")?,
        pid: row.try_get::<_, Option<i32>>("pid")?.and_then(|pid| u32::try_from(pid).ok()),
        label: row.try_get("label")?,
        ..Holder::new(resource.clone(), row.try_get("owner")?)
    })
}

impl Backend for SessionBackend {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            guarantee: Guarantee::Fenced,
            fencing: true,
            across_processes: true,
            across_hosts: true,
            shared: false,
            semaphore: false,
            several: false,
            inspection: true,
            listing: false,
            breaking: false,
        }
    }

    fn check_reachable<'a>(&'a self, _: &'a Driver) -> Answer<'a, Result<()>> {
        Box::pin(async { self.sessions.get().await.map(drop).map_err(Failure::into_error) })
    }

    fn settles_within(&self, _: Duration) -> Duration {
        // The release is a proof, whenever it is answered.
        Duration::ZERO
    }

    fn try_acquire<'a>(&'a self, claim: &'a Claim, _: &'a Driver) -> Answer<'a, Attempt> {
        Box::pin(self.acquire(claim))
    }

    fn extend<'a>(&'a self, claim: &'a Claim, ttl: Duration, _: &'a Driver) -> Answer<'a, Extension> {
        Box::pin(self.extend_lease(claim, ttl))
    }

    fn release<'a>(&'a self, claim: &'a Claim, _: &'a Driver) -> Answer<'a, Release> {
        Box::pin(self.release_lease(claim))
    }

    fn inspect<'a>(&'a self, resource: &'a Resource, _: &'a Driver) -> Answer<'a, Result<Option<Holder>>> {
        Box::pin(self.holder(resource))
    }

    fn watch(&self, resource: &Resource) -> Watch {
        self.listener.watch(self.key(resource))
    }

    fn on_loss(&self, claim: &Claim, lease: Weak<dyn Losable>) {
        if let Some(session) = self.sessions.session_of(claim.owner) {
            let mut held = session.locks.held();
            if !held.ended {
                let local = held.by_id.values_mut().find(|local| local.owner == claim.owner);
                if let Some(local) = local {
                    local.lease = Some(lease);
                    return;
                }
            }
        }
        if let Some(lease) = lease.upgrade() {
            lease.gone();
        }
    }

    fn close(&self) {
        self.listener.close();
        let mut state = self.sessions.state();
        state.closed = true;
        state.waiting.clear();
        state.current = None;
        state.claims.clear();
    }
}

impl fmt::Debug for SessionBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}?mode=session", self.config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written down in docs/postgres.md too: other programs may count on them.
    #[test]
    fn ids_are_golden() {
        for (name, id) in GOLDEN {
            assert_eq!(hashed(name), *id, "{name}");
        }
    }

    const GOLDEN: &[(&str, i64)] = &[
        ("a", -8_554_193_735_040_695_412),
        ("invoice:42", -7_620_102_459_633_850_050),
        ("ünïcode", -8_640_306_424_853_195_635),
    ];

    #[test]
    fn one_id_is_held_once_in_this_process() {
        let locks = Locks::default();
        let (one, two) = (OwnerToken::draw().unwrap(), OwnerToken::draw().unwrap());
        assert!(locks.reserve(7, "a", one).is_none());
        assert!(matches!(locks.reserve(7, "a", two), Some(Attempt::Busy { .. })));
        // Another name on the same id: an error, as a wait for oneself would have no end.
        let Some(Attempt::Refused(error)) = locks.reserve(7, "b", two) else { panic!("not refused") };
        assert_eq!(error.kind(), ErrorKind::Conflict);
        locks.forget(7, two);
        assert!(locks.reserve(7, "a", two).is_some());
        locks.forget(7, one);
        assert!(locks.reserve(7, "b", two).is_none());
        locks.end();
        assert!(matches!(locks.reserve(8, "c", one), Some(Attempt::Refused(_))));
    }
}
