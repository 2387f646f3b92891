//! A waiter's place in the line of all processes, for those who ask to be served in order.

use std::sync::Arc;

use crate::{
    OwnerToken, Resource, Result,
    backend::Turn,
    clock::Instant,
    engine::{driver::Driver, runtime},
    manager::Manager,
};

/// Stands in line for one resource from now on; dropping it leaves.
pub(crate) struct InLine {
    manager: Arc<Manager>,
    resource: Resource,
    number: OwnerToken,
    came: Instant,
    /// It may be in the line of the backend.
    stands: bool,
}

impl InLine {
    /// Comes to the line; who does not wait looks only.
    ///
    /// # Errors
    /// If the operating system has no random numbers.
    pub(crate) fn come(manager: &Arc<Manager>, resource: &Resource, came: Instant, waits: bool) -> Result<Self> {
        let (manager, resource) = (Arc::clone(manager), resource.clone());
        Ok(Self { manager, resource, number: OwnerToken::draw()?, came, stands: waits })
    }

    /// The place, for an attempt that begins now.
    pub(crate) fn turn(&self, insists: bool) -> Turn {
        Turn { number: self.number, waited: Instant::now().since(self.came), insists }
    }

    /// It has the lock: the backend has taken it out of the line.
    pub(crate) fn served(&mut self) {
        self.stands = false;
    }
}

impl Drop for InLine {
    fn drop(&mut self) {
        if !self.stands || self.manager.check_process().is_err() {
            return;
        }
        let (manager, resource, turn) = (Arc::clone(&self.manager), self.resource.clone(), self.turn(false));
        let leaving = async move { manager.backend.leave(&resource, &turn, &Driver::engine()).await };
        runtime::spawn(self.manager.undoing.track_future(leaving));
    }
}
