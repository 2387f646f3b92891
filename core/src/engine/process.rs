//! Which process this is: fork gives a new generation.
//!
//! After `fork` only the forking thread lives on, while sockets and the kernel's event queues are shared with
//! the parent. So nothing made before the fork may be used, and not even be taken apart, in the child:
//! managers and leases remember the generation that made them, and every entry compares it with this one.
//! The process id is asked at every entry instead of in a fork hook, because raw `clone` and hosts that fork
//! by themselves (uWSGI) run no hooks.

use std::{
    os::fd::{AsRawFd, RawFd},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwap;

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

/// Descriptors that a child of a fork should close, with the generation that opened them. Read and changed
/// without a lock, because a thread that does not exist in the child could hold it there for ever.
static SHARED: LazyLock<ArcSwap<Vec<(u32, RawFd)>>> = LazyLock::new(ArcSwap::default);

/// Has a child of a fork close `fd`, for as long as [`unshare`] was not called.
pub(crate) fn share(fd: &impl AsRawFd) {
    let entry = (generation(), fd.as_raw_fd());
    SHARED.rcu(|fds| fds.iter().copied().chain([entry]).collect::<Vec<_>>());
}

/// To be called before `fd` is closed.
pub(crate) fn unshare(fd: &impl AsRawFd) {
    let entry = (generation(), fd.as_raw_fd());
    SHARED.rcu(|fds| fds.iter().copied().filter(|other| *other != entry).collect::<Vec<_>>());
}

/// The descriptors of lock files that this process has inherited by a fork: to be closed at once, by the
/// binding's after-fork-in-child hook, and each is named only once.
///
/// An open lock file keeps its lock for as long as *any* process has it open. A parent that releases frees it
/// for all, but if the parent is killed while it holds, a child that lives on would keep the lock. Closing
/// (never unlocking: that would free the parent's lock) is all that is needed. The engine does not use or close
/// these descriptors in the child. A descriptor that another thread was opening during the fork is not
/// among them; after `exec` there is nothing to do, they are closed by it.
pub fn inherited_fds() -> Vec<RawFd> {
    let own = generation();
    let before: Arc<Vec<_>> =
        SHARED.rcu(|fds| fds.iter().copied().filter(|(generation, _)| *generation == own).collect::<Vec<_>>());
    before.iter().filter(|(generation, _)| *generation != own).map(|(_, fd)| *fd).collect()
}
