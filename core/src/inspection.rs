//! Looking at locks from outside, and breaking them.
//!
//! # What can happen between looking and breaking
//!
//! The holder that was looked at may release, or lose it, and another may come. So a break names whom it means: the
//! owner token, which no other holder ever has, is compared where the lock is kept, in one step with the
//! freeing. A fencing token is first looked up; it is of one holder as well, so that no later one is hit.
//!
//! The holder learns of it at its next renewal, which finds the lock gone, and at once if it is of this process.
//! Until then it believes that it holds: what it protects must check the fencing token, or the holder
//! must be known to be dead. That is what makes it *forced*.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use crate::{
    Error, ErrorKind, LockManager, LossReason, OwnerToken, Resource, Result, Target,
    engine::{driver::Driver, runtime},
    options,
    pattern::Pattern,
    target::Names,
};

/// Who holds a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Holder {
    /// What is held.
    pub resource: Resource,
    /// How: `exclusive`, `shared` or `permit`, as in [`Mode::name`](crate::Mode::name).
    pub mode: &'static str,
    /// The holder's owner token; any text if another library holds it.
    pub owner: String,
    /// Its fencing token, if it has one and the backend remembers it.
    pub fencing_token: Option<u64>,
    /// When it expires unless it is extended, if ever.
    pub expires_in: Option<Duration>,
    /// When it was acquired, by the holder's wall clock.
    pub since: Option<SystemTime>,
    /// Where its process runs.
    pub host: Option<String>,
    /// Its process id there.
    pub pid: Option<u32>,
    /// What the holder called itself.
    pub label: Option<String>,
    /// How many managers, in all processes, have somebody waiting for the resource; if the backend can tell.
    pub waiting: Option<u32>,
}

impl Holder {
    /// Somebody of whom nothing else is known.
    pub(crate) fn new(resource: Resource, owner: String) -> Self {
        Self {
            resource,
            mode: "exclusive",
            owner,
            fencing_token: None,
            expires_in: None,
            since: None,
            host: None,
            pid: None,
            label: None,
            waiting: None,
        }
    }
}

/// Whose lock is to be broken: what was seen of the holder.
#[derive(Clone, PartialEq, Eq)]
pub enum Seen {
    /// Its fencing token.
    FencingToken(u64),
    /// Its owner token, or whatever another library wrote in its place.
    Owner(String),
}

impl From<&Holder> for Seen {
    fn from(holder: &Holder) -> Self {
        Self::Owner(holder.owner.clone())
    }
}

impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FencingToken(token) => write!(f, "fencing token {token}"),
            Self::Owner(owner) => write!(f, "owner {owner:?}"),
        }
    }
}

/// The most that one listing gives.
const MOST: usize = 100_000;

impl LockManager {
    /// Who holds `resource`, or `None` if it is free; of several holders the one that may stay longest.
    ///
    /// # Errors
    /// `Unsupported` if the backend cannot tell, `Unavailable`, `Auth`, `InvalidArgument`, `Closed`, `Forked`.
    pub async fn inspect(&self, resource: &str) -> Result<Option<Holder>> {
        self.inspect_by(resource, &Driver::here()).await
    }

    /// As [`inspect`](Self::inspect), on connections that `driver` drives.
    #[doc(hidden)]
    pub async fn inspect_by(&self, resource: &str, driver: &Driver) -> Result<Option<Holder>> {
        let resource = Resource::new(resource)?;
        let inspected = self.open()?.backend.inspect(&resource, driver).await;
        inspected.map_err(|error| error.on(resource.as_str()))
    }

    /// Who holds the resources whose names match `pattern`: one entry for each holder, in the order of the names,
    /// `limit` of them at most (1 to 100,000).
    ///
    /// In a pattern `*` stands for any text, `?` for any one character, and a backslash takes the next character
    /// as it is. On Redis it looks through all keys of the server, step by step without holding it up. It finds
    /// what this library holds; a lock of another library on Redis is found by its full name alone, because it
    /// looks like any other key.
    ///
    /// # Errors
    /// `Unsupported` if the backend cannot tell, `InvalidArgument` for `pattern` and `limit`, `Unavailable`, `Auth`,
    /// `Closed`, `Forked`.
    pub async fn list(&self, pattern: &str, limit: usize) -> Result<Vec<Holder>> {
        self.list_by(pattern, limit, &Driver::here()).await
    }

    /// As [`list`](Self::list), on connections that `driver` drives.
    #[doc(hidden)]
    pub async fn list_by(&self, pattern: &str, limit: usize, driver: &Driver) -> Result<Vec<Holder>> {
        let pattern = Pattern::parse(pattern)?;
        if !(1..=MOST).contains(&limit) {
            return Err(Error::invalid("limit", format!("must be 1 to 100,000, not {limit}")));
        }
        self.holders(&pattern, limit, driver).await
    }

    async fn holders(&self, pattern: &Pattern, limit: usize, driver: &Driver) -> Result<Vec<Holder>> {
        let manager = self.open()?;
        if !manager.backend.capabilities().listing {
            return Err(Error::new(ErrorKind::Unsupported, "this backend cannot list its locks"));
        }
        let mut holders = manager.backend.list(pattern, limit, driver).await?;
        holders.sort_by(|one, two| (&one.resource, &one.owner).cmp(&(&two.resource, &two.owner)));
        holders.truncate(limit);
        Ok(holders)
    }

    /// Frees `resource` though somebody holds it, if that is still the holder that was `seen`; says whether it was.
    ///
    /// The holder is told that its lease is lost no later than at its next renewal, at once if it is of this process, and before
    /// the lock is free if it is of this manager. Until then it may go on: break a lock when its holder is dead or hung, or
    /// where the fencing token is checked.
    ///
    /// # Errors
    /// `Unsupported` if the backend cannot, `InvalidArgument`, `Unavailable` (it may have been freed or not), `Auth`,
    /// `Closed`, `Forked`.
    pub async fn break_lock(&self, resource: &str, seen: impl Into<Seen>) -> Result<bool> {
        self.break_lock_by(resource, seen, &Driver::here()).await
    }

    /// As [`break_lock`](Self::break_lock), on connections that `driver` drives.
    #[doc(hidden)]
    pub async fn break_lock_by(&self, resource: &str, seen: impl Into<Seen>, driver: &Driver) -> Result<bool> {
        let resource = Resource::new(resource)?;
        let broken = self.break_seen(&resource, seen.into(), driver).await;
        broken.map_err(|error| error.on(resource.as_str()))
    }

    async fn break_seen(&self, resource: &Resource, seen: Seen, driver: &Driver) -> Result<bool> {
        let manager = self.open()?;
        if !manager.backend.capabilities().breaking {
            return Err(Error::new(ErrorKind::Unsupported, "this backend cannot break a lock"));
        }
        let owner = match seen {
            Seen::FencingToken(0) => return Err(Error::invalid("fencing_token", "must be positive")),
            Seen::FencingToken(token) => {
                let holders = self.holders(&Pattern::exactly(resource), MOST, driver).await?;
                match holders.into_iter().find(|holder| holder.fencing_token == Some(token)) {
                    Some(holder) => holder.owner,
                    None => return Ok(false),
                }
            }
            Seen::Owner(owner) if owner.is_empty() => return Err(Error::invalid("owner", "must not be empty")),
            Seen::Owner(owner) => owner,
        };
        let token = OwnerToken::parse(&owner);
        // One of ours first, whatever becomes of us then: it is freed in the background as well.
        let ours = token.and_then(|token| manager.leases.get(&token));
        let ended = ours.is_some_and(|ours| ours.claim.resources.contains(resource) && ours.ends(LossReason::Taken));
        let broken = manager.backend.break_lock(resource, &owner, driver).await? || ended;
        if broken {
            tracing::warn!(%resource, owner, "lock broken");
            if let (Some(token), Ok(engine)) = (token, runtime::engine())
                && let Some(lease) = engine.managers().iter().find_map(|manager| manager.leases.get(&token))
            {
                lease.ends(LossReason::Taken);
            }
            manager.waiters.nudge(resource);
        }
        Ok(broken)
    }

    /// Makes `target` last until `ttl` from now, if `owner` holds it all: whoever that is, of whatever library; says whether it does.
    /// No lease of this process hears of it. For the drop-in for redlock, whose users hand locks to other processes by what is written
    /// there.
    ///
    /// # Errors
    /// `Unsupported` on any backend but Redis, `InvalidArgument`, `Unavailable` (it may have been extended or not), `Auth`,
    /// `Closed`, `Forked`.
    #[doc(hidden)]
    pub async fn extend_for_by(&self, target: Target, owner: &str, ttl: Duration, driver: &Driver) -> Result<bool> {
        options::check_ttl(ttl)?;
        if owner.is_empty() {
            return Err(Error::invalid("owner", "must not be empty"));
        }
        let resources = target.resources()?;
        let extended = self.open()?.backend.extend_for(&resources, owner, ttl, driver).await;
        extended.map_err(|error| target.blamed(error).on(&Names(&resources).to_string()))
    }

    /// What each server says to a question of its own language. For `polylock doctor`.
    #[doc(hidden)]
    pub async fn ask_each(&self, question: &[&str]) -> Result<Vec<(String, Result<Vec<String>>)>> {
        Ok(self.open()?.backend.ask_each(question, &Driver::here()).await)
    }

    /// How many wait for `resource` through this manager.
    ///
    /// # Errors
    /// `InvalidArgument`, `Closed`, `Forked`.
    pub fn waiting(&self, resource: &str) -> Result<usize> {
        Ok(self.open()?.waiters.count(&Resource::new(resource)?))
    }
}
