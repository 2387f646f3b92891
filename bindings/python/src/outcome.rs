//! What an operation on an event loop comes to.

use std::{future::Future, panic::AssertUnwindSafe};

use futures_util::FutureExt;
use polylock::{Error, Event, Holder, LossReason, Release};
use pyo3::{IntoPyObjectExt, prelude::*, types::PyString};

use crate::{boundary, lease, observe, queue::Held};

/// The result of an operation, before it meets Python.
pub(crate) enum Outcome {
    Nothing,
    Lease(polylock::Lease),
    Busy,
    /// `None`: it had ended before.
    Released(Option<Release>),
    Holder(Option<Holder>),
    Holders(Vec<Holder>),
    Broken(bool),
    Events(Option<Vec<Event>>),
    Lost(LossReason),
    Failed(Error),
}

impl Outcome {
    /// The value in Python; an error is the exception object, not raised. A lease is entered in `held`.
    pub(crate) fn into_python(self, py: Python<'_>, held: &Held) -> PyResult<Py<PyAny>> {
        match self {
            Self::Nothing | Self::Busy => Ok(py.None()),
            Self::Lease(lease) => lease::Lease::on_loop(lease, held).into_py_any(py),
            Self::Released(release) => Ok(PyString::intern(py, released_name(release)).into_any().unbind()),
            Self::Lost(reason) => Ok(PyString::intern(py, reason.name()).into_any().unbind()),
            Self::Holder(holder) => holder.map(holder_fields).into_py_any(py),
            Self::Holders(holders) => holders.into_iter().map(holder_fields).collect::<Vec<_>>().into_py_any(py),
            Self::Broken(broken) => broken.into_py_any(py),
            Self::Events(None) => Ok(py.None()),
            Self::Events(Some(events)) => {
                events.into_iter().map(observe::event_fields).collect::<Vec<_>>().into_py_any(py)
            }
            Self::Failed(error) => boundary::exception(py, error),
        }
    }
}

/// What a release came to, as Python's half has it.
pub(crate) fn released_name(release: Option<Release>) -> &'static str {
    release.map_or("ended_before", Release::name)
}

/// `operation`, with its errors and panics as outcomes. As an async function it would take twice the room.
pub(crate) fn of(operation: impl Future<Output = polylock::Result<Outcome>>) -> impl Future<Output = Outcome> {
    AssertUnwindSafe(operation).catch_unwind().map(|done| match done {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(error)) => Outcome::Failed(error),
        Err(panic) => Outcome::Failed(boundary::panicked(&*panic)),
    })
}

/// Owner, fencing token, seconds to expiry, since (Unix seconds), host, process id, label, resource, mode, waiting.
pub(crate) type HolderFields = (
    String,
    Option<u64>,
    Option<f64>,
    Option<f64>,
    Option<String>,
    Option<u32>,
    Option<String>,
    String,
    &'static str,
    Option<u32>,
);

pub(crate) fn holder_fields(holder: Holder) -> HolderFields {
    (
        holder.owner,
        holder.fencing_token,
        holder.expires_in.map(|expires_in| expires_in.as_secs_f64()),
        holder.since.map(unix_seconds),
        holder.host,
        holder.pid,
        holder.label,
        holder.resource.to_string(),
        holder.mode,
        holder.waiting,
    )
}

pub(crate) fn unix_seconds(time: std::time::SystemTime) -> f64 {
    match time.duration_since(std::time::SystemTime::UNIX_EPOCH) {
        Ok(after) => after.as_secs_f64(),
        Err(before) => -before.duration().as_secs_f64(),
    }
}
