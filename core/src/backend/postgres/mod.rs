//! Locks in a PostgreSQL database, where an application's data already is.
//!
//! One row per name in a table ([`lease`]): exact names, a ttl, the fencing counter in the row, one statement for
//! each step, so that it works through a pooler that gives each transaction another session. Or, with
//! `?mode=session`, advisory locks of a session ([`session`]): no ttl on the server, which frees them when the session ends.

mod config;
mod connection;
mod driving;
mod failure;
mod holders;
mod lease;
mod listener;
mod pool;
mod session;
mod socket;
mod tls;
pub mod transaction;

use std::{future::Future, sync::Arc, time::Duration};

use tokio_postgres::error::SqlState;

use self::{config::Config, connection::Connection, failure::Failure, lease::LeaseBackend, session::SessionBackend};
use super::{Backend, Capabilities, Guarantee};
use crate::{Error, ErrorKind, Result, clock::Instant, connect::Options, engine::timer::until};

/// For `postgres://…`. Touches nothing yet.
///
/// # Errors
/// `InvalidArgument` naming `url`.
pub(crate) fn backend(url: &str, options: &Options) -> Result<Box<dyn Backend>> {
    let config = Arc::new(Config::parse(url)?);
    Ok(if config.session {
        Box::new(SessionBackend::new(config, options))
    } else {
        Box::new(LeaseBackend::new(config, options))
    })
}

/// Of both modes.
const CAPABILITIES: Capabilities = Capabilities {
    guarantee: Guarantee::Fenced,
    fencing: true,
    across_processes: true,
    across_hosts: true,
    shared: true,
    semaphore: true,
    several: true,
    fair: false,
    inspection: true,
    listing: true,
    breaking: true,
};

/// What `connecting` comes to, within so long if somebody has said how long. It goes on in the background.
async fn in_time<C>(
    config: &Config,
    within: Option<Duration>,
    connecting: impl Future<Output = std::result::Result<C, Failure>>,
) -> std::result::Result<C, Failure> {
    let none = || {
        let why = "no connection in time";
        let causes = config.names().into_iter().map(|server| format!("{server}: {why}"));
        Err(Failure::NotSent(causes.fold(Error::unavailable(why), Error::caused_by)))
    };
    until(within.map(|within| Instant::now().after(within)), connecting).await.unwrap_or_else(none)
}

/// Makes the table that a statement missed. `sql` does nothing if it is there by now.
async fn make_table(connection: &Connection, sql: &str, table: &str) -> std::result::Result<(), Failure> {
    /// Has those who make it at the same time do it one after the other. "polylock" as a number.
    const ONE_AT_A_TIME: i64 = 0x706f_6c79_6c6f_636b;
    const LONGEST: Duration = Duration::from_secs(10);
    // One transaction, as there is one request.
    let sql = format!("SELECT pg_advisory_xact_lock({ONE_AT_A_TIME});\n{sql}");
    match connection.execute(&sql, Instant::now().after(LONGEST)).await {
        Err(Failure::Refused { code, error }) if error.kind() == ErrorKind::Auth => {
            let why = format!(
                "the table {table} is missing and may not be made: make it by the table.sql of this mode, which is \
                         LEASE_TABLE or SESSION_TABLE in polylock's module postgres"
            );
            Err(Failure::Refused { code, error: Error::new(ErrorKind::Auth, why).caused_by(error) })
        }
        Err(Failure::Refused { code, error }) if code == SqlState::INVALID_SCHEMA_NAME => {
            let why = format!("puts the table {table} in a schema that is not there; say table=schema.name");
            Err(Failure::Refused { code, error: Error::invalid("url", why).caused_by(error) })
        }
        outcome => outcome,
    }
}
