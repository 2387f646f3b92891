//! The operations and leases of one event loop.

use std::{
    collections::HashMap,
    future::Future,
    os::fd::{AsFd, AsRawFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use polylock::host::{CompletionQueue, OperationId, Started};
use pyo3::{IntoPyObjectExt, prelude::*};

use crate::{
    arguments,
    boundary::{self, to_python},
    lease,
    outcome::{self, Outcome},
    waiting,
};

/// What is watched by one event loop, or by the thread that calls back for blocking code.
#[pyclass(frozen, module = "polylock._native")]
pub(crate) struct Queue {
    operations: CompletionQueue<Outcome>,
    held: Held,
    /// A `flush` will follow: what is started until then shares a system call.
    gathering: AtomicBool,
}

#[pymethods]
impl Queue {
    #[new]
    fn new() -> PyResult<Self> {
        let operations = boundary::guard(CompletionQueue::new)?.map_err(to_python)?;
        Ok(Self { operations, held: Held::default(), gathering: AtomicBool::new(false) })
    }

    /// The descriptor to watch for reading.
    fn fileno(&self) -> i32 {
        self.operations.as_fd().as_raw_fd()
    }

    /// Moves everything on without waiting: `(number, value)` of what has finished. A failure is an exception object.
    fn turn(&self, py: Python<'_>) -> PyResult<Vec<(OperationId, Py<PyAny>)>> {
        // With the GIL: this does not wait, and giving the GIL away could cost the loop a switch interval.
        let finished = boundary::guard(|| self.operations.turn())?;
        self.to_python(py, finished)
    }

    /// As `turn`, but waits up to `timeout` seconds for something to happen, with the GIL released.
    fn turn_within(&self, py: Python<'_>, timeout: &Bound<'_, PyAny>) -> PyResult<Vec<(OperationId, Py<PyAny>)>> {
        let timeout = arguments::seconds("timeout", timeout)?;
        let finished = py.detach(|| boundary::guard(|| self.operations.turn_within(timeout)))?;
        self.to_python(py, finished)
    }

    /// What is started from now on is sent by `flush`, which is to be called before the loop sleeps.
    fn gather(&self) {
        self.gathering.store(true, Ordering::Relaxed);
    }

    /// Sends what was gathered.
    fn flush(&self) -> PyResult<()> {
        self.gathering.store(false, Ordering::Relaxed);
        boundary::guard(|| self.operations.flush())
    }

    /// A number for what comes by `push` or a signal of loss.
    fn reserve(&self) -> PyResult<OperationId> {
        self.operations.reserve().map_err(to_python)
    }

    /// Has the next turn return `(number, None)`. From any thread; says whether the queue is open.
    fn push(&self, number: OperationId) -> bool {
        self.operations.push(number, Outcome::Nothing).is_ok()
    }

    /// Ends an operation and gives back what it won; `False` if its result has been handed out.
    fn cancel(&self, py: Python<'_>, number: OperationId) -> PyResult<bool> {
        py.detach(|| boundary::guard(|| self.operations.cancel(number)))
    }

    /// Operations whose result has not been handed out.
    fn pending(&self) -> usize {
        self.operations.pending()
    }

    /// Ends all operations, and releases in the background the leases that were acquired here.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| {
            boundary::guard(|| {
                self.operations.close();
                for lease in self.held.all() {
                    lease::release_in_background(&lease);
                }
            })
        })
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // The loop is gone, and with it whoever could release these.
        for lease in self.held.all() {
            lease::release_in_background(&lease);
        }
    }
}

impl Queue {
    /// The queue itself, for signals of loss.
    pub(crate) fn operations(&self) -> &CompletionQueue<Outcome> {
        &self.operations
    }

    /// Starts an operation: its number, or its value if it is done already; a failure is raised.
    pub(crate) fn start<F>(
        &self,
        py: Python<'_>,
        operation: impl FnOnce(polylock::host::Driver) -> F,
    ) -> PyResult<Py<PyAny>>
    where
        F: Future<Output = polylock::Result<Outcome>> + Send + 'static,
    {
        // In a box from here on: it is a kilobyte, which each call would move.
        let operation = Box::pin(outcome::of(operation(self.operations.driver())));
        let started = boundary::guard(|| {
            if self.gathering.load(Ordering::Relaxed) {
                self.operations.begin(operation)
            } else {
                self.operations.start(operation)
            }
        })?;
        match started.map_err(to_python)? {
            Started::Pending(id) => id.into_py_any(py),
            // By way of the loop, which does not tell a daemon thread in the last milliseconds.
            Started::Done(Outcome::Failed(error)) if waiting::is_of_the_end(&error) => {
                let id = self.operations.reserve().map_err(to_python)?;
                let _ = self.operations.push(id, Outcome::Failed(error));
                id.into_py_any(py)
            }
            Started::Done(Outcome::Failed(error)) => Err(to_python(error)),
            Started::Done(value) => value.into_python(py, &self.held),
        }
    }

    fn to_python(
        &self,
        py: Python<'_>,
        finished: Vec<(OperationId, Outcome)>,
    ) -> PyResult<Vec<(OperationId, Py<PyAny>)>> {
        // One that fails to convert drops the others, which gives their leases back.
        finished.into_iter().map(|(id, value)| Ok((id, value.into_python(py, &self.held)?))).collect()
    }
}

/// The leases that were acquired on a loop: they end with it.
#[derive(Clone, Default)]
pub(crate) struct Held(Arc<Mutex<HashMap<usize, Weak<polylock::Lease>>>>);

impl Held {
    fn leases(&self) -> MutexGuard<'_, HashMap<usize, Weak<polylock::Lease>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn all(&self) -> Vec<Arc<polylock::Lease>> {
        self.leases().values().filter_map(Weak::upgrade).collect()
    }

    pub(crate) fn enter(&self, lease: &Arc<polylock::Lease>) {
        self.leases().insert(Arc::as_ptr(lease) as usize, Arc::downgrade(lease));
    }

    pub(crate) fn leave(&self, lease: &Arc<polylock::Lease>) {
        self.leases().remove(&(Arc::as_ptr(lease) as usize));
    }
}
