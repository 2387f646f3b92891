//! Looking at locks from outside, breaking them, and hearing what happens to leases.

use std::{
    ffi::{CString, c_char, c_void},
    ptr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use engine::{Error, Event, EventKind, Events, Result, Seen, blocking::wait, host};

use crate::{
    abi::{
        polylock_error, polylock_event, polylock_event_callback, polylock_finalizer, polylock_holder,
        polylock_manager, polylock_status, polylock_subscription,
    },
    boundary,
    callback::{self, Userdata},
    dispatcher,
    error::c_string,
    holder::HolderText,
    manager::manager,
    object::{discard, keep},
    pointer::{Out, Text},
};

fn list(
    handle: polylock_manager,
    pattern: Result<&str>,
    holders: *mut polylock_holder,
    capacity: usize,
    count: *mut usize,
) -> Result<()> {
    let (manager, pattern) = (manager(handle)?, pattern?);
    let (place, counted) = (holders.required("holders")?, count.required("count")?);
    let found = wait(|driver| async move { manager.list_by(pattern, capacity, &driver).await });
    let found = found.map_err(|error| match error.argument() {
        Some("limit") => Error::invalid("capacity", format!("must be 1 to 100,000, not {capacity}")),
        _ => error,
    })?;
    let mut handles = Vec::with_capacity(found.len());
    for holder in &found {
        match keep(HolderText::new(holder)) {
            Ok(handle) => handles.push(handle),
            Err(error) => {
                for handle in handles {
                    discard::<HolderText>(handle)?;
                }
                return Err(error);
            }
        }
    }
    counted.put(handles.len());
    place.put_all(handles);
    Ok(())
}

/// Who holds the resources whose names match a pattern: an entry for each holder, in the order of the names. On Redis
/// it goes through all keys of the server, step by step without holding it up, and finds what this library holds; a
/// lock of another library is found by its full name alone. Blocks.
///
/// @param pattern * stands for any text, ? for any one character, a backslash takes the next character as it is.
/// @param holders out: up to `capacity` of them, each to be freed with polylock_holder_free.
/// @param capacity for how many there is room: 1 to 100,000.
/// @param count out: how many they are. As many as `capacity` may not be all that there are.
/// @return POLYLOCK_ERR_UNSUPPORTED if the backend cannot tell (POLYLOCK_CAN_LIST), else as polylock_inspect.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_list(
    manager: polylock_manager,
    pattern: *const c_char,
    holders: *mut polylock_holder,
    capacity: usize,
    count: *mut usize,
    err: *mut polylock_error,
) -> polylock_status {
    boundary::status(err, || list(manager, pattern.text("pattern"), holders, capacity, count))
}

fn break_lock(handle: polylock_manager, resource: Result<&str>, seen: Result<Seen>, broken: *mut bool) -> Result<()> {
    let (manager, resource, seen) = (manager(handle)?, resource?, seen?);
    let place = broken.required("broken")?;
    place.put(wait(|driver| async move { manager.break_lock_by(resource, seen, &driver).await })?);
    Ok(())
}

/// Frees a resource though somebody holds it, if that is still the holder that was seen. The holder is told that its
/// lease is lost no later than at its next renewal; until then it may go on: break a lock when its holder is dead or
/// hung, or where the fencing token is checked. Blocks.
///
/// @param fencing_token of the holder, as polylock_inspect or polylock_list showed it.
/// @param broken out: whether it was that one's. If not, nothing was done.
/// @return POLYLOCK_ERR_UNSUPPORTED if the backend cannot break a lock (POLYLOCK_CAN_BREAK), _UNAVAILABLE if it did not
///         answer (it may have been freed or not), else as polylock_inspect.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_break(
    manager: polylock_manager,
    resource: *const c_char,
    fencing_token: u64,
    broken: *mut bool,
    err: *mut polylock_error,
) -> polylock_status {
    boundary::status(err, || {
        break_lock(manager, resource.text("resource"), Ok(Seen::FencingToken(fencing_token)), broken)
    })
}

/// As polylock_break, by the owner that polylock_holder_owner gave: also of a holder without a fencing token.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_break_owner(
    manager: polylock_manager,
    resource: *const c_char,
    owner: *const c_char,
    broken: *mut bool,
    err: *mut polylock_error,
) -> polylock_status {
    boundary::status(err, || {
        let owner = owner.text("owner").map(|owner| Seen::Owner(owner.to_owned()));
        break_lock(manager, resource.text("resource"), owner, broken)
    })
}

/// What was done through a manager since it was made, in the text format of Prometheus (`text/plain; version=0.0.4`).
/// Asks no server; also works when the manager is closed.
///
/// @param buffer out: the text, ended by NUL, if there is room for all of it; else nothing. May be NULL if `size` is 0.
/// @param size of the buffer in bytes.
/// @param length out: how long the text is in bytes, without its NUL. Not smaller than `size`: ask again with more room.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_metrics_text(
    manager: polylock_manager,
    buffer: *mut c_char,
    size: usize,
    length: *mut usize,
    err: *mut polylock_error,
) -> polylock_status {
    boundary::status(err, || {
        let text = self::manager(manager)?.metrics()?.to_prometheus();
        let counted = length.required("length")?;
        if text.len() < size {
            let bytes = text.bytes().chain([0]).map(|byte| byte as c_char);
            buffer.required("buffer")?.put_all(bytes.collect());
        }
        counted.put(text.len());
        Ok(())
    })
}

/// A subscription; dropping it ends it.
pub(crate) struct Subscription {
    events: Arc<Events>,
    ended: Arc<AtomicBool>,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        self.events.close();
    }
}

/// Has `callback` called, on the callback thread and in batches, for what happens to a manager's leases from now on,
/// until the subscription is freed or the manager is closed. Nobody who acquires or releases waits for it.
///
/// @param callback called for each event; what it points at lives for the time of the call.
/// @param userdata handed to the callback.
/// @param finalizer called once with userdata, after the last call. Also if this fails. May be NULL.
/// @param subscription out: to be freed with polylock_subscription_free.
/// @return POLYLOCK_ERR_CLOSED, _FORKED, _INVALID_HANDLE, _INVALID_ARGUMENT, _INTERNAL.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_on_event(
    manager: polylock_manager,
    callback: polylock_event_callback,
    userdata: *mut c_void,
    finalizer: polylock_finalizer,
    subscription: *mut polylock_subscription,
    err: *mut polylock_error,
) -> polylock_status {
    boundary::status(err, || {
        let userdata = Arc::new(Userdata::new(userdata, finalizer));
        let manager = self::manager(manager)?;
        let place = subscription.required("subscription")?;
        if callback.is_none() {
            return Err(Error::invalid("callback", "must not be NULL"));
        }
        dispatcher::start()?;
        let events = Arc::new(manager.events()?);
        let ended = Arc::new(AtomicBool::new(false));
        let handle = keep(Subscription { events: Arc::clone(&events), ended: Arc::clone(&ended) })?;
        let told = host::try_spawn(async move {
            while let Some(batch) = events.next().await {
                callback::events(callback, batch, &userdata, &ended);
            }
        });
        if let Err(error) = told {
            discard::<Subscription>(handle)?;
            return Err(error);
        }
        place.put(handle);
        Ok(())
    })
}

/// Ends a subscription: no callback begins any more; it does not wait for one that is under way (the finalizer says when it
/// is over). 0 is allowed.
///
/// @return POLYLOCK_OK or POLYLOCK_ERR_INVALID_HANDLE.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_subscription_free(subscription: polylock_subscription) -> polylock_status {
    boundary::bare_status(|| discard::<Subscription>(subscription))
}

/// An event with texts as C has them.
pub(crate) struct EventText {
    pub(crate) kind: polylock_event,
    names: Vec<CString>,
    pub(crate) fencing_token: u64,
    pub(crate) duration_ms: f64,
    pub(crate) reason: Option<engine::LossReason>,
    error: Option<CString>,
}

impl EventText {
    pub(crate) fn new(event: &Event) -> Option<Self> {
        Some(Self {
            kind: match event.kind {
                EventKind::Acquired => polylock_event::POLYLOCK_EVENT_ACQUIRED,
                EventKind::Contended => polylock_event::POLYLOCK_EVENT_CONTENDED,
                EventKind::Extended => polylock_event::POLYLOCK_EVENT_EXTENDED,
                EventKind::ExtensionFailed => polylock_event::POLYLOCK_EVENT_EXTENSION_FAILED,
                EventKind::Lost => polylock_event::POLYLOCK_EVENT_LOST,
                EventKind::Released => polylock_event::POLYLOCK_EVENT_RELEASED,
                // One that this header has no number for.
                _ => return None,
            },
            names: event.resources.iter().map(|resource| c_string(resource.as_str())).collect(),
            fencing_token: event.fencing_token.unwrap_or(0),
            duration_ms: event.duration.map_or(-1.0, |duration| duration.as_secs_f64() * 1000.0),
            reason: event.reason,
            error: event.error.as_deref().map(c_string),
        })
    }

    pub(crate) fn names(&self) -> Vec<*const c_char> {
        self.names.iter().map(|name| name.as_ptr()).collect()
    }

    pub(crate) fn error(&self) -> *const c_char {
        self.error.as_ref().map_or(ptr::null(), |error| error.as_ptr())
    }
}
