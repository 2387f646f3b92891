//! Errors as objects.

use std::{
    ffi::{CString, c_char},
    ptr,
};

use engine::Error;

use crate::{
    abi::{polylock_error, polylock_status},
    boundary,
    object::{discard, find},
};

/// What C can ask about a call that failed.
pub(crate) struct Failure {
    status: polylock_status,
    message: CString,
    argument: Option<CString>,
    resource: Option<CString>,
    retryable: bool,
}

impl Failure {
    pub(crate) fn new(error: &Error) -> Self {
        Self {
            status: error.kind().into(),
            message: c_string(&error.to_string()),
            argument: error.argument().map(c_string),
            resource: error.resource().map(c_string),
            retryable: error.is_retryable(),
        }
    }
}

/// `text` for C, where NUL ends a string.
pub(crate) fn c_string(text: &str) -> CString {
    CString::new(text.replace('\0', "\u{fffd}")).unwrap_or_default()
}

/// The status that the failed call returned. POLYLOCK_OK for 0, POLYLOCK_ERR_INVALID_HANDLE for what is no error.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_error_code(error: polylock_error) -> polylock_status {
    if error == 0 {
        return polylock_status::POLYLOCK_OK;
    }
    let invalid = polylock_status::POLYLOCK_ERR_INVALID_HANDLE;
    boundary::value(invalid, || Some(find::<Failure>(error).map_or(invalid, |failure| failure.status)))
}

/// A sentence that names the resource, what was done and why it failed. Never holds a password.
/// Lives until the error is freed. "" for 0 and for what is no error.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_error_message(error: polylock_error) -> *const c_char {
    boundary::value(c"".as_ptr(), || Some(find::<Failure>(error).ok()?.message.as_ptr()))
}

/// The argument that was wrong, for POLYLOCK_ERR_INVALID_ARGUMENT: "url", "resource", "ttl" … NULL otherwise.
/// Lives until the error is freed.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_error_argument(error: polylock_error) -> *const c_char {
    boundary::value(ptr::null(), || Some(find::<Failure>(error).ok()?.argument.as_ref()?.as_ptr()))
}

/// The resource that the call was about, or NULL. Lives until the error is freed.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_error_resource(error: polylock_error) -> *const c_char {
    boundary::value(ptr::null(), || Some(find::<Failure>(error).ok()?.resource.as_ref()?.as_ptr()))
}

/// Whether the same call may succeed later without any change.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_error_is_retryable(error: polylock_error) -> bool {
    boundary::value(false, || Some(find::<Failure>(error).ok()?.retryable))
}

/// Ends an error. Its strings end with it. 0 is allowed.
///
/// @return POLYLOCK_OK or POLYLOCK_ERR_INVALID_HANDLE.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_error_free(error: polylock_error) -> polylock_status {
    boundary::bare_status(|| discard::<Failure>(error))
}
