//! The native half of the Python package `polylock`: convert, call, convert back.
//!
//! Private: the public classes, their types and documentation are Python files in `python/polylock`, and the names
//! here may change. There is no lock logic here, and no Python object is ever held by the engine: what the engine
//! finishes is pushed to a queue as a Rust value under a number, and the number is looked up with the GIL held.

// The classes of this module are not Rust API.
#![allow(missing_docs)]

mod arguments;
mod boundary;
mod ending;
mod lease;
mod manager;
mod observe;
mod outcome;
mod queue;
mod waiting;

use pyo3::prelude::*;

// Not declared free of the GIL: that is not tested on a free-threaded Python.
#[pymodule(gil_used = true)]
mod _native {
    use std::{ffi::OsString, time::Duration};

    use pyo3::prelude::*;

    use crate::{arguments, boundary, waiting};
    #[pymodule_export]
    use crate::{
        ending::{LeaseEnd, LockEnd},
        lease::Lease,
        manager::Manager,
        observe::Events,
        queue::Queue,
    };

    /// Releases every lease of this process, which ends, and stops the engine; returns within about `timeout` seconds.
    #[pyfunction]
    fn shutdown(py: Python<'_>, timeout: &Bound<'_, PyAny>) -> PyResult<()> {
        let timeout = arguments::seconds("timeout", timeout)?;
        waiting::process_ends();
        py.detach(|| boundary::guard(|| polylock::host::end(timeout)))?;
        Ok(())
    }

    /// Numbers and names of the kinds of errors.
    #[pyfunction]
    fn error_kinds() -> Vec<(u32, &'static str)> {
        polylock::ErrorKind::ALL.into_iter().map(|kind| (kind.code(), kind.name())).collect()
    }

    /// Does what the command line `polylock` is told; the first argument is the program's name. Returns the status.
    #[pyfunction]
    fn command_line(py: Python<'_>, arguments: Vec<OsString>) -> PyResult<u8> {
        py.detach(|| boundary::guard(|| polylock_cli::command_line(arguments)))
    }

    /// The parent's lock files, which the child of a fork has to close.
    #[pyfunction]
    fn inherited_fds() -> Vec<i32> {
        polylock::host::inherited_fds()
    }

    /// Panics inside the boundary, so that a test can see what a panic becomes.
    #[pyfunction]
    fn panic_for_test(message: String) -> PyResult<()> {
        boundary::guard(|| std::panic::resume_unwind(Box::new(message)))
    }

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        boundary::only_interpreter(module.py())?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        // The longest slice of a wait before Ctrl-C is looked for.
        module.add("SIGNAL_TICK", waiting::TICK.as_secs_f64())?;
        debug_assert!(waiting::TICK < Duration::from_millis(100));
        Ok(())
    }
}
