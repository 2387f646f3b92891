//! Whether what a program writes to keeps out those who come too late.

use std::{
    ffi::{c_char, c_void},
    future::ready,
};

use crate::{
    abi::{polylock_error, polylock_manager, polylock_status, polylock_write_callback},
    boundary, callback,
    manager::manager,
    pointer::Text,
    wait,
};

/// For your own tests: shows whether what you write to refuses a zombie, that is a holder which was paused beyond its
/// lease and goes on as if nothing had happened. `write` is called for a holder, for the next one after the lease of the
/// first ran out, for the first again, which it must refuse, and for the second again: on this thread, before this returns.
/// Blocks.
///
/// @param resource the lock that is taken for it; 1 to 1,024 bytes of UTF-8. Neither it nor the data may be in use meanwhile.
/// @param userdata handed to `write`.
/// @return POLYLOCK_ERR_INTERNAL if a write was taken or refused that should not have been, with the tokens in the message;
///         else as polylock_acquire.
#[unsafe(no_mangle)]
pub extern "C" fn polylock_check_refuses_zombies(
    locks: polylock_manager,
    resource: *const c_char,
    write: polylock_write_callback,
    userdata: *mut c_void,
    err: *mut polylock_error,
) -> polylock_status {
    boundary::status(err, || {
        let (locks, resource) = (manager(locks)?, resource.text("resource")?);
        let write = callback::write(write, userdata)?;
        let check = engine::fencing::check_refuses_zombies(&locks, resource, |token| ready(write(token)));
        wait::within(check, None).unwrap_or(Ok(()))
    })
}
