//! Blocking calls: on the caller's own thread, without the GIL, and ended by Ctrl-C.

use std::{
    cell::Cell,
    future::Future,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use polylock::{
    Error, ErrorKind, Result, blocking,
    host::{Driver, generation},
};
use pyo3::prelude::*;

use crate::boundary::{catch_panic, to_python};

/// How often the main thread looks for signals while it waits. Two of these are the most that Ctrl-C takes.
pub(crate) const TICK: Duration = Duration::from_millis(45);

static ENDING: AtomicBool = AtomicBool::new(false);

/// The interpreter is about to end: see [`stay_quiet`].
pub(crate) fn process_ends() {
    ENDING.store(true, Ordering::Release);
}

/// Runs `operation` to its end on this thread with the GIL released.
///
/// On the main thread signal handlers run meanwhile, and an exception that one raises ends the operation; what
/// it won is given back. Other threads have no signals to look for and sleep through.
pub(crate) fn wait<T, F>(py: Python<'_>, operation: impl FnOnce(Driver) -> F + Send) -> PyResult<T>
where
    T: Send,
    F: Future<Output = Result<T>>,
{
    outcome(py, operation)?.map_err(to_python)
}

/// The same, but what the engine fails with is no exception yet: one that is raised is a signal handler's.
pub(crate) fn outcome<T, F>(py: Python<'_>, operation: impl FnOnce(Driver) -> F + Send) -> PyResult<Result<T>>
where
    T: Send,
    F: Future<Output = Result<T>>,
{
    let main = is_main_thread(py)?;
    py.detach(move || {
        let mut raised = None;
        let outcome = catch_panic(|| {
            if !main {
                return Some(blocking::wait(operation));
            }
            let mut looked = Instant::now();
            blocking::wait_unless(operation, TICK, || {
                // This is called after every wake-up, and the GIL may be dear: look only so often.
                if looked.elapsed() < TICK {
                    return true;
                }
                looked = Instant::now();
                raised = Python::attach(|py| py.check_signals()).err();
                raised.is_none()
            })
        });
        match (outcome, raised) {
            (Err(panic), _) => Ok(Err(panic)),
            (Ok(Some(Ok(value))), _) => Ok(Ok(value)),
            (Ok(Some(Err(error))), _) => {
                if !main {
                    stay_quiet(&error);
                }
                Ok(Err(error))
            }
            (Ok(None), Some(raised)) => Err(raised),
            (Ok(None), None) => Ok(Err(Error::new(ErrorKind::Internal, "interrupted by nothing"))),
        }
    })
}

/// Whether this is said because the process ends.
pub(crate) fn is_of_the_end(error: &Error) -> bool {
    error.kind() == ErrorKind::Closed && ENDING.load(Ordering::Acquire)
}

/// A daemon thread that still waits when the process ends is told `Closed`, but should not print a traceback for
/// it in the last milliseconds. So it lingers; for a bounded time, in case somebody joins it.
fn stay_quiet(error: &Error) {
    if is_of_the_end(error) {
        std::thread::sleep(Duration::from_secs(5));
    }
}

/// Whether this is the thread on which Python runs signal handlers.
fn is_main_thread(py: Python<'_>) -> PyResult<bool> {
    thread_local! {
        // For which process it was found out: after a fork the forking thread is the main thread.
        static MAIN: Cell<Option<(u32, bool)>> = const { Cell::new(None) };
    }
    let generation = generation();
    if let Some((known, main)) = MAIN.get()
        && known == generation
    {
        return Ok(main);
    }
    let threading = py.import("threading")?;
    let main = threading.call_method0("main_thread")?.getattr("ident")?;
    let main = threading.call_method0("get_ident")?.eq(main)?;
    MAIN.set(Some((generation, main)));
    Ok(main)
}
