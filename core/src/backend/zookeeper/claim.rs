//! What one claim has in ZooKeeper, from its attempt to its release.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::place::Place;

/// Shared by all who have the claim.
#[derive(Debug, Default)]
pub(crate) struct Contention(Mutex<Stage>);

#[derive(Clone, Debug, Default)]
pub(super) enum Stage {
    #[default]
    New,
    /// An attempt is on its way; the channel closes when it is over.
    Trying(watch::Receiver<()>),
    /// Refused; another attempt may have taken the place over.
    Parked(Arc<Place>),
    /// It holds, or has contenders that are to be deleted.
    Has(Arc<Place>),
    /// It may have contenders that we do not know.
    Unsure,
    /// It has nothing, and gets nothing any more.
    Over,
}

impl Contention {
    pub(super) fn stage(&self) -> MutexGuard<'_, Stage> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
