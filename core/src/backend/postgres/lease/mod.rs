//! Lease mode: a row that says who holds until when.
//!
//! # What can happen between any two steps
//!
//! * *An attempt's answer is lost*: it is sent again where that can help, with the same owner token, which the row knows.
//!   Else it is `Unknown`, and the engine releases it until [`Backend::settles_within`] is over. A statement that
//!   is carried out later finds its `not after` passed on the server's clock and does nothing; one that was carried out and
//!   is not yet committed is waited for by the release.
//! * *The caller goes away before the answer*: a release follows on the same connection, which the server comes to after the
//!   attempt, also behind a pooler. Once that is answered nothing is on its way any more, and "not held" is final
//!   everywhere. Should the connection break, it is as if the answer was lost.
//! * *An extension's answer is lost*: the old deadline stands. It does not bring back a lease that lapsed.
//! * *The holder is paused past its deadline*: the row is taken by the next attempt, with a greater token.
//! * *The server crashes*: a grant and an extension were on its disk before they were answered. A release may be
//!   forgotten, then the lease ends by its ttl.
//! * *It fails over to a replica that lags behind*: leases may be forgotten. Tokens still grow: they are at least the server's
//!   time in us.

mod statements;

use std::{fmt, sync::Arc, time::Duration};

use tokio_postgres::{Row, types::ToSql};

use self::statements::{Asked, Seen, Statements, duration};
use super::{
    CAPABILITIES,
    config::Config,
    connection::{Connection, Statement},
    failure::Failure,
    holders::{like, read_holder, read_holders},
    in_time,
    listener::Listener,
    make_table,
    pool::Pool,
};
use crate::{
    Error, Mode, OwnerToken, Resource, Result,
    backend::{Answer, Attempt, Backend, Capabilities, Claim, Extension, Holder, Release, Said, Watch},
    clock::Instant,
    connect::Options,
    engine::{driver::Driver, process, runtime},
    pattern::Pattern,
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

    /// The same where nothing depends on a quick answer, and a certain one is worth some time.
    fn patience(&self) -> Duration {
        self.node_timeout.unwrap_or(SLOWEST)
    }

    /// A connection, waited for no longer than for an answer if that is limited.
    async fn connection(&self) -> std::result::Result<Arc<Connection>, Failure> {
        in_time(&self.config, self.node_timeout, self.pool.get()).await
    }

    fn key(&self, resource: &Resource) -> String {
        format!("{}{resource}", self.prefix)
    }

    async fn acquire(&self, claim: &Claim, driver: &Driver) -> Attempt {
        /// Bounds the rounds in which others were faster, or the server's clock jumped.
        const ROUNDS: usize = 4;
        claim.progress.track();
        let asked_for = Asked::new(&self.statements, claim, &self.prefix);
        let ttl = micros(claim.ttl);
        let (pid, label) = (i32::try_from(std::process::id()).ok(), claim.label.as_deref());
        // When the first request that may yet be granted was sent.
        let mut sent: Option<Instant> = None;
        // A request broke: it may have been, or may yet be, granted, whatever a later one is told.
        let mut in_doubt = false;
        let mut made_table = false;
        let mut last_error = None;
        for _ in 0..ROUNDS {
            let connection = match self.connection().await {
                Ok(connection) => connection,
                Err(failure) if !in_doubt => return Attempt::Refused(failure.into_error()),
                Err(failure) => return Attempt::Unknown(failure.into_error()),
            };
            let asked = Instant::now();
            let since = *sent.get_or_insert(asked);
            let expires = since.after(self.answers_within(claim.ttl));
            let not_after = connection.server_time(expires);
            let want = asked_for.keys.iter().all(|key| self.listener.hears(key));
            let (statement, params) = asked_for.acquire([&ttl, &not_after, &self.config.host, &pid, &label, &want]);
            let on_its_way = OnItsWay::new(self, claim, &connection);
            if !claim.progress.sends(0) {
                on_its_way.ended(true);
                return Attempt::Refused(Error::closed());
            }
            let answer = connection.query(statement, &params, expires, driver).await;
            on_its_way.ended(!answer.as_ref().is_err_and(Failure::is_ambiguous));
            let seen = match answer {
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
                    return Attempt::Busy { free_in: None, foreign: false, contended: true, residue: in_doubt };
                }
                // Closed while nobody looked, or broken under us: the row tells whether it got there.
                Err(failure @ (Failure::NotSent(_) | Failure::Broken(_))) if Instant::now() < expires => {
                    if matches!(failure, Failure::NotSent(_)) && since == asked {
                        sent = None;
                    }
                    in_doubt |= failure.is_ambiguous();
                    last_error = Some(failure.into_error());
                    continue;
                }
                Err(failure) if failure.is_ambiguous() || in_doubt => {
                    return Attempt::Unknown(failure.into_error());
                }
                Err(failure) => return Attempt::Refused(failure.of_attempt(claim)),
            };
            connection.set_server_time(seen.now, asked);
            if let Some(token) = seen.token {
                return match u64::try_from(token) {
                    Ok(fencing_token) => Attempt::Granted { fencing_token, since },
                    Err(_) => Attempt::Unknown(strange(&connection, &"a negative token")),
                };
            }
            if seen.held && (seen.asked || !want) {
                let foreign = seen.by_permits != matches!(claim.mode, Mode::Permit { .. });
                let free_in = seen.us_left.map(duration);
                return Attempt::Busy { free_in, foreign, contended: false, residue: in_doubt };
            }
            // Somebody came or went while we looked, or it was too late by the server's clock, which was set: look again.
            sent = None;
        }
        match last_error {
            Some(error) if in_doubt => Attempt::Unknown(error),
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
        driver: &Driver,
    ) -> (Instant, std::result::Result<Option<Row>, Failure>) {
        // A connection that was closed while nobody looked is passed over: nothing was sent on it.
        loop {
            let connection = match self.connection().await {
                Ok(connection) => connection,
                Err(failure) => return (Instant::now(), Err(failure)),
            };
            let since = Instant::now();
            match connection.query(statement, params, since.after(within), driver).await {
                Err(Failure::NotSent(_)) => {}
                answer => return (since, answer),
            }
        }
    }

    /// Asks, and asks again for the same without NOTIFY if that may be what is refused: its queue is full, or the right is
    /// missing. Then waiters find out by looking.
    async fn ask_or_quietly(
        &self,
        [loud, quiet]: [&Statement; 2],
        params: &[&(dyn ToSql + Sync)],
        driver: &Driver,
    ) -> std::result::Result<Option<Row>, Failure> {
        match self.ask(loud, params, self.patience(), driver).await.1 {
            Err(Failure::Refused { .. }) => self.ask(quiet, params, self.patience(), driver).await.1,
            answer => answer,
        }
    }

    async fn extend_lease(&self, claim: &Claim, ttl: Duration, driver: &Driver) -> Extension {
        let (asked_for, us) = (Asked::new(&self.statements, claim, &self.prefix), micros(ttl));
        let (statement, params) = asked_for.extend(&us);
        match self.ask(statement, &params, self.answers_within(ttl), driver).await {
            (since, Ok(Some(_))) => Extension::Extended { since },
            (_, Ok(None)) => Extension::Lost,
            (_, Err(failure)) if failure.is_undefined_table() => Extension::Lost,
            (_, Err(failure)) => Extension::Unknown(failure.into_error()),
        }
    }

    async fn release_lease(&self, claim: &Claim, driver: &Driver) -> Release {
        let asked_for = Asked::new(&self.statements, claim, &self.prefix);
        let (statements, params) = asked_for.release();
        released(self.ask_or_quietly(statements, &params, driver).await)
    }

    async fn holder(&self, resource: &Resource, driver: &Driver) -> Result<Option<Holder>> {
        match self.ask(&self.statements.inspect, &[&self.key(resource), &1i64], self.patience(), driver).await.1 {
            Ok(row) => Ok(row.and_then(|row| read_holder(&row, &self.prefix))),
            Err(failure) if failure.is_undefined_table() => Ok(None),
            Err(failure) => Err(failure.into_error()),
        }
    }

    async fn holders(&self, pattern: &Pattern, limit: usize, driver: &Driver) -> Result<Vec<Holder>> {
        let (pattern, limit) = (like(&self.prefix, pattern), i64::try_from(limit).unwrap_or(i64::MAX));
        let connection = self.connection().await.map_err(Failure::into_error)?;
        let expires = Instant::now().after(self.patience());
        match connection.query_all(&self.statements.list, &[&pattern, &limit], expires, driver).await {
            Ok(rows) => Ok(read_holders(&rows, &self.prefix)),
            Err(failure) if failure.is_undefined_table() => Ok(Vec::new()),
            Err(failure) => Err(failure.into_error()),
        }
    }

    async fn break_lease(&self, resource: &Resource, owner: &str, driver: &Driver) -> Result<bool> {
        let (key, Statements { break_lock, break_quietly, .. }) = (self.key(resource), &*self.statements);
        match self.ask_or_quietly([break_lock, break_quietly], &[&key, &owner], driver).await {
            Ok(row) => Ok(row.is_some()),
            Err(failure) if failure.is_undefined_table() => Ok(false),
            Err(failure) => Err(failure.into_error()),
        }
    }
}

/// What became of a release.
fn released(answer: std::result::Result<Option<Row>, Failure>) -> Release {
    match answer {
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

/// An attempt that was sent. Dropped before it has ended, because its caller went away, it has a release follow it.
struct OnItsWay<'a> {
    backend: &'a LeaseBackend,
    claim: &'a Claim,
    connection: &'a Arc<Connection>,
    /// Of the process that sent it: its connection is not to be used by another.
    generation: u32,
    ended: bool,
}

impl<'a> OnItsWay<'a> {
    /// To be made before it is sent.
    fn new(backend: &'a LeaseBackend, claim: &'a Claim, connection: &'a Arc<Connection>) -> Self {
        claim.progress.doubt(0);
        Self { backend, claim, connection, generation: process::generation(), ended: false }
    }

    /// It was answered, or nobody waits for that any more; says whether it is `certain` what became of it.
    fn ended(mut self, certain: bool) {
        self.ended = true;
        if certain {
            self.claim.progress.resolve(0);
        }
    }
}

impl Drop for OnItsWay<'_> {
    fn drop(&mut self) {
        if self.ended || self.generation != process::generation() {
            return;
        }
        let (statements, prefix) = (Arc::clone(&self.backend.statements), self.backend.prefix.clone());
        let (connection, claim) = (Arc::clone(self.connection), self.claim.clone());
        let within = self.backend.patience();
        runtime::spawn(async move {
            let asked_for = Asked::new(&statements, &claim, &prefix);
            let ([statement, _], params) = asked_for.release();
            let answer = connection.query(statement, &params, Instant::now().after(within), &Driver::engine()).await;
            if released(answer) != Release::Unknown {
                claim.progress.resolve(0);
            }
        });
    }
}

fn strange(connection: &Connection, why: &dyn fmt::Display) -> Error {
    Error::unavailable(format!("{}: an answer of another kind: {why}", connection.peer))
}

/// Rounded up, so that the row lasts at least as long as its holder thinks; no longer than a timestamp can say.
pub(super) fn micros(ttl: Duration) -> i64 {
    const LONGEST: Duration = Duration::from_secs(3_000_000_000_000);
    i64::try_from(ttl.min(LONGEST).as_nanos().div_ceil(1000)).unwrap_or(i64::MAX)
}

impl Backend for LeaseBackend {
    fn system(&self) -> &'static str {
        "postgresql"
    }

    fn servers(&self) -> Vec<String> {
        self.config.names()
    }

    fn capabilities(&self) -> Capabilities {
        CAPABILITIES
    }

    fn check_reachable<'a>(&'a self, _: &'a Driver) -> Answer<'a, Result<()>> {
        Box::pin(async { self.pool.get().await.map(drop).map_err(Failure::into_error) })
    }

    fn settles_within(&self, ttl: Duration) -> Duration {
        // The server refuses what comes later; a little more for its clock.
        self.answers_within(ttl) + Duration::from_millis(50)
    }

    fn try_acquire<'a>(&'a self, claim: &'a Claim, driver: &'a Driver) -> Answer<'a, Attempt> {
        Box::pin(self.acquire(claim, driver))
    }

    fn extend<'a>(&'a self, claim: &'a Claim, ttl: Duration, driver: &'a Driver) -> Answer<'a, Extension> {
        Box::pin(self.extend_lease(claim, ttl, driver))
    }

    fn release<'a>(&'a self, claim: &'a Claim, driver: &'a Driver) -> Answer<'a, Release> {
        Box::pin(self.release_lease(claim, driver))
    }

    fn inspect<'a>(&'a self, resource: &'a Resource, driver: &'a Driver) -> Answer<'a, Result<Option<Holder>>> {
        Box::pin(self.holder(resource, driver))
    }

    fn list<'a>(&'a self, pattern: &'a Pattern, limit: usize, driver: &'a Driver) -> Answer<'a, Result<Vec<Holder>>> {
        Box::pin(self.holders(pattern, limit, driver))
    }

    fn break_lock<'a>(
        &'a self,
        resource: &'a Resource,
        owner: &'a str,
        driver: &'a Driver,
    ) -> Answer<'a, Result<bool>> {
        Box::pin(async move {
            // Anything else is nobody's: these mark what is shared.
            if OwnerToken::parse(owner).is_none() {
                Ok(false)
            } else {
                self.break_lease(resource, owner, driver).await
            }
        })
    }

    fn ask_each<'a>(&'a self, question: &'a [&'a str], _: &'a Driver) -> Answer<'a, Vec<Said>> {
        Box::pin(async move {
            let asked = async {
                let connection = self.connection().await?;
                let expires = Instant::now().after(self.patience());
                connection.texts(&question.concat(), expires).await
            };
            vec![("server".to_owned(), asked.await.map_err(Failure::into_error))]
        })
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
