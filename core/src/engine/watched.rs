//! Descriptors that a tokio runtime watches.

use std::{io, os::fd::AsRawFd};

use tokio::io::{Interest, unix::AsyncFd};

/// Registers `descriptor`, which is owned and stays the same, with the tokio runtime that this is called on.
///
/// # Panics
/// If that runtime does no I/O.
#[allow(deprecated)] // any number may pass for a descriptor; the function meant to replace it is unsafe
pub(crate) fn watched<D: AsRawFd>(descriptor: D, interest: Interest) -> io::Result<AsyncFd<D>> {
    AsyncFd::with_interest(descriptor, interest)
}
