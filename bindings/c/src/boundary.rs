//! The edge: no panic leaves the library, and every error becomes a status and, if C wants one, an object.

use std::panic::{AssertUnwindSafe, catch_unwind};

use engine::{Error, ErrorKind, Result};

use crate::{
    abi::{polylock_error, polylock_status},
    error::Failure,
    object,
    pointer::Out,
};

/// Runs a function that can fail. What it changes stays consistent over a panic, because the engine's locks do
/// not mind poison.
pub(crate) fn status(err: *mut polylock_error, body: impl FnOnce() -> Result<()>) -> polylock_status {
    let error = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return polylock_status::POLYLOCK_OK,
        Ok(Err(error)) => error,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            Error::new(ErrorKind::Internal, format!("a bug in polylock: {text}"))
        }
    };
    if let Some(place) = err.given() {
        let kept = catch_unwind(AssertUnwindSafe(|| object::keep(Failure::new(&error)).ok()));
        place.put(kept.ok().flatten().unwrap_or(0));
    }
    error.kind().into()
}

/// Runs a function that answers with a value, or with `default` where it has none.
pub(crate) fn value<T>(default: T, body: impl FnOnce() -> Option<T>) -> T {
    catch_unwind(AssertUnwindSafe(body)).ok().flatten().unwrap_or(default)
}

/// Runs a function that says only how it ended, without an error object.
pub(crate) fn bare_status(body: impl FnOnce() -> Result<()>) -> polylock_status {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => polylock_status::POLYLOCK_OK,
        Ok(Err(error)) => error.kind().into(),
        Err(_) => polylock_status::POLYLOCK_ERR_INTERNAL,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_internal() {
        #[allow(clippy::panic)]
        let ended = bare_status(|| panic!("on purpose"));
        assert_eq!(ended, polylock_status::POLYLOCK_ERR_INTERNAL);
        #[allow(clippy::panic)]
        let defaulted = value(7, || panic!("on purpose"));
        assert_eq!(defaulted, 7);
    }
}
