//! The boundary to libuv: watches the engine's descriptor, and its sockets, on the loop of a Node environment.
//!
//! Everything here happens on the thread of the environment: [`Watcher`] holds raw pointers and is neither `Send` nor
//! `Sync`.

use std::{
    alloc::{Layout, alloc_zeroed, dealloc},
    cell::RefCell,
    collections::HashSet,
    ffi::{c_int, c_void},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    ptr::{self, NonNull},
    rc::Rc,
};

use napi::{Env, sys};
use polylock::host::HostSocket;

/// What is told of the descriptor and of the environment's end.
pub(crate) trait Watched {
    /// The descriptor is readable.
    fn readable(&self, env: Env);
    /// A socket of [`Watcher::watch`] is readable. `false`: it is to be watched no longer; then nothing of JavaScript ran.
    fn socket_readable(&self, env: Env, socket: &HostSocket) -> bool;
    /// The loop is about to wait; told after [`Watcher::before_wait`].
    fn flush(&self);
    /// The environment ends; nothing is told afterwards.
    fn ending(&self);
}

/// `uv_handle_type`s: their order is part of libuv's stable interface.
const UV_POLL: c_int = 8;
const UV_PREPARE: c_int = 9;
/// `UV_READABLE` of `enum uv_poll_event`.
const READABLE: c_int = 1;
/// More than `max_align_t` needs, for handles whose size only libuv knows.
const ALIGN: usize = 16;

/// A `uv_handle_t`, whose layout only libuv knows.
#[repr(C)]
struct Handle {
    _opaque: [u8; 0],
}

type Callback = unsafe extern "C" fn(*mut Handle);

// SAFETY: the declarations of uv.h of libuv 1; Node exports these to addons.
unsafe extern "C" {
    fn uv_handle_size(kind: c_int) -> usize;
    fn uv_poll_init(uv_loop: *mut sys::uv_loop_s, handle: *mut Handle, fd: c_int) -> c_int;
    fn uv_poll_start(
        handle: *mut Handle,
        events: c_int,
        callback: unsafe extern "C" fn(*mut Handle, c_int, c_int),
    ) -> c_int;
    fn uv_poll_stop(handle: *mut Handle) -> c_int;
    fn uv_prepare_init(uv_loop: *mut sys::uv_loop_s, handle: *mut Handle) -> c_int;
    fn uv_prepare_start(handle: *mut Handle, callback: Callback) -> c_int;
    fn uv_prepare_stop(handle: *mut Handle) -> c_int;
    fn uv_close(handle: *mut Handle, callback: Callback);
    fn uv_ref(handle: *mut Handle);
    fn uv_unref(handle: *mut Handle);
    fn uv_handle_set_data(handle: *mut Handle, data: *mut c_void);
    fn uv_handle_get_data(handle: *const Handle) -> *mut c_void;
}

/// Watches a descriptor for as long as the environment lives.
///
/// The handles are freed by the environment's end, and by nothing else: so this is for things that live as long.
pub(crate) struct Watcher {
    poll: NonNull<Handle>,
    prepare: NonNull<Handle>,
}

/// What the data of both handles points to.
struct Context {
    env: sys::napi_env,
    uv_loop: *mut sys::uv_loop_s,
    watched: Rc<dyn Watched>,
    hook: sys::napi_async_cleanup_hook_handle,
    prepare: NonNull<Handle>,
    /// The handles of sockets that are not closing.
    sockets: RefCell<HashSet<NonNull<Handle>>>,
}

/// What the data of a socket's handle points to. The context lives until the handle is closing.
struct SocketContext {
    context: *const Context,
    socket: HostSocket,
}

impl Watcher {
    /// Watches `fd` on the loop of `env`; the loop does not stay alive for it until [`keep_alive`](Self::keep_alive).
    ///
    /// # Errors
    /// A sentence, if the host has no libuv or its loop cannot watch the descriptor.
    pub(crate) fn start(env: Env, fd: BorrowedFd<'_>, watched: Rc<dyn Watched>) -> Result<Self, String> {
        let mut uv_loop = ptr::null_mut();
        // SAFETY: `env` is live (this runs in one of its calls), and `uv_loop` is a valid place for the answer.
        if unsafe { sys::napi_get_uv_event_loop(env.raw(), &raw mut uv_loop) } != 0 || uv_loop.is_null() {
            return Err("this runtime has no libuv event loop".into());
        }
        let (poll, prepare) = (allocate(UV_POLL)?, allocate(UV_PREPARE)?);
        // SAFETY: the loop is live, the handle is of libuv's size for this kind, and the descriptor is open.
        let status = unsafe { uv_poll_init(uv_loop, poll.as_ptr(), fd.as_raw_fd()) };
        if status != 0 {
            // SAFETY: libuv did not take the handles over.
            unsafe {
                free(poll.as_ptr(), UV_POLL);
                free(prepare.as_ptr(), UV_PREPARE);
            }
            return Err(format!("the event loop cannot watch the engine (libuv error {status})"));
        }
        let (env, hook, sockets) = (env.raw(), ptr::null_mut(), RefCell::default());
        let context = Box::into_raw(Box::new(Context { env, uv_loop, watched, hook, prepare, sockets }));
        // SAFETY: the handles are initialised (the second one by a call that cannot fail); they and `context` live
        // until they are closed, which the cleanup hook brings about. Node runs the hook on this thread while the
        // loop still turns.
        let status = unsafe {
            uv_prepare_init(uv_loop, prepare.as_ptr());
            for handle in [poll, prepare] {
                uv_handle_set_data(handle.as_ptr(), context.cast());
                uv_unref(handle.as_ptr());
            }
            let started = uv_poll_start(poll.as_ptr(), READABLE, on_readable);
            let hooked = sys::napi_add_async_cleanup_hook(
                env,
                Some(on_environment_end),
                poll.as_ptr().cast(),
                &raw mut (*context).hook,
            );
            if started != 0 || hooked != 0 {
                uv_close(prepare.as_ptr(), on_prepare_closed);
                uv_close(poll.as_ptr(), on_closed);
            }
            started | hooked
        };
        if status != 0 {
            return Err(format!("the event loop does not watch the engine (error {status})"));
        }
        Ok(Self { poll, prepare })
    }

    /// Watches a socket, too, until [`Watched::socket_readable`] says that it has ended. The loop does not stay alive for it.
    ///
    /// Must not be called after [`Watched::ending`].
    ///
    /// # Errors
    /// If the loop cannot watch it.
    pub(crate) fn watch(&self, socket: &HostSocket) -> Result<(), String> {
        let poll = allocate(UV_POLL)?;
        // SAFETY: our handle and its context are live until the environment ends, and so is the loop. The new handle is
        // of libuv's size for its kind; the socket is open until the handle is closed, as is what its data points to.
        unsafe {
            let context: *const Context = uv_handle_get_data(self.poll.as_ptr()).cast();
            let status = uv_poll_init((*context).uv_loop, poll.as_ptr(), socket.as_fd().as_raw_fd());
            if status != 0 {
                free(poll.as_ptr(), UV_POLL);
                return Err(format!("the event loop cannot watch a socket (libuv error {status})"));
            }
            let data = Box::into_raw(Box::new(SocketContext { context, socket: socket.clone() }));
            uv_handle_set_data(poll.as_ptr(), data.cast());
            uv_unref(poll.as_ptr());
            (*context).sockets.borrow_mut().insert(poll);
            // It fails for a handle that is closing alone.
            uv_poll_start(poll.as_ptr(), READABLE, on_socket_readable);
        }
        Ok(())
    }

    /// Whether the loop, and so the process, stays alive for this.
    ///
    /// Must not be called after [`Watched::ending`].
    pub(crate) fn keep_alive(&self, alive: bool) {
        // SAFETY: the handle is live until the environment ends.
        unsafe { if alive { uv_ref(self.poll.as_ptr()) } else { uv_unref(self.poll.as_ptr()) } }
    }

    /// Has [`Watched::flush`] called once before the loop waits. Costs no system call.
    ///
    /// Must not be called after [`Watched::ending`].
    pub(crate) fn before_wait(&self) {
        // SAFETY: as above. It fails for a callback that is null alone.
        unsafe { uv_prepare_start(self.prepare.as_ptr(), on_prepare) };
    }
}

fn layout(kind: c_int) -> Result<Layout, String> {
    // SAFETY: a pure function.
    let size = unsafe { uv_handle_size(kind) };
    Layout::from_size_align(size, ALIGN).map_err(|error| error.to_string())
}

fn allocate(kind: c_int) -> Result<NonNull<Handle>, String> {
    let layout = layout(kind)?;
    if layout.size() == 0 {
        return Err("this runtime's libuv lacks a kind of handle".into());
    }
    // SAFETY: the size is not 0.
    let memory = unsafe { alloc_zeroed(layout) };
    NonNull::new(memory.cast()).ok_or_else(|| "out of memory".into())
}

/// # Safety
/// `handle` came from [`allocate`] with this kind, and nobody uses it any more.
unsafe fn free(handle: *mut Handle, kind: c_int) {
    if let Ok(layout) = layout(kind) {
        // SAFETY: the caller's promise; the layout is the one of the allocation.
        unsafe { dealloc(handle.cast(), layout) };
    }
}

/// # Safety
/// Called by libuv with a handle that [`Watcher::start`] made.
unsafe extern "C" fn on_readable(handle: *mut Handle, _status: c_int, _events: c_int) {
    // SAFETY: the data is the context until the handle closes, and a closing handle gets no call of this.
    let (env, watched) = unsafe {
        let context: *const Context = uv_handle_get_data(handle).cast();
        ((*context).env, Rc::clone(&(*context).watched))
    };
    // SAFETY: the environment is live: its cleanup hook would have closed the handle.
    unsafe { in_scope(env, |env| watched.readable(env)) };
}

/// Values that JavaScript is called with need a scope where nothing of JavaScript is below on the stack. `None` if there is none.
///
/// # Safety
/// `env` is live.
unsafe fn in_scope<R>(env: sys::napi_env, body: impl FnOnce(Env) -> R) -> Option<R> {
    let mut scope = ptr::null_mut();
    // SAFETY: the caller's promise, and a valid place for the answer.
    unsafe {
        if sys::napi_open_handle_scope(env, &raw mut scope) != 0 {
            return None;
        }
        let result = body(Env::from_raw(env));
        sys::napi_close_handle_scope(env, scope);
        Some(result)
    }
}

/// # Safety
/// Called by libuv with a handle that [`Watcher::watch`] made.
unsafe extern "C" fn on_socket_readable(handle: *mut Handle, status: c_int, _events: c_int) {
    // SAFETY: the data lives until the handle is closed, and the context until it is closing. They may do so while
    // JavaScript runs below, so nothing of them is used after that.
    let (context, env, watched, socket) = unsafe {
        if status < 0 {
            // The socket has an error, and libuv watches it no longer. There may be more to read before that.
            uv_poll_start(handle, READABLE, on_socket_readable);
        }
        let data: *const SocketContext = uv_handle_get_data(handle).cast();
        let context = (*data).context;
        (context, (*context).env, Rc::clone(&(*context).watched), (*data).socket.clone())
    };
    // SAFETY: as in `on_readable`; and where a socket has ended no JavaScript has run, so the handle is live.
    unsafe {
        let goes_on = in_scope(env, |env| watched.socket_readable(env, &socket));
        if goes_on == Some(false)
            && let Some(poll) = NonNull::new(handle)
        {
            (*context).sockets.borrow_mut().remove(&poll);
            uv_close(handle, on_socket_closed);
        }
    }
}

/// # Safety
/// As [`on_readable`].
unsafe extern "C" fn on_prepare(handle: *mut Handle) {
    // SAFETY: as there.
    let watched = unsafe {
        uv_prepare_stop(handle);
        let context: *const Context = uv_handle_get_data(handle).cast();
        Rc::clone(&(*context).watched)
    };
    watched.flush();
}

/// # Safety
/// Called by Node at the end of the environment, with the handle that [`Watcher::start`] gave it.
unsafe extern "C" fn on_environment_end(_hook: sys::napi_async_cleanup_hook_handle, handle: *mut c_void) {
    let handle: *mut Handle = handle.cast();
    // SAFETY: the handles and their context are live until `on_closed`.
    unsafe {
        let context: *const Context = uv_handle_get_data(handle).cast();
        let watched = Rc::clone(&(*context).watched);
        uv_poll_stop(handle);
        watched.ending();
        for socket in (*context).sockets.take() {
            uv_close(socket.as_ptr(), on_socket_closed);
        }
        uv_close((*context).prepare.as_ptr(), on_prepare_closed);
        uv_close(handle, on_closed);
    }
}

/// # Safety
/// Called by libuv when it is done with a handle that [`Watcher::watch`] made.
unsafe extern "C" fn on_socket_closed(handle: *mut Handle) {
    // SAFETY: nobody else has the handle any more, nor what its data points to.
    unsafe {
        let data: *mut SocketContext = uv_handle_get_data(handle).cast();
        drop(Box::from_raw(data));
        free(handle, UV_POLL);
    }
}

/// # Safety
/// Called by libuv when it is done with a handle that [`Watcher::start`] made.
unsafe extern "C" fn on_prepare_closed(handle: *mut Handle) {
    // SAFETY: nobody else has the handle any more.
    unsafe { free(handle, UV_PREPARE) };
}

/// # Safety
/// Called by libuv when it is done with a handle that [`Watcher::start`] made.
unsafe extern "C" fn on_closed(handle: *mut Handle) {
    // SAFETY: nobody else has the context or the handle any more: a handle that is closed gets no other call.
    let context = unsafe {
        let context: *mut Context = uv_handle_get_data(handle).cast();
        free(handle, UV_POLL);
        Box::from_raw(context)
    };
    if !context.hook.is_null() {
        // SAFETY: it was not removed before; the environment waits for this.
        unsafe { sys::napi_remove_async_cleanup_hook(context.hook) };
    }
}

/// Calls a function of JavaScript from the loop, and then lets promises go on.
pub(crate) fn call_from_loop(env: Env, function: sys::napi_value, arguments: &[sys::napi_value]) {
    let env = env.raw();
    let (mut global, mut result) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: `env` is live and a handle scope is open, in which the arguments were made; the places for the answers
    // are valid.
    unsafe {
        if sys::napi_get_global(env, &raw mut global) != 0 {
            return;
        }
        let (count, first) = (arguments.len(), arguments.as_ptr());
        let status = sys::napi_make_callback(env, ptr::null_mut(), global, function, count, first, &raw mut result);
        if status == sys::Status::napi_pending_exception {
            // It came out of the package's own code: a bug that nobody could catch, so the process hears of it.
            let mut exception = ptr::null_mut();
            if sys::napi_get_and_clear_last_exception(env, &raw mut exception) == 0 {
                sys::napi_fatal_exception(env, exception);
            }
        }
    }
}
