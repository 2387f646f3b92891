//! Lease mode: a row that says who holds until when.
//!
//! # What can happen between any two steps
//!
//! * *An attempt's answer is lost*: it is sent again where that can help, with the same owner token, which the row knows.
//!   Else it is `Unknown`, and the engine releases it until [`Backend::settles_within`] is over. A statement that
//!   is carried out later finds its `not after` passed on the server's clock and does nothing; one that was carried out and
//!   is not yet committed is waited for by the release.
//! * *An extension's answer is lost*: the old deadline stands. It does not bring back a lease that lapsed.
//! * *The holder is paused past its deadline*: the row is taken by the next attempt, with a greater token.
//! * *The server crashes*: a grant and an extension were on its disk before they were answered. A release may be
//!   forgotten, then the lease ends by its ttl.
//! * *It fails over to a replica that lags behind*: leases may be forgotten. Tokens still grow: they are at least the server's
//!   time in us.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use tokio_postgres::{
    Row,
    types::{ToSql, Type},
};

use super::{
    config::Config,
    connection::{Connection, Statement},
    failure::Failure,
    listener::Listener,
    make_table,
    pool::Pool,
};
use crate::{
    Error, Resource, Result,
    backend::{Answer, Attempt, Backend, Capabilities, Claim, Extension, Guarantee, Holder, Release, Watch},
    clock::Instant,
    connect::Options,
    engine::driver::Driver,
};

/// The longest that any statement may take.
const SLOWEST: Duration = Duration::from_secs(5);

pub(super) struct LeaseBackend {
    config: Arc<Config>,
    pool: Arc<Pool>,
    listener: Arc<Listener>,
    statements: Arc<Statements>,
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

impl Statements {
    fn new(table: &str) -> Self {
        let with_table = |text: &str| text.replace("polylock_lease", table);
        let statement =
            |index, text: &str, types: &[Type]| Statement { index, text: with_table(text), types: types.to_vec() };
        const TEXT: Type = Type::TEXT;
        const INT8: Type = Type::INT8;
        Self {
            acquire: statement(
                0,
                include_str!("sql/acquire.sql"),
                &[TEXT, TEXT, INT8, INT8, TEXT, Type::INT4, TEXT, Type::BOOL],
            ),
            extend: statement(1, include_str!("sql/extend.sql"), &[TEXT, TEXT, INT8]),
            release: statement(2, include_str!("sql/release.sql"), &[TEXT, TEXT]),
            inspect: statement(3, include_str!("sql/inspect.sql"), &[TEXT]),
            make_table: with_table(include_str!("sql/table.sql")),
        }
    }
}

/// What one attempt's row says.
struct Seen {
    token: Option<i64>,
    held: bool,
    us_left: Option<i64>,
    asked: bool,
    now: i64,
}

impl Seen {
    fn read(row: &Row) -> std::result::Result<Self, tokio_postgres::Error> {
        Ok(Self {
            token: row.try_get("token")?,
            held: row.try_get("held")?,
            us_left: row.try_get("us_left")?,
            asked: row.try_get("asked")?,
            now: row.try_get("now")?,
        })
    }
}

impl LeaseBackend {
    pub(super) fn new(config: Arc<Config>, options: &Options) -> Self {
        Self {
            pool: Pool::new(Arc::clone(&config)),
            listener: Listener::new(Arc::clone(&config)),
            statements: Arc::new(Statements::new(&config.table)),
            config,
            prefix: options.prefix.clone(),
            node_timeout: options.node_timeout,
        }
    }

    /// How long the server may take to answer a statement.
    fn answers_within(&self, ttl: Duration) -> Duration {
        self.node_timeout.unwrap_or((ttl / 3).clamp(Duration::from_millis(250), SLOWEST))
    }

    fn key(&self, resource: &Resource) -> String {
        format!("{}{resource}", self.prefix)
    }

    async fn acquire(&self, claim: &Claim) -> Attempt {
        /// Bounds the rounds in which others were faster, or the server's clock jumped.
        const ROUNDS: usize = 4;
        let key = self.key(claim.resource());
        let owner = claim.owner.as_str();
        let ttl = micros(claim.ttl);
        let host = rustix::system::uname();
        let host = host.nodename().to_string_lossy();
        let (pid, label) = (i32::try_from(std::process::id()).ok(), claim.label.as_deref());
        // When the first request that may yet be granted was sent.
        let mut sent: Option<Instant> = None;
        let mut made_table = false;
        let mut last_error = None;
        for _ in 0..ROUNDS {
            let connection = match self.pool.get().await {
                Ok(connection) => connection,
                Err(failure) if sent.is_none() => return Attempt::Refused(failure.into_error()),
                Err(failure) => return Attempt::Unknown(failure.into_error()),
            };
            let asked = Instant::now();
            let since = *sent.get_or_insert(asked);
            let expires = since.after(self.answers_within(claim.ttl));
            let not_after = connection.server_time(expires);
            let want = self.listener.hears(&key);
            let params: [&(dyn ToSql + Sync); 8] = [&key, &owner, &ttl, &not_after, &host, &pid, &label, &want];
            let seen = match connection.query(&self.statements.acquire, &params, expires).await {
                Ok(Some(row)) => match Seen::read(&row) {
                    Ok(seen) => seen,
                    Err(error) => return Attempt::Unknown(strange(&connection, &error)),
                },
                Ok(None) => return Attempt::Unknown(strange(&connection, &"no row")),
                Err(failure) if failure.is_undefined_table() && !made_table => {
                    made_table = true;
                    sent = None;
                    match make_table(&connection, &self.statements.make_table, &self.config.table).await {
                        Ok(()) => continue,
                        Err(failure) => return Attempt::Refused(failure.into_error()),
                    }
                }
                Err(failure) if failure.is_clash() => {
                    return Attempt::Busy { free_in: None, foreign: false, contended: true, residue: false };
                }
                // Closed while nobody looked, or broken under us: the row tells whether it got there.
                Err(failure @ (Failure::NotSent(_) | Failure::Broken(_))) if Instant::now() < expires => {
                    if matches!(failure, Failure::NotSent(_)) && since == asked {
                        sent = None;
                    }
                    last_error = Some(failure.into_error());
                    continue;
                }
                Err(failure) if failure.is_ambiguous() => return Attempt::Unknown(failure.into_error()),
                Err(failure) => return Attempt::Refused(failure.into_error()),
            };
            connection.set_server_time(seen.now, asked);
            if let Some(token) = seen.token {
                return match u64::try_from(token) {
                    Ok(fencing_token) => Attempt::Granted { fencing_token, since },
                    Err(_) => Attempt::Unknown(strange(&connection, &"a negative token")),
                };
            }
            if seen.held && (seen.asked || !want) {
                return Attempt::held_for(seen.us_left.map(duration));
            }
            // Somebody came or went while we looked, or it was too late by the server's clock, which was set: look again.
            sent = None;
        }
        match last_error {
            Some(error) if sent.is_some() => Attempt::Unknown(error),
            Some(error) => Attempt::Refused(error),
            None => Attempt::Busy { free_in: None, foreign: false, contended: true, residue: false },
        }
    }

    /// One statement, sent once.
    async fn ask(
        &self,
        statement: &Statement,
        params: &[&(dyn ToSql + Sync)],
        within: Duration,
    ) -> (Instant, std::result::Result<Option<Row>, Failure>) {
        // A connection that was closed while nobody looked is passed over: nothing was sent on it.
        loop {
            let connection = match self.pool.get().await {
                Ok(connection) => connection,
                Err(failure) => return (Instant::now(), Err(failure)),
            };
            let since = Instant::now();
            match connection.query(statement, params, since.after(within)).await {
                Err(Failure::NotSent(_)) => {}
                answer => return (since, answer),
            }
        }
    }

    async fn extend_lease(&self, claim: &Claim, ttl: Duration) -> Extension {
        let (key, owner, us) = (self.key(claim.resource()), claim.owner.as_str(), micros(ttl));
        match self.ask(&self.statements.extend, &[&key, &owner, &us], self.answers_within(ttl)).await {
            (since, Ok(Some(_))) => Extension::Extended { since },
            (_, Ok(None)) => Extension::Lost,
            (_, Err(failure)) if failure.is_undefined_table() => Extension::Lost,
            (_, Err(failure)) => Extension::Unknown(failure.into_error()),
        }
    }

    async fn release_lease(&self, claim: &Claim) -> Release {
        let (key, owner) = (self.key(claim.resource()), claim.owner.as_str());
        // Nothing depends on a quick answer, and a certain one is worth some time.
        let within = self.node_timeout.unwrap_or(SLOWEST);
        match self.ask(&self.statements.release, &[&key, &owner], within).await.1 {
            Ok(Some(row)) => match row.try_get("was_held") {
                Ok(true) => Release::Released,
                Ok(false) => Release::NotHeld,
                Err(_) => Release::Unknown,
            },
            Ok(None) => Release::NotHeld,
            Err(failure) if failure.is_undefined_table() => Release::NotHeld,
            Err(_) => Release::Unknown,
        }
    }

    async fn holder(&self, resource: &Resource) -> Result<Option<Holder>> {
        let key = self.key(resource);
        let within = self.node_timeout.unwrap_or(SLOWEST);
        match self.ask(&self.statements.inspect, &[&key], within).await.1 {
            Ok(Some(row)) => {
                let unreadable = |error: tokio_postgres::Error| Error::unavailable(error.to_string());
                read_holder(resource, &row).map(Some).map_err(unreadable)
            }
            Ok(None) => Ok(None),
            Err(failure) if failure.is_undefined_table() => Ok(None),
            Err(failure) => Err(failure.into_error()),
        }
    }
}

fn read_holder(resource: &Resource, row: &Row) -> std::result::Result<Holder, tokio_postgres::Error> {
    Ok(Holder {
        fencing_token: u64::try_from(row.try_get::<_, i64>("token")?).ok(),
        expires_in: Some(duration(row.try_get("us_left")?)),
        since: row.try_get::<_, Option<i64>>("since")?.map(|us| UNIX_EPOCH + duration(us)),
        host: row.try_get("host")?,
        pid: row.try_get::<_, Option<i32>>("pid")?.and_then(|pid| u32::try_from(pid).ok()),
        label: row.try_get("label")?,
        ..Holder::new(resource.clone(), row.try_get("owner")?)
    })
}

fn strange(connection: &Connection, why: &dyn fmt::Display) -> Error {
    Error::unavailable(format!("{}: an answer of another kind: {why}", connection.peer))
}

/// Rounded up, so that the row lasts at least as long as its holder thinks; no longer than a timestamp can say.
pub(super) fn micros(ttl: Duration) -> i64 {
    const LONGEST: Duration = Duration::from_secs(3_000_000_000_000);
    i64::try_from(ttl.min(LONGEST).as_nanos().div_ceil(1000)).unwrap_or(i64::MAX)
}

fn duration(us: i64) -> Duration {
    Duration::from_micros(u64::try_from(us).unwrap_or(0))
}

impl Backend for LeaseBackend {
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
        Box::pin(async { self.pool.get().await.map(drop).map_err(Failure::into_error) })
    }

    fn settles_within(&self, ttl: Duration) -> Duration {
        // The server refuses what comes later; a little more for its clock.
        self.answers_within(ttl) + Duration::from_millis(50)
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

    fn close(&self) {
        self.listener.close();
        self.pool.close();
    }
}

impl fmt::Debug for LeaseBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.config.fmt(f)
    }
}
