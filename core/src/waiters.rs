//! Who may ask the backend next: one waiter per resource and manager, the others behind it in order.
//!
//! The first in line talks to the backend; when it leaves, with the lock or without, the next one comes up.
//! Leaving is a destructor, so a waiter that is cancelled anywhere never blocks the line.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use crate::Resource;

/// The lines of waiters of one manager.
#[derive(Default)]
pub(crate) struct Waiters(Mutex<HashMap<Resource, VecDeque<Arc<Notify>>>>);

impl Waiters {
    fn lines(&self) -> MutexGuard<'_, HashMap<Resource, VecDeque<Arc<Notify>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Joins the line.
    pub(crate) fn join(self: &Arc<Self>, resource: &Resource) -> Place {
        let bell = Arc::new(Notify::new());
        self.lines().entry(resource.clone()).or_default().push_back(Arc::clone(&bell));
        Place { waiters: Arc::clone(self), resource: resource.clone(), bell }
    }

    /// Has the first in line, if any, try again: the resource may be free.
    pub(crate) fn nudge(&self, resource: &Resource) {
        if let Some(first) = self.lines().get(resource).and_then(VecDeque::front) {
            first.notify_one();
        }
    }

    /// How many wait for `resource` here.
    pub(crate) fn count(&self, resource: &Resource) -> usize {
        self.lines().get(resource).map_or(0, VecDeque::len)
    }
}

/// A place in the line; dropping it leaves.
pub(crate) struct Place {
    waiters: Arc<Waiters>,
    resource: Resource,
    bell: Arc<Notify>,
}

impl Place {
    fn is_first(&self) -> bool {
        let lines = self.waiters.lines();
        lines.get(&self.resource).and_then(VecDeque::front).is_some_and(|first| Arc::ptr_eq(first, &self.bell))
    }

    /// Waits to be the first in line.
    pub(crate) async fn first(&self) {
        while !self.is_first() {
            self.bell.notified().await;
        }
    }

    /// Waits, as the first in line, for a nudge.
    pub(crate) async fn nudged(&self) {
        self.bell.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut lines = self.waiters.lines();
        let Some(line) = lines.get_mut(&self.resource) else { return };
        let was_first = line.front().is_some_and(|first| Arc::ptr_eq(first, &self.bell));
        line.retain(|bell| !Arc::ptr_eq(bell, &self.bell));
        if line.is_empty() {
            lines.remove(&self.resource);
        } else if was_first {
            line[0].notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn first_come_first_served_and_leaving_is_no_obstacle() {
        let waiters = Arc::new(Waiters::default());
        let resource = Resource::new("r").unwrap();
        let (one, two, three) = (waiters.join(&resource), waiters.join(&resource), waiters.join(&resource));
        assert!(one.first().now_or_never().is_some());
        assert!(two.first().now_or_never().is_none());
        drop(two);
        assert!(three.first().now_or_never().is_none());
        drop(one);
        assert!(three.first().now_or_never().is_some());
        assert_eq!(waiters.count(&resource), 1);
        drop(three);
        assert!(waiters.lines().is_empty());
    }

    #[test]
    fn a_nudge_is_kept_until_it_is_looked_for() {
        let waiters = Arc::new(Waiters::default());
        let resource = Resource::new("r").unwrap();
        waiters.nudge(&resource);
        let place = waiters.join(&resource);
        assert!(place.nudged().now_or_never().is_none());
        waiters.nudge(&resource);
        assert!(place.nudged().now_or_never().is_some());
    }
}
