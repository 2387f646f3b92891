//! Looking at locks from outside, and breaking them.

use futures_util::future::join_all;

use super::{
    Ensemble, line,
    name::{self, Contender},
    queue::order_by_creation,
    record,
    session::{Failure, Session},
    wire::{Request, code},
};
use crate::{Holder, Resource, Result, pattern::Pattern};

/// Resources that are looked at side by side.
const AT_ONCE: usize = 64;

/// A holder, and what its node was when that was read.
struct Seen {
    holder: Holder,
    path: String,
    version: i32,
}

impl Ensemble {
    /// Who holds `resource`, first come first.
    pub(super) async fn holders(&self, resource: &Resource) -> Result<Vec<Holder>> {
        let session = self.connected().await?;
        let seen = self.see(&session, resource).await.map_err(Failure::into_error)?;
        Ok(seen.into_iter().map(|seen| seen.holder).collect())
    }

    /// The holders of the resources that match, until there are `limit`.
    pub(super) async fn list(&self, pattern: &Pattern, limit: usize) -> Result<Vec<Holder>> {
        let session = self.connected().await?;
        let resources: Vec<_> = match pattern.only() {
            Some(resource) => vec![resource],
            None => {
                let directories = children(&session, &self.config.root).await.map_err(Failure::into_error)?;
                let resources = directories.iter().filter_map(|directory| name::resource(directory));
                resources.filter(|resource| pattern.matches(resource.as_str())).collect()
            }
        };
        let mut holders = Vec::new();
        for resources in resources.chunks(AT_ONCE) {
            let seen = join_all(resources.iter().map(|resource| self.see(&session, resource))).await;
            for seen in seen {
                holders.extend(seen.map_err(Failure::into_error)?.into_iter().map(|seen| seen.holder));
            }
            if holders.len() >= limit {
                break;
            }
        }
        Ok(holders)
    }

    /// Deletes the contender by which `owner` holds; says whether it held.
    pub(super) async fn break_lock(&self, resource: &Resource, owner: &str) -> Result<bool> {
        let session = self.connected().await?;
        loop {
            let seen = self.see(&session, resource).await.map_err(Failure::into_error)?;
            let Some(seen) = seen.into_iter().find(|seen| seen.holder.owner == owner) else { return Ok(false) };
            // Only if nobody has written in it since: a contender says there who holds by it.
            match session.ask(Request::delete_version(&seen.path, seen.version)).await {
                Ok(_) => return Ok(true),
                Err(failure) if failure.is(code::BAD_VERSION) || failure.is(code::NO_NODE) => {}
                Err(failure) => return Err(failure.into_error()),
            }
        }
    }

    async fn see(&self, session: &Session, resource: &Resource) -> Result<Vec<Seen>, Failure> {
        let directory = name::directory(&self.config.root, resource);
        loop {
            let listed = children(session, &directory).await?;
            let mut contenders: Vec<_> = listed.iter().filter_map(|child| Contender::read(child)).collect();
            if line::is_ambiguous(&contenders) {
                order_by_creation(session, &directory, &mut contenders).await?;
            }
            let in_line = contenders.len();
            // How many permits there are is in the first one's data.
            let mut holders = line::holders(contenders, usize::MAX);
            let Some(first) = holders.first().copied() else { return Ok(Vec::new()) };
            let Some((_, permits)) = self.read(session, &directory, resource, &first).await? else { continue };
            holders.truncate(permits.unwrap_or(usize::MAX));
            let waiting = u32::try_from(in_line - holders.len()).ok();
            let read = join_all(holders.iter().map(|holder| self.read(session, &directory, resource, holder))).await;
            let mut seen = Vec::with_capacity(read.len());
            for read in read {
                // Who left in between does not hold.
                if let Some((mut holder, _)) = read? {
                    holder.holder.waiting = waiting;
                    seen.push(holder);
                }
            }
            return Ok(seen);
        }
    }

    /// What one contender says, and how many permits there are; `None` if it is gone.
    async fn read(
        &self,
        session: &Session,
        directory: &str,
        resource: &Resource,
        contender: &Contender<'_>,
    ) -> Result<Option<(Seen, Option<usize>)>, Failure> {
        let path = format!("{directory}/{}", contender.name);
        match session.ask(Request::data(&path, false)).await {
            Ok(reply) => {
                let (data, stat) = reply.read(|answer| answer.data())?;
                let (holder, permits) = record::read(resource, &data, contender.owner, &stat);
                Ok(Some((Seen { holder, path, version: stat.version }, permits)))
            }
            Err(failure) if failure.is(code::NO_NODE) => Ok(None),
            Err(failure) => Err(failure),
        }
    }
}

/// The names below `path`; none if it is not there.
async fn children(session: &Session, path: &str) -> Result<Vec<String>, Failure> {
    match session.ask(Request::children(path, false)).await {
        Ok(reply) => reply.read(|answer| answer.children()),
        Err(failure) if failure.is(code::NO_NODE) => Ok(Vec::new()),
        Err(failure) => Err(failure),
    }
}
