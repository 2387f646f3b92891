//! What C wants to be called, and the one thread that calls it.
//!
//! Callbacks run neither on the engine's threads, which a slow one would hold up, nor inside the call that
//! made them due, where the caller may hold a lock of its own. The thread starts with the first callback
//! that is registered, and ends with polylock_shutdown.

use std::{
    ffi::{CString, c_void},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::ThreadId,
    time::Duration,
};

use arc_swap::ArcSwapOption;
use engine::{Error, ErrorKind, Event, LossReason, Result, host};

use crate::{
    abi::{
        polylock_event_callback, polylock_finalizer, polylock_log_callback, polylock_log_level,
        polylock_lost_callback, polylock_ready_callback,
    },
    future::Shared,
    observe::EventText,
};

/// C's own pointer. Its finalizer is called once, when the last user is done with it.
pub(crate) struct Userdata {
    pointer: *mut c_void,
    finalizer: polylock_finalizer,
}

// SAFETY: the library never follows the pointer; C is told that it gets it back on another thread.
unsafe impl Send for Userdata {}
// SAFETY: as above.
unsafe impl Sync for Userdata {}

impl Userdata {
    pub(crate) fn new(pointer: *mut c_void, finalizer: polylock_finalizer) -> Self {
        Self { pointer, finalizer }
    }
}

impl Drop for Userdata {
    fn drop(&mut self) {
        let Some(finalizer) = self.finalizer else { return };
        // Perhaps inside the engine, under a lock that the finalizer may want: so not here.
        let finalize = Finalize { pointer: self.pointer, finalizer };
        if let Ok(dispatcher) = dispatcher() {
            dispatcher.run(move || drop(finalize));
        }
    }
}

/// Finalizes when dropped: by the job that carries it, or with a job that nobody runs any more.
struct Finalize {
    pointer: *mut c_void,
    finalizer: unsafe extern "C" fn(*mut c_void),
}

// SAFETY: as for Userdata.
unsafe impl Send for Finalize {}

impl Drop for Finalize {
    fn drop(&mut self) {
        // SAFETY: C gave the function for this pointer, and it is called this once.
        unsafe { (self.finalizer)(self.pointer) }
    }
}

/// Calls `callback` on the callback thread when the lease with the handle `lease` was lost.
pub(crate) fn lost(callback: polylock_lost_callback, lease: u64, reason: LossReason, userdata: Userdata) {
    let Some(function) = callback else { return };
    later(move || {
        // SAFETY: C gave the function with this userdata, which is not finalized before the call is over.
        unsafe { function(lease, Some(reason).into(), userdata.pointer) }
        drop(userdata);
    });
}

/// Calls `callback` on the callback thread, as `future` is ready; unless it is freed before.
pub(crate) fn ready(callback: polylock_ready_callback, future: &Arc<Shared>, userdata: Userdata) {
    let (Some(function), future) = (callback, Arc::clone(future)) else { return };
    later(move || {
        if !future.is_freed() {
            // SAFETY: as in `lost`.
            unsafe { function(future.handle(), userdata.pointer) }
        }
        drop(userdata);
    });
}

/// Calls `callback` on the callback thread with a message of the log, and `told` when that is done.
pub(crate) fn log(
    callback: polylock_log_callback,
    level: polylock_log_level,
    message: CString,
    userdata: Arc<Userdata>,
    told: impl FnOnce() + Send + 'static,
) {
    let Some(function) = callback else { return };
    later(move || {
        // SAFETY: as in `lost`, and the message lives until the call is over.
        unsafe { function(level, message.as_ptr(), userdata.pointer) }
        told();
    });
}

/// Calls `callback` on the callback thread for each of `events`, until the subscription has `ended`.
pub(crate) fn events(
    callback: polylock_event_callback,
    events: Vec<Event>,
    userdata: &Arc<Userdata>,
    ended: &Arc<AtomicBool>,
) {
    let (Some(function), userdata, ended) = (callback, Arc::clone(userdata), Arc::clone(ended)) else { return };
    later(move || {
        for event in events.iter().filter_map(EventText::new) {
            if ended.load(Ordering::Acquire) {
                break;
            }
            let names = event.names();
            // SAFETY: as in `lost`; the texts live until the end of the call.
            unsafe {
                function(
                    event.kind,
                    names.as_ptr(),
                    names.len(),
                    event.fencing_token,
                    event.duration_ms,
                    event.reason.into(),
                    event.error(),
                    userdata.pointer,
                );
            }
        }
        drop(userdata);
    });
}

fn later(job: impl FnOnce() + Send + 'static) {
    if let Ok(dispatcher) = dispatcher() {
        dispatcher.run(job);
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// The callback thread of one process.
pub(crate) struct Dispatcher {
    generation: u32,
    jobs: mpsc::Sender<Option<Job>>,
    thread: ThreadId,
}

static DISPATCHER: ArcSwapOption<Dispatcher> = ArcSwapOption::const_empty();

/// The callback thread, started if it does not run.
///
/// # Errors
/// `Internal` if the system gives no thread.
pub(crate) fn dispatcher() -> Result<Arc<Dispatcher>> {
    loop {
        let current = DISPATCHER.load_full();
        if let Some(dispatcher) = &current
            && dispatcher.generation == host::generation()
        {
            return Ok(Arc::clone(dispatcher));
        }
        let started = Arc::new(Dispatcher::start()?);
        let found = DISPATCHER.compare_and_swap(&current, Some(Arc::clone(&started)));
        if same(found.as_ref(), current.as_ref()) {
            // The parent's, if there was one: its thread is not here, and its queue may be in any state.
            std::mem::forget(current);
        } else {
            started.stop(Duration::ZERO); // another thread was first
        }
    }
}

fn same(one: Option<&Arc<Dispatcher>>, other: Option<&Arc<Dispatcher>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (None, None) => true,
        _ => false,
    }
}

/// Ends the callback thread once it has done what is due; waits for that up to `timeout`.
pub(crate) fn stop(timeout: Duration) {
    let Some(dispatcher) = DISPATCHER.swap(None) else { return };
    if dispatcher.generation == host::generation() {
        dispatcher.stop(timeout);
    } else {
        std::mem::forget(dispatcher);
    }
}

impl Dispatcher {
    fn start() -> Result<Self> {
        let (jobs, queue) = mpsc::channel::<Option<Job>>();
        let run = move || {
            while let Ok(Some(job)) = queue.recv() {
                job();
            }
        };
        let thread = std::thread::Builder::new().name("polylock-callbk".into()).spawn(run);
        let thread =
            thread.map_err(|error| Error::new(ErrorKind::Internal, format!("no thread for callbacks: {error}")))?;
        Ok(Self { generation: host::generation(), jobs, thread: thread.thread().id() })
    }

    fn run(&self, job: impl FnOnce() + Send + 'static) {
        if let Err(mpsc::SendError(Some(job))) = self.jobs.send(Some(Box::new(job))) {
            job(); // it was stopped just now: better here than never
        }
    }

    fn stop(&self, timeout: Duration) {
        let (done, over) = mpsc::channel::<()>();
        self.run(move || drop(done));
        if self.jobs.send(None).is_ok() && std::thread::current().id() != self.thread {
            let _ = over.recv_timeout(timeout);
        }
    }
}
