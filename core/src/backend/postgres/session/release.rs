//! Giving back in session mode, with a proof.

use tokio_postgres::types::ToSql;

use super::{SessionBackend, locks::ToFree, sessions::Sent, statements::with_ids};
use crate::{
    OwnerToken,
    backend::{Claim, Release, postgres::config::Keys},
    clock::Instant,
    engine::driver::Driver,
};

impl SessionBackend {
    pub(super) async fn release_lease(&self, claim: &Claim, driver: &Driver) -> Release {
        let Some(sent) = self.sessions.sent(claim.owner) else { return Release::NotHeld };
        if claim.progress.has_doubts() {
            // Its attempt is being handed to the connection in this moment: to be freed after that.
            return Release::Unknown;
        }
        let to_free = sent.session.locks.begin_freeing(&sent.ids, claim.owner);
        if !sent.session.locks.is_ended()
            && let Some(freed) = self.free(&sent, claim.owner, &to_free, driver).await
        {
            self.sessions.forget(&sent, claim.owner);
            return freed;
        }
        if !sent.session.locks.is_ended() {
            return Release::Unknown;
        }
        match self.sessions.is_gone(&sent.session).await {
            Ok(true) => {
                self.sessions.forget(&sent, claim.owner);
                Release::NotHeld
            }
            Ok(false) | Err(_) => Release::Unknown,
        }
    }

    /// `None` if the server did not answer.
    pub(super) async fn free(
        &self,
        sent: &Sent,
        owner: OwnerToken,
        to_free: &ToFree,
        driver: &Driver,
    ) -> Option<Release> {
        let (connection, keys, owner) = (&sent.session.connection, &*sent.keys, owner.as_str());
        let expires = Instant::now().after(self.patience());
        let answer = match (keys, &to_free.alone[..]) {
            ([key], [id]) => connection.query(&self.statements.release, &[key, id], expires, driver).await,
            _ => {
                let release = &self.statements.release_all;
                let params: [&(dyn ToSql + Sync); 5] =
                    [&keys, &to_free.alone, &to_free.shared, &to_free.slots, &owner];
                connection.query(release, &params, expires, driver).await
            }
        };
        match answer {
            Ok(Some(row)) => {
                let freed = row.try_get::<_, bool>("ok").unwrap_or(false);
                Some(if freed || to_free.again { Release::Released } else { Release::NotHeld })
            }
            Ok(None) => None,
            Err(failure) if failure.is_ambiguous() => None,
            // Without the table, or a disk to write to, nobody can be told; the lock is freed all the same.
            Err(_) => match unlocking(to_free, self.config.keys) {
                Some(text) => connection.execute(&text, expires).await.ok().map(|()| Release::Released),
                // Others of this process share it, and go on.
                None => Some(Release::Released),
            },
        }
    }
}

/// Statements that unlock all of that, whether it is held or not; `None` if there is nothing.
pub(super) fn unlocking(to_free: &ToFree, keys: Keys) -> Option<String> {
    let unlock = |function: &str, id: &i64| with_ids(&format!("SELECT {function}(advisory(({id})::bigint));"), keys);
    let alone = to_free.alone.iter().map(|id| unlock("pg_advisory_unlock", id));
    let shared = to_free.shared.iter().map(|id| unlock("pg_advisory_unlock_shared", id));
    let slots = to_free.slots.iter().map(|id| format!("SELECT pg_advisory_unlock({id});"));
    Some(alone.chain(shared).chain(slots).collect::<String>()).filter(|text| !text.is_empty())
}
