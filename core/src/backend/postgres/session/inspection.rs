//! Who holds in session mode, and taking it from them.

use std::{sync::Arc, time::Duration};

use tokio_postgres::{Row, types::ToSql};

use super::{
    SessionBackend,
    id::{lock_id, wish_id},
    sessions::{HEARTBEAT, Session},
};
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
    /// The one session for all, waited for no longer than for an answer if that is limited.
    async fn session(&self) -> Result<Arc<Session>> {
        in_time(&self.config, self.node_timeout, self.sessions.current()).await.map_err(Failure::into_error)
    }

    /// As pg_locks has it: how many numbers name a lock.
    fn numbers(&self) -> i32 {
        if self.config.keys == Keys::Pair { 2 } else { 1 }
    }

    pub(super) async fn holders(&self, resource: &Resource, driver: &Driver) -> Result<Vec<Holder>> {
        let key = self.key(resource);
        let id = lock_id(&key, self.config.keys)?;
        let session = self.session().await?;
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
        let session = self.session().await?;
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

    /// Only a session can free its lock: so the holder's is asked to, and its lease is told before. One that does not answer is
    /// ended, and with it whatever else it holds. What is held through this manager is unlocked here.
    pub(super) async fn break_lease(&self, resource: &Resource, owner: &str, driver: &Driver) -> Result<bool> {
        let Some(token) = OwnerToken::parse(owner) else { return Ok(false) };
        let key = self.key(resource);
        let id = lock_id(&key, self.config.keys)?;
        let Some(sent) = self.sessions.sent(token) else { return self.take_from(token, &key, id, driver).await };
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

    /// Takes it from another session. Whoever goes away meanwhile leaves the wish, until this session ends.
    async fn take_from(&self, owner: OwnerToken, key: &str, id: i64, driver: &Driver) -> Result<bool> {
        let session = self.session().await?;
        let (wish, mut holder) = (wish_id(owner), None);
        let taken = self.until_taken(&session, owner, (key, id, wish), &mut holder, driver).await;
        if let Some(pid) = holder {
            let unwish = format!(
                "SELECT pg_advisory_unlock_shared({wish}); SELECT pg_advisory_unlock_shared(1886350457, {pid})"
            );
            if let Err(failure) = session.connection.execute(&unwish, Instant::now().after(self.patience())).await {
                tracing::debug!(error = %failure.into_error(), "a wish is left until this session ends");
            }
        }
        if matches!(taken, Ok(true)) {
            // A session that was ended says nothing any more to those who wait.
            let told = "SELECT pg_notify('polylock', $1)";
            let typed: [(&(dyn ToSql + Sync), tokio_postgres::types::Type); 1] =
                [(&key, tokio_postgres::types::Type::TEXT)];
            if let Err(error) = session.connection.client.query_typed(told, &typed).await {
                tracing::debug!(%error, "waiters are not told");
            }
        }
        taken
    }

    /// Has it given up, or the session ended, of whose process `holder` is told if that is wished.
    async fn until_taken(
        &self,
        session: &Session,
        owner: OwnerToken,
        (key, id, wish): (&str, i64, i64),
        holder: &mut Option<i32>,
        driver: &Driver,
    ) -> Result<bool> {
        /// For so long it is only wished.
        const ASKED: Duration = HEARTBEAT.saturating_add(Duration::from_secs(1));
        /// How long the server may take to end a session.
        const LONGEST: Duration = Duration::from_secs(10);
        const PAUSE: Duration = Duration::from_millis(10);
        let (began, owner, numbers) = (Instant::now(), owner.as_str(), self.numbers());
        let mut there = false;
        loop {
            let what = match (Instant::now().since(began), &holder) {
                (so_far, _) if so_far > ASKED + LONGEST => {
                    return Err(Error::unavailable("the session of the holder does not end"));
                }
                (so_far, _) if so_far > ASKED => "end",
                (_, None) => "wish",
                (_, Some(_)) => "wait",
            };
            let params: [&(dyn ToSql + Sync); 6] = [&key, &owner, &id, &numbers, &wish, &what];
            let rows = self.look(session, &self.statements.break_lock, &params, driver).await?;
            let Some(row) = rows.first() else { return Ok(there) };
            there = true;
            if row.try_get("wished").unwrap_or(false) {
                *holder = row.try_get("pid").ok();
            }
            timer::sleep_until(Instant::now().after(PAUSE)).await;
        }
    }
}
