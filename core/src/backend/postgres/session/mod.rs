//! Session mode: advisory locks of one session, which the server frees when the session ends.
//!
//! All leases of a manager are locks of one session over one pipelined connection (or each has one of its own, with
//! `connections=dedicated`). Session locks are re-entrant: so [`locks`], a table of this process, is asked before
//! the server is. A lease held alone has the name's lock; those that share it have that lock shared; a permit has it shared and
//! a lock of its own besides.
//!
//! # What can happen between any two steps
//!
//! * *An attempt's answer is lost, or is an error*: the lock may be held all the same (an error does not roll it back).
//!   It is unlocked on the same connection, which works through requests in order; that answer is the proof.
//! * *The caller goes away between two statements of one attempt*: what the attempt reserved is still in the table, and the
//!   release frees that.
//! * *The attempt takes longer than its ttl* and is given up, though it goes on: it hands nothing more to the connection, so that
//!   what releases it is the last.
//! * *The connection ends*: so do all its leases, and their holders are told at once. Whether the server has noticed
//!   is asked, and brought about, over the next connection: the old session is ended by its process id and the time
//!   of its start.
//! * *Nothing comes back any more* (a cable is pulled): a heartbeat every 2 s has 4 s to be answered, then the leases are
//!   lost. The server gives up on its side after some 11 s, so the holder knows before the next one holds.
//! * *The process is stopped* (SIGSTOP): its session lives on and holds; nobody else gets in. When it goes on, it learns from
//!   its clock that the lease has expired, and the lock is freed.
//! * *Somebody breaks a lock of ours*: the heartbeat finds the wish, the lease is told, and then the lock is freed. Who stands still
//!   finds nothing: then the session is ended, and its leases are told by the end of the connection.
//! * *A waiter's wish to be told comes too late*: the wish is written, and then it tries once more.

mod acquire;
pub(super) mod id;
mod inspection;
mod locks;
mod release;
mod sessions;
mod statements;

use std::{
    fmt,
    sync::{Arc, Weak},
    time::Duration,
};

use self::{
    sessions::{ANSWER, Sessions},
    statements::Statements,
};
use super::{
    CAPABILITIES, config::Config, connection::Connection, failure::Failure, lease::micros, listener::Listener,
    make_table,
};
use crate::{
    LossReason, Resource, Result,
    backend::{
        Answer, Attempt, Backend, Capabilities, Claim, Extension, FAIR_CHANCE, Holder, Losable, Release, Watch,
    },
    clock::Instant,
    connect::Options,
    engine::driver::Driver,
    pattern::Pattern,
};

pub(super) struct SessionBackend {
    config: Arc<Config>,
    sessions: Arc<Sessions>,
    listener: Arc<Listener>,
    statements: Statements,
    prefix: String,
    node_timeout: Option<Duration>,
}

impl SessionBackend {
    pub(super) fn new(config: Arc<Config>, options: &Options) -> Self {
        Self {
            sessions: Sessions::new(Arc::clone(&config)),
            listener: Listener::new(Arc::clone(&config)),
            statements: Statements::new(&config),
            config,
            prefix: options.prefix.clone(),
            node_timeout: options.node_timeout,
        }
    }

    fn answers_within(&self, ttl: Duration) -> Duration {
        self.node_timeout.unwrap_or((ttl / 3).clamp(Duration::from_millis(250), ANSWER))
    }

    /// How long another claim may go unanswered before the server counts as out of reach.
    fn fair_chance(&self) -> Duration {
        self.answers_within(Duration::MAX).min(FAIR_CHANCE)
    }

    /// How long a proof may take.
    fn patience(&self) -> Duration {
        self.node_timeout.unwrap_or(ANSWER)
    }

    fn key(&self, resource: &Resource) -> String {
        format!("{}{resource}", self.prefix)
    }

    async fn make_table(&self, connection: &Connection) -> std::result::Result<(), Failure> {
        make_table(connection, &self.statements.make_table, &self.config.table).await
    }

    async fn extend_lease(&self, claim: &Claim, ttl: Duration, driver: &Driver) -> Extension {
        let Some(sent) = self.sessions.sent(claim.owner) else { return Extension::Lost };
        if sent.session.locks.is_ended() {
            return Extension::Lost;
        }
        let (owner, us, since) = (claim.owner.as_str(), micros(ttl), Instant::now());
        let expires = since.after(self.answers_within(ttl));
        let extend = &self.statements.extend;
        let answer = sent.session.connection.query(extend, &[&&*sent.keys, &owner, &us], expires, driver).await;
        match answer {
            _ if sent.session.locks.is_ended() => Extension::Lost,
            // Also where the row or the table is gone: it is not what locks.
            Ok(_) | Err(Failure::Refused { .. }) => Extension::Extended { since },
            Err(failure) => Extension::Unknown(failure.into_error()),
        }
    }
}

impl Backend for SessionBackend {
    fn system(&self) -> &'static str {
        "postgresql.session"
    }

    fn servers(&self) -> Vec<String> {
        self.config.names()
    }

    fn capabilities(&self) -> Capabilities {
        CAPABILITIES
    }

    fn check_reachable<'a>(&'a self, _: &'a Driver) -> Answer<'a, Result<()>> {
        Box::pin(async { self.sessions.current().await.map(drop).map_err(Failure::into_error) })
    }

    fn settles_within(&self, _: Duration) -> Duration {
        // The release is a proof, whenever it is answered.
        Duration::ZERO
    }

    fn outlasts_ttl(&self) -> bool {
        true
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
        Box::pin(async { Ok(self.holders(resource, driver).await?.into_iter().next()) })
    }

    fn list<'a>(&'a self, pattern: &'a Pattern, limit: usize, driver: &'a Driver) -> Answer<'a, Result<Vec<Holder>>> {
        Box::pin(self.holders_of_all(pattern, limit, driver))
    }

    fn break_lock<'a>(
        &'a self,
        resource: &'a Resource,
        owner: &'a str,
        driver: &'a Driver,
    ) -> Answer<'a, Result<bool>> {
        Box::pin(self.break_lease(resource, owner, driver))
    }

    fn watch(&self, resource: &Resource) -> Watch {
        self.listener.watch(self.key(resource))
    }

    fn on_loss(&self, claim: &Claim, lease: Weak<dyn Losable>) {
        let lost = match self.sessions.sent(claim.owner) {
            Some(sent) => sent.session.locks.tell(claim.owner, &lease),
            None => Some(LossReason::Taken),
        };
        if let (Some(why), Some(lease)) = (lost, lease.upgrade()) {
            lease.gone(why);
        }
    }

    fn close(&self) {
        self.listener.close();
        self.sessions.close();
    }
}

impl fmt::Debug for SessionBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}?mode=session", self.config)
    }
}
