//! What C wants to be called, by the [callback thread](dispatcher).

use std::{
    ffi::{CString, c_int, c_void},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use engine::{Event, LossReason, host};

use crate::{
    abi::{
        polylock_event_callback, polylock_finalizer, polylock_log_callback, polylock_log_level,
        polylock_lost_callback, polylock_ready_callback, polylock_write_callback,
    },
    dispatcher,
    future::Shared,
    observe::EventText,
};

/// C's own pointer. Its finalizer is called once, when the last user is done with it: in the process that gave it, not
/// in the child of a fork.
pub(crate) struct Userdata {
    pointer: *mut c_void,
    finalizer: polylock_finalizer,
    generation: u32,
}

// SAFETY: the library never follows the pointer; C is told that it gets it back on another thread.
unsafe impl Send for Userdata {}
// SAFETY: as above.
unsafe impl Sync for Userdata {}

impl Userdata {
    pub(crate) fn new(pointer: *mut c_void, finalizer: polylock_finalizer) -> Self {
        Self { pointer, finalizer, generation: host::generation() }
    }
}

impl Drop for Userdata {
    fn drop(&mut self) {
        let Some(finalizer) = self.finalizer.filter(|_| self.generation == host::generation()) else { return };
        // Perhaps inside the engine, under a lock that the finalizer may want: so not here.
        let finalize = Finalize { pointer: self.pointer, finalizer };
        dispatcher::run(move || drop(finalize));
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

/// Calls `callback` here and now; what it answers if it refuses.
pub(crate) fn write(
    callback: polylock_write_callback,
    userdata: *mut c_void,
) -> Result<impl Fn(u64) -> Result<(), c_int>, engine::Error> {
    let function = callback.ok_or_else(|| engine::Error::invalid("write", "must not be NULL"))?;
    // SAFETY: C gave the function with this userdata, for the time of its call.
    Ok(move |token| match unsafe { function(token, userdata) } {
        0 => Ok(()),
        refused => Err(refused),
    })
}

/// Calls `callback` on the callback thread when the lease with the handle `lease` was lost.
pub(crate) fn lost(callback: polylock_lost_callback, lease: u64, reason: LossReason, userdata: Userdata) {
    let Some(function) = callback else { return };
    dispatcher::run(move || {
        // SAFETY: C gave the function with this userdata, which is not finalized before the call is over.
        unsafe { function(lease, Some(reason).into(), userdata.pointer) }
        drop(userdata);
    });
}

/// Calls `callback` on the callback thread, as `future` is ready; unless it is freed before.
pub(crate) fn ready(callback: polylock_ready_callback, future: &Arc<Shared>, userdata: Userdata) {
    let (Some(function), future) = (callback, Arc::clone(future)) else { return };
    dispatcher::run(move || {
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
    dispatcher::run(move || {
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
    dispatcher::run(move || {
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
