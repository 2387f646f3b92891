//! Who drives a connection: reads its replies and writes what could not be written at once.

use std::{fmt, sync::Arc};

use tokio::runtime::Handle;

use super::{reactor::Reactor, runtime};

/// Who drives the connection that an operation uses.
///
/// Whoever is nearest to the caller should: a reply that has to wake another thread costs more than all the
/// rest of a lock operation. The operations mean the same whoever drives.
#[derive(Clone)]
pub struct Driver(pub(crate) Kind);

#[derive(Clone)]
pub(crate) enum Kind {
    /// The engine's own runtime: renewals, undo, subscriptions, and callers that nobody else serves.
    Engine,
    /// The tokio runtime that the caller runs on.
    Tokio(Handle),
    /// The calling thread, or the event loop that it runs.
    Reactor(Arc<Reactor>),
}

/// Tells drivers apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum DriverId {
    Engine,
    Tokio(tokio::runtime::Id),
    Reactor(u64),
}

impl Driver {
    /// The engine's own runtime.
    pub fn engine() -> Self {
        Self(Kind::Engine)
    }

    /// The tokio runtime that this is called on; the engine's where there is none.
    pub fn here() -> Self {
        match Handle::try_current() {
            Ok(handle) if !runtime::running().is_some_and(|engine| engine.handle().id() == handle.id()) => {
                Self(Kind::Tokio(handle))
            }
            _ => Self::engine(),
        }
    }

    pub(crate) fn reactor(reactor: &Arc<Reactor>) -> Self {
        Self(Kind::Reactor(Arc::clone(reactor)))
    }

    pub(crate) fn is_engine(&self) -> bool {
        matches!(self.0, Kind::Engine)
    }

    pub(crate) fn id(&self) -> DriverId {
        match &self.0 {
            Kind::Engine => DriverId::Engine,
            Kind::Tokio(handle) => DriverId::Tokio(handle.id()),
            Kind::Reactor(reactor) => DriverId::Reactor(reactor.id()),
        }
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.id().fmt(f)
    }
}
