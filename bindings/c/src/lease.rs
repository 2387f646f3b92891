//! Leases.

use std::{
    ffi::{c_char, c_void},
    sync::Arc,
    time::{Duration, SystemTime},
};

use engine::{Error, ErrorKind, Lease, Result, blocking::wait, host};

use crate::{
    abi::{
        polylock_error, polylock_finalizer, polylock_lease, polylock_loss, polylock_lost_callback, polylock_mode,
        polylock_outcome, polylock_status,
    },
    boundary,
    callback::{self, Userdata},
    dispatcher,
    object::{check_process, discard, find},
    pointer::{Buffer, Out},
    wait,
};

/// The lease itself, while it is in use.
///
/// # Errors
/// `InvalidHandle`.
pub(crate) fn lease(handle: polylock_lease) -> Result<Arc<Lease>> {
    Ok(Arc::clone(&*find::<Arc<Lease>>(handle)?))
}

/// The ttl of an extension as C gives it.
///
/// # Errors
/// `InvalidArgument` naming `ttl`.
pub(crate) fn ttl(ttl_ms: f64) -> Result<Option<Duration>> {
    host::duration("ttl", ttl_ms, Duration::from_millis(1)).map(Some)
}

fn extend(handle: polylock_lease, ttl: Option<Duration>) -> Result<()> {
    let lease = lease(handle)?;
    wait(|driver| async move { lease.extend_by(ttl, &driver).await })
}

/// Makes the lease last for its ttl from now. Blocks.
///
/// @return POLYLOCK_ERR_LOST if it is not held any more, _UNAVAILABLE if the backend did not answer (the old deadline
///         stands), _FORKED, _INVALID_HANDLE.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_extend(lease: polylock_lease, err: *mut polylock_error) -> polylock_status {
    boundary::status(err, || extend(lease, None))
}

/// Makes the lease last for `ttl_ms` milliseconds from now, which is also the ttl of later renewals. Blocks.
///
/// @param ttl_ms 3 to 2^53.
/// @return as polylock_extend, and POLYLOCK_ERR_INVALID_ARGUMENT ("ttl").
#[unsafe(no_mangle)]
pub extern "C" fn polylock_extend_ttl(
    lease: polylock_lease,
    ttl_ms: f64,
    err: *mut polylock_error,
) -> polylock_status {
    boundary::status(err, || extend(lease, ttl(ttl_ms)?))
}

/// Frees the lock, in one round. Renewal stops first, and one that is on its way is waited out. Again is harmless, as it
/// is after polylock_close and polylock_shutdown: POLYLOCK_OUTCOME_NOT_HELD. Blocks. The handle stays valid until
/// polylock_lease_free.
///
/// A server that does not answer is no error but POLYLOCK_OUTCOME_UNKNOWN: the lease is then released in the
/// background, and ends with its ttl at the latest, or with the session where one holds it.
///
/// @param outcome out, may be NULL: what became of it.
/// @return POLYLOCK_ERR_FORKED, _INVALID_HANDLE.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_release(
    lease: polylock_lease,
    outcome: *mut polylock_outcome,
    err: *mut polylock_error,
) -> polylock_status {
    boundary::status(err, || {
        let lease = self::lease(lease)?;
        let released = wait(|driver| async move { lease.release_by(&driver).await })?;
        if let Some(place) = outcome.given() {
            place.put(released.into());
        }
        Ok(())
    })
}

/// Greater than every earlier holder's of this resource, and below 2^53. Hand it to what you protect, and let that
/// refuse a smaller one than it has seen. 0 if the handle is not valid.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_lease_fencing_token(lease: polylock_lease) -> u64 {
    boundary::value(0, || Some(find::<Arc<Lease>>(lease).ok()?.fencing_token()))
}

/// Writes the owner token, which proves ownership to the backend: 40 hex digits and NUL.
///
/// @param buffer room for `capacity` bytes, of which POLYLOCK_OWNER_TOKEN_SIZE are needed; less gets less, with NUL.
/// @return the length of the whole token without NUL; 0 if the handle is not valid.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_lease_owner_token(lease: polylock_lease, buffer: *mut c_char, capacity: usize) -> usize {
    boundary::value(0, || {
        let lease = find::<Arc<Lease>>(lease).ok()?;
        buffer.fill(capacity, lease.owner_token().as_str());
        Some(lease.owner_token().as_str().len())
    })
}

/// How the lease holds its resource.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_lease_mode(lease: polylock_lease) -> polylock_mode {
    boundary::value(polylock_mode::POLYLOCK_MODE_NONE, || Some(find::<Arc<Lease>>(lease).ok()?.mode().into()))
}

/// How many resources the lease holds: 1, or more by polylock_acquire_all; 0 if the handle is not valid.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_lease_resource_count(lease: polylock_lease) -> usize {
    boundary::value(0, || Some(find::<Arc<Lease>>(lease).ok()?.resources().len()))
}

/// As polylock_lease_resource, for the resource at `index` (from 0, in the order of the names) of several.
///
/// @return the length of the whole name without NUL; 0 if there is none at `index`.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_lease_resource_at(
    lease: polylock_lease,
    index: usize,
    buffer: *mut c_char,
    capacity: usize,
) -> usize {
    boundary::value(0, || {
        let lease = find::<Arc<Lease>>(lease).ok()?;
        let resource = lease.resources().get(index)?.as_str();
        buffer.fill(capacity, resource);
        Some(resource.len())
    })
}

/// Writes the name of what is locked (the first of several), and NUL.
///
/// @param buffer room for `capacity` bytes; 1,025 are always enough; less gets less, with NUL.
/// @return the length of the whole name without NUL; 0 if the handle is not valid.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_lease_resource(lease: polylock_lease, buffer: *mut c_char, capacity: usize) -> usize {
    boundary::value(0, || {
        let lease = find::<Arc<Lease>>(lease).ok()?;
        buffer.fill(capacity, lease.resource().as_str());
        Some(lease.resource().as_str().len())
    })
}

/// Whether the holder may act now. Asks the clock, no server. False once the lease was lost or released, in the
/// child of a fork, and if the handle is not valid.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_lease_is_held(lease: polylock_lease) -> bool {
    boundary::value(false, || Some(find::<Arc<Lease>>(lease).ok()?.is_held()))
}

/// How many milliseconds the holder may still act; 0 where polylock_lease_is_held is false. Asks the clock, no server.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_lease_remaining_ms(lease: polylock_lease) -> f64 {
    boundary::value(0.0, || Some(find::<Arc<Lease>>(lease).ok()?.remaining().as_secs_f64() * 1000.0))
}

/// Until when the holder may act, in milliseconds since 1970 by the wall clock as it is set now: for people to read.
/// To decide by, see polylock_lease_remaining_ms. 0 if the handle is not valid.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_lease_deadline_unix_ms(lease: polylock_lease) -> i64 {
    boundary::value(0, || {
        let deadline = find::<Arc<Lease>>(lease).ok()?.deadline().to_system_time();
        let since = deadline.duration_since(SystemTime::UNIX_EPOCH).ok()?;
        i64::try_from(since.as_millis()).ok()
    })
}

/// Why the lease was lost; POLYLOCK_LOSS_NONE if it was not. Asks the clock, no server, so that a process that was
/// paused past the deadline learns of it before any callback.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_lease_loss(lease: polylock_lease) -> polylock_loss {
    boundary::value(polylock_loss::POLYLOCK_LOSS_NONE, || Some(find::<Arc<Lease>>(lease).ok()?.loss().into()))
}

/// Has `callback` called once if the lease is lost: no later than at its deadline, and never after it was released.
/// Any number of callbacks may be registered. On the callback thread of the library: see the conventions.
///
/// @param userdata handed to `callback`. Has to stay valid until `finalizer` is called.
/// @param finalizer called once with `userdata` when it is not used any more: after the callback, or when the lease
///        was released or freed, or if this function fails. May be NULL.
/// @return POLYLOCK_ERR_INVALID_ARGUMENT if `callback` is NULL, _FORKED, _INVALID_HANDLE.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_lease_on_lost(
    lease: polylock_lease,
    callback: polylock_lost_callback,
    userdata: *mut c_void,
    finalizer: polylock_finalizer,
    err: *mut polylock_error,
) -> polylock_status {
    boundary::status(err, || {
        let userdata = Userdata::new(userdata, finalizer);
        if callback.is_none() {
            return Err(Error::invalid("callback", "must not be NULL"));
        }
        dispatcher::start()?;
        let found = find::<Arc<Lease>>(lease)?;
        check_process(lease)?;
        found.on_lost(move |reason| callback::lost(callback, lease, reason, userdata));
        Ok(())
    })
}

/// Waits until the lease is lost or released. Blocks.
///
/// @param timeout_ms milliseconds to wait; 0 only looks, negative (POLYLOCK_FOREVER) waits for as long as it takes.
/// @param reason out: why it was lost; POLYLOCK_LOSS_NONE if it was released.
/// @return POLYLOCK_ERR_TIMEOUT if it is still held, _INVALID_ARGUMENT, _FORKED, _INVALID_HANDLE.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_lease_wait_lost(
    lease: polylock_lease,
    timeout_ms: f64,
    reason: *mut polylock_loss,
    err: *mut polylock_error,
) -> polylock_status {
    boundary::status(err, || {
        let (timeout, place) = (wait::timeout(timeout_ms)?, reason.required("reason")?);
        // Nothing of the lease is kept while it waits, so that freeing it ends the wait.
        let lost = find::<Arc<Lease>>(lease)?.lost();
        check_process(lease)?;
        let lost = wait::within(lost, timeout);
        place.put(lost.ok_or_else(|| Error::new(ErrorKind::Timeout, "the lease is still held"))?.into());
        Ok(())
    })
}

/// Ends the handle of a lease; does not block. A lease that is still held is released in the background. 0 is
/// allowed.
///
/// @return POLYLOCK_OK or POLYLOCK_ERR_INVALID_HANDLE.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_lease_free(lease: polylock_lease) -> polylock_status {
    boundary::bare_status(|| discard::<Arc<Lease>>(lease))
}
