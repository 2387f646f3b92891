//! The line of those who ask to be served in order: leaving it. It is kept by `scripts/queue.lua`, on each node for itself.
//!
//! # What can happen between any two steps
//!
//! * *A waiter dies, or its leaving is lost*: it is forgotten when it has not asked for [`Turn::STAYS`], and the keys of the line with
//!   the last of them. Until then the others are refused where it is first.
//! * *An attempt arrives after its waiter left*: as if it had died.
//! * *A waiter is forgotten while it is slow*: it says how long it has waited, so it gets its old place when it asks again.
//! * *Nodes put two waiters who came at one time in different order*, so that each is first somewhere and none gets a majority:
//!   those who were given a part ask again after a random pause and are not held up by the line ([`Turn::insists`]). One of
//!   them gets the lock then as without a line.
//! * *The lock is granted by a majority while the waiter stands in line on the other nodes*: it leaves there.
//!
//! Exclusion rests on nothing of this: a turn is a reason to refuse, never to grant.

use std::sync::Arc;

use futures_util::future::{BoxFuture, FutureExt, join_all};

use super::{RedisBackend, request::Request};
use crate::{
    Resource,
    backend::{Claim, Turn},
    clock::Instant,
    engine::{driver::Driver, runtime},
};

impl RedisBackend {
    /// Leaves the line everywhere.
    pub(super) fn leave_line(&self, resource: &Resource, turn: &Turn, driver: &Driver) -> BoxFuture<'static, ()> {
        self.leave_where(|_| true, resource, turn, driver)
    }

    /// Leaves the line, in the background, where the lock was not granted to `claim`, which has it.
    pub(super) fn leave_elsewhere(&self, claim: &Claim) {
        let Some(turn) = &claim.turn else { return };
        if self.nodes.len() > 1 {
            let elsewhere = |index| !claim.progress.holds(index);
            let leaving = self.leave_where(elsewhere, claim.resource(), turn, &Driver::engine());
            runtime::spawn(self.background.track_future(leaving));
        }
    }

    fn leave_where(
        &self,
        stands: impl Fn(usize) -> bool,
        resource: &Resource,
        turn: &Turn,
        driver: &Driver,
    ) -> BoxFuture<'static, ()> {
        // After this it is forgotten anyway.
        let request = Request::leave(&self.prefix, resource, turn, Instant::now().after(Turn::STAYS));
        let nodes = self.nodes.iter().enumerate().filter(|(index, _)| stands(*index));
        let left = nodes.map(|(index, node)| Arc::clone(node).run(request.to(index), driver.clone()));
        join_all(left.collect::<Vec<_>>()).map(drop).boxed()
    }
}
