//! Which process this is: fork gives a new generation.
//!
//! After `fork` only the forking thread lives on, while sockets and the kernel's event queues are shared with
//! the parent. So nothing made before the fork may be used, and not even be taken apart, in the child:
//! managers and leases remember the generation that made them, and every entry compares it with this one.
//! The process id is asked at every entry instead of in a fork hook, because raw `clone` and hosts that fork
//! by themselves (uWSGI) run no hooks.

use std::sync::atomic::{AtomicU64, Ordering};

/// Process id in the low half, number of forks seen on the way here in the high half.
static CURRENT: AtomicU64 = AtomicU64::new(0);

/// Number of this process in the line of forks that led to it; differs between parent and child.
pub fn generation() -> u32 {
    let pid = std::process::id();
    let mut current = CURRENT.load(Ordering::Acquire);
    loop {
        let (seen_pid, generation) = (current as u32, (current >> 32) as u32);
        if seen_pid == pid {
            return generation;
        }
        let next = (u64::from(generation.wrapping_add(1)) << 32) | u64::from(pid);
        match CURRENT.compare_exchange(current, next, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return generation.wrapping_add(1),
            Err(other) => current = other,
        }
    }
}
