//! The boundary to hosts whose event loop cannot watch a descriptor (Bun): a thread does, and wakes the environment by one
//! weak threadsafe function, once for all that has happened until then.
//!
//! Everything but [`watch`] happens on the thread of the environment.

use std::{
    ffi::c_void,
    io::{PipeReader, PipeWriter},
    os::fd::{BorrowedFd, OwnedFd},
    ptr,
    rc::Rc,
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread::{self, JoinHandle},
};

use napi::{Env, sys};
use rustix::event::{PollFd, PollFlags, poll};

use crate::uv::Watched;

/// Watches a descriptor for as long as the environment lives.
pub(crate) struct Watcher {
    env: sys::napi_env,
    function: Function,
}

/// A threadsafe function: the same for all threads.
#[derive(Clone, Copy)]
struct Function(sys::napi_threadsafe_function);

// SAFETY: that is what it is for. Which calls the environment's thread alone may make is said where they are made.
unsafe impl Send for Function {}

/// What the threadsafe function is called with, freed with it.
struct Context {
    watched: Rc<dyn Watched>,
    turns: Arc<Turns>,
}

/// Whether the environment has looked since it was woken last: until then there is nothing to wake it for.
#[derive(Default)]
struct Turns {
    looked: Mutex<bool>,
    changed: Condvar,
}

impl Turns {
    fn looked(&self) {
        *self.looked.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    fn wait(&self) {
        let looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        let looked = self.changed.wait_while(looked, |looked| !*looked);
        *looked.unwrap_or_else(PoisonError::into_inner) = false;
    }
}

/// What the end of the environment needs.
struct End {
    watched: Rc<dyn Watched>,
    turns: Arc<Turns>,
    /// Closing it ends the thread.
    running: PipeWriter,
    thread: JoinHandle<()>,
}

impl Watcher {
    /// Watches `fd` for `env`; the process does not stay alive for it until [`keep_alive`](Self::keep_alive).
    ///
    /// # Errors
    /// A sentence, if the host has no threadsafe functions or the system no thread.
    pub(crate) fn start(env: Env, fd: BorrowedFd<'_>, watched: Rc<dyn Watched>) -> Result<Self, String> {
        let env = env.raw();
        let fd = fd.try_clone_to_owned().map_err(|error| error.to_string())?;
        let (ended, running) = std::io::pipe().map_err(|error| error.to_string())?;
        let turns = Arc::new(Turns::default());
        let context = Box::new(Context { watched: Rc::clone(&watched), turns: Arc::clone(&turns) });
        let function = make_function(env, context)?;
        let of_thread = Arc::clone(&turns);
        let thread = thread::Builder::new()
            .name("polylock-loop".into())
            .spawn(move || watch(&fd, &ended, function, &of_thread))
            .map_err(|error| error.to_string())?;
        let end = Box::into_raw(Box::new(End { watched, turns, running, thread }));
        // SAFETY: `env` is live; the hook runs once, on this thread, and takes `end` over.
        if unsafe { sys::napi_add_env_cleanup_hook(env, Some(on_environment_end), end.cast()) } != 0 {
            return Err("this runtime does not tell of its end".into());
        }
        Ok(Self { env, function })
    }

    /// Whether the process stays alive for this.
    ///
    /// Must not be called after [`Watched::ending`].
    pub(crate) fn keep_alive(&self, alive: bool) {
        let Function(function) = self.function;
        // SAFETY: this is the thread of the environment, and the function lives as long as that.
        unsafe {
            if alive {
                sys::napi_ref_threadsafe_function(self.env, function)
            } else {
                sys::napi_unref_threadsafe_function(self.env, function)
            }
        };
    }
}

/// The function that wakes the environment, and keeps no process alive.
fn make_function(env: sys::napi_env, context: Box<Context>) -> Result<Function, String> {
    let context: *mut c_void = Box::into_raw(context).cast();
    let (mut name, mut function) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: `env` is live, the name is ASCII of that length, and the places for the answers are valid. The context
    // lives until `on_function_end`, which comes after the last call with an environment.
    let status = unsafe {
        let text = c"polylock";
        sys::napi_create_string_latin1(env, text.as_ptr(), 8, &raw mut name)
            | sys::napi_create_threadsafe_function(
                env,
                ptr::null_mut(),
                ptr::null_mut(),
                name,
                0,
                1,
                context,
                Some(on_function_end),
                context,
                Some(on_woken),
                &raw mut function,
            )
    };
    if status != 0 {
        // SAFETY: nobody took it over.
        drop(unsafe { Box::<Context>::from_raw(context.cast()) });
        return Err(format!("this runtime cannot be woken (error {status})"));
    }
    // SAFETY: it was just made, on this thread.
    unsafe { sys::napi_unref_threadsafe_function(env, function) };
    Ok(Function(function))
}

/// On a thread of its own: wakes the environment whenever the descriptor is readable, until `ended` is.
fn watch(fd: &OwnedFd, ended: &PipeReader, function: Function, turns: &Turns) {
    let Function(function) = function;
    loop {
        let mut fds = [PollFd::new(fd, PollFlags::IN), PollFd::new(ended, PollFlags::IN)];
        let polled = poll(&mut fds, None);
        if polled == Err(rustix::io::Errno::INTR) {
            continue;
        }
        let is_over = polled.is_err() || !fds[1].revents().is_empty();
        // SAFETY: the function lives until this thread has released it; these may be called on any thread.
        unsafe {
            let mode = sys::ThreadsafeFunctionCallMode::nonblocking;
            if is_over || sys::napi_call_threadsafe_function(function, ptr::null_mut(), mode) != 0 {
                sys::napi_release_threadsafe_function(function, sys::ThreadsafeFunctionReleaseMode::release);
                return;
            }
        }
        turns.wait();
    }
}

/// # Safety
/// Called by the host, on the thread of the environment, with the context of [`make_function`].
unsafe extern "C" fn on_woken(env: sys::napi_env, _: sys::napi_value, context: *mut c_void, _: *mut c_void) {
    if env.is_null() {
        return; // it was called when the environment had ended, and the context with it
    }
    // SAFETY: the context lives until `on_function_end`.
    let (watched, turns) = unsafe {
        let context: *const Context = context.cast();
        (Rc::clone(&(*context).watched), Arc::clone(&(*context).turns))
    };
    watched.readable(Env::from_raw(env));
    turns.looked();
}

/// # Safety
/// Called by the host, once, on the thread of the environment, with the context of [`make_function`].
unsafe extern "C" fn on_function_end(_: sys::napi_env, context: *mut c_void, _: *mut c_void) {
    // SAFETY: it came out of a box, and nobody uses it any more.
    drop(unsafe { Box::<Context>::from_raw(context.cast()) });
}

/// # Safety
/// Called by the host at the end of the environment, once, with what [`Watcher::start`] gave it.
unsafe extern "C" fn on_environment_end(end: *mut c_void) {
    // SAFETY: it came out of a box.
    let end = unsafe { Box::<End>::from_raw(end.cast()) };
    end.watched.ending();
    drop(end.running);
    // It may wait for a turn that will not come.
    end.turns.looked();
    // It panics nowhere.
    let _ = end.thread.join();
}
