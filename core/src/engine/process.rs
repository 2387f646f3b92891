//! Which process this is: fork gives a new generation.
//!
//! After `fork` only the forking thread lives on, while sockets and the kernel's event queues are shared with
//! the parent. So nothing made before the fork may be used, and not even be taken apart, in the child:
//! managers and leases remember the generation that made them, and every entry compares it with this one.
//! That is asked at every entry instead of being told by a fork hook, because raw `clone` and hosts that fork by
//! themselves (uWSGI) run no hooks: by the process id, which is a system call (some 0.2 us), or by a [mark](keep_mark)
//! that the kernel wipes.

use std::{
    fs::{self, File, Metadata},
    ops::Deref,
    os::{
        fd::{AsRawFd, RawFd},
        unix::fs::MetadataExt,
    },
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use arc_swap::{ArcSwapOption, Guard};
use once_cell::race::OnceRef;

/// Process id in the low half (while there is no mark), the last generation that was drawn in the high half.
static CURRENT: AtomicU64 = AtomicU64::new(0);

/// See [`keep_mark`].
static MARK: OnceRef<'static, AtomicU32> = OnceRef::new();

/// Number of this process in the line of forks that led to it; differs between parent and child.
pub fn generation() -> u32 {
    match MARK.get() {
        Some(mark) => generation_by_mark(mark, &CURRENT),
        None => generation_by_id(),
    }
}

/// A mark that was wiped says that this is a child, whatever its process id: in a new PID namespace that may be its
/// parent's.
///
/// Several threads may find it wiped. Each draws a number that nobody has had, and one of them marks: the others take
/// that. It is drawn before it is marked, so that the child of a fork in between does not draw it again.
fn generation_by_mark(mark: &AtomicU32, current: &AtomicU64) -> u32 {
    let mut marked = mark.load(Ordering::Acquire);
    if marked == 0 {
        let drawn = (current.fetch_add(1 << 32, Ordering::AcqRel) >> 32) as u32;
        let next = drawn.wrapping_add(2); // the generation after it, and one more as a mark is not 0
        marked =
            mark.compare_exchange(0, next, Ordering::AcqRel, Ordering::Acquire).map_or_else(|other| other, |_| next);
    }
    marked.wrapping_sub(1)
}

/// Has the generation of this process kept in `mark` from now on, a word that the kernel sets to 0 in the child of every
/// fork (on Linux: in memory with `MADV_WIPEONFORK`). Says whether it was the first: one is enough.
///
/// The child of a raw `clone` is covered too, as its memory is copied by the same code of the kernel. With `CLONE_VM`
/// (`vfork`) there is no copy: until it calls `exec` the child is the parent's memory, and has the parent's generation.
pub fn keep_mark(mark: &'static AtomicU32) -> bool {
    mark.store(generation_by_id().wrapping_add(1), Ordering::Release);
    MARK.set(mark).is_ok()
}

/// Whether there is a [mark](keep_mark).
pub fn has_mark() -> bool {
    MARK.get().is_some()
}

fn generation_by_id() -> u32 {
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

/// What each process has one of: a child of a fork makes its own and leaves its parent's as it is.
///
/// The engine's statics are kept in these (or are plain atomics), because a lock that another thread held during the
/// fork stays locked in the child for ever. So there is none here either, nor in what initialises a `LazyLock`: two
/// threads that come first may both make a value, and one of the two is kept.
pub struct PerProcess<T> {
    made: ArcSwapOption<Made<T>>,
    make: fn() -> T,
}

/// A value and the generation that made it.
pub struct Made<T> {
    generation: u32,
    value: T,
}

impl<T> PerProcess<T> {
    /// One that `make` makes when it is asked for.
    pub const fn new(make: fn() -> T) -> Self {
        Self { made: ArcSwapOption::const_empty(), make }
    }

    /// This process's value.
    pub fn get(&self) -> Arc<Made<T>> {
        self.of(generation())
    }

    /// As [`get`](Self::get), for a caller that knows the generation of this process.
    pub(crate) fn of(&self, generation: u32) -> Arc<Made<T>> {
        loop {
            let current = self.made.load_full();
            if let Some(made) = current.as_ref().filter(|made| made.generation == generation) {
                return Arc::clone(made);
            }
            let new = Arc::new(Made { generation, value: (self.make)() });
            let found = self.made.compare_and_swap(&current, Some(Arc::clone(&new)));
            if found.as_ref().map(Arc::as_ptr) == current.as_ref().map(Arc::as_ptr) {
                // The parent's, if there was one: not to be taken apart here.
                std::mem::forget(current);
                return new;
            }
        }
    }

    /// The value that was made last, which is this process's if it has asked for it. Makes no system call.
    pub(crate) fn last(&self) -> Guard<Option<Arc<Made<T>>>> {
        self.made.load()
    }

    /// Has this process start again with a new value, unless it has: `old` is the one that it had.
    pub(crate) fn renew(&self, old: &Arc<Made<T>>) {
        let new = Arc::new(Made { generation: old.generation, value: (self.make)() });
        self.made.compare_and_swap(old, Some(new));
    }
}

impl<T> Made<T> {
    pub(crate) fn generation(&self) -> u32 {
        self.generation
    }
}

impl<T> Deref for Made<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

/// An open file that has a lock: a lock file, or the socket of a session that the server ends with it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Shared {
    /// Who opened it.
    generation: u32,
    fd: RawFd,
    /// Device and inode.
    file: (u64, u64),
}

/// The files that a child of a fork should close. Not [`PerProcess`]: the child wants its parent's.
static SHARED: ArcSwapOption<Vec<Shared>> = ArcSwapOption::const_empty();

/// Changes [`SHARED`], and returns what it was.
fn change_shared(change: impl Fn(&[Shared]) -> Vec<Shared>) -> Option<Arc<Vec<Shared>>> {
    SHARED.rcu(|files| Some(Arc::new(change(files.as_ref().map_or(&[], |files| files)))))
}

/// Has a child of a fork close `file`, for as long as [`unshare`] was not called.
pub(crate) fn share(file: &File, metadata: &Metadata) {
    let shared = Shared { generation: generation(), fd: file.as_raw_fd(), file: (metadata.dev(), metadata.ino()) };
    change_shared(|files| files.iter().copied().chain([shared]).collect());
}

/// Has a child of a fork close a socket for as long as this lives, which is to end before the socket is closed.
pub(crate) struct SharedSocket(Option<Shared>);

impl SharedSocket {
    pub(crate) fn new(socket: &impl AsRawFd) -> Self {
        let fd = socket.as_raw_fd();
        let metadata = fs::metadata(format!("/dev/fd/{fd}")).ok();
        let shared =
            metadata.map(|metadata| Shared { generation: generation(), fd, file: (metadata.dev(), metadata.ino()) });
        if let Some(shared) = shared {
            change_shared(|files| files.iter().copied().chain([shared]).collect());
        }
        Self(shared)
    }
}

impl Drop for SharedSocket {
    fn drop(&mut self) {
        if let Some(shared) = self.0 {
            change_shared(|files| files.iter().copied().filter(|other| *other != shared).collect());
        }
    }
}

/// To be called before `file` is closed.
pub(crate) fn unshare(file: &File) {
    let (own, fd) = (generation(), file.as_raw_fd());
    change_shared(|files| files.iter().copied().filter(|other| other.generation != own || other.fd != fd).collect());
}

/// The descriptors of lock files, and of sessions of PostgreSQL, that this process has inherited by a fork: to be closed at
/// once, by the binding's after-fork-in-child hook, and each is named only once.
///
/// An open lock file keeps its lock, and an open socket its session, for as long as *any* process has it open. A parent that releases frees it
/// for all, but if the parent is killed while it holds, a child that lives on would keep the lock. Closing
/// (never unlocking, nor saying goodbye: that would free the parent's lock) is all that is needed. The engine does not use or close
/// these descriptors in the child. A descriptor that another thread was opening during the fork is not
/// among them; after `exec` there is nothing to do, they are closed by it.
pub fn inherited_fds() -> Vec<RawFd> {
    let own = generation();
    let before = change_shared(|files| files.iter().copied().filter(|file| file.generation == own).collect());
    let before = before.iter().flat_map(|before| before.iter());
    before.filter(|shared| shared.generation != own && shared.is_inherited()).map(|shared| shared.fd).collect()
}

impl Shared {
    /// Whether the descriptor is that file here. A fork copies the descriptors before the memory, so that a file that
    /// another thread opened in between is known here, but not open: its number is free, or something else.
    fn is_inherited(&self) -> bool {
        let open = fs::metadata(format!("/dev/fd/{}", self.fd));
        open.is_ok_and(|open| (open.dev(), open.ino()) == self.file)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn a_child_has_values_of_its_own() {
        static VALUE: PerProcess<Mutex<u32>> = PerProcess::new(Mutex::default);
        let (parents, own) = (VALUE.get(), generation());
        let held = parents.lock().unwrap();
        let childs = VALUE.of(own + 1);
        assert_eq!((parents.generation(), childs.generation(), *childs.lock().unwrap()), (own, own + 1, 0));
        assert!(Arc::ptr_eq(&VALUE.of(own + 1), &childs));
        drop(held);
        VALUE.renew(&childs);
        let renewed = VALUE.of(own + 1);
        assert!(!Arc::ptr_eq(&renewed, &childs) && !Arc::ptr_eq(&renewed, &parents));
        VALUE.renew(&childs);
        assert!(Arc::ptr_eq(&VALUE.of(own + 1), &renewed), "it was not the last");
    }

    #[test]
    fn one_mark_is_enough() {
        static MARK: AtomicU32 = AtomicU32::new(0);
        static SECOND: AtomicU32 = AtomicU32::new(0);
        let own = generation();
        assert!(keep_mark(&MARK) && has_mark() && !keep_mark(&SECOND));
        assert_eq!((generation(), MARK.load(Ordering::Acquire)), (own, own + 1));
    }

    #[test]
    fn a_wiped_mark_is_a_new_generation_for_all_threads() {
        let (mark, current) = (AtomicU32::new(0), AtomicU64::new((7 << 32) | 1));
        let mut last = 7;
        for _ in 0..100 {
            mark.store(0, Ordering::Release);
            let found: Vec<u32> = std::thread::scope(|scope| {
                let ask = || scope.spawn(|| generation_by_mark(&mark, &current));
                let threads = [ask(), ask(), ask()];
                threads.map(|thread| thread.join().unwrap()).to_vec()
            });
            assert!(found[0] > last && found.iter().all(|generation| *generation == found[0]), "{last} {found:?}");
            last = generation_by_mark(&mark, &current);
            assert_eq!((last, current.load(Ordering::Acquire) as u32), (found[0], 1));
        }
    }

    #[test]
    fn only_what_is_open_was_inherited() {
        let file = File::open(std::env::current_exe().unwrap()).unwrap();
        let (here, other) = (file.metadata().unwrap(), fs::metadata("/").unwrap());
        let shared = |metadata: &Metadata| Shared {
            generation: 0,
            fd: file.as_raw_fd(),
            file: (metadata.dev(), metadata.ino()),
        };
        assert!(shared(&here).is_inherited() && !shared(&other).is_inherited());
        let closed = Shared { fd: RawFd::MAX, ..shared(&here) };
        assert!(!closed.is_inherited());
    }
}
