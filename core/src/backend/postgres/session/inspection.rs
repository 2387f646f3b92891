//! Who holds in session mode, and taking it from them.

use std::time::Duration;

use tokio_postgres::{Row, types::ToSql};

use super::{SessionBackend, id::lock_id, sessions::Session};
use crate::{
    Error, OwnerToken, Resource, Result,
    backend::{
        Holder,
        postgres::{
            config::Keys,
            connection::Statement,
            failure::Failure,
            holders::{like, read_holders},
            in_time,
        },
    },
    clock::Instant,
    engine::{driver::Driver, timer},
    pattern::Pattern,
};

impl SessionBackend {
    /// As pg_locks has it: how many numbers name a lock.
    fn numbers(&self) -> i32 {
        if self.config.keys == Keys::Pair { 2 } else { 1 }
    }

    pub(super) async fn holders(&self, resource: &Resource, driver: &Driver) -> Result<Vec<Holder>> {
        let key = self.key(resource);
        let id = lock_id(&key, self.config.keys)?;
        let session = in_time(self.node_timeout, self.sessions.current()).await.map_err(Failure::into_error)?;
        let rows = self.look(&session, &self.statements.inspect, &[&key, &id, &self.numbers()], driver).await?;
        Ok(read_holders(&rows, &self.prefix))
    }

    pub(super) async fn holders_of_all(
        &self,
        pattern: &Pattern,
        limit: usize,
        driver: &Driver,
    ) -> Result<Vec<Holder>> {
        let (pattern, limit) = (like(&self.prefix, pattern), i64::try_from(limit).unwrap_or(i64::MAX));
        let session = in_time(self.node_timeout, self.sessions.current()).await.map_err(Failure::into_error)?;
        let rows = self.look(&session, &self.statements.list, &[&pattern, &self.numbers(), &limit], driver).await?;
        Ok(read_holders(&rows, &self.prefix))
    }

    /// Somebody may hold a lock by its number where there is no table yet.
    async fn look(
        &self,
        session: &Session,
        statement: &Statement,
        params: &[&(dyn ToSql + Sync)],
        driver: &Driver,
    ) -> Result<Vec<Row>> {
        let within = self.patience();
        let first = session.connection.query_all(statement, params, Instant::now().after(within), driver).await;
        let answer = match first {
            Err(failure) if failure.is_undefined_table() => {
                self.make_table(&session.connection).await.map_err(Failure::into_error)?;
                session.connection.query_all(statement, params, Instant::now().after(within), driver).await
            }
            answer => answer,
        };
        answer.map_err(Failure::into_error)
    }

    /// Ends the session of the holder, and with it whatever else that holds: only a session can free its lock. What is
    /// held through this manager is unlocked instead.
    pub(super) async fn break_lease(&self, resource: &Resource, owner: &str, driver: &Driver) -> Result<bool> {
        let Some(token) = OwnerToken::parse(owner) else { return Ok(false) };
        let key = self.key(resource);
        let id = lock_id(&key, self.config.keys)?;
        let Some(sent) = self.sessions.sent(token) else { return self.end_holder(&key, id, owner, driver).await };
        if !sent.keys.contains(&key) {
            return Ok(false);
        }
        match self.free(&sent, token, driver).await {
            Some(_) => {
                self.sessions.forget(&sent, token);
                Ok(true)
            }
            None => Err(Error::unavailable(format!("{}: no answer in time", sent.session.connection.peer))),
        }
    }

    async fn end_holder(&self, key: &str, id: i64, owner: &str, driver: &Driver) -> Result<bool> {
        /// How long the server may take to end a session.
        const LONGEST: Duration = Duration::from_secs(10);
        const PAUSE: Duration = Duration::from_millis(10);
        let session = in_time(self.node_timeout, self.sessions.current()).await.map_err(Failure::into_error)?;
        let (began, numbers) = (Instant::now(), self.numbers());
        let mut ended = false;
        loop {
            let rows =
                self.look(&session, &self.statements.break_lock, &[&key, &owner, &id, &numbers], driver).await?;
            let there = rows.first().and_then(|row| row.try_get("ended").ok()).unwrap_or(false);
            ended |= there;
            if !there {
                break;
            }
            if began.after(LONGEST) < Instant::now() {
                return Err(Error::unavailable("the session of the holder does not end"));
            }
            timer::sleep_until(Instant::now().after(PAUSE)).await;
        }
        if ended {
            // It says nothing any more to those who wait.
            let told = "SELECT pg_notify('polylock', $1)";
            let typed: [(&(dyn ToSql + Sync), tokio_postgres::types::Type); 1] =
                [(&key, tokio_postgres::types::Type::TEXT)];
            if let Err(error) = session.connection.client.query_typed(told, &typed).await {
                tracing::debug!(%error, "waiters are not told");
            }
        }
        Ok(ended)
    }
}
