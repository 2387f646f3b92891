//! What crosses from Rust to Python when something fails: errors, and panics as errors. And who may cross at all.
//!
//! Where it can be helped no code of Python's is called from here. Up to CPython 3.13 a daemon thread that asks for the GIL when the
//! interpreter ends is taken down then and there, wherever it is: if that is in Python below one of our functions, it unwinds
//! through ours and the process crashes. So a `with` of blocking code ends natively ([`crate::ending`]), where a signal handler could
//! raise at any line of Python's; one of asyncio does not, since what it awaits is Python's.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicI64, Ordering},
};

use polylock::{Error, ErrorKind, host::Trouble};
use pyo3::{exceptions::PyImportError, ffi, prelude::*, sync::PyOnceLock};

/// Refuses a second interpreter in this process: what is kept here (types, the errors' classes) is of the first.
pub(crate) fn only_interpreter(_: Python<'_>) -> PyResult<()> {
    const NONE: i64 = -1;
    static FIRST: AtomicI64 = AtomicI64::new(NONE);
    // SAFETY: both want an attached thread, which the argument is the proof of.
    let current = unsafe { ffi::PyInterpreterState_GetID(ffi::PyInterpreterState_Get()) };
    match FIRST.compare_exchange(NONE, current, Ordering::SeqCst, Ordering::SeqCst) {
        Err(first) if first != current => {
            let why = "polylock is in use by another interpreter of this process, and does not support several of \
                       them (mod_wsgi: use WSGIApplicationGroup %{GLOBAL})";
            Err(PyImportError::new_err(why))
        }
        _ => Ok(()),
    }
}

/// Runs `call`; a panic becomes `InternalError`, which `except Exception` catches, unlike PyO3's own exception.
pub(crate) fn guard<T>(call: impl FnOnce() -> T) -> PyResult<T> {
    catch_panic(call).map_err(to_python)
}

/// As [`guard`], where there is no GIL.
pub(crate) fn catch_panic<T>(call: impl FnOnce() -> T) -> Result<T, Error> {
    // What the closure shares with the rest stays usable: the core's locks recover from poisoning.
    catch_unwind(AssertUnwindSafe(call)).map_err(|panic| panicked(&*panic))
}

/// The error that a panic becomes.
pub(crate) fn panicked(panic: &(dyn std::any::Any + Send)) -> Error {
    let what = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("of an unknown kind");
    Error::new(ErrorKind::Internal, format!("a bug in polylock: panic: {what}"))
}

/// `error` as the Python exception of its kind.
pub(crate) fn to_python(error: Error) -> PyErr {
    Python::attach(|py| match exception(py, error) {
        Ok(exception) => PyErr::from_value(exception.into_bound(py)),
        Err(failure) => failure,
    })
}

/// `error` as an instance of the Python class of its kind. What the engine calls resources are names in Python's arguments.
pub(crate) fn exception(py: Python<'_>, error: Error) -> PyResult<Py<PyAny>> {
    static FROM_NATIVE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let from_native = FROM_NATIVE
        .get_or_try_init(py, || PyResult::Ok(py.import("polylock._errors")?.getattr("from_native")?.unbind()))?;
    let error = error.renamed("resource", "name").renamed("resources", "names");
    let (no_connection, reply) = match error.trouble() {
        Some(Trouble::NoConnection) => (true, None),
        Some(Trouble::Said { reply, .. }) => (false, Some(reply.as_str())),
        None => (false, None),
    };
    let (kind, causes) = (error.kind().name(), error.causes().to_vec());
    let arguments = (kind, error.to_string(), error.resource(), error.argument(), causes, no_connection, reply);
    from_native.call1(py, arguments)
}
