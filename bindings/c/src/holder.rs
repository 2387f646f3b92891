//! Who holds a resource.

use std::{
    ffi::{CString, c_char},
    ptr,
    time::{Duration, SystemTime},
};

use engine::Holder;

use crate::{
    abi::{polylock_holder, polylock_status},
    boundary,
    error::c_string,
    object::{discard, find},
};

/// What the backend said of a holder, with texts as C has them.
pub(crate) struct HolderText {
    resource: CString,
    mode: CString,
    owner: CString,
    label: Option<CString>,
    host: Option<CString>,
    fencing_token: Option<u64>,
    expires_in: Option<Duration>,
    since: Option<SystemTime>,
    pid: Option<u32>,
    waiting: Option<u32>,
}

impl HolderText {
    pub(crate) fn new(holder: &Holder) -> Self {
        Self {
            resource: c_string(holder.resource.as_str()),
            mode: c_string(holder.mode),
            owner: c_string(&holder.owner),
            label: holder.label.as_deref().map(c_string),
            host: holder.host.as_deref().map(c_string),
            fencing_token: holder.fencing_token,
            expires_in: holder.expires_in,
            since: holder.since,
            pid: holder.pid,
            waiting: holder.waiting,
        }
    }
}

/// The holder's owner token; any text if another library holds it. Lives until the holder is freed; NULL if the
/// handle is not valid.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_holder_owner(holder: polylock_holder) -> *const c_char {
    boundary::value(ptr::null(), || Some(find::<HolderText>(holder).ok()?.owner.as_ptr()))
}

/// What is held. Lives until the holder is freed; NULL if the handle is not valid.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_holder_resource(holder: polylock_holder) -> *const c_char {
    boundary::value(ptr::null(), || Some(find::<HolderText>(holder).ok()?.resource.as_ptr()))
}

/// How it is held: "exclusive", "shared" or "permit". Lives until the holder is freed; NULL if the handle is not valid.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_holder_mode(holder: polylock_holder) -> *const c_char {
    boundary::value(ptr::null(), || Some(find::<HolderText>(holder).ok()?.mode.as_ptr()))
}

/// How many managers, in all processes, have somebody waiting for the resource; -1 if the backend does not know.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_holder_waiting(holder: polylock_holder) -> i64 {
    boundary::value(-1, || Some(i64::from(find::<HolderText>(holder).ok()?.waiting?)))
}

/// What the holder called itself (polylock_options_set_label), or NULL. Lives until the holder is freed.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_holder_label(holder: polylock_holder) -> *const c_char {
    boundary::value(ptr::null(), || Some(find::<HolderText>(holder).ok()?.label.as_ref()?.as_ptr()))
}

/// Where the holder's process runs, or NULL if the backend does not know. Lives until the holder is freed.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_holder_host(holder: polylock_holder) -> *const c_char {
    boundary::value(ptr::null(), || Some(find::<HolderText>(holder).ok()?.host.as_ref()?.as_ptr()))
}

/// The holder's process id, or 0 if the backend does not know.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_holder_pid(holder: polylock_holder) -> u32 {
    boundary::value(0, || find::<HolderText>(holder).ok()?.pid)
}

/// The holder's fencing token, or 0 if it has none.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_holder_fencing_token(holder: polylock_holder) -> u64 {
    boundary::value(0, || find::<HolderText>(holder).ok()?.fencing_token)
}

/// In how many milliseconds it expires unless it is extended; negative if it does not, or that is not known.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_holder_expires_in_ms(holder: polylock_holder) -> f64 {
    boundary::value(-1.0, || Some(find::<HolderText>(holder).ok()?.expires_in?.as_secs_f64() * 1000.0))
}

/// When it was acquired, in milliseconds since 1970 by the holder's wall clock; 0 if the backend does not know.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_holder_since_unix_ms(holder: polylock_holder) -> i64 {
    boundary::value(0, || {
        let since = find::<HolderText>(holder).ok()?.since?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
        i64::try_from(since.as_millis()).ok()
    })
}

/// Ends a holder. Its strings end with it. 0 is allowed.
///
/// @return POLYLOCK_OK or POLYLOCK_ERR_INVALID_HANDLE.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_holder_free(holder: polylock_holder) -> polylock_status {
    boundary::bare_status(|| discard::<HolderText>(holder))
}
