//! A word that the kernel sets to 0 in the child of a fork, by which the engine knows in a nanosecond whether it still is
//! in the process that it was in: asking for the process id is a system call, and a pair of calls took six of them.
//!
//! For all bindings, so that the engine itself has no `unsafe`.

#[cfg(target_os = "linux")]
use std::{ptr, sync::atomic::AtomicU32};

/// Gives the engine its mark, if it has none. Without one (another system, a Linux before 4.14, an emulator) it asks for
/// the process id as ever.
pub fn give() {
    #[cfg(target_os = "linux")]
    if !polylock::host::has_mark()
        && let Some(page) = Page::new()
        && !polylock::host::keep_mark(page.word())
    {
        page.free(); // another thread was first
    }
}

/// Memory of its own, since wiping is by the page.
#[cfg(target_os = "linux")]
struct Page(*mut libc::c_void);

#[cfg(target_os = "linux")]
impl Page {
    const SIZE: usize = size_of::<AtomicU32>(); // the kernel rounds it up to a page

    fn new() -> Option<Self> {
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: new memory, wherever the kernel likes.
        let memory = unsafe { libc::mmap(ptr::null_mut(), Self::SIZE, access, kind, -1, 0) };
        if memory == libc::MAP_FAILED {
            return None;
        }
        let page = Self(memory);
        // Some versions of qemu accept whatever advice there is, and do not follow it.
        if !page.advise(-1) && page.advise(libc::MADV_WIPEONFORK) {
            return Some(page);
        }
        page.free();
        None
    }

    fn advise(&self, advice: libc::c_int) -> bool {
        // SAFETY: all of the page is ours and nobody uses it yet.
        unsafe { libc::madvise(self.0, Self::SIZE, advice) == 0 }
    }

    fn word(&self) -> &'static AtomicU32 {
        // SAFETY: a page is aligned and long enough, begins as zeros, and is only freed if the engine has no use for it.
        unsafe { AtomicU32::from_ptr(self.0.cast()) }
    }

    fn free(self) {
        // SAFETY: it is ours, and nobody has a reference to it.
        unsafe { libc::munmap(self.0, Self::SIZE) };
    }
}
