//! Functions of the library as a whole.

use std::{
    ffi::{CStr, CString, c_char, c_int},
    sync::LazyLock,
    time::{Duration, Instant},
};

use crate::{
    abi::{POLYLOCK_ABI_VERSION, polylock_status},
    boundary, dispatcher,
    error::c_string,
    pointer, wait,
};

const VERSION: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
    Ok(version) => version,
    Err(_) => c"",
};

/// Version of the library that is loaded, as in "0.1.0". The string lives for ever.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_version() -> *const c_char {
    VERSION.as_ptr()
}

/// Version of the binary interface of the library that is loaded: compare it with POLYLOCK_ABI_VERSION.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_abi_version() -> u32 {
    POLYLOCK_ABI_VERSION
}

/// Stable name of a polylock_status: "OK", "Timeout", "Lost" …, "Internal"; "Unknown" for other numbers. The string
/// lives for ever.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_status_name(status: c_int) -> *const c_char {
    let name = match status {
        0 => c"OK",
        1 => c"Timeout",
        2 => c"Lost",
        3 => c"Unavailable",
        4 => c"InvalidArgument",
        5 => c"Conflict",
        6 => c"Unsupported",
        7 => c"Auth",
        8 => c"Closed",
        9 => c"Forked",
        10 => c"InvalidHandle",
        11 => c"Internal",
        _ => c"Unknown",
    };
    name.as_ptr()
}

/// Stable name of a polylock_outcome: "released", "not_held" or "unknown". The string lives for ever.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_outcome_name(outcome: c_int) -> *const c_char {
    let name = match outcome {
        0 => c"released",
        1 => c"not_held",
        _ => c"unknown",
    };
    name.as_ptr()
}

/// Stable name of a polylock_loss: "none", "expired", "taken" or "max_hold". The string lives for ever.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_loss_name(reason: c_int) -> *const c_char {
    let name = match reason {
        1 => c"expired",
        2 => c"taken",
        3 => c"max_hold",
        _ => c"none",
    };
    name.as_ptr()
}

/// Stable name of a polylock_mode: "exclusive", "shared", "permit" or "none". The string lives for ever.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_mode_name(mode: c_int) -> *const c_char {
    let name = match mode {
        1 => c"exclusive",
        2 => c"shared",
        3 => c"permit",
        _ => c"none",
    };
    name.as_ptr()
}

/// Releases every lease of this process, closes the managers that were used, and stops the library's threads; returns within
/// about `timeout_ms`. Call it before the program ends: what could not be released in time, or is held by a
/// program that ends without this call, expires on its server by its ttl. No lease is held when it returns.
///
/// Handles stay valid and have to be freed as ever; managers that are made later work. Blocks. From a callback
/// it does not wait for callbacks.
///
/// @param timeout_ms milliseconds; negative: as long as it takes, but 60 seconds at most.
/// @return POLYLOCK_OK, or POLYLOCK_ERR_INVALID_ARGUMENT if `timeout_ms` is not a number.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_shutdown(timeout_ms: f64) -> polylock_status {
    boundary::bare_status(|| {
        let timeout = wait::timeout(timeout_ms)?.unwrap_or(Duration::from_secs(60)).min(Duration::from_secs(60));
        let began = Instant::now();
        engine::shutdown(timeout);
        dispatcher::stop(timeout.saturating_sub(began.elapsed()));
        Ok(())
    })
}

/// Tells the library that this process is the child of a fork; best registered with pthread_atfork. Every call finds
/// that out by itself. What this does beyond that is to close the parent's lock files (of file: locks) and sockets to
/// PostgreSQL, whose locks would stay for as long as the child lives if the parent were killed. No effect in any other process.
///
/// In the child, managers, leases, futures and queues of the parent answer POLYLOCK_ERR_FORKED, send nothing and
/// stay the parent's; freeing their handles is allowed. Finalizers of the parent's callbacks are not called.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_fork_child() {
    boundary::value((), || {
        engine::host::inherited_fds().into_iter().for_each(pointer::close);
        Some(())
    });
}

/// A script for Redis that claims a hash with a fencing token, and writes its value: KEYS[1] is the hash, with the fields
/// "token" and "value"; ARGV[1] the fencing token; ARGV[2] the value, or nothing to claim only. It answers 1, or 0 for a
/// holder that came too late. The string lives for ever.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_claim_redis() -> *const c_char {
    static TEXT: LazyLock<CString> = LazyLock::new(|| c_string(engine::fencing::REDIS_CLAIM));
    TEXT.as_ptr()
}

/// SQL for a transaction of yours in PostgreSQL that claims the resource $1 (text) for the holder with the fencing token $2
/// (bigint). It is an error (SQLSTATE 22P02), after which the transaction cannot commit, if a holder with a greater token
/// has claimed it. Needs polylock_claim_postgres_table. The string lives for ever.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_claim_postgres() -> *const c_char {
    static TEXT: LazyLock<CString> = LazyLock::new(|| c_string(engine::postgres::CLAIM));
    TEXT.as_ptr()
}

/// SQL that makes the table of the claims in PostgreSQL, if it is missing. The string lives for ever.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_claim_postgres_table() -> *const c_char {
    static TEXT: LazyLock<CString> = LazyLock::new(|| c_string(engine::postgres::CLAIM_TABLE));
    TEXT.as_ptr()
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::{ErrorKind, LossReason, Mode, Release};

    fn text(name: *const c_char) -> String {
        // SAFETY: these functions return static strings.
        unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
    }

    #[test]
    fn names_are_those_of_the_engine() {
        for kind in ErrorKind::ALL {
            assert_eq!(text(polylock_status_name(kind.code() as c_int)), kind.name());
        }
        assert_eq!((text(polylock_status_name(0)), text(polylock_status_name(-1))), ("OK".into(), "Unknown".into()));
        for outcome in [Release::Released, Release::NotHeld, Release::Unknown] {
            let number = crate::abi::polylock_outcome::from(outcome) as c_int;
            assert_eq!(text(polylock_outcome_name(number)), outcome.name());
        }
        for reason in [LossReason::Expired, LossReason::Taken, LossReason::MaxHold] {
            let number = crate::abi::polylock_loss::from(Some(reason)) as c_int;
            assert_eq!(text(polylock_loss_name(number)), reason.name());
        }
        for mode in [Mode::Exclusive, Mode::Shared, Mode::Permit { of: 2 }] {
            let number = crate::abi::polylock_mode::from(mode) as c_int;
            assert_eq!(text(polylock_mode_name(number)), mode.name());
        }
    }
}
