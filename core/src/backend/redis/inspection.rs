//! Looking at a lock: who holds it, by a majority of the nodes.

use std::{sync::Arc, time::Duration};

use futures_util::stream::{FuturesUnordered, StreamExt};

use super::{RedisBackend, holder, out_of_reach, quorum::majority, request::Request};
use crate::{
    Holder, Resource, Result,
    clock::Instant,
    engine::{driver::Driver, timer},
};

/// How much longer an inspection waits for the others when a majority has answered.
const STRAGGLERS: Duration = Duration::from_millis(50);

impl RedisBackend {
    pub(super) async fn inspect_all(&self, resource: &Resource, driver: &Driver) -> Result<Option<Holder>> {
        let expires = Instant::now().after(self.node_timeout(Duration::from_secs(30)));
        let request = Request::inspect(&self.prefix, resource, expires);
        let asks = self.nodes.iter().map(|node| Arc::clone(node).run(Arc::clone(&request), driver.clone()));
        let mut answers: FuturesUnordered<_> = asks.collect();
        let (mut holders, mut free, mut errors) = (Vec::<Holder>::new(), 0, Vec::new());
        let mut patience = None;
        // Once a majority has answered the others get a little more time: one that is silent would take all of it.
        while let Some(Some(answer)) = timer::until(patience, answers.next()).await {
            match answer {
                Ok(answered) => match holder::read(&answered.value) {
                    Some(holder) => holders.push(holder),
                    None => free += 1,
                },
                Err(error) => errors.push(error.into_error()),
            }
            if patience.is_none() && holders.len() + free >= majority(self.nodes.len()) {
                patience = Some(Instant::now().after(STRAGGLERS).min(expires));
            }
        }
        let needed = majority(self.nodes.len());
        if holders.len() + free < needed {
            return Err(out_of_reach(errors));
        }
        // Held is what a majority of the nodes agrees on.
        let held = |holder: &&Holder| holders.iter().filter(|other| other.owner == holder.owner).count() >= needed;
        let Some(holder) = holders.iter().find(held) else { return Ok(None) };
        // And until that majority is gone: an extension may still be on its way to the others.
        let same = holders.iter().filter(|other| other.owner == holder.owner);
        let mut lasting: Vec<_> = same.map(|holder| holder.expires_in.unwrap_or(Duration::MAX)).collect();
        lasting.sort_unstable();
        let expires_in = lasting.into_iter().rev().nth(needed - 1).filter(|left| *left < Duration::MAX);
        Ok(Some(Holder { expires_in, ..holder.clone() }))
    }
}
