//! The types of the header, with the names that they have there.

#![allow(non_camel_case_types)]

use std::ffi::{c_char, c_int, c_void};

use engine::{ErrorKind, Guarantee, LossReason, Mode, Release};

/// Version of the binary interface, as `polylock_abi_version()` tells it of the library that is loaded. Grows when
/// a program has to be compiled again.
pub const POLYLOCK_ABI_VERSION: u32 = 1;

/// For times to wait: as long as it takes. (Every negative number means that.)
#[allow(dead_code)] // for the header
pub const POLYLOCK_FOREVER: f64 = -1.0;

/// Size of a buffer for an owner token: 40 hex digits and NUL.
#[allow(dead_code)] // for the header
pub const POLYLOCK_OWNER_TOKEN_SIZE: usize = 41;

/// In polylock_capabilities: each lease has a fencing token.
pub const POLYLOCK_CAN_FENCE: u32 = 1;
/// In polylock_capabilities: other processes are excluded.
pub const POLYLOCK_CAN_EXCLUDE_PROCESSES: u32 = 2;
/// In polylock_capabilities: other hosts are excluded.
pub const POLYLOCK_CAN_EXCLUDE_HOSTS: u32 = 4;
/// In polylock_capabilities: polylock_inspect works.
pub const POLYLOCK_CAN_INSPECT: u32 = 8;

/// In polylock_capabilities: polylock_options_set_shared works.
pub const POLYLOCK_CAN_SHARE: u32 = 16;
/// In polylock_capabilities: polylock_options_set_permit works.
pub const POLYLOCK_CAN_COUNT: u32 = 32;
/// In polylock_capabilities: polylock_acquire_all works.
pub const POLYLOCK_CAN_TAKE_SEVERAL: u32 = 64;
/// In polylock_capabilities: polylock_list works.
pub const POLYLOCK_CAN_LIST: u32 = 128;
/// In polylock_capabilities: polylock_break works.
pub const POLYLOCK_CAN_BREAK: u32 = 256;
/// In polylock_capabilities: polylock_options_set_fair works.
pub const POLYLOCK_CAN_SERVE_IN_ORDER: u32 = 512;

/// Makes locks on one backend. Made by polylock_connect, ended by polylock_manager_free.
pub type polylock_manager = u64;
/// A lock that is or was held. Made by polylock_acquire, ended by polylock_lease_free.
pub type polylock_lease = u64;
/// Why a call failed. Made by every call that fails, ended by polylock_error_free.
pub type polylock_error = u64;
/// How to acquire. Made by polylock_options_new, ended by polylock_options_free.
pub type polylock_options = u64;
/// How to connect. Made by polylock_connect_options_new, ended by polylock_connect_options_free.
pub type polylock_connect_options = u64;
/// Who holds a resource. Made by polylock_inspect, ended by polylock_holder_free.
pub type polylock_holder = u64;
/// An operation on its way. Made by the functions that end in _start, ended by polylock_future_free.
pub type polylock_future = u64;
/// The operations of one event loop. Made by polylock_queue_new, ended by polylock_queue_free.
pub type polylock_queue = u64;

/// Events of one manager. Made by polylock_on_event, ended by polylock_subscription_free.
pub type polylock_subscription = u64;

/// How a call ended. The numbers are stable and the same in every language.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum polylock_status {
    /// Done; the outputs are written.
    POLYLOCK_OK = 0,
    /// The resource stayed in use for as long as the caller wanted to wait; or a wait ended before what it was for.
    POLYLOCK_ERR_TIMEOUT = 1,
    /// The lease is not held any more: its deadline passed, or the backend said that it is not ours.
    POLYLOCK_ERR_LOST = 2,
    /// The backend could not be reached, or not enough of its nodes answered.
    POLYLOCK_ERR_UNAVAILABLE = 3,
    /// An argument has no meaning; polylock_error_argument names it.
    POLYLOCK_ERR_INVALID_ARGUMENT = 4,
    /// The resource is in use as something else than this kind of lock.
    POLYLOCK_ERR_CONFLICT = 5,
    /// The backend cannot do this.
    POLYLOCK_ERR_UNSUPPORTED = 6,
    /// The server refused the user, the password or a permission.
    POLYLOCK_ERR_AUTH = 7,
    /// The manager or queue was closed, or the future was cancelled.
    POLYLOCK_ERR_CLOSED = 8,
    /// The object belongs to the process that this one was forked from.
    POLYLOCK_ERR_FORKED = 9,
    /// A handle that is 0, was freed, is of another kind, or was never given out.
    POLYLOCK_ERR_INVALID_HANDLE = 10,
    /// A bug in polylock, or a system without memory, threads or descriptors.
    POLYLOCK_ERR_INTERNAL = 11,
}

/// What became of a lease that was released.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum polylock_outcome {
    /// It was ours and is free now.
    POLYLOCK_OUTCOME_RELEASED = 0,
    /// It was not ours any more; nothing was changed.
    POLYLOCK_OUTCOME_NOT_HELD = 1,
    /// The backend did not answer. It is being released in the background, and ends with its ttl at the latest, or with the
    /// session where one holds it.
    POLYLOCK_OUTCOME_UNKNOWN = 2,
}

/// Why a lease was lost.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum polylock_loss {
    /// It was not.
    POLYLOCK_LOSS_NONE = 0,
    /// The deadline passed before it could be extended, or it was not to be extended.
    POLYLOCK_LOSS_EXPIRED = 1,
    /// The backend said that it is not ours any more: deleted, evicted, or taken after a failure.
    POLYLOCK_LOSS_TAKEN = 2,
    /// It was held for as long as max_hold allowed.
    POLYLOCK_LOSS_MAX_HOLD = 3,
}

/// How a lease holds its resource.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum polylock_mode {
    /// Nothing is held (the handle is not valid).
    POLYLOCK_MODE_NONE = 0,
    /// Alone.
    POLYLOCK_MODE_EXCLUSIVE = 1,
    /// Together with others that hold it shared.
    POLYLOCK_MODE_SHARED = 2,
    /// As one of so many at a time.
    POLYLOCK_MODE_PERMIT = 3,
}

/// How much a message of the log matters.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum polylock_log_level {
    /// Nothing is logged.
    #[allow(dead_code)] // for the header
    POLYLOCK_LOG_OFF = 0,
    /// Something is wrong in a way that no call can report.
    POLYLOCK_LOG_ERROR = 1,
    /// Something is worse than it should be; the library deals with it.
    POLYLOCK_LOG_WARN = 2,
    /// What an operator may want to know.
    POLYLOCK_LOG_INFO = 3,
    /// What helps to find an error.
    POLYLOCK_LOG_DEBUG = 4,
    /// Everything.
    POLYLOCK_LOG_TRACE = 5,
}

/// How far exclusion can be relied on.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum polylock_guarantee {
    /// Nothing is known (the handle is not valid).
    POLYLOCK_GUARANTEE_NONE = 0,
    /// Mostly; a failure of the server may give a lock to two.
    POLYLOCK_GUARANTEE_BEST_EFFORT = 1,
    /// While clocks run at one speed and servers keep their memory.
    POLYLOCK_GUARANTEE_LEASE = 2,
    /// Always, where the resource checks the fencing token.
    POLYLOCK_GUARANTEE_FENCED = 3,
}

/// What happened to a lease, or on the way to one.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum polylock_event {
    /// A lease was granted.
    POLYLOCK_EVENT_ACQUIRED = 1,
    /// Somebody else holds it; once for each acquisition that meets this.
    POLYLOCK_EVENT_CONTENDED = 2,
    /// A lease was extended, by its holder or in the background.
    POLYLOCK_EVENT_EXTENDED = 3,
    /// An extension came to nothing; the lease may be held still.
    POLYLOCK_EVENT_EXTENSION_FAILED = 4,
    /// A lease was lost.
    POLYLOCK_EVENT_LOST = 5,
    /// A holder gave its lease up, or dropped it.
    POLYLOCK_EVENT_RELEASED = 6,
}

/// Called for each event: what happened to the `count` resources; the fencing token of the lease, or 0; how long
/// acquiring took or the lease has been held, or a negative number; why it was lost; why it was not extended, or NULL.
pub type polylock_event_callback = Option<
    unsafe extern "C" fn(
        event: polylock_event,
        resources: *const *const c_char,
        count: usize,
        fencing_token: u64,
        duration_ms: f64,
        reason: polylock_loss,
        error: *const c_char,
        userdata: *mut c_void,
    ),
>;

/// Called once if a lease is lost.
pub type polylock_lost_callback =
    Option<unsafe extern "C" fn(lease: polylock_lease, reason: polylock_loss, userdata: *mut c_void)>;

/// Claims what it protects, and writes to it, with a fencing token: 0 if that was taken, anything else if it was refused.
pub type polylock_write_callback = Option<unsafe extern "C" fn(fencing_token: u64, userdata: *mut c_void) -> c_int>;

/// Called once when a future is ready.
pub type polylock_ready_callback = Option<unsafe extern "C" fn(future: polylock_future, userdata: *mut c_void)>;

/// Called for each message of the log. `message` ends with the call.
pub type polylock_log_callback =
    Option<unsafe extern "C" fn(level: polylock_log_level, message: *const c_char, userdata: *mut c_void)>;

/// Called once when the library has no more use for `userdata`. May be NULL.
pub type polylock_finalizer = Option<unsafe extern "C" fn(userdata: *mut c_void)>;

impl From<ErrorKind> for polylock_status {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::Timeout => Self::POLYLOCK_ERR_TIMEOUT,
            ErrorKind::Lost => Self::POLYLOCK_ERR_LOST,
            ErrorKind::Unavailable => Self::POLYLOCK_ERR_UNAVAILABLE,
            ErrorKind::InvalidArgument => Self::POLYLOCK_ERR_INVALID_ARGUMENT,
            ErrorKind::Conflict => Self::POLYLOCK_ERR_CONFLICT,
            ErrorKind::Unsupported => Self::POLYLOCK_ERR_UNSUPPORTED,
            ErrorKind::Auth => Self::POLYLOCK_ERR_AUTH,
            ErrorKind::Closed => Self::POLYLOCK_ERR_CLOSED,
            ErrorKind::Forked => Self::POLYLOCK_ERR_FORKED,
            ErrorKind::InvalidHandle => Self::POLYLOCK_ERR_INVALID_HANDLE,
            // A kind that this library does not know yet is none that a program could act on.
            _ => Self::POLYLOCK_ERR_INTERNAL,
        }
    }
}

impl From<Release> for polylock_outcome {
    fn from(release: Release) -> Self {
        match release {
            Release::Released => Self::POLYLOCK_OUTCOME_RELEASED,
            Release::NotHeld => Self::POLYLOCK_OUTCOME_NOT_HELD,
            Release::Unknown => Self::POLYLOCK_OUTCOME_UNKNOWN,
        }
    }
}

impl From<Option<LossReason>> for polylock_loss {
    fn from(reason: Option<LossReason>) -> Self {
        match reason {
            None => Self::POLYLOCK_LOSS_NONE,
            Some(LossReason::Expired) => Self::POLYLOCK_LOSS_EXPIRED,
            Some(LossReason::Taken) => Self::POLYLOCK_LOSS_TAKEN,
            Some(LossReason::MaxHold) => Self::POLYLOCK_LOSS_MAX_HOLD,
        }
    }
}

impl From<Mode> for polylock_mode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Exclusive => Self::POLYLOCK_MODE_EXCLUSIVE,
            Mode::Shared => Self::POLYLOCK_MODE_SHARED,
            Mode::Permit { .. } => Self::POLYLOCK_MODE_PERMIT,
        }
    }
}

impl From<Guarantee> for polylock_guarantee {
    fn from(guarantee: Guarantee) -> Self {
        match guarantee {
            Guarantee::BestEffort => Self::POLYLOCK_GUARANTEE_BEST_EFFORT,
            Guarantee::Lease => Self::POLYLOCK_GUARANTEE_LEASE,
            Guarantee::Fenced => Self::POLYLOCK_GUARANTEE_FENCED,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_engine() {
        for kind in ErrorKind::ALL {
            assert_eq!(polylock_status::from(kind) as u32, kind.code(), "{kind:?}");
        }
    }
}
