//! How a `with` and a lease end: natively, because a signal handler may raise at any line of Python code.
//!
//! At the first line of an `__exit__` in Python it would leave the lock held for as long as its object lives; at the
//! first of a `__del__` the exception would be swallowed. Here nothing of Python's runs until the lease is known, and it is
//! given back whatever the Python half raises.

use pyo3::{
    exceptions::PyRuntimeError,
    intern,
    prelude::*,
    sync::PyOnceLock,
    types::{PyDict, PyTuple, PyWeakrefReference},
};

use crate::lease::{self, Lease};

/// What a lease of Python's half is made of.
#[pyclass(subclass, frozen, module = "polylock._native")]
pub(crate) struct LeaseEnd;

#[pymethods]
impl LeaseEnd {
    #[new]
    #[pyo3(signature = (*_arguments))]
    fn new(_arguments: &Bound<'_, PyTuple>) -> Self {
        Self
    }

    /// `__exit__` and `__aexit__`: what its `_leave` gives.
    fn _end<'py>(
        this: &Bound<'py, Self>,
        _kind: &Bound<'py, PyAny>,
        error: &Bound<'py, PyAny>,
        _traceback: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        end(this, error)
    }

    /// `__del__`. Python's half is called for what was not released.
    fn _collected(this: &Bound<'_, Self>) -> PyResult<()> {
        let py = this.py();
        // An interrupt may have come before it had one.
        let Ok(native) = native_of(this) else { return Ok(()) };
        // The listeners of one that was lost are still to be called.
        let over = !native.get().engines().is_held() && this.getattr(intern!(py, "_listeners"))?.is_none();
        if over || native.get().engines().loss().is_some() {
            return Ok(());
        }
        this.call_method0(intern!(py, "_left_behind"))?;
        Ok(())
    }
}

/// What a lock of Python's half is made of. It has a dictionary `_held` of the leases: to whoever acquired each, the
/// lease, and whether it was by `with`; the newest last.
#[pyclass(subclass, frozen, module = "polylock._native")]
pub(crate) struct LockEnd;

#[pymethods]
impl LockEnd {
    #[new]
    #[pyo3(signature = (*_arguments))]
    fn new(_arguments: &Bound<'_, PyTuple>) -> Self {
        Self
    }

    /// `__exit__`: ends what this thread entered.
    fn _end_in_thread<'py>(
        this: &Bound<'py, Self>,
        _kind: &Bound<'py, PyAny>,
        error: &Bound<'py, PyAny>,
        _traceback: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        static THREAD: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let py = this.py();
        let thread = THREAD.import(py, "polylock._blocking", "_user")?.getattr(intern!(py, "itself"))?;
        match entered_by(this, &thread)? {
            Some(lease) => end(&lease, error),
            None if error.is_none() => Err(not_entered(this)?),
            None => Ok(py.None().into_bound(py)),
        }
    }

    /// `__aexit__`: ends what this task entered.
    fn _end_in_task<'py>(
        this: &Bound<'py, Self>,
        _kind: &Bound<'py, PyAny>,
        error: &Bound<'py, PyAny>,
        _traceback: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        static CURRENT: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let py = this.py();
        let mut task = CURRENT.import(py, "polylock.asyncio._manager", "current_task")?.call0()?;
        if !task.is_none() {
            task = PyWeakrefReference::new(&task)?.into_any();
        }
        match entered_by(this, &task)? {
            Some(lease) => end(&lease, error),
            None if error.is_none() => Err(not_entered(this)?),
            None => this.call_method0(intern!(py, "_nothing")),
        }
    }
}

fn native_of<'py>(lease: &Bound<'py, PyAny>) -> PyResult<Bound<'py, Lease>> {
    Ok(lease.getattr(intern!(lease.py(), "_native"))?.cast_into::<Lease>()?)
}

/// Has Python's half release it, and begins the release itself if that does not come to it.
fn end<'py>(lease: &Bound<'py, PyAny>, error: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let native = native_of(lease)?;
    let left = lease.call_method1(intern!(lease.py(), "_leave"), (error,));
    if left.is_err() {
        lease::release_in_background(native.get().engines());
    }
    left
}

/// Takes the lease of the `with` that `user` ends.
///
/// A generator may be entered by one thread or task and left by another, as dependencies and fixtures of frameworks
/// are: then it is the only one there is.
fn entered_by<'py>(lock: &Bound<'py, LockEnd>, user: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyAny>>> {
    let held = lock.getattr(intern!(lock.py(), "_held"))?.cast_into::<PyDict>()?;
    let (mut own, mut others) = (None, Vec::new());
    for (key, entry) in held.iter() {
        let (owner, lease, entered) = entry.extract::<(Bound<'_, PyAny>, Bound<'_, PyAny>, bool)>()?;
        match entered {
            true if owner.eq(user)? => own = Some((key, lease)),
            true => others.push((key, lease)),
            false => {}
        }
    }
    let only = if others.len() == 1 { others.pop() } else { None };
    let Some((key, lease)) = own.or(only) else { return Ok(None) };
    held.del_item(key)?;
    Ok(Some(lease))
}

fn not_entered(lock: &Bound<'_, LockEnd>) -> PyResult<PyErr> {
    let lock = lock.repr()?;
    let why = format!("{lock} was not entered by this thread or task, and not by one other alone");
    Ok(PyRuntimeError::new_err(why))
}
