//! Fencing tokens at what is protected: the script for data in Redis, and a test for any store.
//!
//! The rule: claim the resource with the token before the first read, then read and write, and have each refused if a
//! greater token has been there. For SQL see [`postgres::CLAIM`](crate::postgres::CLAIM).

use std::{future::Future, time::Duration};

use crate::{Acquire, Error, ErrorKind, LockManager, Result};

/// A script for Redis that claims a hash, and writes its value.
///
/// `KEYS[1]` is the hash, with the fields `token` and `value`; `ARGV[1]` the fencing token; `ARGV[2]` the value, or
/// nothing to claim only. It answers 1, or 0 for a holder that came too late.
pub const REDIS_CLAIM: &str = include_str!("claim.lua");

/// Shows whether what you write to refuses a *zombie*: a holder that was paused beyond its lease, and goes on as if nothing
/// had happened.
///
/// `write` is to claim and write with the fencing token that it is given, and to fail if it is refused. It is called for a
/// holder, for the next one after the lease of the first ran out, for the first again, which it must refuse, and
/// for the second again. The lock is `resource` in `locks`, and the data may not be in use meanwhile.
///
/// # Errors
/// `Internal` if a write was taken or refused that should not have been; else as
/// [`acquire`](LockManager::acquire).
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use std::cell::Cell;
/// let locks = polylock::connect("memory:").await.unwrap();
/// let seen = Cell::new(0);
/// let write = async |token| (token >= seen.get()).then(|| seen.set(token)).ok_or("too late");
/// polylock::fencing::check_refuses_zombies(&locks, "r", write).await.unwrap();
/// # }
/// ```
pub async fn check_refuses_zombies<T, E: std::fmt::Debug, F: Future<Output = Result<T, E>>>(
    locks: &LockManager,
    resource: &str,
    mut write: impl FnMut(u64) -> F,
) -> Result<()> {
    const SHORT: Duration = Duration::from_millis(100);
    let wrong = |what: String| Error::new(ErrorKind::Internal, what).on(resource);
    let zombie = locks.acquire(resource, Acquire::ttl(SHORT).auto_extend(false)).await?;
    let old = zombie.fencing_token();
    write(old).await.map_err(|error| wrong(format!("the first holder was refused with token {old}: {error:?}")))?;
    // It is paused here.
    zombie.lost().await;
    let lease = locks.acquire(resource, Acquire::default()).await?;
    let new = lease.fencing_token();
    write(new).await.map_err(|error| wrong(format!("token {new} was refused after token {old}: {error:?}")))?;
    if write(old).await.is_ok() {
        return Err(wrong(format!("a write with token {old} was taken after one with token {new}")));
    }
    write(new).await.map_err(|error| wrong(format!("token {new} was refused by itself: {error:?}")))?;
    lease.release().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn finds_out_who_takes_or_refuses_too_much() {
        let locks = crate::connect("memory:").lazy().unwrap();
        let last = Cell::new(0);
        let careless = async |token| true.then(|| last.set(token)).ok_or("too late");
        let error = check_refuses_zombies(&locks, "r", careless).await.unwrap_err();
        assert!(error.to_string().contains("was taken"), "{error}");
        let strict = async |token| (token > last.get()).then(|| last.set(token)).ok_or("too late");
        let error = check_refuses_zombies(&locks, "s", strict).await.unwrap_err();
        assert!(error.to_string().contains("refused by itself"), "{error}");
        let right = async |token| (token >= last.get()).then(|| last.set(token)).ok_or("too late");
        check_refuses_zombies(&locks, "t", right).await.unwrap();
    }
}
