//! Giving back in session mode, with a proof.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    task::Poll,
};

use tokio_postgres::types::ToSql;

use super::{SessionBackend, locks::ToFree, sessions::Sent, statements::with_ids};
use crate::{
    Mode, OwnerToken,
    backend::{
        Claim, Release,
        postgres::{config::Keys, failure::Failure},
    },
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
        if !sent.session.locks.is_ended()
            && let Some(freed) = self.free(&sent, claim.owner, driver).await
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
    pub(super) async fn free(&self, sent: &Sent, owner: OwnerToken, driver: &Driver) -> Option<Release> {
        let (connection, locks) = (&sent.session.connection, &sent.session.locks);
        let expires = Instant::now().after(self.patience());
        let alone = sent.mode == Mode::Exclusive && sent.keys.len() == 1;
        let statement = if alone { &self.statements.release } else { &self.statements.release_all };
        // First, as nothing is to be awaited between the look at what is to be freed and the sending.
        let answer = match connection.prepared(statement, expires, driver).await {
            Ok(()) => {
                let mut freeing = locks.begin_freeing(&sent.ids, owner);
                let to_free = std::mem::take(&mut freeing.what);
                let (keys, owner) = (&*sent.keys, owner.as_str());
                let several: [&(dyn ToSql + Sync); 5] =
                    [&keys, &to_free.alone, &to_free.shared, &to_free.slots, &owner];
                let one: [&(dyn ToSql + Sync); 2] = [&sent.keys[0], &sent.ids[0]];
                if alone && to_free.alone.is_empty() {
                    return Some(Release::NotHeld); // somebody else has freed it
                }
                let params = if alone { &one[..] } else { &several[..] };
                let row =
                    hand_over(pin!(connection.query(statement, params, expires, driver)), || drop(freeing)).await;
                row.map(|row| row.map(|row| row.try_get("ok").unwrap_or(false) || to_free.again))
            }
            Err(failure) => Err(failure),
        };
        match answer {
            Ok(Some(freed)) => Some(if freed { Release::Released } else { Release::NotHeld }),
            Ok(None) => None,
            Err(failure) if failure.is_ambiguous() => None,
            // Without the table, or a disk to write to, nobody can be told; the lock is freed all the same.
            Err(_) => self.unlock(sent, owner, expires).await.ok().map(|()| Release::Released),
        }
    }

    /// Unlocks what `owner` has, whether the server gave it or not. What others of this process share stays.
    pub(super) async fn unlock(
        &self,
        sent: &Sent,
        owner: OwnerToken,
        expires: Instant,
    ) -> std::result::Result<(), Failure> {
        let freeing = sent.session.locks.begin_freeing(&sent.ids, owner);
        match unlocking(&freeing.what, self.config.keys) {
            Some(text) => hand_over(pin!(sent.session.connection.execute(&text, expires)), || drop(freeing)).await,
            None => Ok(()),
        }
    }
}

/// Awaits the answer to a request, which its first poll hands to the connection; calls `handed` after that.
pub(super) async fn hand_over<A>(mut asking: Pin<&mut impl Future<Output = A>>, handed: impl FnOnce()) -> A {
    let first = poll_fn(|cx| Poll::Ready(asking.as_mut().poll(cx))).await;
    handed();
    match first {
        Poll::Ready(answer) => answer,
        Poll::Pending => asking.await,
    }
}

/// Statements that unlock all of that, whether it is held or not; `None` if there is nothing.
fn unlocking(to_free: &ToFree, keys: Keys) -> Option<String> {
    let unlock = |function: &str, id: &i64| with_ids(&format!("SELECT {function}(advisory(({id})::bigint));"), keys);
    let alone = to_free.alone.iter().map(|id| unlock("pg_advisory_unlock", id));
    let shared = to_free.shared.iter().map(|id| unlock("pg_advisory_unlock_shared", id));
    let slots = to_free.slots.iter().map(|id| format!("SELECT pg_advisory_unlock({id});"));
    Some(alone.chain(shared).chain(slots).collect::<String>()).filter(|text| !text.is_empty())
}
