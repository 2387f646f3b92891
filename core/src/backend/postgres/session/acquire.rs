//! One attempt in session mode.

use tokio_postgres::{Row, types::ToSql};

use super::{
    SessionBackend,
    id::{lock_id, slot_id},
    locks::Reserved,
    release::hand_over,
    sessions::{Sent, Session},
};
use crate::{
    Error, ErrorKind, Mode, Result,
    backend::{
        Attempt, Claim,
        postgres::{connection::Statement, failure::Failure, in_time, lease::micros},
    },
    clock::Instant,
    engine::driver::Driver,
};

/// An attempt on its way.
struct Asking<'a> {
    backend: &'a SessionBackend,
    claim: &'a Claim,
    driver: &'a Driver,
    sent: Sent,
    /// The server is to be asked for the lock; else the session has it.
    take: bool,
    made_table: bool,
}

/// How the statement for the lock was answered.
enum Step {
    Granted {
        token: u64,
        since: Instant,
    },
    /// It was certainly not granted, and nothing is left of it on the server but what was joined.
    Refused(Attempt),
    /// Nothing is certain.
    Unknown(Error),
    Again,
}

impl SessionBackend {
    pub(super) async fn acquire(&self, claim: &Claim, driver: &Driver) -> Attempt {
        let keys: Vec<_> = claim.resources.iter().map(|resource| self.key(resource)).collect();
        let ids = match self.ids(&keys) {
            Ok(ids) => ids,
            Err(error) => return Attempt::Refused(error),
        };
        claim.progress.track();
        let session = match in_time(&self.config, self.node_timeout, self.sessions.for_claim()).await {
            Ok(session) => session,
            Err(failure) => return Attempt::Refused(failure.into_error()),
        };
        let wanted: Vec<_> = ids.iter().copied().zip(keys.iter().map(String::as_str)).collect();
        let reserved = match self.reserve(&session, &wanted, claim).await {
            Ok(reserved) => reserved,
            Err(refusal) => return refusal,
        };
        let sent = Sent { session, mode: claim.mode, keys: keys.into(), ids: ids.into() };
        self.sessions.enter(claim.owner, sent.clone());
        // From now on there is something to release.
        if !claim.progress.sends(0) {
            self.sessions.forget(&sent, claim.owner);
            return Attempt::Refused(given_up());
        }
        let take = reserved == Reserved::Take;
        let mut asking = Asking { backend: self, claim, driver, sent, take, made_table: false };
        match asking.until_answered().await {
            Step::Granted { token: fencing_token, since } => Attempt::Granted { fencing_token, since },
            Step::Unknown(error) => Attempt::Unknown(error),
            step @ (Step::Refused(_) | Step::Again) => {
                // Who joined others may be the last of them by now.
                if !asking.take
                    && let Err(error) = asking.unlock().await
                {
                    return Attempt::Unknown(error);
                }
                self.sessions.forget(&asking.sent, claim.owner);
                // Again: others stood in the way each time.
                if let Step::Refused(attempt) = step { attempt } else { Attempt::held_for(None) }
            }
        }
    }

    /// See [`Locks::reserve`](super::locks::Locks::reserve).
    async fn reserve(
        &self,
        session: &Session,
        wanted: &[(i64, &str)],
        claim: &Claim,
    ) -> std::result::Result<Reserved, Attempt> {
        let reserve = || session.locks.reserve(wanted, claim.mode, claim.owner, self.fair_chance());
        session.locks.once_answered(Instant::now().after(self.fair_chance()), reserve).await
    }

    /// The ids of the locks for `keys`.
    fn ids(&self, keys: &[String]) -> Result<Vec<i64>> {
        let ids = keys.iter().map(|key| lock_id(key, self.config.keys)).collect::<Result<Vec<_>>>()?;
        for (index, id) in ids.iter().enumerate() {
            if let Some(other) = ids[..index].iter().position(|other| other == id) {
                let why = format!("{:?} and {:?} have the same advisory lock", keys[other], keys[index]);
                return Err(Error::new(ErrorKind::Conflict, why));
            }
        }
        Ok(ids)
    }
}

impl Asking<'_> {
    /// Asks until nothing can be gained by asking at once again. `Again` leaves nothing on the server either.
    async fn until_answered(&mut self) -> Step {
        const ROUNDS: usize = 4;
        for _ in 0..ROUNDS {
            let step = match self.claim.mode {
                Mode::Exclusive => self.alone().await,
                Mode::Shared => self.share().await,
                Mode::Permit { of } => match self.share().await {
                    Step::Granted { token, since } => self.permit(of, token, since).await,
                    step => step,
                },
            };
            match step {
                Step::Again => {}
                step => return step,
            }
        }
        Step::Again
    }

    async fn alone(&mut self) -> Step {
        let statements = &self.backend.statements;
        let several = self.sent.keys.len() > 1;
        let statement = if several { &statements.acquire_all } else { &statements.acquire };
        let (key, id): (&(dyn ToSql + Sync), &(dyn ToSql + Sync)) =
            if several { (&&*self.sent.keys, &&*self.sent.ids) } else { (&self.sent.keys[0], &self.sent.ids[0]) };
        let (since, row) = match self.ask(statement, key, id, &[]).await {
            Ok(answer) => answer,
            Err(failure) => return self.failed(failure).await,
        };
        let step = self.read(&row, since);
        if let Step::Granted { token, .. } = step
            && several
            && !matches!(row.try_get("same"), Ok(true))
        {
            let (owner, raised) = (self.claim.owner.as_str(), token.cast_signed());
            let params: [&(dyn ToSql + Sync); 3] = [&&*self.sent.keys, &owner, &raised];
            let expires = Instant::now().after(self.backend.answers_within(self.claim.ttl));
            self.settle(&step);
            return match self
                .sent
                .session
                .connection
                .query(&statements.raise_tokens, &params, expires, self.driver)
                .await
            {
                Ok(Some(_)) => step,
                Ok(None) => Step::Unknown(Error::unavailable("the rows of the fencing tokens are missing")),
                Err(failure) => Step::Unknown(failure.into_error()),
            };
        }
        self.settle(&step);
        step
    }

    async fn share(&mut self) -> Step {
        let (statement, name) = (&self.backend.statements.share, self.claim.mode.name());
        let (key, id, take) = (&self.sent.keys[0], &self.sent.ids[0], &self.take);
        let (since, row) = match self.ask(statement, key, id, &[&name, take]).await {
            Ok(answer) => answer,
            Err(failure) => return self.failed(failure).await,
        };
        if matches!(row.try_get("fresh"), Ok(true)) {
            return Step::Again;
        }
        let step = self.read(&row, since);
        if self.claim.mode == Mode::Shared {
            self.settle(&step);
        }
        step
    }

    /// After the shared lock: one of the permits.
    async fn permit(&mut self, of: u32, token: u64, since: Instant) -> Step {
        let (locks, owner) = (&self.sent.session.locks, self.claim.owner);
        // Not everybody begins at the same.
        let first = fastrand::u32(..of);
        let slots: Vec<_> = (0..of).map(|slot| slot_id(&self.sent.keys[0], (first + slot) % of)).collect();
        let expires = Instant::now().after(self.backend.answers_within(self.claim.ttl));
        let (just_asked, busy) = match locks.once_answered(expires, || locks.reserve_slots(&slots, owner)).await {
            Err(busy) => (false, busy),
            Ok(slots) => {
                self.enter();
                let want = self.backend.listener.hears(&self.sent.keys[0]);
                let expires = Instant::now().after(self.backend.answers_within(self.claim.ttl));
                let (number, ttl) = (token.cast_signed(), micros(self.claim.ttl));
                let (pid, label) = (i32::try_from(std::process::id()).ok(), self.claim.label.as_deref());
                let (name, host) = (owner.as_str(), &self.backend.config.host);
                let params: [&(dyn ToSql + Sync); 9] =
                    [&slots, &self.sent.keys[0], &want, &name, &number, host, &pid, &label, &ttl];
                let permit = &self.backend.statements.permit;
                let row = match self.send(permit, &params, expires).await {
                    Ok(row) => row,
                    Err(failure) => return self.failed(failure).await,
                };
                match (row.try_get("slot"), row.try_get("asked")) {
                    (Ok(Some(slot)), _) => {
                        locks.taken(&self.sent.ids, Some(slot), owner);
                        return Step::Granted { token, since };
                    }
                    (Ok(None), Ok(just_asked)) => (just_asked, Attempt::held_for(None)),
                    _ => return Step::Unknown(strange()),
                }
            }
        };
        locks.free_slots(owner);
        if self.take
            && let Err(error) = self.unlock().await
        {
            return Step::Unknown(error);
        }
        match just_asked {
            true if self.take => self.start_over().await,
            true => Step::Again,
            false => Step::Refused(busy),
        }
    }

    /// Reserves anew what was given back.
    async fn start_over(&mut self) -> Step {
        let session = &self.sent.session;
        session.locks.forget(&self.sent.ids, self.claim.owner);
        let wanted: Vec<_> = self.sent.ids.iter().copied().zip(self.sent.keys.iter().map(String::as_str)).collect();
        match self.backend.reserve(session, &wanted, self.claim).await {
            Ok(reserved) => {
                self.enter();
                self.take = reserved == Reserved::Take;
                Step::Again
            }
            Err(refusal) => {
                // It has nothing that it would have to give back.
                self.take = true;
                Step::Refused(refusal)
            }
        }
    }

    /// To be called after something was reserved: what the attempt had before may have been released, and forgotten, by then.
    fn enter(&self) {
        self.backend.sessions.enter(self.claim.owner, self.sent.clone());
    }

    /// Sends a statement for the lock.
    async fn ask(
        &self,
        statement: &Statement,
        key: &(dyn ToSql + Sync),
        id: &(dyn ToSql + Sync),
        more: &[&(dyn ToSql + Sync)],
    ) -> std::result::Result<(Instant, Row), Failure> {
        let (owner, ttl) = (self.claim.owner.as_str(), micros(self.claim.ttl));
        let (pid, label) = (i32::try_from(std::process::id()).ok(), self.claim.label.as_deref());
        let want = self.sent.keys.iter().all(|key| self.backend.listener.hears(key));
        let since = Instant::now();
        let expires = since.after(self.backend.answers_within(self.claim.ttl));
        let params: [&(dyn ToSql + Sync); 8] =
            [key, &owner, id, &self.backend.config.host, &pid, &label, &want, &ttl];
        let row = self.send(statement, &[&params, more].concat(), expires).await?;
        Ok((since, row))
    }

    /// Sends a statement after which something may be held, unless the attempt is given up: what is released in the
    /// background by then would stay.
    async fn send(
        &self,
        statement: &Statement,
        params: &[&(dyn ToSql + Sync)],
        expires: Instant,
    ) -> std::result::Result<Row, Failure> {
        let (connection, progress) = (&self.sent.session.connection, &self.claim.progress);
        connection.prepared(statement, expires, self.driver).await?;
        // In a box, as it is large and there is one stack for all that leads here.
        let mut asking = Box::pin(connection.query(statement, params, expires, self.driver));
        progress.doubt(0);
        if !progress.sends(0) {
            progress.resolve(0);
            return Err(Failure::Broken(given_up()));
        }
        // The connection takes a release after it.
        let row = hand_over(asking.as_mut(), || progress.resolve(0)).await?;
        row.ok_or_else(|| Failure::Broken(strange()))
    }

    fn read(&self, row: &Row, since: Instant) -> Step {
        let kind = row.try_get::<_, Option<&str>>("kind").unwrap_or_default();
        match (row.try_get("ok"), row.try_get::<_, Option<i64>>("token"), row.try_get("asked")) {
            (Ok(true), Ok(Some(token)), _) if token > 0 => Step::Granted { token: token.unsigned_abs(), since },
            // Only now will its holder tell of the release: it may have been just before.
            (Ok(false), _, Ok(true)) => Step::Again,
            (Ok(false), ..) => {
                let foreign = kind.is_some() && (kind == Some("permit")) != (self.claim.mode.name() == "permit");
                Step::Refused(Attempt::Busy { free_in: None, foreign, contended: false, residue: false })
            }
            _ => Step::Unknown(strange()),
        }
    }

    /// Has the table know of a grant.
    fn settle(&self, step: &Step) {
        if matches!(step, Step::Granted { .. }) {
            self.sent.session.locks.taken(&self.sent.ids, None, self.claim.owner);
        }
    }

    /// A statement that was not answered as it should be.
    async fn failed(&mut self, failure: Failure) -> Step {
        match failure {
            Failure::NotSent(error) => return Step::Refused(Attempt::Refused(error)),
            Failure::Broken(error) | Failure::TimedOut(error) => return Step::Unknown(error),
            Failure::Refused { .. } => {}
        }
        // The statement was rolled back, the lock was not.
        if let Err(error) = self.unlock().await {
            return Step::Unknown(error);
        }
        if failure.is_undefined_table() && !std::mem::replace(&mut self.made_table, true) {
            return match self.backend.make_table(&self.sent.session.connection).await {
                Ok(()) => self.start_over().await,
                Err(failure) => Step::Refused(Attempt::Refused(failure.into_error())),
            };
        }
        let contended = failure.is_clash();
        Step::Refused(if contended {
            Attempt::Busy { free_in: None, foreign: false, contended, residue: false }
        } else {
            Attempt::Refused(failure.of_attempt(self.claim))
        })
    }

    /// Proves that nothing of this attempt is held.
    async fn unlock(&self) -> Result<()> {
        let expires = Instant::now().after(self.backend.patience());
        self.backend.unlock(&self.sent, self.claim.owner, expires).await.map_err(Failure::into_error)
    }
}

fn given_up() -> Error {
    Error::unavailable("the attempt took longer than its ttl")
}

fn strange() -> Error {
    Error::unavailable("an answer of another kind")
}
