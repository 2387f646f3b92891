//! Managers.

use std::{ffi::c_char, sync::Arc};

use engine::{LockManager, Result, blocking::wait};

use crate::{
    abi::{
        POLYLOCK_CAN_BREAK, POLYLOCK_CAN_COUNT, POLYLOCK_CAN_EXCLUDE_HOSTS, POLYLOCK_CAN_EXCLUDE_PROCESSES,
        POLYLOCK_CAN_FENCE, POLYLOCK_CAN_INSPECT, POLYLOCK_CAN_LIST, POLYLOCK_CAN_SERVE_IN_ORDER, POLYLOCK_CAN_SHARE,
        POLYLOCK_CAN_TAKE_SEVERAL, polylock_error, polylock_guarantee, polylock_holder, polylock_lease,
        polylock_manager, polylock_options, polylock_status,
    },
    boundary,
    holder::HolderText,
    object::{discard, find, keep},
    options::{Names, request},
    pointer::{Out, Text, Texts},
};

/// The manager itself, so that its handle may be freed while this is in use.
///
/// # Errors
/// `InvalidHandle`.
pub(crate) fn manager(handle: polylock_manager) -> Result<LockManager> {
    Ok(find::<LockManager>(handle)?.clone())
}

fn acquire(
    handle: polylock_manager,
    names: Result<Names>,
    options: polylock_options,
    lease: *mut polylock_lease,
) -> Result<()> {
    let manager = manager(handle)?;
    let (target, how) = request(options, names?)?;
    let place = lease.required("lease")?;
    let lease = wait(|driver| async move { manager.acquire_by(target, how, &driver).await })?;
    place.put(keep(Arc::new(lease))?);
    Ok(())
}

fn try_acquire(
    handle: polylock_manager,
    names: Result<Names>,
    options: polylock_options,
    lease: *mut polylock_lease,
) -> Result<()> {
    let manager = manager(handle)?;
    let (target, how) = request(options, names?)?;
    let place = lease.required("lease")?;
    let lease = wait(|driver| async move { manager.acquire_by(target, how.no_wait(), &driver).await })?;
    place.put(keep(Arc::new(lease))?);
    Ok(())
}

/// The name that C gave.
pub(crate) fn one(resource: Result<&str>) -> Result<Names> {
    Ok(Names::One(resource?.to_owned()))
}

/// Acquires a resource, waiting as the options say. Locks are not re-entrant: a holder that asks again waits.
/// Blocks.
///
/// @param resource 1 to 1,024 bytes of UTF-8.
/// @param options 0 for the defaults: ttl 30 s, wait for ever, renewed in the background.
/// @param lease out: the lease. Release it with polylock_release, and free it with polylock_lease_free.
/// @param err out, may be NULL: why it failed.
/// @return POLYLOCK_ERR_TIMEOUT if it stayed in use, _CONFLICT if it is in use as something else, _UNAVAILABLE if the
///         backend was out of reach, _AUTH, _INVALID_ARGUMENT, _CLOSED, _FORKED, _INVALID_HANDLE.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_acquire(
    manager: polylock_manager,
    resource: *const c_char,
    options: polylock_options,
    lease: *mut polylock_lease,
    err: *mut polylock_error,
) -> polylock_status {
    boundary::status(err, || acquire(manager, one(resource.text("resource")), options, lease))
}

/// As polylock_acquire, with the length of the name in bytes.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_acquire_n(
    manager: polylock_manager,
    resource: *const c_char,
    resource_length: usize,
    options: polylock_options,
    lease: *mut polylock_lease,
    err: *mut polylock_error,
) -> polylock_status {
    boundary::status(err, || acquire(manager, one(resource.text_n(resource_length, "resource")), options, lease))
}

/// As polylock_acquire, but tries once, whatever the options say of waiting: POLYLOCK_ERR_TIMEOUT if somebody else
/// holds it. Pass NULL for `err` where that is ordinary.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_try_acquire(
    manager: polylock_manager,
    resource: *const c_char,
    options: polylock_options,
    lease: *mut polylock_lease,
    err: *mut polylock_error,
) -> polylock_status {
    boundary::status(err, || try_acquire(manager, one(resource.text("resource")), options, lease))
}

/// As polylock_try_acquire, with the length of the name in bytes.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_try_acquire_n(
    manager: polylock_manager,
    resource: *const c_char,
    resource_length: usize,
    options: polylock_options,
    lease: *mut polylock_lease,
    err: *mut polylock_error,
) -> polylock_status {
    boundary::status(err, || try_acquire(manager, one(resource.text_n(resource_length, "resource")), options, lease))
}

/// As polylock_acquire, for several resources: all of them or none, exclusively. Whoever names the same ones in another
/// order does not stand in the way for ever.
///
/// @param resources `count` names, 1 to 64, none of them twice.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_acquire_all(
    manager: polylock_manager,
    resources: *const *const c_char,
    count: usize,
    options: polylock_options,
    lease: *mut polylock_lease,
    err: *mut polylock_error,
) -> polylock_status {
    boundary::status(err, || acquire(manager, resources.texts(count, "resources").map(Names::All), options, lease))
}

/// As polylock_acquire_all, but tries once: see polylock_try_acquire.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_try_acquire_all(
    manager: polylock_manager,
    resources: *const *const c_char,
    count: usize,
    options: polylock_options,
    lease: *mut polylock_lease,
    err: *mut polylock_error,
) -> polylock_status {
    boundary::status(err, || {
        try_acquire(manager, resources.texts(count, "resources").map(Names::All), options, lease)
    })
}

fn inspect(handle: polylock_manager, resource: Result<&str>, holder: *mut polylock_holder) -> Result<()> {
    let (manager, resource, place) = (manager(handle)?, resource?, holder.required("holder")?);
    let holder = wait(|driver| async move { manager.inspect_by(resource, &driver).await })?;
    place.put(match holder {
        Some(holder) => keep(HolderText::new(&holder))?,
        None => 0,
    });
    Ok(())
}

/// Who holds a resource now. Blocks.
///
/// @param holder out: who, to be freed with polylock_holder_free; 0 if it is free.
/// @return POLYLOCK_ERR_UNSUPPORTED if the backend cannot tell, else as polylock_acquire.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_inspect(
    manager: polylock_manager,
    resource: *const c_char,
    holder: *mut polylock_holder,
    err: *mut polylock_error,
) -> polylock_status {
    boundary::status(err, || inspect(manager, resource.text("resource"), holder))
}

/// As polylock_inspect, with the length of the name in bytes.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_inspect_n(
    manager: polylock_manager,
    resource: *const c_char,
    resource_length: usize,
    holder: *mut polylock_holder,
    err: *mut polylock_error,
) -> polylock_status {
    boundary::status(err, || inspect(manager, resource.text_n(resource_length, "resource"), holder))
}

/// How many wait for a resource through this manager, in this process.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_waiting(
    manager: polylock_manager,
    resource: *const c_char,
    count: *mut usize,
    err: *mut polylock_error,
) -> polylock_status {
    boundary::status(err, || {
        let (manager, place) = (self::manager(manager)?, count.required("count")?);
        place.put(manager.waiting(resource.text("resource")?)?);
        Ok(())
    })
}

/// What the manager's backend can do: POLYLOCK_CAN_… added together. 0 if the handle is not valid.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_capabilities(manager: polylock_manager) -> u32 {
    boundary::value(0, || {
        let can = self::manager(manager).ok()?.capabilities();
        let flag = |has: bool, flag: u32| if has { flag } else { 0 };
        Some(
            flag(can.fencing, POLYLOCK_CAN_FENCE)
                | flag(can.across_processes, POLYLOCK_CAN_EXCLUDE_PROCESSES)
                | flag(can.across_hosts, POLYLOCK_CAN_EXCLUDE_HOSTS)
                | flag(can.inspection, POLYLOCK_CAN_INSPECT)
                | flag(can.shared, POLYLOCK_CAN_SHARE)
                | flag(can.semaphore, POLYLOCK_CAN_COUNT)
                | flag(can.several, POLYLOCK_CAN_TAKE_SEVERAL)
                | flag(can.listing, POLYLOCK_CAN_LIST)
                | flag(can.breaking, POLYLOCK_CAN_BREAK)
                | flag(can.fair, POLYLOCK_CAN_SERVE_IN_ORDER),
        )
    })
}

/// What the manager's backend promises as it is deployed.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_guarantees(manager: polylock_manager) -> polylock_guarantee {
    boundary::value(polylock_guarantee::POLYLOCK_GUARANTEE_NONE, || {
        Some(self::manager(manager).ok()?.capabilities().guarantee.into())
    })
}

/// Closes a manager: who waits gets POLYLOCK_ERR_CLOSED, leases are released, connections let go. Returns when that
/// is done; a server that does not answer is given up when its leases must have expired. Closing twice is harmless.
/// Blocks. The handle stays valid until it is freed.
///
/// @return POLYLOCK_ERR_INVALID_HANDLE; POLYLOCK_OK also in the child of a fork, where nothing is done.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_close(manager: polylock_manager, err: *mut polylock_error) -> polylock_status {
    boundary::status(err, || {
        let manager = self::manager(manager)?;
        wait(|_| async move { manager.close().await });
        Ok(())
    })
}

/// Ends the handle of a manager; does not block. Its leases stay as they are, and calls that are under way go on:
/// see polylock_close. 0 is allowed.
///
/// @return POLYLOCK_OK or POLYLOCK_ERR_INVALID_HANDLE.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_manager_free(manager: polylock_manager) -> polylock_status {
    boundary::bare_status(|| discard::<LockManager>(manager))
}
