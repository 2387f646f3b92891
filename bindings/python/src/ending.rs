//! How a `with` ends. That of blocking code does natively, because a signal handler may raise at any line of Python code, and at the
//! first of an `__exit__` it would leave the lock held for as long as its object lives.
//!
//! No code of Python's runs until the lease is released, nor below this at all but to make an error (see `boundary`).

use polylock::{Error, ErrorKind, LossReason, Release};
use pyo3::{
    exceptions::PyRuntimeError,
    intern,
    prelude::*,
    sync::PyOnceLock,
    types::{PyDict, PyTuple},
};

use crate::{boundary::to_python, lease::Lease, waiting};

/// What a lease of Python's half is made of. It has the native one as `_native`.
#[pyclass(subclass, frozen, module = "polylock._native")]
pub(crate) struct LeaseEnd;

#[pymethods]
impl LeaseEnd {
    #[new]
    #[pyo3(signature = (*_arguments))]
    fn new(_arguments: &Bound<'_, PyTuple>) -> Self {
        Self
    }

    /// `__exit__`: releases it.
    fn _end(
        this: &Bound<'_, Self>,
        _kind: &Bound<'_, PyAny>,
        error: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        end(this, error)
    }
}

/// What a lock of Python's half is made of. It has a dictionary `_held` of the leases: who acquired each, the lease, and
/// whether it was by `with`; the newest last. Who acquired is one object as long as it lives.
#[pyclass(subclass, frozen, module = "polylock._native")]
pub(crate) struct LockEnd;

#[pymethods]
impl LockEnd {
    #[new]
    #[pyo3(signature = (*_arguments, **_keywords))]
    fn new(_arguments: &Bound<'_, PyTuple>, _keywords: Option<&Bound<'_, PyDict>>) -> Self {
        Self
    }

    /// Takes the lease of the `with` that `user` ends.
    fn _entered_by<'py>(this: &Bound<'py, Self>, user: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyAny>>> {
        entered_by(this, user)
    }

    /// `__exit__`: releases what this thread entered.
    fn _end(
        this: &Bound<'_, Self>,
        _kind: &Bound<'_, PyAny>,
        error: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        static USER: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let py = this.py();
        let user = USER.import(py, "polylock._blocking", "_user")?.getattr(intern!(py, "itself"))?;
        match entered_by(this, &user)? {
            Some(lease) => end(&lease, error),
            None if error.is_none() => {
                let why = format!("{} was not entered by this thread, and not by one other alone", this.repr()?);
                Err(PyRuntimeError::new_err(why))
            }
            None => Ok(()),
        }
    }
}

/// Takes the lease of the `with` that `user` ends.
///
/// A generator may be entered by one thread and left by another, as dependencies and fixtures of frameworks are: then it
/// is the only one there is.
fn entered_by<'py>(lock: &Bound<'py, LockEnd>, user: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyAny>>> {
    let held = lock.getattr(intern!(lock.py(), "_held"))?.cast_into::<PyDict>()?;
    let (mut own, mut others) = (None, Vec::new());
    for (key, entry) in held.iter() {
        let (owner, lease, entered) = entry.extract::<(Bound<'_, PyAny>, Bound<'_, PyAny>, bool)>()?;
        match entered {
            true if owner.is(user) => own = Some((key, lease)),
            true => others.push((key, lease)),
            false => {}
        }
    }
    let only = if others.len() == 1 { others.pop() } else { None };
    let Some((key, lease)) = own.or(only) else { return Ok(None) };
    held.del_item(key)?;
    Ok(Some(lease))
}

/// Ends a `with`, by `error` if it does so by one: that says more than anything that goes wrong here.
fn end(lease: &Bound<'_, PyAny>, error: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = lease.py();
    let native = lease.getattr(intern!(py, "_native"))?.cast_into::<Lease>()?;
    let lease = native.get().engines();
    // An exception of a signal handler leaves the release to the engine.
    let failure = match waiting::outcome(py, |driver| async move { lease.end_by(&driver).await })? {
        Ok(outcome) => lost_at_end(lease, outcome == Some(Release::NotHeld)),
        // The parent's, to be released by the parent.
        Err(failure) if failure.kind() == ErrorKind::Forked => None,
        Err(failure) => Some(failure),
    };
    match failure {
        Some(failure) if error.is_none() => Err(to_python(failure)),
        _ => Ok(()),
    }
}

/// The error for a lease that is released at the end of a `with`, if it was lost before that, or was found to be by that: `not_held`.
/// What was given up is never lost later.
pub(crate) fn lost_at_end(lease: &polylock::Lease, not_held: bool) -> Option<Error> {
    let why = match lease.loss().or(not_held.then_some(LossReason::Taken))? {
        LossReason::Expired => "its deadline passed before it was released",
        LossReason::MaxHold => "it was held for longer than max_hold",
        _ => "somebody else took or deleted it before it was released",
    };
    let error = Error::new(ErrorKind::Lost, why).on(lease.resource().as_str());
    Some(lease.last_failure().into_iter().fold(error, Error::caused_by))
}
