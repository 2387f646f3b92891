//! What crosses from Rust to Python when something fails: errors, and panics as errors.

use std::panic::{AssertUnwindSafe, catch_unwind};

use polylock::{Error, ErrorKind};
use pyo3::{prelude::*, sync::PyOnceLock};

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
    Python::attach(|py| match exception(py, &error) {
        Ok(exception) => PyErr::from_value(exception.into_bound(py)),
        Err(failure) => failure,
    })
}

/// `error` as an instance of the Python class of its kind.
pub(crate) fn exception(py: Python<'_>, error: &Error) -> PyResult<Py<PyAny>> {
    static FROM_NATIVE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let from_native = FROM_NATIVE
        .get_or_try_init(py, || PyResult::Ok(py.import("polylock._errors")?.getattr("from_native")?.unbind()))?;
    from_native.call1(
        py,
        (error.kind().name(), error.to_string(), error.resource(), error.argument(), error.causes().to_vec()),
    )
}
