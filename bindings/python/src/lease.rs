//! A held lock.

use std::sync::Arc;

use futures_util::FutureExt;
use polylock::host::{Driver, OperationId};
use pyo3::{prelude::*, types::PyString};

use crate::{
    arguments, boundary, ending,
    outcome::{self, Outcome},
    queue::{Held, Queue},
    waiting,
};

/// A held lock. Released in the background when it is collected.
#[pyclass(frozen, weakref, module = "polylock._native")]
pub(crate) struct Lease {
    lease: Arc<polylock::Lease>,
    /// The loop that acquired it, if one did.
    held: Option<Held>,
}

impl Lease {
    /// A lease that a blocking call acquired.
    pub(crate) fn blocking(lease: polylock::Lease) -> Self {
        Self { lease: Arc::new(lease), held: None }
    }

    /// A lease that ends with the loop that acquired it.
    pub(crate) fn on_loop(lease: polylock::Lease, held: &Held) -> Self {
        let lease = Arc::new(lease);
        held.enter(&lease);
        Self { lease, held: Some(held.clone()) }
    }

    /// The engine's.
    pub(crate) fn engines(&self) -> &polylock::Lease {
        &self.lease
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // With the GIL held, which is harmless: dropping the engine's lease waits for nothing, and no thread of the
        // engine ever takes the GIL.
        if let Some(held) = &self.held {
            held.leave(&self.lease);
        }
    }
}

/// Begins a release and leaves it to the engine.
pub(crate) fn release_in_background(lease: &polylock::Lease) {
    // A release that is dropped on its way is finished by the engine.
    let _ = lease.release_by(&Driver::engine()).now_or_never();
}

#[pymethods]
impl Lease {
    #[getter]
    fn resource(&self) -> &str {
        self.lease.resource().as_str()
    }

    #[getter]
    fn resources(&self) -> Vec<&str> {
        self.lease.resources().iter().map(|resource| resource.as_str()).collect()
    }

    #[getter]
    fn mode(&self) -> &'static str {
        self.lease.mode().name()
    }

    #[getter]
    fn owner_token(&self) -> &str {
        self.lease.owner_token().as_str()
    }

    #[getter]
    fn fencing_token(&self) -> u64 {
        self.lease.fencing_token()
    }

    /// Unix seconds.
    #[getter]
    fn deadline(&self) -> f64 {
        outcome::unix_seconds(self.lease.deadline().to_system_time())
    }

    /// Seconds.
    #[getter]
    fn remaining(&self) -> f64 {
        self.lease.remaining().as_secs_f64()
    }

    #[getter]
    fn is_held(&self) -> bool {
        self.lease.is_held()
    }

    #[getter]
    fn loss<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyString>> {
        self.lease.loss().map(|reason| PyString::intern(py, reason.name()))
    }

    /// Has a turn of `queue` return `(number, reason)` if the lease is lost. `number` is one that `queue` reserved.
    fn on_lost(&self, queue: &Queue, number: OperationId) -> PyResult<()> {
        let operations = queue.operations().clone();
        boundary::guard(|| {
            self.lease.on_lost(move |reason| {
                // A loop that is closed has nobody to tell.
                let _ = operations.push(number, Outcome::Lost(reason));
            });
        })
    }

    fn extend(&self, py: Python<'_>, ttl: &Bound<'_, PyAny>) -> PyResult<()> {
        let ttl = arguments::optional_seconds("ttl", ttl)?;
        waiting::wait(py, |driver| async move { self.lease.extend_by(ttl, &driver).await })
    }

    fn extend_start(&self, py: Python<'_>, queue: &Queue, ttl: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
        let ttl = arguments::optional_seconds("ttl", ttl)?;
        let lease = Arc::clone(&self.lease);
        queue.start(py, |driver| async move {
            lease.extend_by(ttl, &driver).await?;
            Ok(Outcome::Nothing)
        })
    }

    fn release<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyString>> {
        let release = waiting::wait(py, |driver| async move { self.lease.end_by(&driver).await })?;
        Ok(PyString::intern(py, outcome::released_name(release)))
    }

    fn release_start(&self, py: Python<'_>, queue: &Queue) -> PyResult<Py<PyAny>> {
        let lease = Arc::clone(&self.lease);
        queue.start(py, |driver| async move { Ok(Outcome::Released(lease.end_by(&driver).await?)) })
    }

    /// What the error says at the end of a `with`, if the lease was lost: see [`ending`].
    fn lost_at_end(&self, not_held: bool) -> Option<String> {
        ending::lost_at_end(&self.lease, not_held).map(|error| error.to_string())
    }

    /// Leaves the lock to its ttl: nothing is renewed or released any more.
    fn leave(&self) -> PyResult<()> {
        boundary::guard(|| self.lease.leave())?.map_err(boundary::to_python)
    }

    /// Begins a release and returns at once.
    fn release_soon(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| boundary::guard(|| release_in_background(&self.lease)))
    }
}
