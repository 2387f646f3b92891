//! The one thread that calls what C wants to be called.
//!
//! Callbacks run neither on the engine's threads, which a slow one would hold up, nor inside the call that
//! made them due, where the caller may hold a lock of its own. The thread starts with the first callback
//! that is registered, and ends with polylock_shutdown once it has done what was due; what becomes due later (the end of
//! userdata) starts one that ends by itself. There are never two.
//!
//! A callback may fork. Should it return in the child, too, that thread, the only one there, ends, and the process with it: what else
//! is due is the parent's.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use engine::{
    Error, ErrorKind, Result,
    host::{self, Made, PerProcess},
};

type Job = Box<dyn FnOnce() + Send>;

/// The callback thread of one process.
#[derive(Default)]
struct Dispatcher {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    thread: Option<JoinHandle<()>>,
    /// The thread works, or waits for work.
    runs: bool,
    /// It is to wait for work when there is none.
    stays: bool,
}

static DISPATCHER: PerProcess<Dispatcher> = PerProcess::new(Dispatcher::default);

/// Starts the thread if it does not run: for whoever registers a callback.
///
/// # Errors
/// `Internal` if the system gives no thread.
pub(crate) fn start() -> Result<()> {
    let dispatcher = DISPATCHER.get();
    let mut state = dispatcher.state();
    state.stays = true;
    Dispatcher::start(&dispatcher, &mut state)
}

/// Has the thread run `job`, after all that it was given before.
pub(crate) fn run(job: impl FnOnce() + Send + 'static) {
    let dispatcher = DISPATCHER.get();
    let mut state = dispatcher.state();
    state.jobs.push_back(Box::new(job));
    // If there is no thread to be had now, the next one does it.
    let _ = Dispatcher::start(&dispatcher, &mut state);
    dispatcher.changed.notify_all();
}

/// Ends the thread once it has done what is due; waits for that up to `timeout`, but not on the thread itself.
pub(crate) fn stop(timeout: Duration) {
    let dispatcher = DISPATCHER.get();
    let mut state = dispatcher.state();
    state.stays = false;
    dispatcher.changed.notify_all();
    if state.thread.as_ref().is_some_and(|thread| thread.thread().id() == thread::current().id()) {
        return;
    }
    let waited = dispatcher.changed.wait_timeout_while(state, timeout, |state| state.runs);
    let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
    if !state.runs
        && let Some(thread) = state.thread.take()
    {
        drop(state);
        let _ = thread.join(); // it has done its last
    }
}

impl Dispatcher {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(this: &Arc<Made<Self>>, state: &mut State) -> Result<()> {
        if state.runs {
            return Ok(());
        }
        let (this, generation) = (Arc::clone(this), host::generation());
        let thread = thread::Builder::new().name("polylock-callbk".into()).spawn(move || this.work(generation));
        let thread =
            thread.map_err(|error| Error::new(ErrorKind::Internal, format!("no thread for callbacks: {error}")))?;
        state.thread = Some(thread);
        state.runs = true;
        Ok(())
    }

    fn work(&self, generation: u32) {
        let mut state = self.state();
        loop {
            match state.jobs.pop_front() {
                Some(job) => {
                    drop(state);
                    // It says so by itself; the next ones are not to suffer for it.
                    let _ = catch_unwind(AssertUnwindSafe(job));
                    if generation != host::generation() {
                        return;
                    }
                    state = self.state();
                }
                None if state.stays => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                None => break,
            }
        }
        state.runs = false;
        self.changed.notify_all();
    }
}
